"""Irreducible losses from one model, several, checkpoints, views and predictions; what is merged with what."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from conftest import CLASSES, make_data, make_net
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rholoss import (
    Checkpoints,
    IndexedBatches,
    IndexedSubset,
    IrreducibleLossStore,
    RhoLossSelector,
    cross_fit,
    fit_irreducible_model,
    hash_ids,
    split,
)
from rholoss.store.metadata import CalibrationCounts


def losses_under(model, data):
    return IrreducibleLossStore.from_model(model, data).losses


class TestSeveralModels:
    def test_give_their_mean_loss(self, data):
        models = [make_net(seed) for seed in range(3)]
        expected = sum(losses_under(model, data) for model in models) / 3
        for several in (models, tuple(models), nn.ModuleList(models)):
            torch.testing.assert_close(losses_under(several, data), expected)

    def test_are_remembered(self, data):
        meta = IrreducibleLossStore.from_model([make_net(0), make_net(1)], data).meta
        digests = [model["digest"] for model in meta.models]
        assert len(set(digests)) == 2
        assert IrreducibleLossStore.from_model(make_net(1), data).meta.models[0]["digest"] == digests[1]

    def test_may_be_checkpoints_of_one(self, data, tmp_path):
        model, states = make_net(0), [make_net(seed).state_dict() for seed in (3, 4)]
        torch.save(states[1], tmp_path / "4.pt")
        own = copy.deepcopy(model.state_dict())
        checkpoints = Checkpoints(model, [states[0], tmp_path / "4.pt"])
        assert len(checkpoints) == 2
        expected = (losses_under(make_net(3), data) + losses_under(make_net(4), data)) / 2
        torch.testing.assert_close(losses_under(checkpoints, data), expected)
        assert all(torch.equal(value, own[name]) for name, value in model.state_dict().items()), "it has its own weights back"

    def test_may_be_any_callable_such_as_a_zero_shot_classifier(self, data):
        texts = torch.randn(CLASSES, 6, generator=torch.Generator().manual_seed(0))

        def zero_shot(x):
            return x @ texts.T

        expected = nn.functional.cross_entropy(data.tensors[0] @ texts.T, data.tensors[1], reduction="none")
        torch.testing.assert_close(losses_under(zero_shot, data), expected)

    @pytest.mark.parametrize(
        ("model", "error", "message"),
        [
            ([], ValueError, "expected a model, or several, got none"),
            (None, TypeError, "expected a model, a list of models, a Fit or Checkpoints, got NoneType"),
            ((net for net in ()), TypeError, "got generator"),
        ],
    )
    def test_that_are_none_are_refused(self, data, model, error, message):
        with pytest.raises(error, match=message):
            IrreducibleLossStore.from_model(model, data)


class Augmented(Dataset):
    """Noise from all three generators on every reading."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return len(self.data)

    def __getitem__(self, i):
        x, y = self.data[i]
        return x + torch.randn(()) + np.random.randn() + random.gauss(0, 1), y  # noqa: NPY002


class TestViews:
    def test_are_averaged(self, data, net):
        one = IrreducibleLossStore.from_model(net, Augmented(data), views=1).losses
        many = IrreducibleLossStore.from_model(net, Augmented(data), views=30).losses
        others = IrreducibleLossStore.from_model(net, Augmented(data), views=30, seed=1).losses
        assert not torch.equal(many, others)
        assert (many - others).abs().mean() < 0.5 * (one - many).abs().mean()

    def test_of_data_that_do_not_change_change_nothing(self, data, net):
        store = IrreducibleLossStore.from_model(net, data, views=3)
        torch.testing.assert_close(store.losses, losses_under(net, data))
        assert store.meta.views == 3

    @pytest.mark.parametrize("workers", [0, 2])
    def test_are_drawn_by_the_seed_and_move_no_random_state(self, data, net, workers):
        loader = DataLoader(Augmented(data), batch_size=16, num_workers=workers)
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        one = IrreducibleLossStore.from_model(net, loader, views=2)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert random.getstate() == states[2]
        torch.manual_seed(99)
        np.random.seed(99)  # noqa: NPY002
        random.seed(99)
        assert torch.equal(one.losses, IrreducibleLossStore.from_model(net, loader, views=2).losses)

    @pytest.mark.parametrize("views", [0, -1, 1.5, True])
    def test_that_are_no_number_are_refused(self, data, net, views):
        with pytest.raises(ValueError, match=f"views must be a number of passes over the data, at least 1, got {views}"):
            IrreducibleLossStore.from_model(net, data, views=views)


