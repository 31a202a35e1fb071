"""Fitting an irreducible-loss model: what it keeps, when it stops, how it resumes, and what it refuses."""

import copy
import multiprocessing
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from conftest import CLASSES, FEATURES, make_data, make_net
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, TensorDataset, WeightedRandomSampler

from rholoss import IndexedBatches, IndexedSubset, IrreducibleLossStore, fit_irreducible_model, split


def learnable(n=240, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, FEATURES, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long())


@pytest.fixture
def parts():
    return split(learnable(), holdout=0.4, validation=0.2)


def validation_loss(model, part):
    model = copy.deepcopy(model).eval()
    x, y = (torch.stack(column) for column in zip(*part, strict=True))
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y.long()).item()


def overfitting(parameters):
    return torch.optim.AdamW(parameters, lr=0.05)


def slow(parameters):
    return torch.optim.SGD(parameters, lr=1e-3)


def falling(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)


class TestWeights:
    def test_are_those_of_the_lowest_validation_loss_and_not_the_last(self, parts):
        model = make_net(0)
        fit = fit_irreducible_model(model, parts.holdout, parts.validation, epochs=30, patience=None, optimizer=overfitting)
        losses = [epoch.validation_loss for epoch in fit.epochs]
        assert len(losses) == 30
        assert fit.best.validation_loss == min(losses) < losses[-1]
        assert fit.model is model
        assert validation_loss(model, parts.validation) == pytest.approx(min(losses), rel=1e-5)

    def test_are_chosen_by_loss_and_not_by_accuracy(self):
        """Later epochs are no less accurate, but surer and surer: of two overlapping classes that is a higher loss."""
        generator = torch.Generator().manual_seed(1)
        y = torch.arange(300) % 2
        x = y[:, None].float() + 0.8 * torch.randn(300, 1, generator=generator)
        data = TensorDataset(x.repeat(1, 40) + torch.randn(300, 40, generator=generator), y)
        _, holdout, validation = split(data, holdout=60, validation=100)
        net = nn.Sequential(nn.Linear(40, 64), nn.ReLU(), nn.Linear(64, 2))
        fit = fit_irreducible_model(net, holdout, validation, epochs=40, patience=None, optimizer=overfitting)
        assert fit.best.epoch < 40
        assert fit.best.validation_loss < fit.epochs[-1].validation_loss - 0.05

    def test_of_the_start_do_not_count(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1)
        assert fit.best.epoch == 1

    def test_are_learnt(self, parts):
        model = make_net(0)
        before = validation_loss(model, parts.validation)
        fit_irreducible_model(model, parts.holdout, parts.validation, epochs=30, optimizer=overfitting)
        assert validation_loss(model, parts.validation) < before - 0.3


class TestScheduler:
    def rates(self, parts, **options):
        seen = []

        def scheduler(optimizer):
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: seen.append(step) or 1 / (1 + step))

        fit_irreducible_model(make_net(0), parts.holdout, parts.validation, scheduler=scheduler, **options)
        return seen

    def test_takes_a_step_after_every_batch(self, parts):
        assert self.rates(parts, epochs=2, batch_size=32) == list(range(1 + 2 * 3)), "96 examples, 3 batches an epoch"

    def test_sets_the_rate_that_the_model_learns_at(self, parts):
        def only_the_first(optimizer):
            return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))

        nets = [make_net(0) for _ in range(2)]
        for net, epochs in zip(nets, (1, 4), strict=True):
            how = {"optimizer": lambda p: torch.optim.SGD(p, lr=0.5), "scheduler": only_the_first, "batch_size": 96}
            fit_irreducible_model(net, parts.holdout, parts.validation, epochs=epochs, patience=None, **how)
        assert torch.equal(nets[0][0].weight, nets[1][0].weight), "after the first step, nothing is learnt"
        assert not torch.equal(nets[0][0].weight, make_net(0)[0].weight)


