import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

FEATURES, CLASSES = 6, 4


def make_net(seed):
    """A small classifier with BatchNorm and dropout."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(FEATURES, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, CLASSES))


def make_data(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, FEATURES, generator=generator), torch.randint(CLASSES, (n,), generator=generator))


@pytest.fixture
def data():
    return make_data(100)


@pytest.fixture
def net():
    return make_net(0)
