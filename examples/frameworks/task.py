"""What the scripts beside this one train on: handwritten digits as dicts, 30 % of the training labels wrong."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import Dataset

from rholoss import fit_irreducible_model

EPOCHS = 30

digits = load_digits()
images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
_generator = torch.Generator().manual_seed(0)
trusted, validation, training, test = torch.randperm(len(images), generator=_generator).split([300, 100, 900, 497])
given_labels = labels.clone()
wrong = training[:270]
given_labels[wrong] = (labels[wrong] + torch.randint(1, 10, (270,), generator=_generator)) % 10


class Digits(Dataset):
    """Some of the digits; each is a dict, as in the data sets of the frameworks."""

    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return {"pixels": images[self.rows[i]], "labels": given_labels[self.rows[i]]}


class Classifier(nn.Module):
    """Returns logits, and with labels the mean loss too."""

    def __init__(self, width=128):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 10))

    def forward(self, pixels, labels=None):
        logits = self.layers(pixels)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


train_set = Digits(training)


def make_model(seed=1):
    torch.manual_seed(seed)
    return Classifier()


def make_small_model():
    """The irreducible-loss model, trained on digits that are in no other set."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        small_model = Classifier(width=32)
    fit_irreducible_model(small_model, Digits(trusted), Digits(validation), epochs=30, batch_size=32)
    return small_model


def seeded():
    """The generator of the loaders' order."""
    return torch.Generator().manual_seed(2)


def report(model):
    model.eval()
    with torch.no_grad():
        right = model(images[test])["logits"].argmax(1) == labels[test]
    print(f"{right.float().mean():.1%} of the test digits are right")
