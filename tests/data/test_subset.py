"""Subsets of a dataset: their indices, their labels, and how they are drawn."""

import copy
import pickle

import numpy as np
import pytest
import torch
from conftest import FEATURES, make_data, make_net
from hypothesis import given, settings, strategies as st
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from rholoss import IndexedBatches, IndexedSubset, IrreducibleLossStore, RhoLossSelector, build_selector, cross_fit, split
from rholoss.data.subset import in_common, labels_of, origin, stratified_order


class TestSplit:
    @given(st.integers(3, 80), st.floats(0.05, 0.5), st.floats(0, 0.3), st.integers(0, 2**31), st.integers(1, 5), st.booleans())
    @settings(max_examples=80, deadline=None)
    def test_every_example_is_in_one_part_and_the_sizes_are_those_asked_for(self, n, holdout, validation, seed, classes, known):
        sizes = [round(n * holdout), round(n * validation)]
        if sizes[0] < 1 or sum(sizes) >= n:
            return
        labels = torch.arange(n) % classes if known else None
        parts = split(range(n), holdout=holdout, validation=validation, seed=seed, labels=labels)
        assert [len(parts.holdout), len(parts.validation)] == sizes
        assert sorted(index for part in parts for index in part.indices.tolist()) == list(range(n))
        assert all(list(part) == part.indices.tolist() == sorted(part) for part in parts)

    def test_labels_keep_their_proportions_in_every_part(self):
        labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
        data = TensorDataset(torch.zeros(1000, 1), labels)
        for part in split(data, holdout=0.2, validation=0.1, seed=3):
            counts = torch.bincount(labels[part.indices], minlength=3)
            assert (counts / len(part) - torch.tensor([0.7, 0.2, 0.1])).abs().max() < 2 / len(part)

    def test_a_rare_label_is_not_always_in_the_same_part(self):
        labels = torch.tensor([1] + [0] * 99)
        homes = {
            next(i for i, part in enumerate(split(range(100), labels=labels, holdout=0.4, seed=s)) if 0 in part)
            for s in range(20)
        }
        assert len(homes) > 1

    def test_the_seed_decides(self):
        parts = [split(range(50), seed=seed).holdout.indices.tolist() for seed in (1, 1, 2)]
        assert parts[0] == parts[1] != parts[2]

    def test_has_nothing_to_do_with_what_a_user_draws_from_the_same_seed(self):
        theirs = set(torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:300].tolist())
        shared = len(theirs & set(split(range(1000), holdout=0.5, seed=0).holdout.indices.tolist()))
        assert 110 < shared < 190, "wrong labels drawn by seed 0 would all lie in one part"

    @pytest.mark.parametrize("n", [5, 15, 25, 100])
    def test_may_leave_nothing_over(self, n):
        parts = split(range(n), holdout=0.9, validation=0.1)
        assert len(parts.holdout) + len(parts.validation) + len(parts.train) == n
        assert len(parts.train) <= 1

    def test_leaves_the_random_state_alone(self):
        state = torch.get_rng_state()
        split(make_data(40))
        assert torch.equal(torch.get_rng_state(), state)

    def test_of_a_part_keeps_the_indices_of_the_dataset(self):
        parts = split(IndexedSubset(list("abcdefghij"), [9, 7, 5, 3, 1]), holdout=2, validation=1)
        assert sorted(index for part in parts for index in part.indices.tolist()) == [1, 3, 5, 7, 9]
        assert all(part.dataset == list("abcdefghij") for part in parts)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"holdout": 0}, r"holdout must be a share of the 10 examples, in \(0, 1\), or a whole number .* at least 1, got 0"),
            ({"holdout": 1.5}, "holdout must be a share .*got 1.5"),
            ({"holdout": True}, "got True"),
            ({"holdout": 0.5, "validation": -0.1}, "validation must be a share .*got -0.1"),
            ({"holdout": 0.6, "validation": 5}, "a holdout of 6 and a validation part of 5 exceed the 10 examples"),
            ({"labels": [0, 1]}, r"labels must be one per example, shape \(10,\), integers, got \[0, 1\]"),
        ],
    )
    def test_that_cannot_be_made_is_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            split(range(10), **options)


