"""A store and a loader that do not belong together are told apart."""

import copy
import random

import numpy as np
import pytest
import torch
from conftest import CLASSES, FEATURES, make_net
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from rholoss import IndexedBatches, IndexedSubset, IrreducibleLossStore, RhoLossSelector
from rholoss.data.fingerprint import difference, fingerprint


class Texts(Dataset):
    """Examples of several kinds, whose labels are not shown."""

    def __init__(self, n=60, noise=None):
        self.rows = [{"text": f"example {i} " * (i % 5), "label": i % 3, "size": (i, 2.5)} for i in range(n)]
        self.noise = noise

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        extra = {} if self.noise is None else {"view": self.noise()}
        return {**self.rows[i], **extra}


def meet(store, data, **loader):
    return RhoLossSelector(DataLoader(data, batch_size=4, **loader), make_net(1), store)


@pytest.fixture
def store(data, net):
    return IrreducibleLossStore.from_model(net, data)


def test_the_same_data_are_accepted_whatever_the_loader(store, data):
    meet(store, data)
    meet(store, copy.deepcopy(data), shuffle=True)
    meet(store, data, num_workers=2)
    meet(store, IndexedSubset(data, range(0, 100, 2)))


def test_reordered_data_are_refused(store, data):
    x, y = data.tensors
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"other data than the loader reads: its labels, in their order, are not those .*again"):
        meet(store, TensorDataset(x[order], y[order]))


def test_reordered_data_are_refused_under_other_names_too_and_the_same_data_are_not(store, data):
    x, y = data.tensors
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    meet(store, [{"pixels": one, "labels": label} for one, label in zip(x, y, strict=True)])
    meet(store, [{"pixels": one, "labels": label} for one, label in zip(2 * x, y, strict=True)])  # as normalised otherwise
    with pytest.raises(ValueError, match=r"its fields have other names, and none holds what one of that held .*again"):
        meet(store, [{"pixels": one, "labels": label} for one, label in zip(x[order], y[order], strict=True)])


def test_a_selector_that_scores_by_another_loss_than_the_store_was_made_with_warns(store, data):
    loss = torch.nn.MultiMarginLoss(reduction="none")
    with pytest.warns(UserWarning, match=r"the loss 'default_loss', .* with 'MultiMarginLoss\(margin=1.0, .*\)': .*one loss="):
        RhoLossSelector(DataLoader(data, batch_size=4), make_net(1), store, loss=loss)
    RhoLossSelector(
        DataLoader(data, batch_size=4), make_net(1), IrreducibleLossStore.from_model(make_net(0), data, loss=loss), loss=loss
    )


def test_a_swap_of_two_examples_is_refused(store, data):
    x, y = (tensor.clone() for tensor in data.tensors)
    one, other = 3, next(i for i in range(4, 100) if y[i] != y[3])
    for tensor in (x, y):
        tensor[[one, other]] = tensor[[other, one]]
    with pytest.raises(ValueError, match="its labels, in their order, are not those"):
        meet(store, TensorDataset(x, y))


def test_data_reordered_within_the_labels_are_refused(store, data):
    x, y = data.tensors
    order = torch.cat([torch.nonzero(y == label).flatten().roll(1) for label in range(CLASSES)])
    places = torch.cat([torch.nonzero(y == label).flatten() for label in range(CLASSES)])
    moved = x.clone()
    moved[places] = x[order]
    with pytest.raises(ValueError, match=r"\d+ of 32 sampled examples differ in \[0\] .*rebind\(dataset\)"):
        meet(store, TensorDataset(moved, y))


def test_a_dropped_row_is_refused(net, data):
    part = IrreducibleLossStore.from_model(net, IndexedSubset(data, range(90)))  # has ids, so that its length alone says nothing
    x, y = data.tensors
    with pytest.raises(ValueError, match="it has 99 examples, and that had 100"):
        meet(part, TensorDataset(x[1:], y[1:]), sampler=range(90))


def test_one_label_that_changed_is_refused(store, data):
    x, y = data.tensors
    y = y.clone()
    y[57] = (y[57] + 1) % CLASSES
    with pytest.raises(ValueError, match=r"reordered or relabelled"):
        meet(store, TensorDataset(x, y))