def test_progress_counts_every_pass(data):
    seen = []
    IrreducibleLossStore.from_model(
        [make_net(0), make_net(1)], data, views=2, batch_size=50, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 400) for done in range(50, 401, 50)]


class TestPredictions:
    def predictions(self):
        generator = torch.Generator().manual_seed(0)
        return torch.randn(50, CLASSES, generator=generator), torch.randint(CLASSES, (50,), generator=generator)

    @pytest.mark.parametrize("form", ["tensor", "array", "lists", "float16"])
    def test_give_their_cross_entropy(self, form):
        logits, y = self.predictions()
        given = {"tensor": logits, "array": logits.numpy(), "lists": logits.tolist(), "float16": logits.half()}[form]
        store = IrreducibleLossStore.from_predictions(given, y.tolist() if form == "lists" else y)
        rows = zip(logits.tolist(), y, strict=True)
        expected = [-math.log(math.exp(row[label]) / sum(map(math.exp, row))) for row, label in rows]
        assert store.losses.tolist() == pytest.approx(expected, rel=1e-2 if form == "float16" else 1e-5)
        probabilities = IrreducibleLossStore.from_predictions(logits.softmax(1), y, kind="probabilities")
        torch.testing.assert_close(probabilities.losses, torch.tensor(expected))

    def test_are_read_a_part_at_a_time_from_a_file(self, tmp_path, monkeypatch):
        logits, y = self.predictions()
        np.save(tmp_path / "logits.npy", logits.numpy())
        monkeypatch.setattr("rholoss.irreducible.score.ROWS", 7)
        store = IrreducibleLossStore.from_predictions(np.load(tmp_path / "logits.npy", mmap_mode="r"), y, ids=range(100, 150))
        assert torch.equal(store.losses, IrreducibleLossStore.from_predictions(logits, y).losses)
        assert store.ids.tolist() == list(range(100, 150))

    def test_tally_how_sure_and_right_they_are_like_scoring_does(self, data, net):
        x, y = data.tensors
        with torch.no_grad():
            logits = copy.deepcopy(net).eval()(x)
        mine = IrreducibleLossStore.from_predictions(logits, y).meta.calibration
        scored = IrreducibleLossStore.from_model(net, data).meta.calibration
        assert mine.classes == scored.classes == CLASSES
        assert np.array_equal(mine.bins[:, :2], scored.bins[:, :2])
        assert mine.bins[:, 0].sum() == 100
        assert mine.bins[:, 1].sum() == int((logits.argmax(1) == y).sum())

    @pytest.mark.parametrize(
        ("predictions", "targets", "options", "message"),
        [
            ([[0.5, 0.5]], [0, 1], {}, r"expected predictions \(N, C\).*got predictions \(1, 2\) and targets \(2,\)"),
            ([0.5, 0.5], [0, 1], {}, r"got predictions \(2,\)"),
            ([[0.5]], [0], {}, "C at least 2"),
            ([[0.5, 0.5]], [0.5], {}, "torch.float64"),
            ([[0.5, 0.5]], [2], {}, "expected classes from 0 to 1, got 2 at row 0"),
            ([[0.5, 0.5], [0.3, 0.3]], [0, 0], {"kind": "probabilities"}, "that sum to 1, got 0.6 in row 1; for logits"),
            ([[1.5, -0.5]], [0], {"kind": "probabilities"}, "expected probabilities that sum to 1"),
            ([[1.0, 0.0]], [1], {"kind": "probabilities"}, "the loss of 1 of 1 rows is not finite, the first at row 0"),
            ([[float("nan"), 0.0]], [1], {}, "the loss of 1 of 1 rows is not finite"),
            ([[1.0, 0.0]], [1], {"kind": "odds"}, "kind must be 'logits' or 'probabilities', got 'odds'"),
        ],
    )
    def test_that_make_no_loss_are_refused(self, predictions, targets, options, message):
        with pytest.raises(ValueError, match=message):
            IrreducibleLossStore.from_predictions(predictions, targets, **options)