class TestSubset:
    @pytest.mark.parametrize(
        ("indices", "error", "message"),
        [
            ([0, 5], IndexError, "indices must be positions from 0 to 4 in the dataset, got 0 to 5"),
            ([-1], IndexError, "got -1 to -1"),
            ([1, 1, 2], ValueError, "holds each example once, got 1 repetitions"),
            ([0.5], ValueError, "one whole number per example"),
            ([[1]], ValueError, r"shape \(1, 1\)"),
        ],
    )
    def test_that_makes_no_sense_is_refused(self, indices, error, message):
        with pytest.raises(error, match=message):
            IndexedSubset(range(5), indices)

    def test_may_be_empty_and_survives_pickle_and_deepcopy(self):
        assert len(IndexedSubset(range(5), [])) == 0
        for twin in (
            pickle.loads(pickle.dumps(IndexedSubset(list("abc"), [2, 0]))),
            copy.deepcopy(IndexedSubset(list("abc"), [2, 0])),
        ):
            assert list(twin) == ["c", "a"]

    def test_reads_many_at_once_where_the_dataset_can(self):
        class Many(TensorDataset):
            asked = ()

            def __getitems__(self, indices):
                self.asked = indices
                return [self[index] for index in indices]

        data = Many(torch.arange(10))
        assert [int(x) for (x,) in IndexedSubset(data, [8, 2, 4]).__getitems__([2, 0])] == [4, 8]
        assert data.asked == [4, 8]

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("options", [{"keep": 1}, {"keep": 0.5}])
    def test_examples_come_with_the_indices_that_they_have_in_the_dataset(self, workers, options):
        data = TensorDataset(torch.arange(100))
        part = IndexedSubset(IndexedSubset(data, range(10, 90)), range(0, 80, 3))
        selector = build_selector("uniform", DataLoader(part, batch_size=4, shuffle=True, num_workers=workers), **options)
        drawn = []
        for (x,) in selector:
            assert selector.last.index.tolist() == x.tolist()
            drawn += x.tolist()
        assert set(drawn) <= set(range(10, 90, 3))
        assert len(drawn) == len(set(drawn)) > 10

    def test_one_store_of_the_dataset_serves_every_part(self):
        data, model = make_data(90), make_net(1)
        store = IrreducibleLossStore.from_model(make_net(0), data)
        for part in split(data, holdout=0.4, validation=0.2):
            selector = RhoLossSelector(DataLoader(part, batch_size=4), model, store, keep=0.5)
            list(selector)
            assert set(selector.last.candidate_index.tolist()) <= set(part.indices.tolist())

    def test_a_store_of_a_part_knows_its_examples_by_their_indices(self):
        data, model = make_data(60), make_net(0)
        whole = IrreducibleLossStore.from_model(model, data)
        part = IndexedSubset(data, range(5, 60, 4))
        store = IrreducibleLossStore.from_model(model, part)
        assert store.ids.tolist() == list(range(5, 60, 4))
        torch.testing.assert_close(store.losses, whole[part.indices])
        list(RhoLossSelector(DataLoader(part, batch_size=2), model, store))
        with pytest.raises(ValueError, match="46 of 60 examples have no finite irreducible loss"):
            RhoLossSelector(DataLoader(data, batch_size=2), model, store)

    def test_selection_via_proxy_keeps_to_a_part(self):
        data = make_data(80)
        part = IndexedSubset(data, range(0, 80, 2))
        selector = build_selector("selection_via_proxy", DataLoader(part, batch_size=5), proxy=make_net(0), keep=0.5)
        drawn = [index for _ in selector for index in selector.last.index.tolist()]
        assert len(drawn) == 20
        assert set(drawn) <= set(range(0, 80, 2))

    def test_resumes_in_mid_epoch(self):
        def build():
            part = IndexedSubset(TensorDataset(torch.arange(60)), range(20, 60))
            loader = DataLoader(part, batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
            return build_selector("uniform", loader, keep=0.5)

        first = build()
        batches = []
        for step, (x,) in enumerate(first):
            if step == 1:
                state = first.state_dict()
            if step > 1:
                batches.append(x.tolist())
        second = build()
        second.load_state_dict(state)
        assert [x.tolist() for (x,) in second] == batches


class TestLabels:
    def test_of_what_shows_them(self):
        class Targets(list):
            targets = (3, 1, 2)

        class Columns(list):
            column_names = ("text", "label")

            def __getitem__(self, key):
                return [3, 1, 2] if key == "label" else super().__getitem__(key)

        data = TensorDataset(torch.zeros(3, 2), torch.tensor([3, 1, 2]))
        for dataset in (data, Targets("abc"), Columns("abc")):
            assert labels_of(dataset).tolist() == [3, 1, 2]
            assert labels_of(Subset(dataset, [2, 0])).tolist() == [2, 3]
            assert labels_of(IndexedSubset(dataset, [1])).tolist() == [1]
        assert labels_of(ConcatDataset([data, IndexedSubset(data, [1])])).tolist() == [3, 1, 2, 1]

    def test_that_are_none_are_none(self):
        class Odd(list):
            targets = (1, 2)  # not one per example
            labels = ("a", "b", "c")

        assert labels_of(Odd("abc")) is None
        assert labels_of(TensorDataset(torch.zeros(3), torch.zeros(3))) is None
        assert labels_of([1, 2, 3]) is None
        assert labels_of(ConcatDataset([Odd("abc"), TensorDataset(torch.tensor([1]))])) is None

    def test_that_cannot_be_looked_up_end_no_run(self):
        class Raising(list):
            @property
            def targets(self):
                raise OSError("the file of the labels is gone")

        class Transformed(list):
            """As of ``datasets`` under a transform that needs all columns, which older versions apply to one column too."""

            column_names = ("text", "label")

            def __getitem__(self, key):
                return {"label": [0, 1]}["text"] if key == "label" else (torch.zeros(FEATURES), 1)

        for dataset in (Raising([(torch.zeros(FEATURES), 1)] * 12), Transformed("abcdefghijkl")):
            assert labels_of(dataset) is None
            assert labels_of(IndexedSubset(dataset, [1])) is None
            assert [len(part) for part in split(dataset, holdout=4, validation=2)] == [6, 4, 2]
            assert len(IrreducibleLossStore.from_model(make_net(0), dataset)) == 12


def test_mixing_spreads_every_label_evenly():
    labels = np.array([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(100, labels, seed=0).numpy()
    for size in (10, 25, 50):
        counts = np.bincount(labels[order[:size]], minlength=3)
        assert np.abs(counts - size * np.array([0.6, 0.3, 0.1])).max() <= 1


def test_what_parts_have_in_common_is_found_through_parts_of_parts():
    data, other = list(range(20)), list(range(20))
    one, two = IndexedSubset(IndexedSubset(data, range(10)), [0, 1, 2, 3]), Subset(Subset(data, range(2, 20)), [0, 1, 9])
    assert origin(two)[1].tolist() == [2, 3, 11]
    assert in_common(one, two) == 2
    assert in_common(data, two) == 3
    assert in_common(IndexedSubset(other, range(20)), two) == 0


def test_indexed_batches_keep_their_own_indices_even_over_a_subset():
    part = IndexedSubset(TensorDataset(torch.arange(100, 110)), [5, 7])
    door = IndexedBatches(DataLoader(part, batch_size=1), index=0)
    assert [int(indexed.index) for indexed in door] == [105, 107]


def test_arrays_that_must_not_be_written_to_are_read_without_a_warning(data, tmp_path):
    np.save(tmp_path / "labels.npy", np.arange(100) % 4)
    labels = np.load(tmp_path / "labels.npy", mmap_mode="r")
    shown = Subset(range(100), range(100))
    shown.dataset = type("Shown", (), {"targets": labels, "__len__": lambda self: 100})()
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)  # PyTorch warns of it only once in a process
    try:
        assert labels_of(shown).tolist() == labels.tolist()
        IrreducibleLossStore(np.ones(4), ids=labels[:4])
        IrreducibleLossStore.from_predictions(np.zeros((100, 4)), labels)
        split(range(100), labels=labels)
        cross_fit(data, lambda part: make_net(0), folds=labels)
        cross_fit(data, lambda part: make_net(0), labels=labels)
    finally:
        torch.set_warn_always(before)
