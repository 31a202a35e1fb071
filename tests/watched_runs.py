"""Runs and batches for the tests of `rholoss.diagnostics`: what listeners see, in plain numbers."""

import copy
import math

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, Selection, Selector, build_selector


class Batch:
    """A selected batch in plain numbers."""

    def __init__(self, index, positions, scores, step, epoch=0, correct=None, notes=None):
        self.index, self.positions, self.scores, self.step, self.epoch = index, sorted(positions), scores, step, epoch
        self.correct, self.notes = correct, notes or {}
        self.chosen = [index[position] for position in self.positions]

    def selection(self, ids=None):
        index = torch.tensor(self.index) if ids is None else ids[self.index]
        positions = torch.tensor(self.positions)
        weights = torch.ones(len(positions)) if len(set(self.positions)) < len(self.positions) else None
        notes = {name: torch.tensor(value) for name, value in self.notes.items()}
        scores = torch.tensor(self.scores)
        return Selection(index[positions], positions, weights, scores, index, self.step, self.epoch, notes)

    def add_to(self, log, ids=None):
        log.update(self.selection(ids), None if self.correct is None else torch.tensor(self.correct))


class Dropping(Selector):
    """A listener's victim: draws, is co-trained and leaves a note."""

    def score(self, candidates):
        candidates.notes["drawn"] = candidates.rand(1)[0]
        return candidates.rand()


def methods_of(names, loader, model, **how):
    store, other = IrreducibleLossStore.from_model(make_net(1), loader.dataset), make_net(2)
    return {name: build_selector(name, loader, model, store=store, irreducible_model=other, **how) for name in names}


def train(name, watch, mode="eval", epochs=2):
    """A run of some steps with a selector that is watched or not; what it selected, the weights, and the watcher."""
    torch.manual_seed(0)
    data, model = make_data(60), make_net(0)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    store = IrreducibleLossStore.from_model(make_net(1), data)
    if name == "dropping":
        selector = Dropping(loader, model, keep=0.25, mode=mode)
    else:
        selector = build_selector(name, loader, model, store=store, proxy=make_net(3), keep=0.25, mode=mode)
    seen = watch(selector) if watch else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = []
    for _ in range(epochs):
        for x, y in selector:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            chosen.append((selector.last, copy.deepcopy(model)))
    return chosen, (selector.state_dict()["generator"], torch.get_rng_state(), *model.state_dict().values()), seen


def assert_same(got, expected):
    assert set(got) == set(expected)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-5, abs=1e-6, nan_ok=True), name


def slow_spearman(a, b):
    def rank(values):
        return [sum(v < value for v in values) + (values.count(value) + 1) / 2 for value in values]

    x, y = rank(a), rank(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((p - mx) * (q - my) for p, q in zip(x, y, strict=True))
    bottom = math.sqrt(sum((p - mx) ** 2 for p in x) * sum((q - my) ** 2 for q in y))
    return top / bottom if bottom else math.nan
