"""A loop with Hugging Face Accelerate."""

import torch
from accelerate import Accelerator
from task import EPOCHS, make_model, report, seeded, train_set
from torch.utils.data import DataLoader

accelerator = Accelerator(gradient_accumulation_steps=2)
model = make_model()
loader = DataLoader(train_set, batch_size=16, shuffle=True, generator=seeded())
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
for _ in range(EPOCHS):
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch)["loss"])
            optimizer.step()
            optimizer.zero_grad()
report(accelerator.unwrap_model(model).to("cpu"))