class TestReading:
    def test_rows_in_memory_give_the_fit_of_examples_read_one_by_one(self, parts):
        nets = []
        for listed in (False, True):
            nets.append(make_net(0))
            data = (list(part) if listed else part for part in (parts.holdout, parts.validation))
            fit_irreducible_model(nets[-1], *data, epochs=2, batch_size=16, seed=4)
        assert torch.equal(nets[0][0].weight, nets[1][0].weight)

    def test_rows_in_memory_are_read_at_once(self, parts, monkeypatch):
        def one_by_one(self, index):
            raise AssertionError("an example was read on its own")

        fit = {"epochs": 1, "batch_size": 16}
        holdout = TensorDataset(*(column[parts.holdout.indices] for column in learnable().tensors))
        validation = list(parts.validation)
        monkeypatch.setattr(TensorDataset, "__getitem__", one_by_one)
        monkeypatch.setattr("rholoss.irreducible.fit._refuse_overlap", lambda *given: None)
        fit_irreducible_model(make_net(0), holdout, validation, **fit)


class TestStopping:
    def test_early_after_as_many_epochs_without_a_lower_loss(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=200, patience=3, optimizer=overfitting)
        assert fit.stopped == "patience"
        assert len(fit.epochs) == fit.best.epoch + 3 < 200

    def test_after_all_epochs(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=4, patience=50)
        assert (fit.stopped, len(fit.epochs)) == ("epochs", 4)

    def test_says_what_it_did(self, parts):
        text = str(fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=3, optimizer=overfitting))
        assert "Sequential (" in text
        assert "9 steps in " in text
        assert " and an accuracy of " in text
        assert "lowest validation loss, " in text
        assert "48 validation examples" in text

    def test_goes_by_steps(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, steps=31, patience=None, optimizer=slow)
        assert [epoch.steps for epoch in fit.epochs] == [3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 31]
        assert (fit.stopped, fit.epochs[0].accuracy is not None) == ("steps", True)

    @pytest.mark.parametrize(("n", "size", "first"), [(96, 32, 25), (96, 1, 96), (1200, 2, 500)])
    def test_by_default_validates_as_often_for_few_examples_as_for_many(self, n, size, first):
        model, data = nn.Linear(FEATURES, CLASSES), (learnable(n), learnable(48, seed=1))
        fit = fit_irreducible_model(model, *data, patience=1, batch_size=size, optimizer=slow, on_duplicates="ignore")
        assert fit.epochs[0].steps == first

    def test_with_a_sampler_of_its_own_a_round_is_a_pass(self, parts):
        class InOrder(torch.utils.data.Sampler):
            def __iter__(self):
                return iter(range(96))

            def __len__(self):
                return 96

        loader = DataLoader(parts.holdout, batch_size=4, sampler=InOrder())
        fit = fit_irreducible_model(make_net(0), loader, parts.validation, steps=30, optimizer=slow)
        assert [epoch.steps for epoch in fit.epochs] == [24, 30]

    def test_steps_or_epochs(self, parts):
        with pytest.raises(ValueError, match="pass epochs= or steps=, not both, got epochs=2 and steps=9"):
            fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=2, steps=9)

    def test_resumes_by_steps(self, parts, tmp_path):
        def fit(**options):
            options = {"steps": 30, "patience": None, **options}
            return fit_irreducible_model(make_net(0), parts.holdout, parts.validation, **options)

        def stop(done, total):
            if done >= 14:
                raise KeyboardInterrupt

        file = tmp_path / "fit.pt"
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=file, progress=stop)
        resumed, whole = fit(checkpoint=file), fit()
        assert resumed.epochs[-1].steps == 30
        assert [epoch.validation_loss for epoch in resumed.epochs] == [epoch.validation_loss for epoch in whole.epochs]

    def test_reports_epochs(self, parts):
        seen = []
        fit_irreducible_model(
            make_net(0), parts.holdout, parts.validation, epochs=3, progress=lambda done, total: seen.append((done, total))
        )
        assert seen == [(1, 3), (2, 3), (3, 3)]


