"""What irreducible losses look like, in numbers and in words, before they are trusted."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rholoss.data.fingerprint import difference, labels_digest
from rholoss.data.subset import dataset_of, labels_of, whole_of
from rholoss.report import statistics
from rholoss.report.plots import draw
from rholoss.report.statistics import ClassLosses
from rholoss.report.text import text_of
from rholoss.report.verdict import Indicators, Verdict, judge
from rholoss.store import CalibrationCounts, IrreducibleLossStore

PAIRS = 2_000  # points in a plot of two stores
BARS = 80  # of the histogram


@dataclass(frozen=True)
class Report(Indicators):
    """A store, judged: plain numbers, in nats where they are losses. Printed, it is a text; ``plot`` draws it.

    Of a store of more than 4,194,304 examples, quantiles, the share of the highest 1 %, the histogram and the rank correlation
    are those of as many examples, drawn evenly over it. All other numbers are of all.

    Attributes:
        examples: in the store.
        minimum: the lowest irreducible loss.
        maximum: the highest.
        quantiles: 5, 25, 50, 75, 95 and 99 %.
        top_share: share of the sum of all irreducible losses that the highest 1 % of the examples hold, in [0, 1].
        by_class: of each class the label, how many examples, quantiles (5, 25, 50, 75 and 95 %) and the share above log(C); the
            highest median first. Empty without labels.
        bins: of each tenth of confidence that occurs the number of predictions, mean confidence and accuracy.
        highest: (index, irreducible loss) of the highest.
        lowest: (index, irreducible loss) of the lowest.
        in_common: examples that are known to this store and to the other one; None without one.
        verdict: what all this means.
        histogram: how many irreducible losses, of those that were sorted, are between each two edges; lower ones are
            in the first.
        edges: of the histogram, in nats.
        pairs: irreducible losses here and in the other store, of a few examples.
    """

    examples: int
    minimum: float
    maximum: float
    quantiles: tuple[float, ...]
    top_share: float
    by_class: tuple[ClassLosses, ...]
    bins: tuple[tuple[int, float, float], ...]
    highest: tuple[tuple[int, float], ...]
    lowest: tuple[tuple[int, float], ...]
    in_common: int | None
    histogram: tuple[int, ...] = field(repr=False)
    edges: tuple[float, ...] = field(repr=False)
    pairs: tuple[tuple[float, float], ...] = field(repr=False)

    @property
    def verdict(self) -> Verdict:
        return judge(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw it: the distribution, and the classes, the calibration and the other store where they are known.

        Args:
            path: an image file to save it to, of a type that matplotlib knows by its name; None saves nothing.

        Returns:
            A ``matplotlib.figure.Figure``, which no window shows and nobody has to close.

        Raises:
            ImportError: matplotlib is missing; the message names the extra.
        """
        return draw(self, path)

    def __str__(self) -> str:
        return text_of(self)


