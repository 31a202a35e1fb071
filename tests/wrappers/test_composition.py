"""Selectors made of selectors, methods with co-trained models, and what their state holds."""

import copy
import re

import pytest
import torch
import torch.nn.functional as F
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, build_selector
from rholoss.selectors import OnlineRhoLossSelector, SelectionViaProxy, TrainLossSelector, UniformSelector
from rholoss.wrappers import StaleSelector, SwitchSelector


@pytest.fixture
def loader():
    return DataLoader(make_data(64), batch_size=4)


def nudge(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)


def losses_under(model, selector):
    x, y = selector.dataset.tensors
    with torch.no_grad():
        losses = F.cross_entropy(copy.deepcopy(model).eval()(x), y, reduction="none")
    return losses[selector.last.candidate_index]


def test_a_part_on_another_model_or_with_another_way_of_scoring_is_refused(loader):
    model = make_net(0)
    for part, message in (
        (TrainLossSelector(loader, make_net(1)), "built on the same loader and model"),
        (TrainLossSelector(loader, model, mode="train"), "must score as SwitchSelector does"),
        (TrainLossSelector(loader, model, loss=lambda o, t: F.cross_entropy(o, t, reduction="none")), "must score as"),
        (SelectionViaProxy(loader, model, make_net(1)), "can be switched by epoch only"),
    ):
        with pytest.raises(ValueError, match=message):
            SwitchSelector(loader, model, {0: part}, unit="step")


@pytest.mark.parametrize("part", ["rho_loss", UniformSelector, None])
def test_a_part_that_is_no_selector_is_an_error_that_names_it(loader, part):
    for build in (
        lambda: SwitchSelector(loader, make_net(0), {0: part}, unit="step"),
        lambda: StaleSelector(loader, make_net(0), part),
    ):
        with pytest.raises(TypeError, match=r"expects selectors that are built.*got " + re.escape(repr(part))):
            build()


def test_a_stale_stage_of_a_switch_begins_with_the_weights_of_its_first_step(loader):
    model = make_net(0)
    stale = StaleSelector(loader, model, TrainLossSelector(loader, model))
    selector = SwitchSelector(loader, model, {0: UniformSelector(loader), 2: stale}, unit="step", keep=0.5)
    models = []
    for step, _ in enumerate(selector):
        models.append(copy.deepcopy(model))
        if step >= 2:
            torch.testing.assert_close(selector.last.scores, losses_under(models[max(step - 1, 2)], selector))
        nudge(model)


def test_a_stale_selector_knows_weights_and_modes_that_were_set_after_it_was_built(loader):
    model = make_net(0)
    selector = StaleSelector(loader, model, TrainLossSelector(loader, model, mode="train"), mode="train", keep=0.5)
    model.load_state_dict(make_net(7).state_dict())
    model.eval()
    next(iter(selector))
    torch.testing.assert_close(selector.last.scores, losses_under(make_net(7), selector))


@pytest.mark.parametrize("kind", ["online", "stale"])
def test_a_state_in_memory_does_not_move_with_the_run(kind, loader):
    model, il_model = make_net(0), make_net(1).eval()
    if kind == "online":
        optimizer = torch.optim.SGD(il_model.parameters(), lr=1.0)
        selector = OnlineRhoLossSelector(loader, model, il_model, irreducible_optimizer=optimizer, keep=0.5)
    else:
        selector = StaleSelector(loader, model, TrainLossSelector(loader, model), keep=0.5)
    batches = iter(selector)
    next(batches)
    state = selector.state_dict()
    kept = copy.deepcopy(state)
    nudge(model)
    next(batches), next(batches)
    name = "model" if kind == "online" else "stale_model"
    for key, value in kept["extra"][name].items():
        assert torch.equal(state["extra"][name][key], value)


def test_a_state_of_other_parts_or_another_ranking_is_refused_and_nothing_is_half_loaded(loader):
    model = make_net(0)
    one = SwitchSelector(loader, model, {0: UniformSelector(loader)}, unit="step")
    two = SwitchSelector(loader, model, {0: UniformSelector(loader), 3: TrainLossSelector(loader, model)}, unit="step")
    next(iter(one))
    with pytest.raises(ValueError, match=r"expected stages.3 = 'TrainLossSelector', got 'nothing'; build the selector as it was"):
        two.load_state_dict(one.state_dict())
    assert two.step == 0
    ranked, other = (SelectionViaProxy(loader, scores=scores) for scores in (torch.arange(64.0), -torch.arange(64.0)))
    with pytest.raises(ValueError, match=r"expected scores = 'torch.float32 \(64,\) [0-9a-f]+', got 'torch.float32 \(64,\)"):
        ranked.load_state_dict(other.state_dict())


@pytest.mark.parametrize(("batch_size", "keep"), [(1, 0.4), (4, 0.3), (7, 0.29)])
def test_selection_via_proxy_keeps_the_share_it_was_asked_for(batch_size, keep):
    selector = SelectionViaProxy(DataLoader(make_data(100), batch_size=batch_size), scores=torch.arange(100.0), keep=keep)
    assert int(selector.members.sum()) == round(100 * keep)
    assert sum(len(x) for x, _ in selector) == round(100 * keep)


def test_selection_via_proxy_needs_a_dataset_to_rank():
    with pytest.raises(TypeError, match="needs a DataLoader over a map-style dataset, got IndexedBatches"):
        SelectionViaProxy(IndexedBatches([(torch.arange(4), torch.zeros(4))]), scores=torch.zeros(4), batch_size=2)


@pytest.mark.parametrize("chunk_size", [None, 5])
def test_a_loss_with_a_part_of_the_model_in_it_is_computed_in_the_scoring_mode(chunk_size):
    """Such as a head that is fused with its loss."""
    head = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 4))
    model = nn.ModuleDict({"body": nn.Linear(6, 6), "head": head}).train()
    seen = []

    def forward(model, batch):
        return model["body"](batch[0]), batch[1]

    def loss(outputs, targets):
        seen.append(model["head"].training)
        return F.cross_entropy(model["head"](outputs), targets, reduction="none")

    data = make_data(64)
    store = IrreducibleLossStore(torch.zeros(64))
    selector = RhoLossSelector(DataLoader(data, batch_size=4), model, store, forward=forward, loss=loss, chunk_size=chunk_size)
    before = copy.deepcopy(model.state_dict())
    next(iter(selector))
    assert not any(seen)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_a_bound_method_for_a_model_is_scored_in_the_mode_that_was_asked_for():
    model = make_net(0).train()
    data = make_data(64)
    expected = IrreducibleLossStore.from_model(model, data)
    before = copy.deepcopy(model.state_dict())
    assert torch.equal(IrreducibleLossStore.from_model(model.forward, data).losses, expected.losses)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_several_updates_inside_one_autocast_are_those_of_one_each():
    data, outcomes = make_data(64), []
    for regions in (1, 3):
        il_model = make_net(1).eval()
        optimizer = torch.optim.SGD(il_model.parameters(), lr=1.0)
        selector = build_selector(
            "online_rho_loss",
            DataLoader(data, batch_size=4),
            make_net(0),
            irreducible_model=il_model,
            irreducible_optimizer=optimizer,
        )
        batches = iter(selector)
        for _ in range(regions):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                for _ in range(3 // regions):
                    next(batches, None)
        outcomes.append(torch.cat([p.flatten() for p in il_model.parameters()]))
    assert torch.equal(*outcomes)