class TestAGuest:
    @pytest.mark.parametrize(
        "validation", [lambda parts: parts.validation, lambda parts: learnable(seed=1)], ids=["part", "other"]
    )
    def test_leaves_random_states_and_modes_as_they_were(self, parts, validation):
        model, validation = make_net(0), validation(parts)
        model[1].eval()  # a frozen BatchNorm
        before = copy.deepcopy(model[1].state_dict())
        states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
        fit_irreducible_model(model, parts.holdout, validation, epochs=2)
        assert torch.equal(torch.get_rng_state(), states[0])
        assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
        assert random.getstate() == states[2]
        assert [module.training for module in model] == [True, False, True, True, True]
        assert torch.equal(model[1].running_mean, before["running_mean"]), "a frozen BatchNorm moved"
        assert not torch.equal(model[1].weight, before["weight"])

    def test_trains_a_model_that_comes_in_eval_mode(self, parts):
        model = make_net(0).eval()
        fit_irreducible_model(model, parts.holdout, parts.validation, epochs=2)
        assert not model.training
        assert model[1].running_mean.abs().sum() > 0, "BatchNorm did not train"

    def test_is_the_same_from_the_same_seed_whatever_the_global_state(self, parts):
        fits = []
        for seed in (0, 0, 1):
            torch.manual_seed(len(fits))
            model = make_net(0)
            fit_irreducible_model(model, parts.holdout, parts.validation, epochs=3, seed=seed)
            fits.append(model[0].weight.detach().clone())
        assert torch.equal(fits[0], fits[1])
        assert not torch.equal(fits[0], fits[2])

    def test_works_where_gradients_are_off(self, parts):
        with torch.no_grad():
            fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=2)
            assert not torch.is_grad_enabled()
        assert not torch.equal(fit.model[0].weight, make_net(0)[0].weight)


class TestData:
    def test_never_touches_anything_but_holdout_and_validation(self):
        class Recording(TensorDataset):
            read: set

            def __getitem__(self, i):
                self.read.add(i)
                return super().__getitem__(i)

        data = Recording(*learnable().tensors)
        data.read = set()
        parts = split(data, holdout=0.3, validation=0.2)
        fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=2)
        assert data.read <= set(parts.holdout.indices.tolist()) | set(parts.validation.indices.tolist())
        assert len(data.read) > 100

    def test_every_holdout_example_is_trained_on_once_an_epoch_but_a_short_tail(self):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.linear = nn.Linear(1, 2)
                self.seen = []

            def forward(self, x):
                if self.training:
                    self.seen.append(x.flatten().tolist())
                return self.linear(x)

        data = TensorDataset(torch.arange(70.0)[:, None], torch.arange(70) % 2)
        model = Counting()
        fit = fit_irreducible_model(
            model, IndexedSubset(data, range(49)), IndexedSubset(data, range(49, 70)), epochs=2, batch_size=16
        )
        assert [len(batch) for batch in model.seen] == [16, 16, 16] * 2  # and one over, too few for BatchNorm
        epochs = [sorted(x for batch in model.seen[i : i + 3] for x in batch) for i in (0, 3)]
        assert all(len(set(epoch)) == 48 and set(epoch) <= set(range(49)) for epoch in epochs)
        assert model.seen[:3] != model.seen[3:], "the order is drawn anew in every epoch"
        assert fit.sizes == (48, 21)

    def test_a_short_batch_is_trained_on(self):
        data = learnable(60)
        assert fit_irreducible_model(
            make_net(0), IndexedSubset(data, range(40)), IndexedSubset(data, range(40, 60)), epochs=2
        ).sizes == (40, 20)

    def test_a_holdout_smaller_than_a_batch_trains_all_the_same(self):
        data = learnable(30)
        assert fit_irreducible_model(
            make_net(0), IndexedSubset(data, range(10)), IndexedSubset(data, range(10, 30)), epochs=2
        ).sizes == (10, 20)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_loaders_bring_their_collate_function_batch_size_and_workers(self, parts, workers):
        def collate(examples):
            x, y = zip(*examples, strict=True)
            return {"x": torch.stack(x), "label": torch.stack(y)}

        loaders = [
            DataLoader(part, batch_size=24, collate_fn=collate, num_workers=workers) for part in (parts.holdout, parts.validation)
        ]
        fit = fit_irreducible_model(
            make_net(0), *loaders, epochs=2, forward=lambda model, batch: (model(batch["x"]), batch["label"])
        )
        assert fit.sizes == (96, 48)

    @pytest.mark.parametrize("kept", [False, True])
    def test_workers_serve_the_short_passes_of_a_round_without_a_difference(self, parts, monkeypatch, kept):
        started = []
        start = multiprocessing.Process.start
        monkeypatch.setattr(multiprocessing.Process, "start", lambda process: started.append(start(process)))

        def fitted(workers):
            options = {"num_workers": workers, "persistent_workers": kept and workers > 0}
            model = nn.Sequential(nn.Dropout(0.2), make_net(0))
            holdout = DataLoader(parts.holdout, batch_size=32, **options)
            return fit_irreducible_model(model, holdout, parts.validation, steps=15 * 9).model.state_dict()  # 15 rounds, 3 passes

        alone, helped = fitted(0), fitted(1)
        assert all(torch.equal(alone[name], helped[name]) for name in alone)
        assert len(started) == 15

    def test_a_sampler_of_ones_own_is_kept(self, parts):
        weights = (torch.arange(96) < 8).double()
        loader = DataLoader(parts.holdout, batch_size=8, sampler=WeightedRandomSampler(weights, 40))
        assert fit_irreducible_model(make_net(0), loader, parts.validation, epochs=1).sizes == (40, 48)

    def test_streams_are_read_as_they_come(self, parts):
        class Stream(IterableDataset):
            def __iter__(self):
                return iter(parts.holdout)

        fit = fit_irreducible_model(make_net(0), DataLoader(Stream(), batch_size=10), parts.validation, epochs=2)
        assert fit.sizes == (96, 48)
        x, y = learnable(40, seed=5).tensors
        door = IndexedBatches([(torch.arange(20), (x[:20], y[:20])), (torch.arange(20, 40), (x[20:], y[20:]))])
        assert fit_irreducible_model(make_net(0), door, door_of_others(), epochs=2).sizes == (40, 30)

    def test_the_loss_hook_is_used_for_training_and_for_choosing(self, parts):
        def scaled(outputs, targets):
            return 100 + nn.functional.cross_entropy(outputs, targets, reduction="none")

        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1, loss=scaled)
        assert fit.epochs[0].train_loss > 100
        assert fit.best.validation_loss > 100


