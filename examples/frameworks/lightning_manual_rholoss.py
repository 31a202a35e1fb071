"""lightning_manual.py and a few lines more: trained on the examples that RHO-LOSS chooses."""

import torch
from lightning import LightningModule, Trainer
from task import EPOCHS, make_model, make_small_model, report, seeded, train_set
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector

store = IrreducibleLossStore.from_model(make_small_model(), train_set)


class Module(LightningModule):
    """Trains the classifier."""

    def __init__(self):
        super().__init__()
        self.model = make_model()
        self.automatic_optimization = False

    def train_dataloader(self):
        loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
        return RhoLossSelector(loader, self.model, store, keep=0.25)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.model(**batch)["loss"])
        optimizer.step()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


module = Module()
trainer = Trainer(max_epochs=EPOCHS, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(module)
report(module.model.to("cpu"))
