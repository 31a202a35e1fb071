"""Scoring changes nothing in the model: buffers and generators are put back, and what only the user can put back is named."""

import gc
import random
import warnings
import weakref
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import Selector
from rholoss.isolation import preserve_state


class HardestSelector(Selector):
    def score(self, candidates):
        return candidates.loss


def scored(model, batches=6):
    """Select a few batches with a model, and return it."""
    selector = HardestSelector(DataLoader(make_data(8 * batches), batch_size=4), model, keep=0.5)
    assert len(list(selector)) == batches
    return model


class Remembers(nn.Module):
    """Calls a function with itself and its input in each forward pass."""

    def __init__(self, does, **state):
        super().__init__()
        self.layer, self.does = nn.Linear(6, 4), does
        for name, value in state.items():
            self.register_buffer(name, value) if isinstance(value, torch.Tensor) else setattr(self, name, value)

    def forward(self, x):
        self.does(self, x)
        return self.layer(x)


def count_in_place(module, x):
    module.calls.add_(1)


def count_anew(module, x):
    module.calls = module.calls + 1


@pytest.mark.parametrize("does", [count_in_place, count_anew])
def test_a_buffer_that_moves_in_eval_mode_is_put_back(does):
    model = Remembers(does, calls=torch.zeros(()))
    buffer = model.calls
    scored(model)
    assert model.calls is buffer
    assert model.calls == 0


def test_statistics_that_move_in_eval_mode_too_are_put_back():
    def normalize(module, x):
        nn.functional.batch_norm(x, module.mean, module.var, training=True)

    model = scored(Remembers(normalize, mean=torch.zeros(6), var=torch.ones(6)))
    assert torch.equal(model.mean, torch.zeros(6))
    assert torch.equal(model.var, torch.ones(6))


def test_a_buffer_that_begins_to_move_is_put_back_from_the_next_look_on():
    def late(module, x):
        module.passes.append(None)
        if len(module.passes) > 2:
            module.calls.add_(1)

    model = Remembers(late, calls=torch.zeros(()))
    model.passes = passes = []
    moved = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a forward pass that only scored changed Remembers.passes")
        for _ in range(9):
            with preserve_state(model, torch.device("cpu")):
                model(torch.zeros(2, 6))
            moved.append(float(model.calls))
    assert len(passes) == 9
    assert moved == [0, 0, 1, 1, 1, 1, 1, 1, 1]  # it looked in the 1st, 2nd, 4th and 8th block


def test_an_embedding_with_max_norm_keeps_its_weights():
    def look_up(module, x):
        module.table(torch.arange(3))

    model = Remembers(look_up)
    model.table = nn.Embedding(3, 5, max_norm=0.1)
    before = model.table.weight.clone()
    scored(model)
    assert torch.equal(model.table.weight, before)
    assert model.table.weight.requires_grad


def test_random_numbers_of_numpy_and_python_are_put_back():
    def draw(module, x):
        np.random.rand(), random.random()  # noqa: NPY002

    before = random.getstate(), np.random.get_state()[1].copy(), np.random.get_state()[2]  # noqa: NPY002
    scored(Remembers(draw))
    assert random.getstate() == before[0]
    assert np.array_equal(np.random.get_state()[1], before[1])  # noqa: NPY002
    assert np.random.get_state()[2] == before[2]  # noqa: NPY002


def set_state(module, x):
    module.state = module.state + x.mean()


def grow(module, x):
    module.seen.append(float(x.mean()))


def fill(module, x):
    module.cache[len(module.cache)] = x


def add_in_place(module, x):
    module.memory[0].add_(1)


def renormalize(module, x):
    with torch.no_grad():
        module.layer.weight.mul_(0.9)


def late_state(module, x):
    module.state = x if module.state is None else module.state + 1


STATES = {
    "a recurrent state": (set_state, "state", lambda: torch.zeros(3)),
    "a recurrent state that begins as None": (late_state, "state", lambda: None),
    "a counter": (lambda m, x: setattr(m, "calls", m.calls + 1), "calls", lambda: 0),
    "a list": (grow, "seen", list),
    "a cache": (fill, "cache", dict),
    "a tensor in a list": (add_in_place, "memory", lambda: [torch.zeros(3)]),
    "a pair": (lambda m, x: setattr(m, "state", (m.state[0] + 1, m.state[1])), "state", lambda: (torch.zeros(2), torch.zeros(2))),
}


@pytest.mark.parametrize(("does", "name", "start"), STATES.values(), ids=STATES)
def test_hidden_state_in_a_plain_attribute_is_named(does, name, start):
    model = Remembers(does)
    setattr(model, name, start())
    with pytest.warns(UserWarning, match=rf"only scored changed Remembers\.{name}, .*register_buffer") as caught:
        scored(model)
    assert len(caught) == 1


def test_weights_that_a_forward_pass_changes_are_named():
    with pytest.warns(UserWarning, match=r"only scored changed Linear\.weight,"):
        scored(Remembers(renormalize))


def test_the_cure_for_hidden_state_works():
    model = Remembers(set_state, state=torch.zeros(3))  # a buffer
    scored(model)
    assert torch.equal(model.state, torch.zeros(3))


def test_the_other_cure_for_hidden_state_works():
    def forward(model, batch):
        before = model.state
        outputs = model(batch[0])
        model.state = before
        return outputs, batch[1]

    model = Remembers(set_state)
    model.state = torch.zeros(3)
    list(HardestSelector(DataLoader(make_data(32), batch_size=4), model, keep=0.5, forward=forward))
    assert torch.equal(model.state, torch.zeros(3))


def make_once(module, x):
    if getattr(module, "table", None) is None:
        module.table, module.ready = torch.ones(3), True


class Place(NamedTuple):
    row: int
    column: int
    depth: int


def same_value(module, x):
    module.width, module.table = int(x.shape[1]), torch.ones(3)


@pytest.mark.parametrize(
    "model",
    [
        Remembers(make_once),
        Remembers(make_once, table=None, ready=False),
        Remembers(same_value, width=6, shape=torch.Size([1, 2, 3]), place=Place(1, 2, 3)),
        nn.Sequential(nn.LazyLinear(4)),
        nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(4)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(6, 4))),
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 4))),
        nn.Sequential(nn.utils.prune.l1_unstructured(nn.Linear(6, 4), "weight", 0.5))
        if hasattr(nn.utils, "prune")
        else make_net(0),
        torch.compile(make_net(0), backend="eager"),
        nn.DataParallel(make_net(0)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_is_made_once_or_computed_from_weights_is_no_hidden_state(model):
    scored(model)  # a warning would be an error


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_from_trained_ones_is_no_hidden_state(norm):
    model = nn.Sequential(norm(nn.Linear(6, 4)))
    for x, _ in HardestSelector(DataLoader(make_data(48), batch_size=4), model, keep=0.5):
        model(x).square().sum().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.01 * parameter.grad)


def test_a_model_that_is_used_up_is_not_kept_alive():
    model = Remembers(count_in_place, calls=torch.zeros(()))
    scored(model)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