def door_of_others():
    x, y = learnable(30, seed=6).tensors
    return IndexedBatches([(torch.arange(30), (x, y))])


class TestRefused:
    def test_a_validation_part_that_overlaps_the_holdout(self):
        data = learnable()
        with pytest.raises(ValueError, match=r"20 of 60 validation examples are in the holdout too, by their indices; .*split"):
            fit_irreducible_model(make_net(0), IndexedSubset(data, range(100)), IndexedSubset(data, range(80, 140)))
        with pytest.raises(ValueError, match="240 of 240 validation examples"):
            fit_irreducible_model(make_net(0), data, data)

    def test_validation_data_whose_content_is_in_the_holdout(self):
        x, y = learnable().tensors
        with pytest.raises(ValueError, match=r"50 of 100 validation examples are in the holdout too, by their content"):
            fit_irreducible_model(make_net(0), TensorDataset(x[:100], y[:100]), TensorDataset(x[50:150], y[50:150]))

    def test_not_a_single_duplicate(self):
        x, y = learnable().tensors
        x, y = torch.cat([x, x[:1]]), torch.cat([y, y[:1]])
        fit_irreducible_model(make_net(0), TensorDataset(x[:120], y[:120]), TensorDataset(x[121:], y[121:]), epochs=1)

    def with_duplicates(self, n, **options):
        x, y = learnable().tensors
        x, y = torch.cat([x, x[:n]]), torch.cat([y, y[:n]])
        options = {"epochs": 1, **options}
        return fit_irreducible_model(make_net(0), TensorDataset(x[:120], y[:120]), TensorDataset(x[140:], y[140:]), **options)

    def test_natural_duplicates_only_if_they_are_many_or_it_is_told_to(self):
        words = (
            r"of 1\d\d validation examples are in the holdout too, by their content \(.*%\); .*on_duplicates='warn', or 'ignore'"
        )
        with pytest.warns(UserWarning, match=f"5 {words}"):
            self.with_duplicates(5)
        with pytest.raises(ValueError, match=f"5 {words}"):
            self.with_duplicates(5, on_duplicates="error")
        with pytest.raises(ValueError, match=f"1 {words}"):
            self.with_duplicates(1, on_duplicates="error")
        with pytest.raises(ValueError, match=f"40 {words}"):
            self.with_duplicates(40)
        with pytest.warns(UserWarning, match=f"40 {words}"):
            self.with_duplicates(40, on_duplicates="warn")
        self.with_duplicates(40, on_duplicates="ignore")

    def test_the_same_indices_whatever_is_said_of_duplicates(self):
        data = learnable()
        with pytest.raises(ValueError, match="by their indices"):
            fit_irreducible_model(make_net(0), IndexedSubset(data, range(99)), IndexedSubset(data, [98]), on_duplicates="ignore")

    def test_a_batch_size_beside_a_loader_that_has_one(self, parts):
        loader = DataLoader(parts.holdout, batch_size=8)
        with pytest.raises(ValueError, match="a loader has its own batch size, got batch_size=16 too; omit it"):
            fit_irreducible_model(make_net(0), loader, parts.validation, batch_size=16)

    @pytest.mark.parametrize("name", ["epochs", "patience", "batch_size"])
    @pytest.mark.parametrize("value", [0, -3, 2.5, float("nan"), float("inf"), True, "5"])
    def test_a_number_that_is_none(self, parts, name, value):
        model = make_net(0)
        with pytest.raises(ValueError, match=f"{name} must be a .*, at least 1.*, got"):
            fit_irreducible_model(model, parts.holdout, parts.validation, **{name: value})
        assert torch.equal(model[0].weight, make_net(0)[0].weight), "nothing was trained"

    @pytest.mark.parametrize("seed", [0.5, "1", None, True])
    def test_a_seed_that_is_no_whole_number(self, parts, seed):
        with pytest.raises(ValueError, match="seed must be a whole number, such as 0, .*got"):
            fit_irreducible_model(make_net(0), parts.holdout, parts.validation, seed=seed)

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"optimizer": lambda parameters: None}, TypeError, r"must return a torch\.optim\.Optimizer, got NoneType"),
            ({"optimizer": lambda parameters: torch.optim.SGD(parameters, lr=float("inf"))}, ValueError, r"finite .*got \[inf\]"),
            ({"optimizer": lambda _: torch.optim.SGD(make_net(1).parameters(), lr=0.1)}, ValueError, "none of the model's param"),
            ({"scheduler": "cosine"}, TypeError, r"scheduler must be a function \(optimizer\) -> scheduler, got 'cosine'"),
            ({"scheduler": lambda optimizer: None}, TypeError, "scheduler must be a function that makes one"),
            ({"scheduler": torch.optim.lr_scheduler.ReduceLROnPlateau}, TypeError, "takes no metric, .*got ReduceLROnPlateau"),
            ({"on_duplicates": "drop"}, ValueError, "on_duplicates must be 'warn' or 'error' or 'ignore', got 'drop'"),
        ],
    )
    def test_an_option_that_cannot_train(self, parts, options, error, message):
        with pytest.raises(error, match=message):
            fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1, **options)

    def test_a_model_whose_parameters_are_frozen_until_they_are_not(self, parts):
        model = make_net(0).requires_grad_(False)
        with pytest.raises(ValueError, match=r"all its parameters are frozen; call model\.requires_grad_\(True\)"):
            fit_irreducible_model(model, parts.holdout, parts.validation, epochs=1)
        fit_irreducible_model(model.requires_grad_(True), parts.holdout, parts.validation, epochs=1)

    @pytest.mark.parametrize("model", [lambda x: x, nn.ReLU()])
    def test_what_has_nothing_to_train(self, parts, model):
        with pytest.raises(TypeError, match="model must be a model to train, a torch.nn.Module with parameters, got"):
            fit_irreducible_model(model, parts.holdout, parts.validation)

    def test_an_optimizer_that_is_made_already(self, parts):
        model = make_net(0)
        with pytest.raises(TypeError, match="optimizer must be a function \\(parameters\\) -> optimizer, such as .*got SGD"):
            fit_irreducible_model(model, parts.holdout, parts.validation, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))

    def test_a_loss_that_is_reduced(self, parts):
        with pytest.raises(ValueError, match="one value per example, shape .*reduction='none'"):
            fit_irreducible_model(make_net(0), parts.holdout, parts.validation, loss=nn.CrossEntropyLoss())

    def test_a_fit_that_diverges(self, parts):
        with pytest.raises(ValueError, match=r"the loss is not finite in epoch \d+ .*lower learning rate"):
            fit_irreducible_model(
                make_net(0),
                parts.holdout,
                parts.validation,
                optimizer=lambda parameters: torch.optim.SGD(parameters, lr=1e38),
            )

    def test_an_empty_holdout_or_validation_part(self, parts):
        with pytest.raises(ValueError, match="holdout must have at least 1 example, got an empty IndexedSubset"):
            fit_irreducible_model(make_net(0), IndexedSubset(parts.holdout, []), parts.validation)
        with pytest.raises(ValueError, match="validation must have at least 1 example"):
            fit_irreducible_model(make_net(0), parts.holdout, IndexedSubset(parts.validation, []))


