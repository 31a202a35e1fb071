"""What made a store: the record that is saved with it, and the check of which stores may be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from rholoss.arguments import mapping, optional
from rholoss.data.fingerprint import difference

BINS = 100


class CalibrationCounts:
    """Counts of how confident and correct the irreducible-loss models were, and how well two halves of them agree.

    Counts of different examples can be added.

    Attributes:
        classes: C, or 0 if the outputs are not class logits.
        bins: for each hundredth of confidence: predictions, correct ones, and sum of confidence in millionths, (100, 3), int64.
        halves: for the mean losses under two halves of the models: n, two sums, two sums of squares, sum of products, float64.
        formula: what the default loss computed, ``"cross_entropy"`` or ``"squared_error"``; empty if unknown.
    """

    def __init__(self, classes: int = 0, bins: Any = None, halves: Any = None, formula: str = "") -> None:
        self.classes = classes
        self.formula = formula
        self.bins = np.zeros((BINS, 3), np.int64) if bins is None else np.array(bins, np.int64)
        self.halves = np.zeros(6) if halves is None else np.array(halves, float)

    def __add__(self, other: CalibrationCounts) -> CalibrationCounts:
        classes, formula = max(self.classes, other.classes), self.formula or other.formula
        return CalibrationCounts(classes, self.bins + other.bins, self.halves + other.halves, formula)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CalibrationCounts) and self.to_json() == other.to_json()

    def count(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Count predictions: the probability of the most likely class, and whether it is the label."""
        known = np.isfinite(confidence)
        confidence, correct = confidence[known], correct[known]
        where = np.minimum((confidence * BINS).astype(int), BINS - 1)
        columns = np.stack([np.ones_like(confidence), correct, np.round(confidence * 1e6)], 1).astype(np.int64)
        np.add.at(self.bins, where, columns)

    @property
    def accuracy(self) -> float:
        """The share of correct predictions, in [0, 1]; 0 without any."""
        return int(self.bins[:, 1].sum()) / max(int(self.bins[:, 0].sum()), 1)

    def tenths(self) -> tuple[tuple[int, float, float], ...]:
        """For each non-empty tenth of confidence: predictions, mean confidence and accuracy."""
        rows = self.bins.reshape(10, -1, 3).sum(1).tolist()
        return tuple((n, confidence / n / 1e6, correct / n) for n, correct, confidence in rows if n)

    def most_confident(self, share: float = 0.02, least: int = 200) -> tuple[int, int]:
        """The number of the most confident predictions, about a share of all and at least so many, and of the correct ones."""
        count, correct = np.cumsum(self.bins[::-1, 0]), np.cumsum(self.bins[::-1, 1])
        last = int(np.searchsorted(count, max(share * count[-1], min(least, count[-1]))))
        return int(count[last]), int(correct[last])

    def compare(self, one: np.ndarray, other: np.ndarray) -> None:
        """Count the mean losses of the same examples under the two halves of the models."""
        self.halves += [len(one), one.sum(), other.sum(), (one**2).sum(), (other**2).sum(), (one * other).sum()]

    def to_json(self) -> dict[str, Any]:
        """JSON values; ``CalibrationCounts(**counts.to_json())`` restores the counts."""
        counts = {"classes": self.classes, "bins": self.bins.tolist(), "halves": self.halves.tolist()}
        return {**counts, "formula": self.formula} if self.formula else counts


@dataclass(frozen=True)
class CrossFit:
    """The cross-fit that a store comes from.

    Attributes:
        plan: digest of the fold of every example.
        folds: number of folds.
        seed: seed of the folds.
        models: by fold, the description of its models.
        validation_loss: by fold, the mean validation loss of its fits, in nats, or None.
    """

    plan: str
    folds: int
    seed: int
    models: dict[str, list[dict[str, Any]]]
    validation_loss: dict[str, float | None]

    def __or__(self, other: CrossFit) -> CrossFit:
        models = {**other.models, **self.models}
        losses = {**other.validation_loss, **self.validation_loss}
        return replace(self, models=dict(sorted(models.items())), validation_loss=dict(sorted(losses.items())))


