"""Several methods on the same candidates: what each would have chosen."""

import copy
import io
import json
import math
from collections import Counter

import pytest
import torch
from conftest import make_net
from torch import nn
from torch.utils.data import DataLoader
from watched_runs import assert_same, methods_of, slow_spearman, train

from rholoss import (
    IrreducibleLossStore,
    RhoLossSelector,
    Selector,
    build_selector,
)
from rholoss.diagnostics import ComparisonLog, SelectionLog, compare, overlaps, rank_correlations
from rholoss.selectors import OnlineRhoLossSelector, TrainLossSelector, UniformSelector
from rholoss.wrappers import StaleSelector, SwitchSelector


def mean(values):
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


class Counting(nn.Module):
    """Counts its forward passes."""

    def __init__(self):
        super().__init__()
        self.net, self.counted = make_net(0), Counter()  # a count among its attributes would be reported as hidden state

    @property
    def passes(self):
        return self.counted.total()

    def forward(self, x):
        self.counted.update(["forward"])
        return self.net(x)


def test_methods_are_compared_on_one_forward_pass_and_choose_as_they_would_alone(data):
    model = Counting()
    loader = DataLoader(data, batch_size=8)
    methods = methods_of(["uniform", "train_loss", "gradient_norm", "rho_loss", "irreducible_loss"], loader, model, keep=0.25)
    methods["small loss"] = lambda candidates: -candidates.loss
    batch = next(iter(methods["rho_loss"].candidate_batches))
    before, states = (
        torch.get_rng_state(),
        {n: copy.deepcopy(m.state_dict()) for n, m in methods.items() if isinstance(m, Selector)},
    )
    chosen = compare(methods, batch)
    assert model.passes == 1
    assert torch.equal(torch.get_rng_state(), before)
    assert list(chosen) == list(methods)
    for name in ("train_loss", "gradient_norm", "rho_loss", "irreducible_loss"):
        assert methods[name].step == 0
        assert torch.equal(methods[name].state_dict()["generator"], states[name]["generator"])
        methods[name].select(batch)
        assert torch.equal(methods[name].last.positions, chosen[name].positions)
        torch.testing.assert_close(methods[name].last.scores, chosen[name].scores)
    assert rank_correlations(chosen)[1, -1] == pytest.approx(-1)
    assert torch.equal(compare(methods, batch)["uniform"].index, chosen["uniform"].index)


def test_a_comparison_runs_the_model_no_more_than_the_selector_did(data):
    model = Counting()
    loader = DataLoader(data, batch_size=8)
    selector = methods_of(["rho_loss"], loader, model, keep=0.25)["rho_loss"]
    ComparisonLog(methods_of(["train_loss", "gradient_norm", "uniform"], loader, model), every=2).attach(selector)
    SelectionLog(100, correct=True).attach(selector)
    for _ in selector:
        pass
    assert model.passes == selector.step


def test_a_proxy_is_run_once_for_the_selector_and_the_others(data):
    proxy = Counting()
    loader, store, model = DataLoader(data, batch_size=8), IrreducibleLossStore(torch.zeros(100)), make_net(0)
    one, other = (build_selector("proxy_rho_loss", loader, model, store=store, proxy=proxy, keep=0.25) for _ in range(2))
    log = ComparisonLog({"again": other}, every=1).attach(one)
    for _ in one:
        pass
    assert proxy.passes == one.step
    assert log.overlap()[0, 1] == 1


def test_the_agreement_over_a_run_is_the_mean_over_the_batches_compared():
    kept = []

    def watch(selector):
        others = methods_of(["train_loss", "uniform"], selector.loader, selector.model)
        others["constant"] = lambda candidates: torch.zeros(len(candidates))
        log = ComparisonLog(others, lambda: SelectionLog(60, {"low": torch.arange(60) < 20}), every=3).attach(selector)
        selector.listeners.append(lambda candidates, selection: kept.append((selection, dict(log.last))))
        return log

    _, _, log = train("rho_loss", watch)
    compared = [last for selection, last in kept if selection.step % 3 == 0]
    assert log.batches == len(compared) == 3
    assert log.names == ["own", "train_loss", "uniform", "constant"]
    overlap = [[sum(overlap_of(last[a], last[b]) for last in compared) / len(compared) for b in log.names] for a in log.names]
    correlation = [
        [mean([slow_spearman(last[a].scores.tolist(), last[b].scores.tolist()) for last in compared]) for b in log.names]
        for a in log.names
    ]
    torch.testing.assert_close(log.overlap(), torch.tensor(overlap, dtype=torch.float64))
    torch.testing.assert_close(log.correlation(), torch.tensor(correlation, dtype=torch.float64), equal_nan=True)
    summary = log.summary()
    assert summary["uniform_overlap"] == pytest.approx(sum(4 / len(last["own"].scores) for last in compared) / 3)
    assert summary["overlap/train_loss"] == pytest.approx(overlap[0][1])
    assert summary["correlation/uniform"] == pytest.approx(correlation[0][2])
    low = [int(i) < 20 for last in compared for i in last["uniform"].index]
    assert summary["uniform/low/selected"] == pytest.approx(sum(low) / len(low))
    mine = [int(i) < 20 for last in compared for i in last["own"].index]
    assert summary["own/low/selected"] == pytest.approx(sum(mine) / len(mine))
    assert all(math.isnan(value) or isinstance(value, float) for value in json.loads(json.dumps(summary)).values())
    assert math.isnan(summary["correlation/constant"])


