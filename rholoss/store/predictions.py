"""What the irreducible-loss models predicted, kept beside the losses: the label's probability, and the most likely classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rholoss.arguments import shown
from rholoss.devices import to_device


class Predictions(NamedTuple):
    """The predicted probability of each example's label and of its k most likely classes, on average over the models.

    The first column is that of the label; the others are those of the k classes, the most likely first.

    Attributes:
        classes: shape (N, 1 + k), int32; -1 where an example has no prediction.
        probabilities: shape (N, 1 + k), float32, in [0, 1]; NaN where an example has no prediction.
    """

    classes: Tensor
    probabilities: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, labels: Tensor, k: int) -> Predictions:
        """The predictions from the probabilities of all classes, shape (N, C), and the labels, shape (N,), int64."""
        C = probabilities.shape[1]
        top, label = probabilities.topk(min(k, C), dim=1), labels[:, None].clamp(0, C - 1)
        found = cls(torch.cat([label, top.indices], 1).int(), torch.cat([probabilities.gather(1, label), top.values], 1).float())
        return found.where((labels >= 0) & (labels < C))  # an ignored label has no probability

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Predictions | None:
        """The predictions of a file's arrays; None without any."""
        return cls(*(torch.from_numpy(arrays[name]) for name in cls._fields)) if cls._fields[0] in arrays else None

    @classmethod
    def joined(cls, parts: list[Predictions]) -> Predictions:
        """The rows of several predictions, one after the other."""
        return cls(*(torch.cat(columns) for columns in zip(*parts, strict=True)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays by name, as they are saved."""
        return {name: array.cpu().numpy() for name, array in self._asdict().items()}

    def rows(self, which: Tensor | slice) -> Predictions:
        """The predictions of some rows."""
        return Predictions(*(array[which] for array in self))

    def to(self, device: torch.device) -> Predictions:
        """The predictions in the memory of a device."""
        return Predictions(*(to_device(array, device) for array in self))

    def where(self, known: Tensor) -> Predictions:
        """The predictions of the rows that are ``known``, shape (N,), bool; the others have none."""
        known = known[:, None]
        return Predictions(self.classes.where(known, -1), self.probabilities.where(known, torch.nan))

    def filled(self, other: Predictions) -> Predictions:
        """The predictions with those of another store in the rows that have none; of as many classes as both have."""
        missing, k = self.classes[:, :1] < 0, min(self.classes.shape[1], other.classes.shape[1])
        return Predictions(*(theirs[:, :k].where(missing, mine[:, :k]) for mine, theirs in zip(self, other, strict=True)))

    def check(self, n: int) -> None:
        """Raise a ValueError unless these are predictions of n examples, as ``of`` returns them."""
        shapes = [tuple(array.shape) for array in self]
        if shapes[0] != shapes[1] or len(shapes[0]) != 2 or shapes[0][0] != n or shapes[0][1] < 3:
            expected = f"expected predictions of two or more classes of each of {n:,} examples, and of the label"
            raise ValueError(f"{expected}, got classes of shape {shapes[0]} and probabilities of shape {shapes[1]}")
        unknown = self.classes < 0
        in_range = (self.probabilities >= 0) & (self.probabilities <= 1 + 1e-3)
        if bool((unknown != self.probabilities.isnan()).any()) or bool((~unknown & ~in_range).any()):
            raise ValueError("expected probabilities in [0, 1] of classes from 0, or NaN of class -1")


def checked_predictions(predictions: Predictions | None, n: int) -> Predictions | None:
    """Predictions that were given for n examples, checked, in memory of their own."""
    if predictions is None:
        return None
    if not isinstance(predictions, Predictions):
        raise TypeError(f"predictions must be Predictions, as the attribute of a store, or None, got {shown(predictions)}")
    predictions.check(n)
    return Predictions(predictions.classes.to(torch.int32, copy=True), predictions.probabilities.to(torch.float32, copy=True))
