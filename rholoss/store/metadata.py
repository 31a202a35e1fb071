"""What made a store: the record that is saved with it, and which stores may be merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from rholoss.data.fingerprint import difference

BINS = 10
_WORDS = {"code": "forward or loss function of the same name"}


class CalibrationCounts:
    """How confident and how often correct the irreducible-loss models were, and how far two halves of them agree.

    Counts of different examples can be added.

    Attributes:
        classes: C, or 0 where the outputs are no logits of classes.
        bins: for each tenth of confidence: predictions, correct ones, and confidence in millionths, shape (10, 3), int64.
        halves: of the mean loss under each half of the models: n, two sums, two sums of squares, sum of products, float64.
    """

    def __init__(self, classes: int = 0, bins: Any = None, halves: Any = None) -> None:
        self.classes = classes
        self.bins = np.zeros((BINS, 3), np.int64) if bins is None else np.array(bins, np.int64)
        self.halves = np.zeros(6) if halves is None else np.array(halves, float)

    def __add__(self, other: CalibrationCounts) -> CalibrationCounts:
        return CalibrationCounts(max(self.classes, other.classes), self.bins + other.bins, self.halves + other.halves)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CalibrationCounts) and self.to_json() == other.to_json()

    def count(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Count predictions: the probability of the likeliest class, and whether it is the label."""
        known = np.isfinite(confidence)
        confidence, correct = confidence[known], correct[known]
        where = np.minimum((confidence * BINS).astype(int), BINS - 1)
        columns = np.stack([np.ones_like(confidence), correct, np.round(confidence * 1e6)], 1).astype(np.int64)
        np.add.at(self.bins, where, columns)

    def compare(self, one: np.ndarray, other: np.ndarray) -> None:
        """Count the mean losses of the same examples under one half of the models and under the other."""
        self.halves += [len(one), one.sum(), other.sum(), (one**2).sum(), (other**2).sum(), (one * other).sum()]

    def to_json(self) -> dict[str, Any]:
        """As JSON values; ``CalibrationCounts(**counts.to_json())`` is the same again."""
        return {"classes": self.classes, "bins": self.bins.tolist(), "halves": self.halves.tolist()}


@dataclass(frozen=True)
class CrossFit:
    """The cross-fit that a store comes from.

    Attributes:
        plan: digest of the fold of every example.
        folds: how many folds there are.
        seed: of the folds.
        models: by fold, what its models are known by.
        validation_loss: by fold, the mean validation loss of its fits, in nats, or None.
    """

    plan: str
    folds: int
    seed: int
    models: dict[str, list[dict[str, Any]]]
    validation_loss: dict[str, float | None]

    def __or__(self, other: CrossFit) -> CrossFit:
        models, losses = ({**theirs, **mine} for mine, theirs in zip(self._by_fold(), other._by_fold(), strict=True))
        return replace(self, models=dict(sorted(models.items())), validation_loss=dict(sorted(losses.items())))

    def _by_fold(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return self.models, self.validation_loss


@dataclass(frozen=True)
class StoreMetadata:
    """What made a store. All values are JSON values but for ``cross_fit`` and ``calibration``; None: not known.

    Attributes:
        data: the fingerprint of the dataset, see ``rholoss.data.fingerprint``.
        models: what each model is known by: class, parameters and a digest of its weights.
        loss: the name of the loss.
        forward: the name of the forward function.
        code: digests of the forward and of the loss function.
        views: passes over augmented data whose mean was taken.
        scoring: batch size, dtype and seed.
        examples: how many, and a digest of which if they are a part of the data.
        validation_loss: mean validation loss of the fits of the models, in nats.
        cross_fit: the cross-fit, where it was one.
        calibration: confidence and correctness of the models.
        made: the date, UTC.
        versions: of rholoss, torch and numpy.
        extra: entries of your own, by name.
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
        """The record of JSON values by name, as ``to_json`` gives them; names that are no fields go into ``extra``."""
        if isinstance(values, StoreMetadata):
            return values
        known = {each.name for each in fields(cls)} - {"extra"}
        given = {name: value for name, value in (values or {}).items() if name in known}
        if isinstance(given.get("cross_fit"), Mapping):
            given["cross_fit"] = CrossFit(**given["cross_fit"])
        if isinstance(given.get("calibration"), Mapping):
            given["calibration"] = CalibrationCounts(**given["calibration"])
        return cls(**given, extra={name: value for name, value in (values or {}).items() if name not in known})

    def to_json(self) -> dict[str, Any]:
        """What is known, as JSON values by name; the entries of ``extra`` beside the others."""
        known = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        if self.cross_fit is not None:
            known["cross_fit"] = asdict(self.cross_fit)
        if self.calibration is not None:
            known["calibration"] = self.calibration.to_json()
        return {**{name: value for name, value in known.items() if value is not None}, **self.extra}

    @property
    def all_models(self) -> list[dict[str, Any]]:
        """What each model is known by, over all folds; empty where that is not known."""
        return [each for fold in self.cross_fit.models.values() for each in fold] if self.cross_fit else self.models or []

    @property
    def mean_validation_loss(self) -> float | None:
        """The mean validation loss of the fits that made the store, in nats; None where one is not known."""
        losses = list(self.cross_fit.validation_loss.values()) if self.cross_fit else [self.validation_loss]
        known = [loss for loss in losses if loss is not None]
        return sum(known) / len(known) if len(known) == len(losses) else None

    def check_mergeable(self, other: StoreMetadata) -> None:
        """Raise a ValueError where two stores are of different data, losses, views or models, as far as is known.

        The folds of one cross-fit have models of their own.
        """
        if self.data and other.data:
            how = difference(self.data, other.data)
            if how:
                raise ValueError(f"these stores are of different data, which cannot be merged: of the second store's, {how}")
        for name in ("loss", "forward", "views", "code"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if None not in (mine, theirs) and mine != theirs:
                raise ValueError(
                    f"these stores were made with another {_WORDS.get(name, name)}, {mine!r} and {theirs!r}, and cannot "
                    "be merged: their numbers mean different things"
                )
        plans = [None if each.cross_fit is None else each.cross_fit.plan for each in (self, other)]
        if plans[0] != plans[1]:
            raise ValueError(
                "these stores are of different cross-fits, or one of them is of none, and cannot be merged: an example could be "
                "scored by a model that trained on it; score all folds with the same data, folds and seed"
            )
        if plans[0] is None and self.models and other.models and self.models != other.models:
            raise ValueError(
                f"these stores were made by different models, {_names(self.models)} and {_names(other.models)}, and cannot be "
                "merged: their numbers cannot be compared"
            )

    def merged(self, other: StoreMetadata) -> StoreMetadata:
        """The metadata of the union of two stores."""
        both = StoreMetadata.of({**other.to_json(), **self.to_json()})
        cross_fit = self.cross_fit | other.cross_fit if self.cross_fit and other.cross_fit else both.cross_fit
        calibration = self.calibration + other.calibration if self.calibration and other.calibration else both.calibration
        return replace(both, examples=None, cross_fit=cross_fit, calibration=calibration)


def _names(models: list[dict[str, Any]]) -> str:
    return " + ".join(f"{model['class']} {model['digest'] or ''}".strip() for model in models)
