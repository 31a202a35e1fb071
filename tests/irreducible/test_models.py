"""Irreducible losses from several models, checkpoints and any callable."""

import copy

import pytest
import torch
from conftest import CLASSES, make_net
from torch import nn

from rholoss import (
    Checkpoints,
    IrreducibleLossStore,
)


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
            ([], ValueError, "model must be a model, or several, got none"),
            (None, TypeError, "model must be a model, a list of models, a Fit or Checkpoints, got None"),
            ((net for net in ()), TypeError, "got <generator"),
        ],
    )
    def test_that_are_none_are_refused(self, data, model, error, message):
        with pytest.raises(error, match=message):
            IrreducibleLossStore.from_model(model, data)
