"""What a store says about how it was made."""

import numpy as np
import pytest
import torch
from conftest import make_net
from torch import nn
from torch.utils.data import TensorDataset

from rholoss import (
    IrreducibleLossStore,
    cross_fit,
    fit_irreducible_model,
    split,
)
from rholoss.store.metadata import CalibrationCounts


def losses_under(model, data):
    return IrreducibleLossStore.from_model(model, data).losses


class TestCalibrationCounts:
    def test_adds_up(self):
        one, other = CalibrationCounts(), CalibrationCounts(3)
        one.count(np.array([0.052, 1.0]), np.array([1.0, 0.0]))
        other.count(np.array([0.993]), np.array([1.0]))
        both = one + other
        assert both.bins[5].tolist() == [1, 1, 52_000]
        assert both.bins[99].tolist() == [2, 1, 1_993_000]
        assert both.classes == 3
        assert CalibrationCounts(**both.to_json()) == both

    def test_the_most_confident_predictions(self):
        counts = CalibrationCounts(3)
        counts.count(np.repeat([0.9, 0.6, 0.4], [10, 300, 690]), np.repeat([1.0, 0.0, 1.0], [10, 300, 690]))
        assert counts.most_confident(0.01, least=1) == (10, 10)
        assert counts.most_confident(0.2, least=1) == (310, 10)
        assert counts.most_confident(0.01, least=200) == (310, 10)
        assert counts.most_confident(1.0, least=1) == (1000, 700)

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
