"""Predictions beside the losses: made, kept, merged, saved, and refused where they cannot be right."""

import copy
import pickle

import pytest
import torch
from conftest import CLASSES, FEATURES, make_data
from torch import nn
from torch.utils.data import TensorDataset

from rholoss import IrreducibleLossStore, cross_fit
from rholoss.store import Predictions

N = 70


@pytest.fixture
def data():
    return make_data(N)


def models(count):
    torch.manual_seed(3)
    return [nn.Linear(FEATURES, CLASSES) for _ in range(count)]


def by_hand(each, data, k):
    """The label and the k most likely classes, and their mean probabilities."""
    x, y = data.tensors
    p = torch.stack([model(x).softmax(1) for model in each]).mean(0)
    classes = torch.cat([y[:, None], p.argsort(1, descending=True)[:, :k]], 1)
    return classes.int(), p.gather(1, classes.long())


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", ["memory", "file", "folder"])
def test_are_the_label_and_the_most_likely_classes(count, how, data, tmp_path):
    options = {} if how == "memory" else {"path": tmp_path / "il", "mapped": how == "folder"}
    store = IrreducibleLossStore.from_model(models(count), data, top_classes=3, **options)
    classes, probabilities = by_hand(models(count), data, 3)
    assert torch.equal(store.predictions.classes, classes)
    assert torch.allclose(store.predictions.probabilities, probabilities, atol=1e-6)


def test_none_are_kept_by_default(data):
    assert IrreducibleLossStore.from_model(models(1), data).predictions is None


def test_are_the_same_after_saving_copying_and_pickling(data, tmp_path):
    store = IrreducibleLossStore.from_model(models(1), data, top_classes=2)
    store.save(tmp_path / "il.npz")
    store.save(tmp_path / "il", mapped=True)
    mapped = IrreducibleLossStore.load(tmp_path / "il")
    others = [IrreducibleLossStore.load(tmp_path / "il.npz"), mapped, pickle.loads(pickle.dumps(mapped))]
    others += [copy.deepcopy(store), pickle.loads(pickle.dumps(store)), mapped.to("cpu")]
    for other in others:
        for mine, theirs in zip(store.predictions, other.predictions, strict=True):
            assert torch.equal(mine, theirs)


def test_follow_their_ids():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
    store = IrreducibleLossStore.from_predictions(p, [1, 2], [900, 5], kind="probabilities", top_classes=2)
    assert store.ids.tolist() == [5, 900]
    assert store.predictions.classes.tolist() == [[2, 2, 1], [1, 0, 1]]
    assert store.predictions.probabilities[1].tolist() == pytest.approx([0.2, 0.7, 0.2])


def test_of_folds_are_merged(data):
    each = models(2)
    store = cross_fit(data, lambda part: each.pop(), torch.arange(N) % 2, top_classes=2)
    for fold, model in zip((0, 1), reversed(models(2)), strict=True):
        mine = torch.arange(N) % 2 == fold
        classes, _ = by_hand([model], data, 2)
        assert torch.equal(store.predictions.classes[mine], classes[mine])


def test_a_store_without_any_leaves_gaps_when_merged():
    one = IrreducibleLossStore.from_predictions([[0.9, 0.1]], [0], [3], kind="probabilities", top_classes=2)
    both = one.merge(IrreducibleLossStore([0.5], [1]))
    assert both.predictions.classes.tolist() == [[-1, -1, -1], [0, 0, 1]]
    assert both.predictions.probabilities[0].isnan().all()
    assert both.suspects().label_quality["index"].tolist() == [3]


def test_merging_keeps_as_many_classes_as_both_have():
    options = {"kind": "probabilities", "top_classes": 3}
    one = IrreducibleLossStore.from_predictions([[0.7, 0.2, 0.1]], [0], [3], **options)
    other = IrreducibleLossStore.from_predictions([[0.7, 0.3]], [1], [1], **options)
    assert one.merge(other).predictions.classes.tolist() == [[1, 0, 1], [0, 0, 1]]


def test_a_store_made_without_is_not_taken_for_one_with(data, tmp_path):
    IrreducibleLossStore.from_model(models(1), data, path=tmp_path / "il.npz")
    with pytest.raises(ValueError, match=r"made with other scoring \(batch size, dtype, seed or top_classes\)"):
        IrreducibleLossStore.from_model(models(1), data, path=tmp_path / "il.npz", top_classes=2)


def test_an_ignored_label_has_none():
    p = torch.tensor([[0.7, 0.3], [0.6, 0.4]])
    assert Predictions.of(p, torch.tensor([-100, 1]), 2).classes.tolist() == [[-1, -1, -1], [1, 0, 1]]


@pytest.mark.parametrize("outputs", [1, 3])
def test_of_anything_but_a_classifier_are_refused(outputs):
    data = TensorDataset(torch.randn(8, FEATURES), torch.randn(8, outputs))
    with pytest.raises(ValueError, match="top_classes keeps the predictions of a classifier: .* leave top_classes out"):
        IrreducibleLossStore.from_model(nn.Linear(FEATURES, outputs), data, top_classes=2)


def test_one_class_is_too_few(data):
    with pytest.raises(
        ValueError, match="top_classes must be how many of the most likely classes to keep: 0, or at least 2, got 1"
    ):
        IrreducibleLossStore.from_model(models(1), data, top_classes=1)


@pytest.mark.parametrize(
    "given",
    [
        Predictions(torch.zeros(3, 3).int(), torch.zeros(3, 3)),  # of another number of examples
        Predictions(torch.zeros(2, 2).int(), torch.zeros(2, 2)),  # of one class
        Predictions(torch.zeros(2, 3).int(), torch.full((2, 3), 1.5)),
        Predictions(torch.zeros(2, 3).int(), torch.full((2, 3), torch.nan)),
        Predictions(torch.full((2, 3), -1).int(), torch.zeros(2, 3)),
    ],
)
def test_what_is_no_prediction_is_refused(given):
    with pytest.raises(ValueError, match="expected p"):
        IrreducibleLossStore([0.5, 0.25], predictions=given)


def test_a_file_with_classes_alone_is_damaged(tmp_path):
    from rholoss.store.serialization import write_store

    write_store(tmp_path / "il.npz", {"losses": torch.zeros(2).numpy(), "classes": torch.zeros(2, 3).int().numpy()}, {})
    with pytest.raises(ValueError, match="classes or probabilities, not both"):
        IrreducibleLossStore.load(tmp_path / "il.npz")
