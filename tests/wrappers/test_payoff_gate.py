"""Selection is switched off where it does not pay."""

import copy

import pytest
import torch
from conftest import CLASSES, FEATURES, make_learnable_data, make_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector
from rholoss.selectors import GatedUniformSelector, ProxyRhoLossSelector, UniformSelector
from rholoss.testing import check_selector
from rholoss.wrappers import PayoffGatedSelector

N = 640


@pytest.fixture
def data():
    return make_learnable_data(N)


@pytest.fixture
def loader(data):
    return DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)


@pytest.fixture
def validation():
    return make_learnable_data(160, seed=7)


class Fixed(Selector):
    """Keeps the highest of fixed scores by index."""

    def __init__(self, loader, model=None, *, table, **options):
        super().__init__(loader, model, **options)
        self.table = table

    def score(self, candidates):
        return self.table[candidates.index]


class Loaded(UniformSelector):
    """Chance that sees the batch."""

    scores_by_index = False


def with_wrong_labels(data, share):
    x, y = data.tensors
    wrong = torch.rand(N, generator=torch.Generator().manual_seed(3)) < share
    return TensorDataset(x, torch.where(wrong, (y + 1) % CLASSES, y)), wrong


def plain_gain(selector, data, validation, steps, positions_of):
    """The gain by its definition, with a backward pass for each gradient and no trick."""
    model = selector.model

    def gradient(x, y):
        twin = copy.deepcopy(model).eval()
        nn.functional.cross_entropy(twin(x), y).backward()
        return torch.cat([p.grad.flatten() for p in twin.parameters()]).double()

    worth = [0.0, 0.0]
    for step in steps:
        target = gradient(*(column[16 * step : 16 * step + 16] for column in validation.tensors))
        for row, index in enumerate(positions_of(step)):
            mine = gradient(*(column[index] for column in data.tensors))
            worth[row] += float(mine @ target / mine.norm())
    return worth[0] / worth[1]