class TestNames:
    def test_are_hashed_alike_in_stores_loaders_and_look_ups(self, net):
        names = [f"img/{i:04d}.png" for i in range(40)]
        store = IrreducibleLossStore(torch.arange(40.0), ids=names)
        assert store[hash_ids(names[7:9])].tolist() == [7.0, 8.0]
        x, y = make_data(40).tensors
        batches = [{"name": names[i : i + 10], "x": x[i : i + 10], "y": y[i : i + 10]} for i in range(0, 40, 10)]
        door = IndexedBatches(batches, index="name")
        selector = RhoLossSelector(door, net, store, batch_size=2, forward=lambda model, batch: (model(batch["x"]), batch["y"]))
        for batch in selector:
            assert hash_ids(batch["name"]).tolist() == selector.last.index.tolist()

    @pytest.mark.parametrize("names", [["b", "a"], ("b", "a"), np.array(["b", "a"]), np.array(["b", "a"], object), [b"b", b"a"]])
    def test_may_come_in_any_column(self, names):
        assert IrreducibleLossStore([1.0, 2.0], ids=names)[hash_ids("ab")].tolist() == [2.0, 1.0]

    def test_are_hashed_as_documented(self):
        import hashlib

        for name in ("", "a", "Grüße", "x" * 1000):
            digest = hashlib.blake2b(name.encode("utf-8"), digest_size=8).digest()
            assert hash_ids([name]).tolist() == [int.from_bytes(digest, "little", signed=True)]
        assert hash_ids([]).tolist() == []

    def test_that_repeat_are_refused(self):
        with pytest.raises(ValueError, match="1 ids appear more than once"):
            IrreducibleLossStore([1.0, 2.0], ids=["a", "a"])


class TestBadLosses:
    def test_negative_ones_are_refused_and_named(self, data, net):
        def shifted(outputs, targets):
            return nn.functional.cross_entropy(outputs, targets, reduction="none") - 1

        with pytest.raises(ValueError, match=r"the loss of \d+ of 100 examples .* is negative: indices .*a constant added"):
            IrreducibleLossStore.from_model(net, data, loss=shifted)
        with pytest.raises(ValueError, match="must be at least 0, got 1 that are negative: indices 9; a constant added"):
            IrreducibleLossStore([0.5, -0.5], ids=[3, 9])


class TestMerge:
    def store(self, model=None, data=None, part=range(50), **options):
        return IrreducibleLossStore.from_model(model or make_net(0), IndexedSubset(data or make_data(100), part), **options)

    def test_of_parts_is_the_whole(self, data, net):
        merged = self.store().merge(self.store(part=range(50, 80)), self.store(part=range(80, 100)))
        whole = IrreducibleLossStore.from_model(net, data)
        assert torch.equal(merged.losses, whole.losses)
        assert merged.ids is None
        assert merged.meta.calibration.to_json()["bins"] == whole.meta.calibration.to_json()["bins"]

    def test_with_nothing_is_itself(self):
        store = self.store()
        assert store.merge() is store

    def test_of_strangers_is_refused(self):
        mine, rest = self.store(), range(50, 100)
        for stranger, message in (
            (self.store(model=make_net(1), part=rest), "made by different models, Sequential .* and Sequential .*"),
            (self.store(data=make_data(100, seed=5), part=rest), "of different data, .*labels, in their order, are not those"),
            (self.store(data=make_data(120), part=rest), "it has 120 examples, and that had 100"),
            (self.store(loss=nn.CrossEntropyLoss(reduction="none"), part=rest), "another loss, 'default_loss' and 'Cross"),
            (self.store(views=2, part=rest), "another views, 1 and 2"),
        ):
            with pytest.raises(ValueError, match=message):
                mine.merge(stranger)

    def test_of_what_is_known_twice_is_refused(self):
        with pytest.raises(ValueError, match="1 examples have an irreducible loss in both stores: indices 49"):
            self.store().merge(self.store(part=range(49, 60)))

    def test_of_stores_that_say_nothing_of_themselves_is_allowed(self):
        assert len(IrreducibleLossStore([0.5], ids=[200]).merge(self.store())) == 51


