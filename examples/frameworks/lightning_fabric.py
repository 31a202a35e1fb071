"""A loop with Lightning Fabric."""

import torch
from lightning import Fabric
from task import EPOCHS, make_model, report, seeded, train_set
from torch.utils.data import DataLoader

fabric = Fabric(devices=1)
model = make_model()
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
loader = fabric.setup_dataloaders(loader)
for _ in range(EPOCHS):
    for batch in loader:
        optimizer.zero_grad()
        fabric.backward(model(**batch)["loss"])
        optimizer.step()
report(model.module.to("cpu"))
