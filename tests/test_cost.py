"""What selecting costs, and the ways to score for less."""

import copy
import math
import pickle

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, build_selector, forwards, split
from rholoss.cost import StepTimer, break_even
from rholoss.scoring import default_forward
from rholoss.selectors import PrefilteredRhoLossSelector, ProxyRhoLossSelector, UniformSelector

CPU = torch.device("cpu")


@pytest.fixture
def loader():
    return DataLoader(make_data(320), batch_size=8)


@pytest.fixture
def store():
    return IrreducibleLossStore(torch.rand(320, generator=torch.Generator().manual_seed(1)))


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
        monkeypatch.setattr("rholoss.cost._event", lambda device: Event(next(at)))
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


class TestLearningProxy:
    def test_takes_one_step_on_each_selected_batch(self, loader, store):
        proxy = make_net(3).eval()
        twin = copy.deepcopy(proxy)
        optimizer, its = (torch.optim.SGD(net.parameters(), lr=0.1) for net in (proxy, twin))
        selector = ProxyRhoLossSelector(loader, make_net(0), store, proxy, proxy_optimizer=optimizer, keep=0.25)
        for x, y in selector:
            its.zero_grad()
            nn.functional.cross_entropy(twin(x), y).backward()
            its.step()
            torch.testing.assert_close(proxy.state_dict(), twin.state_dict())
        assert selector.step > 2

    def test_goes_on_after_a_resume_as_it_would_have(self, store):
        def made():
            proxy = make_net(3)
            loader = DataLoader(make_data(320), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
            optimizer = torch.optim.AdamW(proxy.parameters(), lr=0.01)
            return ProxyRhoLossSelector(loader, make_net(0), store, proxy, proxy_optimizer=optimizer, keep=0.25)

        whole, stopped, resumed = made(), made(), made()
        expected = [whole.last.index.tolist() for _ in whole]
        for _ in stopped:
            if stopped.step == 4:
                state = copy.deepcopy(stopped.state_dict())
        resumed.load_state_dict(state)
        assert [resumed.last.index.tolist() for _ in resumed] == expected[4:]
        assert len(expected) > 6

    def test_the_gate_holds_for_a_proxy_too(self, loader):
        store = IrreducibleLossStore(torch.arange(320) % 2 * 5.0)
        selector = ProxyRhoLossSelector(loader, make_net(0), store, make_net(1), max_irreducible_loss=1.0, keep=0.25)
        for _ in selector:
            assert not (selector.last.index % 2).any()
            assert selector.last.notes["gated"] == 0.5
        with pytest.raises(ValueError, match="max_irreducible_loss must be a loss in nats above 0"):
            ProxyRhoLossSelector(loader, make_net(0), store, make_net(1), max_irreducible_loss=0)


class TestSmallerInputs:
    def test_images_are_scored_at_a_lower_resolution_and_handed_back_whole(self):
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
        seen = []
        net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
        data = TensorDataset(torch.randn(40, 3, 8, 8), torch.randint(4, (40,)))
        selector = build_selector(
            "train_loss", DataLoader(data, batch_size=4), net, forward=forwards.lower_resolution(0.5), keep=0.25
        )
        x, _ = next(iter(selector))
        assert seen == [(16, 3, 4, 4)]
        assert x.shape == (4, 3, 8, 8)

    def test_the_mean_of_each_square_is_what_is_left(self):
        x = torch.arange(16.0).reshape(1, 1, 4, 4)
        outputs, _ = forwards.lower_resolution(0.5)(lambda x: x, (x, torch.zeros(1)))
        assert outputs.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]

    def test_sequences_are_cut_and_labels_of_sentences_are_not(self):
        batch = {"input_ids": torch.arange(12).reshape(2, 6), "attention_mask": torch.ones(2, 6).bool(), "labels": torch.ones(2)}
        seen = {}

        def model(**inputs):
            seen.update(inputs)
            return inputs["input_ids"]

        outputs, labels = forwards.shorter(4)(model, batch)
        assert outputs.tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
        assert seen["attention_mask"].shape == (2, 4)
        assert labels.shape == (2,)

    def test_the_order_in_memory_changes_no_value(self):
        x = torch.randn(2, 3, 4, 5)
        outputs, _ = forwards.channels_last()(lambda x: x, (x, torch.zeros(2)))
        assert outputs.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(outputs, x)

    def test_one_hook_may_hand_over_to_another(self):
        def forward(model, batch):
            return model(batch["image"]), batch["class"]

        batch = {"image": torch.ones(2, 1, 8, 8), "class": torch.zeros(2)}
        chained = forwards.lower_resolution(0.5, forwards.channels_last(forward))
        assert chained(lambda x: x, batch)[0].shape == (2, 1, 4, 4)
        assert batch["image"].shape == (2, 1, 8, 8)

    def test_a_compiled_forward_pass_is_the_same_to_the_last_bits(self, loader):
        forward = forwards.compiled(backend="eager")
        one, other = (build_selector("train_loss", loader, make_net(0), forward=f, chunk_size=16) for f in (None, forward))
        for _ in zip(one, other, strict=True):
            torch.testing.assert_close(one.last.scores, other.last.scores)

    @pytest.mark.parametrize(
        ("make", "value"), [(forwards.lower_resolution, 0), (forwards.lower_resolution, 2), (forwards.shorter, 0)]
    )
    def test_refuses_what_is_out_of_range(self, make, value):
        with pytest.raises(ValueError, match=f"must be .*, got {value}"):
            make(value)