def report_on(
    store: IrreducibleLossStore,
    labels: Any = None,
    *,
    classes: int | None = None,
    other: IrreducibleLossStore | None = None,
    validation_loss: float | None = None,
    plain_accuracy: float | None = None,
    top: int = 5,
) -> Report:
    """Judge a store; see ``IrreducibleLossStore.report``."""
    if classes is not None and (isinstance(classes, bool) or classes < 2):
        raise ValueError(f"classes must be how many there are, at least 2, or None, got {classes!r}")
    if plain_accuracy is not None and not 0 <= plain_accuracy <= 1:
        raise ValueError(f"plain_accuracy must be a share, in [0, 1], got {plain_accuracy!r}")
    by_index = None if labels is None else _labels(labels, store)
    counts = store.meta.calibration or CalibrationCounts()
    C = classes or counts.classes or _classes(by_index)
    found = statistics.StoreStatistics(store, by_index, C, math.log(C) if C else None, top)
    index, losses = statistics.known_of(store, statistics.sampled_rows(len(store)))
    ordered = losses.double().sort().values.numpy()
    each = statistics.by_class(found, statistics.labels_at(by_index, index), losses) if by_index is not None and C else []
    bins, pairs = _bins(counts), None if other is None else _pairs(store, other, index, losses)
    edges = _edges(found.minimum, found.maximum)
    predictions = sum(n for n, _, _ in bins)
    n, cross_fit = len(losses), store.meta.cross_fit
    return Report(
        examples=len(store),
        known=found.known,
        classes=C,
        mean=found.total / found.known if n else math.nan,
        median=statistics.quantiles(ordered, (0.5,))[0] if n else math.nan,
        above_guess=found.above / found.known if C and n else None,
        label_entropy=_entropy(found.labelled) if by_index is not None and C else None,
        confidence=sum(n * sure for n, sure, _ in bins) / predictions if bins else None,
        accuracy=sum(n * right for n, _, right in bins) / predictions if bins else None,
        calibration_error=sum(n * abs(sure - right) for n, sure, right in bins) / predictions if bins else None,
        halves=statistics.pearson(*counts.halves),
        other=None if pairs is None else statistics.spearman(*pairs),
        models=len(store.meta.all_models),
        folds=cross_fit.folds if cross_fit else 0,
        validation_loss=store.meta.mean_validation_loss if validation_loss is None else validation_loss,
        plain_accuracy=plain_accuracy,
        minimum=found.minimum,
        maximum=found.maximum,
        quantiles=statistics.quantiles(ordered, statistics.QUANTILES) if n else (),
        top_share=statistics.top_share(ordered) if n else 0.0,
        by_class=tuple(each),
        bins=tuple(bins),
        highest=tuple(found.highest),
        lowest=tuple(found.lowest),
        in_common=None if pairs is None else len(pairs[0]),
        histogram=tuple(np.histogram(ordered.clip(min=edges[0]), edges)[0].tolist()),
        edges=tuple(edges.tolist()),
        pairs=() if pairs is None else tuple(zip(*(side[:: len(side) // PAIRS + 1].tolist() for side in pairs), strict=True)),
    )


def _labels(labels: Any, store: IrreducibleLossStore) -> np.ndarray | None:
    """The label of each example by index, shape (N,), integer; None where a dataset does not show them."""
    if isinstance(labels, (Tensor, Sequence)) or hasattr(labels, "__array__"):
        found = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(labels)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iub"):
            raise TypeError(
                f"labels must be one whole number per example, shape (N,), got {found.dtype} of shape {tuple(found.shape)}; or "
                "pass a dataset that shows them"
            )
    else:
        data = dataset_of(labels)
        shown = labels_of(whole_of(data))
        if shown is None:
            return None
        now: dict[str, Any] = {"length": len(shown), "labels": labels_digest(shown), "sample": {}}
        how = difference(store.meta.data, now) if store.meta.data else None
        if how:
            raise ValueError(f"this store was made from other data than these: {how}; pass the data that it was made from")
        found = shown.cpu().numpy()
    if store.ids is None and len(found) != len(store):
        raise ValueError(f"expected the label of each of {len(store):,} examples, got {len(found):,}")
    return found


def _classes(labels: np.ndarray | None) -> int | None:
    """C, from labels alone; None where they do not tell two classes apart."""
    highest = int(labels.max()) if labels is not None and len(labels) else 0
    return highest + 1 if highest else None


def _entropy(counts: Tensor) -> float | None:
    """Of classes with these counts, in nats; None without any."""
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log()).sum()) if len(share) else None


def _edges(minimum: float, maximum: float) -> np.ndarray:
    """Edges of a histogram over at most five decades, shape (BARS + 1,), ascending."""
    minimum, high = np.nan_to_num(minimum), maximum if maximum > 0 else 1.0
    return np.append(np.geomspace(np.clip(minimum, high * 1e-5, high / 10), high, BARS + 1)[:-1], np.nextafter(high, np.inf))


def _bins(counts: CalibrationCounts) -> list[tuple[int, float, float]]:
    return [(n, sure / n / 1e6, right / n) for n, right, sure in counts.bins.tolist() if n]


def _pairs(store: IrreducibleLossStore, other: IrreducibleLossStore, index: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The irreducible losses, here and in another store, of the examples that both know."""
    if not isinstance(other, IrreducibleLossStore):
        raise TypeError(f"other must be a store, got {type(other).__name__}")
    saved, its = store.meta.data, other.meta.data
    how = difference(saved, its) if saved and its else None
    if how or (store.ids is None and other.ids is None and len(store) != len(other)):
        how = how or f"it has {other.size}, and this has {store.size}"
        raise ValueError(f"the other store is of other data: {how}; stores of the same examples can be compared")
    if other.ids is None:
        there = (index >= 0) & (index < len(other))
        index, losses = index[there], losses[there]
    theirs = other[index.to(other.device)].cpu()
    both = torch.isfinite(theirs)
    return losses[both], theirs[both]
