"""A loop in plain PyTorch."""

import torch
from task import EPOCHS, make_model, report, seeded, train_set
from torch.utils.data import DataLoader

model = make_model()
loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
for _ in range(EPOCHS):
    for batch in loader:
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
report(model)
