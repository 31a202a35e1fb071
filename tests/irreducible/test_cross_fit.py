"""Cross-fitting: no example is scored by a model that saw it, whatever the data are made of."""

from collections import UserList

import pytest
import torch
from conftest import CLASSES, FEATURES, make_net
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from rholoss import IndexedBatches, IndexedSubset, IrreducibleLossStore, RhoLossSelector, cross_fit, fit_irreducible_model, split


class Numbered(TensorDataset):
    """Examples whose only feature is their index."""

    def __init__(self, n):
        super().__init__(torch.arange(n)[:, None].float(), torch.arange(n) % 3)


class Recording(nn.Module):
    """Says which examples it is scored on; its loss of an example is the number of the fake that scored it."""

    def __init__(self, number, seen):
        super().__init__()
        self.number = number
        self.seen = seen
        self.scored = UserList()  # no hidden state of the model, which would be reported

    def forward(self, x):
        self.scored += x[:, 0].long().tolist()
        return torch.full((len(x), 2), float(self.number))


class Fakes:
    """A ``fit`` that trains nothing and remembers which examples it was given."""

    def __init__(self, each=1):
        self.models = []
        self.each = each

    def __call__(self, part):
        seen = {int(x) for x, _ in part}
        mine = [Recording(len(self.models) + i, seen) for i in range(self.each)]
        self.models += mine
        return mine if self.each > 1 else mine[0]


def number_of_the_fake(outputs, targets):
    return outputs[:, 0]


def fitted(part):
    _, training, validation = split(part, holdout=0.7, validation=0.2)
    torch.manual_seed(0)
    return fit_irreducible_model(make_net(0), training, validation, epochs=2)


