"""A LightningModule that steps its optimizer itself: Lightning's manual optimization."""

import torch
from lightning import LightningModule, Trainer
from task import EPOCHS, make_model, report, seeded, train_set
from torch.utils.data import DataLoader


class Module(LightningModule):
    """Trains the classifier."""

    def __init__(self):
        super().__init__()
        self.model = make_model()
        self.automatic_optimization = False

    def train_dataloader(self):
        return DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())

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
