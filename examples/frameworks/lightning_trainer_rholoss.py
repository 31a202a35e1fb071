"""lightning_trainer.py and a few lines more: trained on the examples that RHO-LOSS chooses."""

import torch
from lightning import LightningModule, Trainer
from task import EPOCHS, make_model, make_small_model, report, seeded, train_set
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector


class Module(LightningModule):
    """Trains the classifier."""

    def __init__(self):
        super().__init__()
        self.model = make_model()

    def training_step(self, batch, batch_idx):
        return self.model(**batch)["loss"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


module = Module()
loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
store = IrreducibleLossStore.from_model(make_small_model(), train_set)
loader = RhoLossSelector(loader, module.model, store, keep=0.25)
trainer = Trainer(max_epochs=EPOCHS, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(module, loader)
report(module.model.to("cpu"))