class TestGate:
    def selector(self, losses, model, data, **options):
        return RhoLossSelector(DataLoader(data, batch_size=100), model, IrreducibleLossStore(losses), batch_size=10, **options)

    def test_keeps_the_highest_reducible_losses_among_those_below(self, data, net):
        losses = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 4
        plain, gated = self.selector(losses, net, data), self.selector(losses, net, data, max_irreducible_loss=0.5)
        next(iter(plain)), next(iter(gated))
        allowed = losses <= 0.5
        order = plain.last.scores.masked_fill(~allowed, -math.inf).argsort(descending=True)[:10]
        assert set(gated.last.index.tolist()) == set(order.tolist()) != set(plain.last.index.tolist())
        assert gated.last.notes["gated"].item() == pytest.approx(1 - allowed.float().mean().item())

    def test_at_its_very_height_still_lets_pass(self, data, net):
        losses = torch.full((100,), 2.0)
        losses[50:60] = 1.0
        selector = self.selector(losses, net, data, max_irreducible_loss=1.0)
        next(iter(selector))
        assert selector.last.index.tolist() == list(range(50, 60))

    def test_fills_up_from_above_where_too_few_are_below(self, data, net):
        losses = torch.full((100,), 2.0)
        losses[[40, 70]] = 0.5
        selector = self.selector(losses, net, data, max_irreducible_loss=1.0)
        next(iter(selector))
        assert len(selector.last.index) == 10
        assert {40, 70} <= set(selector.last.index.tolist())

    def test_keeps_everything_at_keep_1(self, data, net):
        loader = DataLoader(data, batch_size=10)
        store = IrreducibleLossStore(torch.ones(100))
        selector = RhoLossSelector(loader, net, store, keep=1, max_irreducible_loss=0.5, bounded=True)
        for (x, y), (a, b) in zip(loader, selector, strict=True):
            assert torch.equal(x, a)
            assert torch.equal(y, b)

    def test_bounded_scores_are_differences_of_probability(self, data, net):
        losses = torch.rand(100) * 4
        selector = self.selector(losses, net, data, bounded=True)
        next(iter(selector))
        expected = torch.exp(-losses) - torch.exp(-losses_under(net, data))
        torch.testing.assert_close(selector.last.scores, expected)

    @pytest.mark.parametrize("highest", [0, -1.0, float("nan"), "2"])
    def test_that_is_no_loss_is_refused(self, data, net, highest):
        with pytest.raises(ValueError, match="max_irreducible_loss must be a loss in nats above 0, such as math.log"):
            self.selector(torch.ones(100), net, data, max_irreducible_loss=highest)


class TestTally:
    def test_adds_up(self):
        one, other = CalibrationCounts(), CalibrationCounts(3)
        one.count(np.array([0.05, 1.0]), np.array([1.0, 0.0]))
        other.count(np.array([0.95]), np.array([1.0]))
        both = one + other
        assert both.bins[0].tolist() == [1, 1, 50_000]
        assert both.bins[9].tolist() == [2, 1, 1_950_000]
        assert both.classes == 3
        assert CalibrationCounts(**both.to_json()) == both

    def test_counts_every_model_and_compares_their_halves(self, data):
        models = [make_net(0), make_net(1), make_net(2)]
        tally = IrreducibleLossStore.from_model(models, data).meta.calibration
        assert tally.bins[:, 0].sum() == 300
        one = ((losses_under(models[0], data) + losses_under(models[2], data)) / 2).double()
        other = losses_under(models[1], data).double()
        expected = [100, one.sum(), other.sum(), one.square().sum(), other.square().sum(), (one * other).sum()]
        assert tally.halves.tolist() == pytest.approx([float(value) for value in expected], rel=1e-5)

    def test_of_another_task_has_nothing_to_count(self):
        data = TensorDataset(torch.randn(20, 3), torch.randn(20, 1))
        tally = IrreducibleLossStore.from_model(nn.Linear(3, 1), data).meta.calibration
        assert tally.classes == 0
        assert not np.any(tally.bins)


def test_the_validation_loss_of_a_fit_is_kept_for_the_report(data):
    parts = split(data, holdout=40, validation=20)
    fits = [fit_irreducible_model(make_net(seed), parts.holdout, parts.validation, epochs=1) for seed in (0, 1)]
    losses = [fit.best.validation_loss for fit in fits]
    assert IrreducibleLossStore.from_model(fits[0], parts.train).report().validation_loss == losses[0]
    assert IrreducibleLossStore.from_model(fits, parts.train).report().validation_loss == pytest.approx(sum(losses) / 2)
    assert IrreducibleLossStore.from_model(fits[0], parts.train).report(validation_loss=1.5).validation_loss == 1.5
    assert IrreducibleLossStore.from_model([fits[0], make_net(3)], parts.train).report().validation_loss is None

    seen = []

    def fit(part):
        _, training, validation = split(part, holdout=20, validation=10)
        seen.append(fit_irreducible_model(make_net(0), training, validation, epochs=1))
        return seen[-1]

    whole = cross_fit(data, fit, folds=3)
    assert whole.report().validation_loss == pytest.approx(sum(each.best.validation_loss for each in seen) / 3)
    assert cross_fit(data, lambda part: make_net(0)).report().validation_loss is None


