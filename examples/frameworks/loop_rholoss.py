"""loop.py and a few lines more: trained on the examples that RHO-LOSS chooses."""

import torch
from task import EPOCHS, make_model, make_small_model, report, seeded, train_set
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector

model = make_model()
loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
store = IrreducibleLossStore.from_model(make_small_model(), train_set)
loader = RhoLossSelector(loader, model, store, keep=0.25)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(EPOCHS):
    for batch in loader:
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
report(model)