def overlap_of(one, other):
    return sum(i in other.positions.tolist() for i in one.positions.tolist()) / len(one.positions)


def test_a_comparison_is_resumed_and_merged():
    def watch(selector):
        others = methods_of(["train_loss", "uniform"], selector.loader, selector.model)
        return ComparisonLog(others, lambda: SelectionLog(60), every=1).attach(selector)

    *_, whole = train("rho_loss", watch)
    *_, half = train("rho_loss", watch, epochs=1)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = ComparisonLog(whole.methods, lambda: SelectionLog(60))
    resumed.load_state_dict(half.state_dict())
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_same(resumed.summary(), half.summary())
    resumed.merge(whole.state_dict())
    assert resumed.batches == half.batches + whole.batches
    together = (half.batches * half.overlap() + whole.batches * whole.overlap()) / resumed.batches
    torch.testing.assert_close(resumed.overlap(), together)
    assert torch.equal(resumed.logs["uniform"].selected, half.logs["uniform"].selected + whole.logs["uniform"].selected)
    with pytest.raises(ValueError, match=r"expected methods \['own', 'train_loss'\] and logs \[\]"):
        ComparisonLog({"train_loss": whole.methods["train_loss"]}).load_state_dict(whole.state_dict())


def test_what_others_would_have_chosen_does_not_depend_on_who_else_is_compared():
    def watch(names):
        return lambda selector: ComparisonLog(methods_of(names, selector.loader, selector.model), every=2).attach(selector)

    *_, one = train("rho_loss", watch(["uniform", "bald"]))
    *_, other = train("rho_loss", watch(["train_loss", "bald", "uniform"]))
    for name in ("uniform", "bald"):
        assert torch.equal(one.last[name].index, other.last[name].index)


def test_methods_draw_and_leave_notes_each_for_itself(data, net):
    loader, store = DataLoader(data, batch_size=10), IrreducibleLossStore(torch.linspace(0, 2, 100))
    methods = {
        "gated": RhoLossSelector(loader, net, store, max_irreducible_loss=1.0),
        "one": UniformSelector(loader, net),
        "other": UniformSelector(loader, net),
    }
    chosen = compare(methods, next(iter(methods["gated"].candidate_batches)))
    assert [list(selection.notes) for selection in chosen.values()] == [["gated"], [], []]
    assert overlaps(chosen)[1, 2] < 1


def test_methods_that_do_not_go_together_are_refused(data, net):
    loader = DataLoader(data, batch_size=4)
    store, il_model = IrreducibleLossStore(torch.zeros(100)), make_net(1)
    selector = RhoLossSelector(loader, net, store)
    learning = OnlineRhoLossSelector(loader, net, il_model, irreducible_optimizer=torch.optim.SGD(il_model.parameters(), lr=0.1))
    stale = StaleSelector(loader, net, TrainLossSelector(loader, net))
    for method, error, message in (
        (TrainLossSelector(loader, make_net(1)), ValueError, "same loader and model as RhoLossSelector"),
        (TrainLossSelector(DataLoader(data), net), ValueError, "same loader and model as RhoLossSelector"),
        (TrainLossSelector(loader, net, mode="train"), ValueError, "must score as RhoLossSelector does"),
        (learning, ValueError, "method 'other' keeps a state from step to step"),
        (stale, ValueError, "keeps a state from step to step"),
        (SwitchSelector(loader, net, {0: UniformSelector(loader), 1: stale}, unit="step"), ValueError, "keeps a state"),
        (TrainLossSelector, TypeError, "must be a selector or a function from candidates to scores, got <class"),
        ("train_loss", TypeError, "must be a selector or a function from candidates to scores, got 'train_loss'"),
    ):
        with pytest.raises(error, match=message):
            ComparisonLog({"other": method}).attach(selector)
        with pytest.raises(error, match=message):
            compare({"this": selector, "other": method}, (torch.arange(8), data[:8]))
    assert selector.listeners == []
    ComparisonLog({"switch": SwitchSelector(loader, net, {0: UniformSelector(loader)}, unit="step")}).attach(selector)
    with pytest.raises(ValueError, match="methods must have a selector"):
        compare({"loss": lambda candidates: candidates.loss}, (torch.arange(8), data[:8]))
    ComparisonLog({"broken": lambda candidates: candidates.loss / 0 * 0}).attach(selector)
    with pytest.raises(ValueError, match=r"broken: the score of 40 of 40 candidates is NaN"):
        next(iter(selector))
