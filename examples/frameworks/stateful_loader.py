"""A loop over torchdata's StatefulDataLoader, whose state is a part of the checkpoint: run it again, and it resumes."""

import sys
from pathlib import Path

import torch
from task import EPOCHS, make_model, report, seeded, train_set
from torchdata.stateful_dataloader import StatefulDataLoader

path = Path(sys.argv[1] if len(sys.argv) > 1 else "checkpoint.pt")
model, begin = make_model(), 0
loader = StatefulDataLoader(train_set, batch_size=32, shuffle=True, generator=seeded())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
parts = {"model": model, "optimizer": optimizer, "loader": loader}
if path.exists():
    saved = torch.load(path, weights_only=True)
    begin = saved.pop("epoch")
    torch.set_rng_state(saved.pop("rng"))
    for name, state in saved.items():
        parts[name].load_state_dict(state)
for epoch in range(begin, EPOCHS):
    for batch in loader:
        optimizer.zero_grad()
        model(**batch)["loss"].backward()
        optimizer.step()
        states = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**states, "epoch": epoch, "rng": torch.get_rng_state()}, path)
report(model)
