"""lightning_fabric.py and a few lines more: trained on the examples that RHO-LOSS chooses."""

import torch
from lightning import Fabric
from task import EPOCHS, make_model, make_small_model, report, seeded, train_set
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector

fabric = Fabric(devices=1)
model = make_model()
model, optimizer = fabric.setup(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
store = IrreducibleLossStore.from_model(make_small_model(), train_set)
loader = RhoLossSelector(loader, model, store, keep=0.25, device="model")
for _ in range(EPOCHS):
    for batch in loader:
        optimizer.zero_grad()
        fabric.backward(model(**batch)["loss"])
        optimizer.step()
report(model.module.to("cpu"))
