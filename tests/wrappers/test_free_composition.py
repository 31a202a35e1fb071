"""Wrappers around wrappers, and around methods that decide before loading: what each decides stays decided."""

from itertools import product

import pytest
import torch
from conftest import ReadLog, make_data, make_net
from torch.utils.data import DataLoader

from rholoss import DrawRule, IrreducibleLossStore, Selector
from rholoss.schedules import Linear
from rholoss.selectors import (
    InfoBatchSelector,
    PrefilteredRhoLossSelector,
    RepeatedRandomSubsetSelector,
    RhoLossSelector as Rho,
    UniformSelector,
)
from rholoss.testing import check_selector
from rholoss.wrappers import KeepScheduleSelector, PayoffGatedSelector, StaleSelector, SwitchSelector


def keep_schedule(loader, model, method, options):
    return KeepScheduleSelector(loader, model, method, Linear(0.25, 0.5, steps=5), **options)


def switch(loader, model, method, options):
    return SwitchSelector(loader, model, {0: method, 3: UniformSelector(loader, **options)}, unit="step", **options)


def stale(loader, model, method, options):
    return StaleSelector(loader, model, method, **options)


def payoff_gated(loader, model, method, options):
    return PayoffGatedSelector(loader, model, method, loader.dataset, every=2, batches=2, **options)


WRAPPERS = {"keep_schedule": keep_schedule, "switch": switch, "stale": stale, "payoff_gated": payoff_gated}
METHODS = {"rho_loss": Rho, "prefiltered": PrefilteredRhoLossSelector}


@pytest.mark.parametrize(("outer", "inner"), list(product(WRAPPERS, WRAPPERS)))
@pytest.mark.parametrize("method", METHODS)
def test_every_wrapper_of_every_wrapper_keeps_the_contract(outer, inner, method):
    def build(loader, model, store, **options):
        own = METHODS[method](loader, model, store, **options)
        return WRAPPERS[outer](loader, model, WRAPPERS[inner](loader, model, own, options), options)

    if "payoff_gated" in (outer, inner):  # it measures on the dataset's (x, y), so it is not built over other batches
        loader = DataLoader(make_data(96), batch_size=6, shuffle=True, generator=torch.Generator().manual_seed(0))
        model = make_net(0)
        store = IrreducibleLossStore.from_model(make_net(1), loader.dataset)
        selector = build(loader, model, store=store, keep=0.25)
        assert [len(y) for _, y in selector] == [6] * 4
    else:
        check_selector(build)


class EvenOnly(Selector):
    """Loads the even ones of what is drawn, and keeps the highest."""

    def draw_rule(self):
        return DrawRule(prefilter=lambda index, step: torch.nonzero(index % 2 == 0).flatten())

    def score(self, candidates):
        return candidates.index.float()


@pytest.mark.parametrize("wrapper", ["switch", "stale", "keep_schedule"])
def test_what_a_part_leaves_out_before_loading_is_not_loaded_inside_a_wrapper(wrapper):
    data = ReadLog(make_data(64))
    loader, model = DataLoader(data, batch_size=4), make_net(0)
    selector = WRAPPERS[wrapper](loader, model, EvenOnly(loader, model, keep=0.25), {"keep": 0.25})
    for step, _ in enumerate(selector):
        if step < 3:  # then the switch draws uniformly from all
            assert not (selector.last.index % 2).any()
            assert all(index % 2 == 0 for index in data.read)
    assert len(data.read) < 64


def test_a_keep_schedule_inside_a_switch_chooses_what_it_chooses_alone():
    def selected(selector):
        return [selector.last.index.tolist() for _ in selector]

    loader, model = DataLoader(make_data(96), batch_size=6), make_net(0)
    store = IrreducibleLossStore.from_model(make_net(1), loader.dataset)
    alone = keep_schedule(loader, model, Rho(loader, model, store, keep=0.25), {"keep": 0.25})
    inside = keep_schedule(loader, model, Rho(loader, model, store, keep=0.25), {"keep": 0.25})
    assert selected(SwitchSelector(loader, model, {0: inside}, unit="step", keep=0.25)) == selected(alone)


def test_methods_that_prune_epochs_can_follow_each_other():
    loader = DataLoader(make_data(40), batch_size=4, shuffle=True)
    stages = {0: RepeatedRandomSubsetSelector(loader, keep=0.3), 1: InfoBatchSelector(loader, keep=0.5)}
    selector = SwitchSelector(loader, None, stages, unit="epoch", keep=0.5)
    assert len(selector) == 3  # before anything is drawn
    first = [i for _ in selector for i in selector.last.index.tolist()]
    assert len(first) == len(set(first)) == 12
    selector.set_epoch(1)
    assert len(selector) == 10
    for _ in selector:
        selector.record_losses(selector.last.index.float())
    selector.set_epoch(2)
    second = [i for _ in selector for i in selector.last.index.tolist()]
    assert set(range(20, 40)) <= set(second)  # above the mean
    assert len(second) < 40
    assert selector.last.weights is not None


def test_a_method_that_trains_on_all_it_draws_and_one_that_chooses_are_no_parts_of_one_selector():
    loader, model = DataLoader(make_data(40), batch_size=4), make_net(0)
    stages = {0: InfoBatchSelector(loader), 1: UniformSelector(loader)}
    with pytest.raises(ValueError, match="one trains on all that it draws, the other does not"):
        SwitchSelector(loader, model, stages, unit="epoch")
    with pytest.raises(ValueError, match="switched by epoch only; pass unit='epoch'"):
        SwitchSelector(loader, model, {0: InfoBatchSelector(loader)}, unit="step")
