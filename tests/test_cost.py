"""What selecting costs: the break-even factor, the counts and the times."""

import copy
import math
import pickle

import pytest
import torch
from conftest import make_net
from torch.utils.data import DataLoader, Dataset

from rholoss import RhoLossSelector, build_selector
from rholoss.cost import StepTimer, break_even, runs_to_pay_back
from rholoss.scoring import default_forward
from rholoss.selectors import UniformSelector


class TestRunsToPayBack:
    @pytest.mark.parametrize(
        ("making", "plain", "replayed", "expected"),
        [(20, 117, 38, 1), (79, 117, 38, 1), (80, 117, 38, 2), (0, 2, 1, 1), (1, 2, 2, math.inf)],
    )
    def test_counts_the_runs(self, making, plain, replayed, expected):
        assert runs_to_pay_back(making, plain=plain, replayed=replayed) == expected

    def test_refuses_negative_seconds(self):
        with pytest.raises(ValueError, match="replayed must be seconds, at least 0, got -1"):
            runs_to_pay_back(1, plain=2, replayed=-1)


class TestBreakEven:
    @pytest.mark.parametrize(
        ("keep", "options", "expected"),
        [
            (0.1, {}, 13 / 3),
            (0.5, {}, 5 / 3),
            (0.1, {"scoring": 0.03}, 1.1),
            (1.0, {"scoring": 0}, 1),
            (0.2, {"forward": 0.4}, 3),
        ],
    )
    def test_counts_forward_passes(self, keep, options, expected):
        assert break_even(keep, **options) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("keep", "options", "message"),
        [
            (0, {}, r"keep must be n_b / n_B, in \(0, 1\], got 0"),
            (0.1, {"scoring": -1}, "scoring must be .* at least 0, got -1"),
            (0.1, {"forward": 1}, r"forward must be .* in \(0, 1\), got 1"),
        ],
    )
    def test_refuses_what_is_out_of_range(self, keep, options, message):
        with pytest.raises(ValueError, match=message):
            break_even(keep, **options)


class TestLedger:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [0.0]
        monkeypatch.setattr("rholoss.cost.time.perf_counter", lambda: now[0])
        return now

    def test_tells_waiting_selecting_and_training_apart(self, clock, loader, store, monkeypatch):
        class Slow(Dataset):
            def __len__(self):
                return 320

            def __getitem__(self, i):
                clock[0] += 0.001
                return loader.dataset[i]

        def forward(model, batch):
            clock[0] += 0.2
            return default_forward(model, batch)

        selector = RhoLossSelector(DataLoader(Slow(), batch_size=8), make_net(0), store, keep=0.1, forward=forward)
        for _ in selector:
            clock[0] += 0.4
        cost = selector.cost()
        assert (cost.waiting, cost.selecting, cost.training) == pytest.approx((0.08, 0.2, 0.4))
        assert cost.ratio == pytest.approx((0.08 + 0.2 + 0.4) / (0.4 + 0.008))
        assert (cost.steps, cost.scored, cost.scored_by_others) == (4, 80, 0)
        assert str(cost).startswith(
            "selection costs 1.67x a step; it pays if it needs at least 1.67x fewer steps (80 ms waiting for"
        )

    def test_one_long_stop_in_the_loop_does_not_count(self, clock, loader):
        selector = UniformSelector(loader, keep=0.2)
        for i, _ in enumerate(selector):
            clock[0] += 100.0 if i == 3 else 0.1
        assert selector.cost().training == pytest.approx(0.1)

    def test_counts_by_whom_examples_were_scored(self, loader, store):
        one = build_selector("uniform", loader, keep=0.1)
        two = build_selector("proxy_rho_loss", loader, make_net(0), store=store, proxy=make_net(1), compare_every=2, keep=0.1)
        three = build_selector("bald", loader, make_net(0), passes=3, keep=0.1)
        for selector in (one, two, three):
            for _ in selector:
                pass
        assert [selector.cost().scored for selector in (one, two, three)] == [0, 40, 240]
        assert [selector.cost().scored_by_others for selector in (one, two, three)] == [0, 80, 0]

    def test_what_a_watcher_computes_is_not_the_methods_cost(self, loader, store):
        selector = build_selector("irreducible_loss", loader, make_net(0), store=store, keep=0.1)
        selector.listeners.append(lambda candidates, selection: candidates.loss)
        for _ in selector:
            pass
        assert selector.cost().scored == 0

    def test_says_so_before_anything_is_measured(self, loader):
        selector = UniformSelector(loader, keep=0.1)
        assert math.isnan(selector.cost().ratio)
        assert str(selector.cost()) == "nothing measured yet: two steps are needed"

    def test_inside_a_step_waiting_is_not_known(self, clock, loader, store):
        def forward(model, batch):
            clock[0] += 0.1
            return default_forward(model, batch)

        selector = RhoLossSelector(loader, make_net(0), store, keep=0.1, forward=forward)
        for candidates in selector.candidate_batches:
            selector.select(candidates)
            clock[0] += 0.3
        assert math.isnan(selector.cost().waiting)
        assert selector.cost().ratio == pytest.approx(4 / 3)

    def test_what_is_between_two_epochs_is_nobodys(self, clock, loader):
        selector = UniformSelector(loader, keep=0.5)
        for _ in range(2):
            for _ in selector:
                clock[0] += 1
            clock[0] += 1000
        assert max(selector.timer._seconds["training"]) == 1

    def test_events_are_read_once_they_have_come(self, monkeypatch):
        class Event:
            come = False

            def __init__(self, at):
                self.at = at

            def query(self):
                return Event.come

            def elapsed_time(self, other):
                assert Event.come, "this would wait for the device"
                return 1000 * (other.at - self.at)

        at = iter([1.0, 3.0, 4.0])
        monkeypatch.setattr("rholoss.cost.recorded", lambda device, timing: Event(next(at)))
        ledger = StepTimer()
        for phase in ("selecting", "training", "selecting"):
            ledger.enter(phase, torch.device("cuda"))
        assert math.isnan(ledger.cost(8, 80).selecting)
        Event.come = True
        assert (ledger.cost(8, 80).selecting, ledger.cost(8, 80).training) == (2.0, 1.0)

    def test_a_selector_can_be_copied_and_pickled_in_mid_run(self, loader, store):
        selector = RhoLossSelector(loader, make_net(0), store, keep=0.5)
        next(iter(selector))
        for twin in (copy.deepcopy(selector), pickle.loads(pickle.dumps(selector))):
            assert twin.cost().steps == 1