def test_data_that_show_no_labels_are_known_by_a_sample():
    texts = Texts()
    saved = fingerprint(texts)
    assert saved["labels"] is None
    assert set(saved["sample"]) == {"['text']", "['label']", "['size'][0]", "['size'][1]"}
    assert difference(saved, fingerprint(Texts())) is None
    assert difference(saved, fingerprint(DataLoader(Texts(), num_workers=2))) is None
    relabelled = Texts()
    for row in relabelled.rows:
        row["label"] = (row["label"] + 1) % 3
    assert "32 of 32 sampled examples differ in ['label']" in difference(saved, fingerprint(relabelled))
    reordered = Texts()
    reordered.rows.reverse()
    assert "sampled examples differ" in difference(saved, fingerprint(reordered))


@pytest.mark.parametrize(
    "noise",
    [lambda: torch.rand(3), lambda: np.random.rand(3), random.random],  # noqa: NPY002
    ids=["torch", "numpy", "python"],
)
def test_what_is_augmented_at_random_is_left_out_and_no_random_state_moves(noise):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    saved = fingerprint(Texts(noise=noise))
    assert "['view']" not in saved["sample"]
    assert "['text']" in saved["sample"]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert difference(saved, fingerprint(Texts())) is None  # without augmentation the rest is the same


def test_another_form_of_the_same_examples_is_accepted_once_told(store, data):
    x, y = data.tensors
    scaled = TensorDataset(x * 2, y)
    with pytest.raises(ValueError, match=r"rebind\(dataset\)"):
        meet(store, scaled)
    meet(store.rebind(scaled), scaled)
    with pytest.raises(ValueError, match="sampled examples differ in"):
        meet(store.rebind(scaled), data)
    assert store.rebind(scaled).meta.models == store.meta.models


def test_another_size_of_the_same_examples_is_not_compared(store, data):
    x, y = data.tensors
    meet(store, TensorDataset(x.repeat(1, 2)[:, :FEATURES].contiguous(), y))
    fingerprints = fingerprint(data), fingerprint(TensorDataset(x[:, :3], y))
    assert difference(*fingerprints) is None


def test_data_that_say_their_own_indices_or_cannot_be_read_are_not_looked_at(data):
    class Stream(IterableDataset):
        def __iter__(self):
            raise AssertionError("was read")

    assert fingerprint(IndexedBatches(DataLoader(data), index=0)) is None
    assert fingerprint(DataLoader(Stream())) is None
    assert fingerprint(object()) is None


def test_the_tokens_of_a_text_are_one_field_and_a_token_that_changed_is_seen():
    texts = [{"input_ids": [1, *range(i % 7)], "spans": [{"end": i}]} for i in range(40)]
    known = fingerprint(texts)
    assert set(known["sample"]) == {"['input_ids']", "['spans'][0]['end']"}
    changed = copy.deepcopy(texts)
    changed[39]["input_ids"][-1] = 6
    assert "1 of 32 sampled examples" in difference(known, fingerprint(changed))
    assert difference(known, fingerprint(copy.deepcopy(texts))) is None


def test_the_data_are_read_in_a_worker_where_the_loader_has_workers(data):
    class OnlyInWorkers(TensorDataset):
        def __getitem__(self, i):
            assert torch.utils.data.get_worker_info() is not None, "opened in the main process"
            return super().__getitem__(i)

    assert fingerprint(DataLoader(OnlyInWorkers(*data.tensors), num_workers=2))["sample"]


def test_a_store_without_a_fingerprint_is_checked_by_length_alone(data):
    meet(IrreducibleLossStore(torch.zeros(100)), data)


def test_the_fingerprint_survives_a_file(store, data, tmp_path):
    store.save(tmp_path / "il.npz")
    meet(IrreducibleLossStore.load(tmp_path / "il.npz"), data)
    x, y = data.tensors
    with pytest.raises(ValueError, match="reordered"):
        meet(IrreducibleLossStore.load(tmp_path / "il.npz"), TensorDataset(x.flip(0), y.flip(0)))
