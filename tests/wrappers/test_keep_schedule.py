"""Keeping more as training goes on: who takes part, what is loaded, and that it is the same wherever it is decided."""

import copy

import pytest
import torch
from conftest import CLASSES, FEATURES, make_data, make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector
from rholoss.schedules import Cosine, Linear, Switch
from rholoss.selectors import ProxyRhoLossSelector, TrainLossSelector, UniformSelector
from rholoss.testing import check_selector
from rholoss.wrappers import KeepScheduleSelector

N, N_b = 640, 8


class Reading(TensorDataset):
    """Counts what is read."""

    read = 0

    def __getitem__(self, index):
        self.read += 1
        return super().__getitem__(index)


@pytest.fixture
def data():
    return Reading(*make_data(N).tensors)


class ByIndex(Selector):
    """Keeps the highest indices."""

    def score(self, candidates):
        return candidates.index.float()


def make(data, schedule, method=ByIndex, *, workers=0, net=None, **options):
    generator = torch.Generator().manual_seed(0)
    loader = DataLoader(data, batch_size=N_b, shuffle=True, generator=generator, num_workers=workers, drop_last=True)
    net = net or make_net(0)
    return KeepScheduleSelector(loader, net, method(loader, net, keep=0.25), schedule, keep=0.25, **options)


def picks(selector, epochs=1):
    return [selector.last.index.tolist() for _ in range(epochs) for _ in selector]


def test_as_many_take_part_as_the_schedule_says(data):
    selector = make(data, Linear(0.25, 1.0, steps=15))
    before = 0
    for step, (_, y) in enumerate(selector):
        expected = round(N_b / (0.25 + 0.75 * min(step / 15, 1)))
        assert data.read - before == expected, "nobody else is loaded"
        assert len(selector.last.candidate_index) == expected
        assert len(y) == N_b
        before = data.read
    assert step == N // 32 - 1, "an epoch has the steps of the least keep"


def test_the_choice_is_the_methods_among_those_that_take_part(data):
    selector = make(data, Linear(0.25, 1.0, steps=15))
    for _ in selector:
        best = selector.last.candidate_index.topk(N_b).values.sort().values
        assert torch.equal(selector.last.index.sort().values, best)


def test_scores_only_those_that_take_part(data):
    selector = make(data, Switch(0.25, 0.5, at=3), TrainLossSelector, workers=2)
    seen = []
    selector.listeners.append(lambda candidates, selection: seen.append((selection.scores > -torch.inf).sum().item()))
    for _ in selector:
        pass
    assert seen == [32] * 3 + [16] * (N // 32 - 3)


def test_is_the_same_with_workers_which_load_all(data):
    one, other = (make(data, Cosine(0.25, 1.0, steps=12), workers=workers) for workers in (0, 2))
    assert picks(one, 2) == picks(other, 2)


def test_a_constant_schedule_is_the_method_itself(data):
    selector = make(data, lambda step: 0.25, TrainLossSelector)
    loader = DataLoader(data, batch_size=N_b, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)
    assert picks(selector) == picks(TrainLossSelector(loader, selector.model, keep=0.25))


def test_others_take_part_at_every_step_though_the_order_is_the_same(data):
    loader = DataLoader(data, batch_size=N_b)
    selector = KeepScheduleSelector(loader, None, UniformSelector(loader, keep=0.25), lambda step: 1.0, keep=0.25)
    first, second = picks(selector), picks(selector)
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("at", [3, 11])
def test_resumes_as_it_would_have(data, workers, at):
    schedule = Linear(0.25, 1.0, steps=15)
    whole = picks(make(data, schedule, workers=workers), 2)
    stopped = make(data, schedule, workers=workers)
    for _ in stopped:
        if stopped.step == at:
            state = stopped.state_dict()
            break
    resumed = make(data, schedule, workers=workers)
    resumed.load_state_dict(state)
    assert picks(resumed, 2)[: len(whole) - at] == whole[at:]


def test_a_co_trained_model_trains_and_is_kept(data):
    store = IrreducibleLossStore(torch.zeros(N))

    def method(loader, net, keep):
        proxy = nn.Linear(FEATURES, CLASSES)
        with torch.no_grad():
            proxy.weight.fill_(0.0)
        return ProxyRhoLossSelector(
            loader, net, store, proxy, proxy_optimizer=torch.optim.SGD(proxy.parameters(), lr=0.1), keep=keep
        )

    selector = make(data, Switch(0.25, 0.5, at=4), method)
    before = copy.deepcopy(selector.method.proxy.weight)
    picks(selector)
    assert not torch.equal(before, selector.method.proxy.weight)
    other = make(data, Switch(0.25, 0.5, at=4), method)
    other.load_state_dict(selector.state_dict())
    assert torch.equal(other.method.proxy.weight, selector.method.proxy.weight)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, float("nan")])
def test_refuses_what_is_no_share(data, keep):
    with pytest.raises(ValueError, match=r"schedule\(0\) must be a fraction in \(0, 1\], got"):
        next(iter(make(data, lambda step: keep)))


def test_refuses_a_method_around_another_loader(data):
    loader, other = (DataLoader(data, batch_size=N_b) for _ in range(2))
    with pytest.raises(ValueError, match="UniformSelector must be built on the same loader and model"):
        KeepScheduleSelector(loader, None, UniformSelector(other), Linear(0.25, 1.0, steps=2))


def test_keeps_the_contract():
    def build(loader, model, *, store, **options):
        method = RhoLossSelector(loader, model, store, **options)
        return KeepScheduleSelector(loader, model, method, Linear(0.25, 0.5, steps=4), **options)

    check_selector(build)
