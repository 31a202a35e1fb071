import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rholoss import IrreducibleLossStore

FEATURES, CLASSES = 6, 4


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU here")


def make_net(seed):
    """A small classifier with BatchNorm and dropout."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, CLASSES))


def make_data(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, FEATURES, generator=generator), torch.randint(CLASSES, (n,), generator=generator))


def make_learnable_data(n, seed=0):
    """The class is that of the largest of the first features."""
    x, _ = make_data(n, seed).tensors
    return TensorDataset(x, x[:, :CLASSES].argmax(1))


class ReadLog(Dataset):
    """Remembers what was read of a dataset."""

    def __init__(self, data):
        self.data = data
        self.read = []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.read.append(index)
        return self.data[index]


@pytest.fixture
def data():
    return make_data(100)


@pytest.fixture
def net():
    return make_net(0)


@pytest.fixture
def loader():
    return DataLoader(make_data(320), batch_size=8)


@pytest.fixture
def store():
    return IrreducibleLossStore(torch.rand(320, generator=torch.Generator().manual_seed(1)))