class TestNoExampleIsScoredByAModelThatSawIt:
    @given(
        n=st.integers(4, 60), folds=st.integers(2, 4), seed=st.integers(0, 1000), part=st.booleans(), nested=st.booleans(),
        subset=st.booleans(),
    )  # fmt: skip
    @settings(max_examples=60, deadline=None)
    def test_for_parts_of_parts_and_subsets_of_subsets(self, n, folds, seed, part, nested, subset):
        data = whole = Numbered(2 * n)
        order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(seed))[:n].tolist()
        if part or subset:
            data = IndexedSubset(whole, order) if part else Subset(whole, order)
        if nested:
            inner = range(0, len(data), 2) if len(data) >= 2 * folds else range(len(data))
            data = IndexedSubset(data, inner) if part else Subset(data, inner)
        fakes = Fakes()
        store = cross_fit(data, fakes, folds, seed=seed, loss=number_of_the_fake)
        examples = [int(x) for x, _ in data]
        scored = [index for model in fakes.models for index in model.scored]
        assert sorted(scored) == sorted(examples), "each example is scored once"
        assert len(fakes.models) == folds
        for model in fakes.models:
            assert not model.seen & set(model.scored)
            assert model.seen | set(model.scored) == set(examples)
        by = {example: model.number for model in fakes.models for example in model.scored}
        keys = torch.arange(len(examples)) if isinstance(data, Subset) else torch.tensor(examples)
        assert store[keys].tolist() == [by[example] for example in examples], "each has the loss under the model that scored it"

    @pytest.mark.parametrize("workers", [0, 2])
    def test_for_a_loader_that_draws_some_of_the_data(self, workers):
        data, fakes = Numbered(50), Fakes()
        loader = DataLoader(data, batch_size=7, sampler=SubsetRandomSampler(range(10, 40)), num_workers=workers)
        store = cross_fit(loader, fakes, loss=number_of_the_fake)
        assert store.ids.tolist() == list(range(10, 40))
        assert set.union(*(model.seen for model in fakes.models)) == set(range(10, 40))
        assert not any(model.seen & set(model.scored) for model in fakes.models)

    def test_for_several_models_a_fold(self):
        fakes = Fakes(each=2)
        store = cross_fit(Numbered(20), fakes, folds=2, loss=number_of_the_fake)
        assert [len(model.scored) for model in fakes.models] == [10] * 4
        assert not any(model.seen & set(model.scored) for model in fakes.models)
        assert sorted(set(store.losses.tolist())) == [0.5, 2.5], "the mean loss of the models of the fold"

    def test_for_folds_of_ones_own(self):
        fakes = Fakes()
        film = torch.arange(30) // 5  # frames of a film stay together
        cross_fit(Numbered(30), fakes, folds=film % 3, loss=number_of_the_fake)
        for model in fakes.models:
            assert not {i // 5 for i in model.seen} & {i // 5 for i in model.scored}


class TestFolds:
    def test_keep_the_labels_in_proportion(self):
        fakes = Fakes()
        cross_fit(Numbered(60), fakes, folds=4, loss=number_of_the_fake)
        for model in fakes.models:
            assert torch.bincount(torch.tensor(model.scored) % 3).tolist() == [5, 5, 5]

    def test_are_those_of_the_seed(self):
        def folds(seed):
            fakes = Fakes()
            cross_fit(Numbered(40), fakes, seed=seed, loss=number_of_the_fake)
            return [sorted(model.scored) for model in fakes.models]

        assert folds(0) == folds(0) != folds(1)

    def test_scored_apart_and_merged_are_the_same_store(self, data, tmp_path):
        whole = cross_fit(data, fitted, folds=3)
        for fold in (2, 0, 1):
            cross_fit(data, fitted, folds=3, only=fold).save(tmp_path / f"{fold}.npz")
        stores = [IrreducibleLossStore.load(tmp_path / f"{fold}.npz") for fold in (1, 2, 0)]
        merged = stores[0].merge(*stores[1:])
        merged.save(tmp_path / "merged.npz")
        whole.save(tmp_path / "whole.npz")
        assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()
        RhoLossSelector(DataLoader(data, batch_size=4), make_net(1), merged)

    def test_that_are_missing_are_missed(self, data):
        store = cross_fit(data, fitted, folds=2, only=[1])
        assert len(store) == 50
        with pytest.raises(ValueError, match="50 of 100 examples have no finite irreducible loss"):
            RhoLossSelector(DataLoader(data, batch_size=4), make_net(1), store)

    def test_of_another_plan_are_not_merged(self, data):
        one, other = (cross_fit(data, fitted, only=fold, seed=fold) for fold in (0, 1))
        with pytest.raises(ValueError, match="different cross-fits, .*an example could be scored by a model that trained on it"):
            one.merge(other)

    def test_are_not_merged_with_a_store_of_a_model(self, data):
        one = cross_fit(data, fitted, only=0)
        rest = [i for i in range(100) if i not in set(one.ids.tolist())]
        with pytest.raises(ValueError, match="one of them is of none"):
            one.merge(IrreducibleLossStore.from_model(make_net(0), IndexedSubset(data, rest)))

    def test_are_remembered(self, data):
        meta = cross_fit(data, fitted, folds=2).meta.cross_fit
        assert (meta.folds, sorted(meta.models)) == (2, ["0", "1"])
        assert meta.models["0"][0]["class"] == "Sequential"


class TestRefused:
    def test_a_fold_that_leaked(self, data):
        def leaking(part):
            rest = IndexedSubset(data, range(100))
            _, training, validation = split(rest, holdout=0.5, validation=0.1)
            return fit_irreducible_model(make_net(0), training, validation, epochs=1)

        with pytest.raises(ValueError, match=r"fitted on \d+ of the 50 examples to score"):
            cross_fit(data, leaking)

    @pytest.mark.parametrize("several", [False, True])
    def test_one_model_for_two_folds(self, data, several):
        one = make_net(0)
        with pytest.raises(ValueError, match="the same model for fold 1 as for another one, so that it trained on what"):
            cross_fit(data, lambda part: [make_net(1), one] if several else one)

    def test_what_is_no_function_to_fit_with(self, data):
        with pytest.raises(TypeError, match="fit must be a function that fits a model on a part of the dataset .*got Sequential"):
            cross_fit(data, make_net(0))

    def test_batches_that_say_their_own_indices(self):
        with pytest.raises(TypeError, match="read by index, an example at a time, got IndexedBatches"):
            cross_fit(IndexedBatches([(torch.arange(2), torch.zeros(2))]), fitted)

    @pytest.mark.parametrize("folds", [0, 1, 101, True])
    def test_a_number_of_folds_that_makes_none(self, data, folds):
        with pytest.raises(ValueError, match=f"folds must be .* how many, from 2 to the number of examples, 100, got {folds}"):
            cross_fit(data, fitted, folds=folds)

    def test_folds_that_are_empty_or_do_not_fit(self, data):
        with pytest.raises(ValueError, match=r"every fold needs examples, .* got \[50, 0, 50\]"):
            cross_fit(data, fitted, folds=torch.tensor([0, 2] * 50))
        with pytest.raises(ValueError, match="folds must be one per example"):
            cross_fit(data, fitted, folds=torch.rand(100))
        with pytest.raises(
            ValueError, match=r"folds must be one per example, shape \(100,\), integers, got torch.int64 of shape \(3,\)"
        ):
            cross_fit(data, fitted, folds=torch.tensor([0, 1, 0]))
        with pytest.raises(ValueError, match="folds must be numbers from 0, got -1"):
            cross_fit(data, fitted, folds=[0, 1, -1, 1] * 25)

    def test_a_fold_that_does_not_exist(self, data):
        with pytest.raises(ValueError, match=r"only must be folds from 0 to 1, each once, got 2"):
            cross_fit(data, fitted, only=2)

    def test_data_that_cannot_be_read_by_index(self):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter([])

        with pytest.raises(TypeError, match="needs a dataset that is read by index"):
            cross_fit(DataLoader(Stream()), fitted)

    def test_a_path(self, data):
        with pytest.raises(TypeError, match=r"does not take path; score folds with only="):
            cross_fit(data, fitted, path="il.npz")

    def test_a_fit_that_returns_nothing(self, data):
        with pytest.raises(TypeError, match="model must be a model, a list of models, a Fit or Checkpoints, got None"):
            cross_fit(data, lambda part: None)


def test_a_noisy_label_is_far_off_for_models_that_did_not_see_it():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, FEATURES, generator=generator)
    y = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
    wrong = torch.rand(600, generator=generator) < 0.3
    noisy = TensorDataset(x, torch.where(wrong, (y + 1) % CLASSES, y))

    def fit(part):
        _, training, validation = split(part, holdout=0.8, validation=0.15)
        return fit_irreducible_model(make_net(0), training, validation, epochs=40)

    losses = cross_fit(noisy, fit).losses
    assert losses[wrong].median() > losses[~wrong].median() + 0.3
