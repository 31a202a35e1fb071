"""plain_loop.py and three lines more: a model of the trusted digits tells which of the others are worth training on."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector

torch.manual_seed(0)
digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
trusted, training, test = torch.randperm(len(images)).split([300, 1000, 497])
given_labels = labels[training]
given_labels[:300] = (given_labels[:300] + torch.randint(1, 10, (300,))) % 10
trusted_set, train_set = TensorDataset(images[trusted], labels[trusted]), TensorDataset(images[training], given_labels)


def train(model, loader, epochs):
    steps = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            steps += 1
    model.eval()
    accuracy = (model(images[test]).argmax(1) == labels[test]).float().mean().item()
    print(f"{accuracy:.1%} of the test digits are right after {steps:,} steps")


def make_model():
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))


small_model = make_model()
train(small_model, DataLoader(trusted_set, batch_size=32, shuffle=True), epochs=100)

model = make_model()
loader = DataLoader(train_set, batch_size=32, shuffle=True)
store = IrreducibleLossStore.from_model(small_model, train_set)
loader = RhoLossSelector(loader, model, store, keep=0.1)
train(model, loader, epochs=100)
