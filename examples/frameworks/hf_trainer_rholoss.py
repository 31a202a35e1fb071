"""hf_trainer.py and a few lines more: trained on the examples that RHO-LOSS chooses."""

import sys

import torch
from task import EPOCHS, make_model, make_small_model, report, train_set
from transformers import Trainer, TrainingArguments

from rholoss import IrreducibleLossStore, RhoLossSelector
from rholoss.integrations.transformers import SelectionMixin

store = IrreducibleLossStore.from_model(make_small_model(), train_set)


class RhoTrainer(SelectionMixin, Trainer):
    """A Trainer that trains on what RHO-LOSS chooses."""

    def make_selector(self, loader):
        return RhoLossSelector(loader, self.model, store, keep=0.25)


arguments = TrainingArguments(
    output_dir=sys.argv[1] if len(sys.argv) > 1 else "trainer",
    per_device_train_batch_size=32,
    num_train_epochs=EPOCHS,
    lr_scheduler_type="constant",
    max_grad_norm=0.0,
    seed=2,
    save_strategy="no",
    report_to="none",
)
model = make_model()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
trainer = RhoTrainer(model, arguments, train_dataset=train_set, optimizers=(optimizer, None))
trainer.train()
report(trainer.model.to("cpu"))