class TestPayoffGate:
    def make(self, data, validation, table, *, net=None, load_all=False, **options):
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(0), drop_last=True)
        model = net or make_net(0)
        method = Fixed(loader, model, table=table, keep=0.25)
        if load_all:
            options["otherwise"] = Loaded(loader, model, keep=0.25)
        return PayoffGatedSelector(loader, model, method, validation, keep=0.25, **options)

    def test_right_labels_pay_among_wrong_ones_and_wrong_ones_do_not(self, data, validation):
        noisy, wrong = with_wrong_labels(data, 0.5)
        for table, expected in ((-wrong.float(), True), (wrong.float(), False)):
            net = nn.Linear(FEATURES, CLASSES)
            selector = self.make(noisy, validation, table, net=net, every=2, batches=12, cost=1.1)
            for _ in selector:
                pass
            assert (selector.decides is selector.method) is expected

    def test_the_gain_is_that_of_its_definition(self, data, validation, monkeypatch):
        at_random = torch.arange(32).flip(0).float()
        monkeypatch.setattr("rholoss.candidates.Candidates.rand", lambda self, n=None: at_random)
        table = torch.rand(N)
        selector = self.make(data, validation, table, every=1, batches=3)
        drawn = torch.randperm(N, generator=torch.Generator().manual_seed(5)).split(32)
        for index in drawn[:4]:
            selector.select((index, tuple(column[index] for column in data.tensors)))
        assert [step for step, _ in selector.gains] == [3]

        def positions_of(step):
            index = drawn[step + 1]
            return index[table[index].topk(8).indices], index[:8]

        assert selector.gains[0][1] == pytest.approx(plain_gain(selector, data, validation, range(3), positions_of), rel=1e-4)

    def test_measures_at_a_step_and_whenever_they_have_doubled(self, data, validation):
        selector = self.make(data, validation, torch.zeros(N), every=3, batches=2)
        while selector.step < 60:
            for _ in selector:
                pass
        assert [step for step, _ in selector.gains] == [4, 7, 13, 25, 49]

    def test_begins_with_the_method_and_changes_over(self, data, validation, monkeypatch):
        table = torch.arange(N).float()

        def decide(self, step, n_B, n_b):
            self.decides = self.otherwise if self.decides is self.method else self.method
            self.gains.append((step, 0.0))
            self._next *= 2
            self._worth.clear()

        monkeypatch.setattr(PayoffGatedSelector, "_decide", decide)
        selector = self.make(data, validation, table, load_all=True, every=4, batches=2)
        chosen = []
        for _ in selector:
            best = table[selector.last.candidate_index].topk(8).indices.sort().values
            chosen.append(torch.equal(selector.last.positions, best))
        assert [step for step, _ in selector.gains] == [5, 9, 17]
        assert chosen == [True] * 5 + [False] * 4 + [True] * 8 + [False] * 3

    def test_what_cannot_be_told_apart_changes_nothing(self, data, validation):
        selector = self.make(data, validation, torch.rand(N), every=1, batches=4, cost=2.0)
        above, unclear, below = (
            [(1.2, 0.5)] * 3 + [(1.1, 0.4)],
            [(1.3, 0.5), (-1.0, 0.5), (2.0, 0.5), (0.1, 0.5)],
            [(0.9, 0.5)] * 4,
        )
        for worth, expected in (
            (above, "method"),
            (unclear, "method"),
            (below, "uniform"),
            (unclear, "uniform"),
            (above, "method"),
        ):
            selector._worth[:] = worth
            selector._decide(4, 32, 8)
            assert selector.decides is getattr(selector, expected)

    def test_nobody_is_put_in_place_who_does_harm(self, data, validation):
        selector = self.make(data, validation, torch.rand(N), every=1, batches=4, cost=4.0)
        for worth, expected in (
            ([(-0.5, -0.1)] * 4, "method"),
            ([(-0.5, 0.1)] * 4, "uniform"),
            ([(-0.1, -0.5)] * 4, "uniform"),
            ([(0.1, -0.5)] * 4, "method"),
        ):
            selector._worth[:] = worth
            selector._decide(4, 32, 8)
            assert selector.decides is getattr(selector, expected)
        assert len(selector.gains) == 4

    def test_between_the_method_and_uniform_sampling_there_may_be_another(self, data, validation):
        selector = self.make(data, validation, torch.rand(N), load_all=True, every=1, batches=4, cost=2.0)
        for worth, expected in (((0.7, 0.6, 0.4), "otherwise"), ((0.7, 0.3, 0.4), "uniform"), ((1.0, 0.4, 0.4), "method")):
            selector._worth[:] = [list(worth)] * 4
            selector._decide(4, 32, 8)
            assert selector.decides is getattr(selector, expected)

    @pytest.mark.parametrize(("scores", "expected"), [(False, 1.0), (True, 1 + 4 / 3)])
    def test_counts_what_the_method_costs(self, data, validation, monkeypatch, scores, expected):
        seen = []
        count = lambda keep, scoring: seen.append((keep, scoring)) or 1e9  # noqa: E731
        monkeypatch.setattr("rholoss.wrappers.payoff_gate.break_even", count)
        loader = DataLoader(data, batch_size=8)
        model = make_net(0)
        store = IrreducibleLossStore(torch.zeros(N))
        if scores:
            method = RhoLossSelector(loader, model, store, keep=0.25)
        else:
            method = ProxyRhoLossSelector(loader, model, store, make_net(1), keep=0.25)
        selector = PayoffGatedSelector(loader, model, method, validation, every=1, batches=2, keep=0.25)
        for _ in selector:
            pass
        assert seen[0] == (0.25, float(scores))
        assert selector.decides is selector.uniform

    def test_leaves_no_trace_in_the_run(self, data, validation):
        model = make_net(0)
        model[1].eval()
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        selector = self.make(data, validation, torch.rand(N), net=model, every=1, batches=2)
        random = torch.get_rng_state()
        for candidates in list(selector.candidate_batches)[:4]:
            state = torch.get_rng_state()
            selector.select(candidates)
            assert torch.equal(torch.get_rng_state(), state)
        assert random is not None
        torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
        assert [m.training for m in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())

    def test_measuring_changes_no_choice(self, data, validation, monkeypatch):
        """The examples drawn at random are the same whether the method is measured in between or not."""
        monkeypatch.setattr(PayoffGatedSelector, "_prefilter", lambda self, index, step: None)
        monkeypatch.setattr("rholoss.wrappers.payoff_gate.clearly_above", lambda values, others: False)
        often, never = (
            self.make(data, validation, torch.rand(N), load_all=True, every=every, batches=2, cost=1e9) for every in (1, 1000)
        )
        often.decides, never.decides = often.uniform, never.uniform
        for _ in zip(often, never, strict=True):
            assert torch.equal(often.last.index, never.last.index)
        assert often.gains

    @pytest.mark.parametrize("at", [1, 3, 4, 6, 11])
    def test_resumes_as_it_would_have(self, data, validation, at):
        def made():
            noisy, wrong = with_wrong_labels(data, 0.5)
            selector = self.make(noisy, validation, wrong.float(), every=3, batches=3, cost=1e9)
            return selector, torch.optim.SGD(selector.model.parameters(), lr=0.1)

        def follow(selector, optimizer, state=None):
            chosen = []
            if state is not None:
                selector.load_state_dict(state["selector"])
                selector.model.load_state_dict(state["model"])
            for x, y in selector:
                chosen.append(selector.last.index.tolist())
                if selector.step == at and state is None:
                    saved.update(selector=copy.deepcopy(selector.state_dict()))
                selector.model.eval()
                optimizer.zero_grad()
                nn.functional.cross_entropy(selector.model(x), y).backward()
                optimizer.step()
                if selector.step == at and state is None:
                    saved.update(model=copy.deepcopy(selector.model.state_dict()))
            return chosen

        saved = {}
        first, second = made(), made()
        chosen = follow(*first)
        assert follow(*second, saved) == chosen[at:]
        assert second[0].gains == first[0].gains
        assert second[0].decides is second[0].uniform
        assert first[0].decides is first[0].uniform

    def test_a_co_trained_model_always_trains(self, data, validation):
        loader = DataLoader(data, batch_size=8)
        model, proxy = make_net(0), make_net(1)
        before = copy.deepcopy(proxy[0].weight)
        optimizer = torch.optim.SGD(proxy.parameters(), lr=0.1)
        method = ProxyRhoLossSelector(
            loader, model, IrreducibleLossStore(torch.zeros(N)), proxy, proxy_optimizer=optimizer, keep=0.25
        )
        selector = PayoffGatedSelector(loader, model, method, validation, every=1000, keep=0.25)
        next(iter(selector))
        assert not torch.equal(proxy[0].weight, before)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_while_it_does_not_pay_no_more_is_loaded_than_is_trained_on(self, data, validation, workers):
        loader = DataLoader(data, batch_size=8, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(0))
        model = make_net(0)
        store = IrreducibleLossStore(torch.arange(N) % 2 * 5.0)
        method = Fixed(loader, model, table=torch.zeros(N), keep=0.1)
        otherwise = GatedUniformSelector(loader, None, store, max_irreducible_loss=1.0, keep=0.1)
        selector = PayoffGatedSelector(
            loader, model, method, validation, otherwise=otherwise, every=20, batches=2, cost=1e9, keep=0.1
        )
        selector.decides = otherwise
        sizes = []
        while selector.step < 30:
            for x, _ in selector:
                assert len(x) == 8
                sizes.append(len(selector.last.candidate_index))
                if selector.step < 19:
                    assert not (selector.last.index % 2).any()
        ahead = 4 if workers else 0
        assert set(sizes[: 19 - ahead]) == {8}
        assert sizes[20:22] == [80, 80]
        assert set(sizes[22 + ahead : 30]) == {8}
        assert len(selector.gains) == 1

    def test_other_examples_are_drawn_in_every_epoch_though_the_loader_draws_the_same(self, data, validation):
        loader = DataLoader(data, batch_size=8)
        model = make_net(0)
        method = Fixed(loader, model, table=torch.zeros(N), keep=0.1)
        selector = PayoffGatedSelector(loader, model, method, validation, every=10**6, keep=0.1)
        selector.decides = selector.uniform
        epochs = [tuple(i for _ in selector for i in selector.last.index.tolist()) for _ in range(4)]
        assert len(set(epochs)) == 4

    def test_a_cheaper_selector_that_reads_the_batch_sees_it(self, data, validation):
        loader = DataLoader(data, batch_size=8)
        store, model = IrreducibleLossStore(torch.zeros(N)), make_net(0)
        otherwise = ProxyRhoLossSelector(loader, None, store, make_net(1), keep=0.25)
        method = RhoLossSelector(loader, model, store, keep=0.25)
        selector = PayoffGatedSelector(loader, model, method, validation, otherwise=otherwise, keep=0.25)
        next(iter(selector))
        assert len(selector.last.candidate_index) == 32

    def test_building_it_draws_nothing_from_the_global_generator(self, data, validation):
        loader = DataLoader(data, batch_size=8)
        state = torch.get_rng_state()
        model, method = make_net(0), RhoLossSelector(loader, None, IrreducibleLossStore(torch.zeros(N)), keep=0.25)
        PayoffGatedSelector(loader, model, method, DataLoader(validation, batch_size=8, shuffle=True), keep=0.25)
        assert torch.equal(torch.get_rng_state(), state)

    def test_keeps_the_contract(self, validation):
        def build(loader, model, *, store, keep, forward=None, **options):
            method = RhoLossSelector(loader, model, store, keep=keep, forward=forward, **options)
            batches = [loader.collate_fn([loader.dataset[i] for i in range(k, k + 12)]) for k in (0, 12, 24)]
            return PayoffGatedSelector(loader, model, method, batches, every=2, batches=2, keep=keep, forward=forward, **options)

        check_selector(build)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"cost": 0}, "cost must be the duration of a step over that of a plain step, above 0, or None, got 0"),
            ({"every": 0}, "every must be the step of the first measurement, at least 1, got 0"),
            ({"batches": 1}, "batches must be a number of candidate batches, at least 2, got 1"),
        ],
    )
    def test_refuses_what_is_out_of_range(self, data, validation, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(data, validation, torch.zeros(N), **options)

    def test_refuses_no_validation_examples(self, data):
        with pytest.raises(ValueError, match="validation has no batch; pass examples"):
            self.make(data, [], torch.zeros(N))