class TestCheckpoint:
    def fit(self, parts, path, model=None, **options):
        model = model or make_net(0)
        options = {"epochs": 6, "patience": None, "optimizer": overfitting, **options}
        return fit_irreducible_model(model, parts.holdout, parts.validation, checkpoint=path, **options)

    @pytest.mark.parametrize("killed_after", [1, 3, 5, 6])
    def test_resumes_as_if_it_had_never_stopped(self, parts, tmp_path, killed_after):
        whole = self.fit(parts, None)

        def kill(done, total):
            if done == killed_after:
                raise KeyboardInterrupt

        path = tmp_path / "fit.pt"
        with pytest.raises(KeyboardInterrupt):
            self.fit(parts, path, progress=kill)
        epochs = []
        resumed = self.fit(parts, path, model=make_net(7), progress=lambda done, total: epochs.append(done))
        assert epochs == list(range(killed_after + 1, 7)), "what was done is not done again"
        assert [e.validation_loss for e in resumed.epochs] == [e.validation_loss for e in whole.epochs]
        for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        assert resumed.sizes == whole.sizes

    def test_resumes_with_the_rate_of_its_scheduler(self, parts, tmp_path):
        whole = self.fit(parts, None, scheduler=falling)
        self.fit(parts, tmp_path / "fit.pt", scheduler=falling, epochs=2)
        resumed = self.fit(parts, tmp_path / "fit.pt", scheduler=falling)
        assert [e.validation_loss for e in resumed.epochs] == [e.validation_loss for e in whole.epochs]
        assert [e.validation_loss for e in whole.epochs] != [e.validation_loss for e in self.fit(parts, None).epochs]

    def test_survives_a_kill_of_the_process(self, tmp_path):
        code = textwrap.dedent(
            """
            import sys, torch
            from torch import nn
            from torch.utils.data import TensorDataset
            from rholoss import fit_irreducible_model, split
            g = torch.Generator().manual_seed(0)
            x = torch.randn(200, 6, generator=g)
            parts = split(TensorDataset(x, (x[:, 0] > 0).long()), holdout=0.5, validation=0.2)
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.3), nn.Linear(8, 2))
            import os
            def progress(done, total):
                if done == int(sys.argv[2]):
                    os._exit(9)
            fit = fit_irreducible_model(net, parts.holdout, parts.validation, epochs=5, patience=None,
                                        checkpoint=sys.argv[1] or None, progress=progress)
            print([e.validation_loss for e in fit.epochs], net[0].weight.sum().item())
            """
        )

        def run(path, kill_at):
            return subprocess.run(
                [sys.executable, "-c", code, str(path), str(kill_at)],
                capture_output=True,
                text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

        whole = run("", -1)
        assert run(tmp_path / "fit.pt", 3).returncode == 9
        resumed = run(tmp_path / "fit.pt", -1)
        assert resumed.stdout == whole.stdout != ""
        assert [entry.name for entry in tmp_path.iterdir()] == ["fit.pt"]

    def test_may_be_given_more_epochs(self, parts, tmp_path):
        self.fit(parts, tmp_path / "fit.pt", epochs=2)
        assert len(self.fit(parts, tmp_path / "fit.pt", epochs=4).epochs) == 4

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"seed": 5}, "with other seed: expected 5, got 0"),
            ({"batch_size": 8}, "with other batch_size: expected 8, got 32"),
            ({"optimizer": torch.optim.SGD}, "with other optimizer"),
            ({"scheduler": falling}, "with other scheduler"),
            ({"model": nn.Linear(FEATURES, 4)}, "with other layers"),
        ],
    )
    def test_of_another_fit_is_refused_and_kept(self, parts, tmp_path, change, message):
        path = tmp_path / "fit.pt"
        self.fit(parts, path, epochs=1)
        before = path.read_bytes()
        with pytest.raises(ValueError, match=rf"fit\.pt is the checkpoint of another fit, {message}"):
            self.fit(parts, path, **change)
        assert path.read_bytes() == before

    def test_of_other_data_or_another_part_is_refused(self, parts, tmp_path):
        self.fit(parts, tmp_path / "fit.pt", epochs=1)
        with pytest.raises(ValueError, match="with other data"):
            self.fit(split(learnable(seed=9), holdout=0.4, validation=0.2), tmp_path / "fit.pt")
        with pytest.raises(ValueError, match="with other parts"):
            self.fit(split(learnable(), holdout=0.4, validation=0.2, seed=4), tmp_path / "fit.pt")

    def test_with_a_flipped_bit_is_refused(self, parts, tmp_path):
        path = tmp_path / "fit.pt"
        self.fit(parts, path, epochs=1)
        whole = bytearray(path.read_bytes())
        for place in range(len(whole) // 4, len(whole), len(whole) // 9):
            damaged = bytearray(whole)
            damaged[place] ^= 8
            path.write_bytes(damaged)
            try:
                fit = self.fit(parts, path, epochs=1)
            except ValueError as error:
                assert "fit.pt is not the checkpoint of a fit that can be read" in str(error)  # noqa: PT017
            else:  # a bit that says nothing, between the entries
                path.write_bytes(whole)
                right = self.fit(parts, path, epochs=1)
                assert all(map(torch.equal, fit.model.state_dict().values(), right.model.state_dict().values()))

    def test_with_more_epochs_than_asked_for_is_refused(self, parts, tmp_path):
        self.fit(parts, tmp_path / "fit.pt", epochs=4)
        with pytest.raises(ValueError, match="holds 4 epochs, more than epochs=2"):
            self.fit(parts, tmp_path / "fit.pt", epochs=2)

    @pytest.mark.parametrize("content", [b"", b"nonsense"])
    def test_that_is_none_is_refused_by_name(self, parts, tmp_path, content):
        (tmp_path / "fit.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"fit\.pt is not the checkpoint of a fit"):
            self.fit(parts, tmp_path / "fit.pt")


class TestScoringWithAFit:
    def test_of_the_examples_it_was_fitted_on_is_refused(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1)
        data = parts.train.dataset
        with pytest.raises(ValueError, match=r"fitted on 144 of the 240 examples to score.*cross_fit"):
            IrreducibleLossStore.from_model(fit, data)
        with pytest.raises(ValueError, match="fitted on 48 of the 48 examples"):
            IrreducibleLossStore.from_model([fit, make_net(1)], DataLoader(parts.validation, batch_size=8))
        sampler = [int(parts.holdout.indices[0]), int(parts.train.indices[0])]
        with pytest.raises(ValueError, match="fitted on 1 of the 2 examples"):
            IrreducibleLossStore.from_model(fit, DataLoader(data, batch_size=8, sampler=sampler))

    def test_of_the_rest_is_that_of_its_model(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=2)
        store = IrreducibleLossStore.from_model(fit, parts.train)
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(fit.model, parts.train).losses)
        assert store.ids.tolist() == parts.train.indices.tolist()

    def test_of_the_same_examples_in_another_dataset_is_refused_by_content(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1)
        x, y = parts.train.dataset.tensors
        for again in (TensorDataset(x.clone(), y), ConcatDataset([parts.holdout, parts.train])):
            with pytest.raises(ValueError, match=r"\d+ of \d+ examples to score have the content of .*fitted on .*fit\.model"):
                IrreducibleLossStore.from_model(fit, again)
        rest = parts.train.indices
        assert len(IrreducibleLossStore.from_model(fit, TensorDataset(x[rest], y[rest]))) == len(rest)

    def test_of_a_few_duplicates_warns(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1)
        rest = torch.cat([parts.train.indices, parts.holdout.indices[:5]])
        data = TensorDataset(*(column[rest] for column in learnable().tensors))
        with pytest.warns(UserWarning, match=r"5 of 101 examples to score have the content of .* \(5.0%\); .*pass fit\.model"):
            IrreducibleLossStore.from_model(fit, data)
        IrreducibleLossStore.from_model(fit.model, data)

    def test_of_other_data_is_no_matter(self, parts):
        fit = fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=1)
        assert len(IrreducibleLossStore.from_model(fit, make_data(50, seed=9))) == 50


def test_labels_that_do_not_count_are_not_in_the_accuracy():
    x = 9 * torch.eye(4).repeat(50, 1) + torch.arange(200)[:, None] / 1_000
    y = (x - x.mean(1, keepdim=True)).argmax(1)
    y[::5] = -100
    model = torch.nn.Linear(4, 4)
    with torch.no_grad():
        model.weight.copy_(torch.eye(4))
    fit = fit_irreducible_model(model, TensorDataset(x[:100], y[:100]), TensorDataset(x[100:], y[100:]), epochs=1)
    assert fit.epochs[0].accuracy == 1
