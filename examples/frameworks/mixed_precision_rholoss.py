"""mixed_precision.py and a few lines more: trained on the examples that RHO-LOSS chooses."""

import torch
from task import EPOCHS, make_model, make_small_model, report, seeded, train_set
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector

device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.compile(make_model().to(device))
loader = DataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
store = IrreducibleLossStore.from_model(make_small_model(), train_set)
loader = RhoLossSelector(loader, model, store, keep=0.25)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
scaler = torch.amp.GradScaler(device, enabled=device == "cuda")
for _ in range(EPOCHS):
    for batch in loader:
        optimizer.zero_grad()
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**{name: column.to(device) for name, column in batch.items()})["loss"]
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
report(model.to("cpu"))
