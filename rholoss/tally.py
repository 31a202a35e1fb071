"""How sure and how right irreducible-loss models were, counted while they score."""

from __future__ import annotations

from typing import Any

import numpy as np

BINS = 10


class Tally:
    """How sure and how right the irreducible-loss models were, and how far two halves of them agree; adds up over stretches.

    Attributes:
        classes: C, or 0 where the outputs are no logits of classes.
        bins: for each tenth of confidence: predictions, right ones, and confidence in millionths, shape (10, 3), int64.
        halves: of the mean loss under each half of the models: n, two sums, two sums of squares, sum of products, float64.
    """

    def __init__(self, classes: int = 0, bins: Any = None, halves: Any = None) -> None:
        self.classes = classes
        self.bins = np.zeros((BINS, 3), np.int64) if bins is None else np.array(bins, np.int64)
        self.halves = np.zeros(6) if halves is None else np.array(halves, float)

    def __add__(self, other: Tally) -> Tally:
        return Tally(max(self.classes, other.classes), self.bins + other.bins, self.halves + other.halves)

    def count(self, confidence: np.ndarray, right: np.ndarray) -> None:
        """Count predictions: the probability of the likeliest class, and whether it is the label."""
        known = np.isfinite(confidence)
        confidence, right = confidence[known], right[known]
        where = np.minimum((confidence * BINS).astype(int), BINS - 1)
        columns = np.stack([np.ones_like(confidence), right, np.round(confidence * 1e6)], 1).astype(np.int64)
        np.add.at(self.bins, where, columns)

    def compare(self, one: np.ndarray, other: np.ndarray) -> None:
        """Count the mean losses of the same examples under one half of the models and under the other."""
        self.halves += [len(one), one.sum(), other.sum(), (one**2).sum(), (other**2).sum(), (one * other).sum()]

    def state(self) -> dict[str, Any]:
        """As JSON values; ``Tally(**state)`` is the same again."""
        return {"classes": self.classes, "bins": self.bins.tolist(), "halves": self.halves.tolist()}
