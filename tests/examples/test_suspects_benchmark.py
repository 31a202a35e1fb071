"""The benchmark of suspects counts what is flagged, what of it is wrong, and where the suggested class is right."""

import sys
from pathlib import Path

import pytest
import torch

from rholoss import IrreducibleLossStore

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "benchmarks"))

import suspects


def test_flagged_wrong_and_suggested():
    given, right = torch.tensor([0, 0, 1, 2]), torch.tensor([1, 1, 1, 0])
    probabilities = torch.tensor([[0.05, 0.9, 0.05], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1], [0.0, 0.1, 0.9]]).clamp(min=1e-6)
    store = IrreducibleLossStore.from_predictions(probabilities, given, kind="probabilities", top_classes=3)
    found = suspects.measure(store, given != right, right)
    assert found["wrong"] == 3
    assert found["flagged"]["suspects"] == [2, 2]  # the last one is wrong, and the model agrees with its label
    assert found["suggested"] == [2, 1]  # 1 where it is 1, and 2 where it is 1
    assert found["ranking"]["suspects"] == pytest.approx([(1 + 1 + 3 / 4) / 3, 2 / 3])


def test_without_right_labels_nothing_is_said_of_suggestions():
    store = IrreducibleLossStore.from_predictions(torch.eye(2) + 0.1, torch.tensor([0, 1]), top_classes=2)
    assert suspects.measure(store, torch.tensor([True, False]), None)["suggested"] is None
