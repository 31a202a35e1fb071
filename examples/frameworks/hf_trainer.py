"""The Trainer of Hugging Face transformers."""

import sys

import torch
from task import EPOCHS, make_model, report, train_set
from transformers import Trainer, TrainingArguments

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
trainer = Trainer(model, arguments, train_dataset=train_set, optimizers=(optimizer, None))
trainer.train()
report(trainer.model.to("cpu"))
