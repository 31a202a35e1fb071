"""What a selector says of itself: no length, property or text runs a model or reads an example."""

import inspect
from functools import cached_property

import pytest
import torch
from conftest import CLASSES, FEATURES, make_data
from torch import nn
from torch.utils.data import DataLoader, Dataset

import rholoss
from rholoss import IrreducibleLossStore, RhoLossSelector, build_selector
from rholoss.schedules import Linear
from rholoss.selectors import TrainLossSelector
from rholoss.wrappers import KeepScheduleSelector, PayoffGatedSelector

OPTIONS = {"rho_loss_then_uniform": {"from_step": 2}}


class Sealed:
    """Whether models and examples may be used; shared by all that is built in a test."""

    now = False

    @classmethod
    def check(cls, what):
        assert not cls.now, f"{what} behind an attribute"


class Net(nn.Sequential):
    def forward(self, x):
        Sealed.check("a forward pass")
        return super().forward(x)


class Examples(Dataset):
    def __init__(self, n):
        self.data = make_data(n)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        Sealed.check("reading")
        return self.data[i]


@pytest.fixture
def given(monkeypatch):
    """A loader, a model, and what methods need beside them."""
    monkeypatch.setattr(Sealed, "now", False)
    nets = [Net(nn.Linear(FEATURES, 8), nn.Dropout(0.2), nn.Linear(8, CLASSES)) for _ in range(3)]
    store = IrreducibleLossStore(torch.rand(64, generator=torch.Generator().manual_seed(0)))
    return DataLoader(Examples(64), batch_size=4, shuffle=True), *nets, store


def properties_of(selector):
    return [
        name for name, _ in inspect.getmembers(type(selector), lambda member: isinstance(member, (property, cached_property)))
    ]


def read_everything(selector):
    """The length, the text and every property of a selector, while no model may run and no example may be read."""
    Sealed.now = True
    try:
        assert len(selector) > 0
        assert type(selector).__name__ in repr(selector)
        names = properties_of(selector)
        assert {"n_b", "n_B"}.isdisjoint(names)  # attributes, said in the constructor
        assert {"candidate_loader", "dataset", "epoch", "next_epoch", "scoring_device"} <= set(names)
        return {name: getattr(selector, name) for name in names}
    finally:
        Sealed.now = False


def built(name, given):
    loader, model, proxy, other, store = given
    return build_selector(name, loader, model, store=store, proxy=proxy, irreducible_model=other, **OPTIONS.get(name, {}))


@pytest.mark.parametrize("name", rholoss.selector_names())
def test_no_attribute_of_a_method_runs_a_model(name, given):
    read_everything(built(name, given))


@pytest.mark.parametrize("name", rholoss.selector_names())
def test_no_attribute_runs_a_model_in_mid_epoch(name, given):
    selector = built(name, given)
    next(iter(selector))
    read_everything(selector)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda loader, model, method, data: KeepScheduleSelector(loader, model, method, Linear(0.25, 0.5, 10)),
        lambda loader, model, method, data: PayoffGatedSelector(loader, model, method, data),
    ],
)
def test_no_attribute_of_a_wrapper_runs_a_model(wrap, given):
    loader, model, _, _, store = given
    read_everything(wrap(loader, model, RhoLossSelector(loader, model, store), make_data(32)))


def test_work_behind_an_attribute_is_found(given):
    class Eager(TrainLossSelector):
        @property
        def accuracy(self):
            return self.model(torch.zeros(1, FEATURES))

    class Counting(TrainLossSelector):
        def __len__(self):
            return len([self.dataset[i] for i in range(8)])

    loader, model, *_ = given
    with pytest.raises(AssertionError, match="a forward pass behind an attribute"):
        read_everything(Eager(loader, model))
    with pytest.raises(AssertionError, match="reading behind an attribute"):
        read_everything(Counting(loader, model))