class TestShallowExit:
    def test_scores_through_the_first_layers_and_trains_the_head_alone(self, loader, store):
        model = make_net(0)
        proxy = forwards.ShallowExit(model[:3], nn.Linear(16, 4))
        optimizer = torch.optim.SGD(proxy.head.parameters(), lr=0.1)
        before, head = copy.deepcopy(model.state_dict()), copy.deepcopy(proxy.head.state_dict())
        selector = ProxyRhoLossSelector(loader, model, store, proxy, proxy_optimizer=optimizer, keep=0.25)
        next(iter(selector))
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert model.training
        assert not torch.equal(proxy.head.weight, head["weight"])

    def test_follows_the_network(self, loader, store):
        model = make_net(0)
        proxy = forwards.ShallowExit(model[:3], nn.Linear(16, 4))
        x = torch.randn(5, 6)
        before = proxy.eval()(x)
        with torch.no_grad():
            model[0].weight.mul_(2)
        assert not torch.allclose(proxy(x), before)


class Reads(Dataset):
    """Remembers what was read."""

    def __init__(self, n):
        self.data = make_data(n)
        self.read = []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        self.read.append(int(i))
        return self.data[i]


class TestShortList:
    def make(self, data, store, **options):
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
        return PrefilteredRhoLossSelector(loader, make_net(0), store, keep=0.1, **options)

    def test_only_the_list_is_read_and_scored(self, store):
        data = Reads(320)
        selector = self.make(data, store, share=0.25)
        for x, _ in selector:
            assert len(x) == 8
            assert len(selector.last.candidate_index) == 20
        assert len(data.read) == 4 * 20
        assert selector.cost().scored == 20

    def test_the_list_is_that_of_the_highest_remembered_scores_and_the_oldest(self, store):
        data = Reads(320)
        selector = self.make(data, store, share=0.5, oldest=0.5)
        model = selector.model.eval()
        when = [-1] * 320
        loss, mean = [0.0] * 320, 0.0
        order = torch.randperm(320, generator=_after_the_seed(0)).tolist()
        for step, _ in enumerate(selector):
            drawn = order[80 * step : 80 * step + 80]
            old = sorted(range(80), key=lambda p: (when[drawn[p]], p))[:20]
            score = [(loss[i] if when[i] >= 0 else mean) - float(store[torch.tensor([i])]) for i in drawn]
            rest = sorted((p for p in range(80) if p not in old), key=lambda p: (-score[p], p))[:20]
            expected = [drawn[p] for p in sorted(old + rest)]
            assert selector.last.candidate_index.tolist() == expected
            with torch.no_grad():
                x, y = (column[expected] for column in data.data.tensors)
                losses = nn.functional.cross_entropy(model(x), y, reduction="none")
            for i, value in zip(expected, losses.tolist(), strict=True):
                loss[i], when[i] = value, step
            mean = float(losses.mean())
        assert step == 3

    def test_age_is_told(self, store):
        selector = self.make(make_data(320), store, share=0.5)
        next(iter(selector))
        assert math.isnan(selector.last.notes["age"])
        list(selector), list(selector)
        assert selector.last.notes["age"] >= 1

    def test_everything_is_read_at_a_share_of_one(self, store):
        selector, plain = self.make(make_data(320), store, share=1.0), None
        loader = DataLoader(make_data(320), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0))
        plain = RhoLossSelector(loader, make_net(0), store, keep=0.1)
        for _ in zip(selector, plain, strict=True):
            assert torch.equal(selector.last.index, plain.last.index)

    def test_a_part_keeps_its_indices(self):
        data = Reads(400)
        part, _ = split(data, holdout=80, validation=0, seed=0)[:2]
        store = IrreducibleLossStore(torch.rand(400))
        loader = DataLoader(part, batch_size=8)
        selector = PrefilteredRhoLossSelector(loader, make_net(0), store, keep=0.1)
        for _ in selector:
            assert set(selector.last.candidate_index.tolist()) <= set(part.indices.tolist())
            seen = selector._when[selector.last.candidate_index]
            assert (seen == selector.step - 1).all()

    def test_refuses_what_cannot_be_drawn_from(self, loader, store):
        with pytest.raises(ValueError, match="pass a DataLoader over a map-style dataset, and keep="):
            PrefilteredRhoLossSelector(loader, make_net(0), store, batch_size=4)
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\]"):
            self.make(make_data(320), store, share=0)

    def test_a_state_of_other_data_is_refused(self, store):
        state = self.make(make_data(320), store).state_dict()
        state["extra"]["loss"] = torch.zeros(3)
        with pytest.raises(ValueError, match="it remembers 3 examples, got a dataset of 320"):
            self.make(make_data(320), store).load_state_dict(state)


def _after_the_seed(seed):
    """The loader's generator where its sampler begins to draw: a base seed was drawn first."""
    generator = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return generator