@dataclass(frozen=True)
class StoreMetadata:
    """What made a store: JSON values, except ``cross_fit`` and ``calibration``. None: unknown.

    Attributes:
        data: the fingerprint of the dataset, see ``rholoss.data.fingerprint``.
        models: for each model its class, number of parameters and a digest of its weights.
        loss: the name of the loss.
        forward: the name of the forward function.
        code: digests of the forward and the loss function.
        views: passes over augmented data that the losses are averaged over.
        scoring: batch size, dtype and seed.
        examples: how many, and a digest of which if they are a part of the data.
        validation_loss: mean validation loss of the models' fits, in nats.
        cross_fit: the cross-fit, if any.
        calibration: confidence and correctness of the models.
        made: the date, UTC.
        versions: versions of rholoss, torch and numpy.
        extra: your own entries, by name.
    """

    data: dict[str, Any] | None = None
    models: list[dict[str, Any]] | None = None
    loss: str | None = None
    forward: str | None = None
    code: list[str | None] | None = None
    views: int | None = None
    scoring: dict[str, Any] | None = None
    examples: list[Any] | None = None
    validation_loss: float | None = None
    cross_fit: CrossFit | None = None
    calibration: CalibrationCounts | None = None
    made: str | None = None
    versions: dict[str, str] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any] | StoreMetadata | None) -> StoreMetadata:
        """The record from values by name, as in ``to_json``; other names go into ``extra``."""
        if isinstance(values, StoreMetadata):
            return values
        extra: dict[str, Any] = dict(optional(mapping, values, "meta", "a StoreMetadata, or JSON values by string") or {})
        known = {each.name for each in fields(cls)} - {"extra"}
        given = {name: extra.pop(name) for name in list(extra) if name in known}
        for name, kind in (("cross_fit", CrossFit), ("calibration", CalibrationCounts)):
            if isinstance(given.get(name), Mapping):
                given[name] = kind(**given[name])
        return cls(**given, extra=extra)

    def to_json(self) -> dict[str, Any]:
        """The known values by name, as JSON values; the entries of ``extra`` beside them."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        if self.cross_fit is not None:
            known["cross_fit"] = asdict(self.cross_fit)
        if self.calibration is not None:
            known["calibration"] = self.calibration.to_json()
        return {**{name: value for name, value in known.items() if value is not None}, **self.extra}

    @property
    def all_models(self) -> list[dict[str, Any]]:
        """The descriptions of all models, over all folds; empty if unknown."""
        return [each for fold in self.cross_fit.models.values() for each in fold] if self.cross_fit else self.models or []

    @property
    def mean_validation_loss(self) -> float | None:
        """The mean validation loss of the fits that made the store, in nats; None if any is unknown."""
        losses = list(self.cross_fit.validation_loss.values()) if self.cross_fit else [self.validation_loss]
        known = [loss for loss in losses if loss is not None]
        return sum(known) / len(known) if len(known) == len(losses) else None

    @property
    def formula(self) -> str:
        """``"cross_entropy"`` or ``"squared_error"``, if the loss is one of these or the default one; empty if unknown."""
        if self.loss in ("cross_entropy", "squared_error"):
            return self.loss
        if self.loss != "default_loss" or self.calibration is None:
            return ""
        return self.calibration.formula or ("cross_entropy" if self.calibration.classes else "")

    def check_mergeable(self, other: StoreMetadata) -> None:
        """Raise a ValueError if two stores are known to be of different data, losses, views, models or cross-fits."""
        if self.data and other.data:
            how = difference(self.data, other.data)
            if how:
                raise ValueError(f"these stores are of different data, which cannot be merged: of the second store's, {how}")
        for name in ("loss", "formula", "forward", "views", "code"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine and theirs and mine != theirs:
                what = {"code": "forward or loss function of the same name", "formula": "formula of the default loss"}.get(
                    name, name
                )
                raise ValueError(f"these stores were made with another {what}, {mine!r} and {theirs!r}, and cannot be merged")
        plans = [None if each.cross_fit is None else each.cross_fit.plan for each in (self, other)]
        if plans[0] != plans[1]:
            why = "an example could be scored by a model that trained on it; score all folds with the same data, folds and seed"
            raise ValueError(f"these stores are of different cross-fits, or one of them is of none, and cannot be merged: {why}")
        if plans[0] is None and self.models and other.models and self.models != other.models:
            both = f"{_names(self.models)} and {_names(other.models)}"
            raise ValueError(f"these stores were made by different models, {both}, and cannot be merged")

    def merged(self, other: StoreMetadata) -> StoreMetadata:
        """The metadata of the union of two stores."""
        both = StoreMetadata.of({**other.to_json(), **self.to_json()})
        cross_fit = self.cross_fit | other.cross_fit if self.cross_fit and other.cross_fit else both.cross_fit
        calibration = self.calibration + other.calibration if self.calibration and other.calibration else both.calibration
        return replace(both, examples=None, cross_fit=cross_fit, calibration=calibration)


def _names(models: list[dict[str, Any]]) -> str:
    return " + ".join(f"{model['class']} {model['digest'] or ''}".strip() for model in models)
