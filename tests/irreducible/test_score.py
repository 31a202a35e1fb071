"""Irreducible losses from a model over several views, and from predictions; names and losses that are refused."""

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
    IndexedBatches,
    IrreducibleLossStore,
    RhoLossSelector,
    hash_ids,
)


def losses_under(model, data):
    return IrreducibleLossStore.from_model(model, data).losses


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

    def test_count_how_sure_and_right_they_are_like_scoring_does(self, data, net):
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
            (
                [[0.5, 0.5]],
                [0, 1],
                {},
                r"shape \(1,\), integer, from 0 to 1, got \(2,\), torch.int64",
            ),
            ([0.5, 0.5], [0, 1], {}, r"predictions must be one row of numbers per example, .*got shape \(2,\)"),
            ([[0.5]], [0], {}, "C at least 2"),
            ([[0.5, 0.5]], [0.5], {}, r"targets must be one class per example, .* got \(1,\), torch.float64"),
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
        assert IrreducibleLossStore([1.0, 2.0], ids=names)[hash_ids(["a", "b"])].tolist() == [2.0, 1.0]

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
        with pytest.raises(
            ValueError, match="must be at least 0, got 1 that are negative: indices 9; add one constant to the loss"
        ):
            IrreducibleLossStore([0.5, -0.5], ids=[3, 9])


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