class TestWhatMadeIt:
    """At a path, and where stores are merged, other functions of the same name are other functions."""

    def hooks(self, temperature):
        def forward(model, batch):
            return model(batch[0]) / temperature, batch[1]

        return forward

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            ({"loss": lambda z, y: z.sum(1) * 0 + 1}, {"loss": lambda z, y: z.sum(1) * 0 + 2}, "forward or loss function"),
            ({}, {"forward": lambda model, batch: (model(batch[0]), batch[1])}, "forward"),
        ],
    )
    def test_another_function_is_refused(self, data, net, tmp_path, first, second, message):
        IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", **first)
        before = (tmp_path / "il.npz").read_bytes()
        with pytest.raises(ValueError, match=f"exists already, made with other .*{message}"):
            IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", **second)
        assert (tmp_path / "il.npz").read_bytes() == before
        part = {name: IndexedSubset(data, rows) for name, rows in (("one", range(50)), ("other", range(50, 100)))}
        one = IrreducibleLossStore.from_model(net, part["one"], **first)
        with pytest.raises(ValueError, match=f"another {message}"):
            one.merge(IrreducibleLossStore.from_model(net, part["other"], **second))

    def test_what_a_function_closes_over_counts(self, data, net, tmp_path):
        path = tmp_path / "il.npz"
        store = IrreducibleLossStore.from_model(net, data, path=path, forward=self.hooks(0.5))
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(net, data, path=path, forward=self.hooks(0.5)).losses)
        with pytest.raises(ValueError, match="made with other forward or loss function"):
            IrreducibleLossStore.from_model(net, data, path=path, forward=self.hooks(1.0))

    def test_another_callable_is_another_model(self, data, net, tmp_path):
        IrreducibleLossStore.from_model(lambda x: net(x), data, path=tmp_path / "il.npz")
        with pytest.raises(ValueError, match="made with other models"):
            IrreducibleLossStore.from_model(lambda x: net(x) * 3, data, path=tmp_path / "il.npz")

    def test_other_layers_with_the_same_weights_are_another_model(self, data, tmp_path):
        torch.manual_seed(0)
        first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        second = nn.Sequential(first[0], nn.Tanh(), first[2])
        IrreducibleLossStore.from_model(first, data, path=tmp_path / "il.npz")
        with pytest.raises(ValueError, match="made with other models"):
            IrreducibleLossStore.from_model(second, data, path=tmp_path / "il.npz")


def test_predictions_are_checked_against_the_labels_that_they_were_given(data, net):
    x, y = data.tensors
    store = IrreducibleLossStore.from_predictions(net(x).detach(), y)
    RhoLossSelector(DataLoader(data, batch_size=8), net, store)
    with pytest.raises(ValueError, match="its labels, in their order, are not those"):
        RhoLossSelector(DataLoader(TensorDataset(x.flip(0), y.flip(0)), batch_size=8), net, store)


@pytest.mark.parametrize("batch_size", [0, -3, True])
def test_a_batch_size_that_is_none_is_refused(data, net, batch_size):
    with pytest.raises(ValueError, match=f"batch_size must be a number of examples, at least 1, or None, got {batch_size}"):
        IrreducibleLossStore.from_model(net, data, batch_size=batch_size)


def test_work_is_kept_a_sixteenth_at_a_time(data, net, tmp_path):
    def kill(done, total):
        if done == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        IrreducibleLossStore.from_model(net, data, batch_size=5, path=tmp_path / "il.npz", progress=kill)
    seen = []
    options = {"batch_size": 5, "progress": lambda done, total: seen.append(done)}
    IrreducibleLossStore.from_model(net, data, path=tmp_path / "il.npz", **options)
    assert seen[:2] == [10, 20]
    assert len(seen) < 20, "what was done is not done again"
