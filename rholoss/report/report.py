"""The report on a store: indicators, tables and the verdict."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rholoss.arguments import map_style, number, optional, options_of, path_of, refuse_unknown, shown, whole
from rholoss.data.fingerprint import difference, labels_digest
from rholoss.data.subset import class_names_of, dataset_of, labels_of, whole_of
from rholoss.report import statistics
from rholoss.report.gallery import Examples
from rholoss.report.html import summary_of, write_report
from rholoss.report.page import fragment
from rholoss.report.plots import draw
from rholoss.report.statistics import ClassLosses, StoreStatistics
from rholoss.report.suspects import checked_names
from rholoss.report.text import text_of
from rholoss.report.verdict import Indicators, Verdict, judge
from rholoss.store import CalibrationCounts, IrreducibleLossStore

PAIRS = 2_000  # points in a plot of two stores
BARS = 80  # of the histogram


@dataclass(frozen=True)
class Distribution:
    """How the irreducible losses of a store are distributed, in nats.

    Attributes:
        minimum: the lowest; NaN if none is known.
        maximum: the highest; NaN if none is known.
        quantiles: 5, 25, 50, 75, 95 and 99 %; empty if none is known.
        top_share: share of the sum of all irreducible losses in the highest 1 % of the examples, in [0, 1].
        histogram: number of sampled irreducible losses between each two edges; lower ones are in the first bar.
        edges: edges of the histogram.
    """

    minimum: float
    maximum: float
    quantiles: tuple[float, ...]
    top_share: float
    histogram: tuple[int, ...] = field(repr=False)
    edges: tuple[float, ...] = field(repr=False)

    @classmethod
    def of(cls, found: StoreStatistics, losses: Tensor) -> "Distribution":
        """The distribution of sampled losses, shape (m,), with the extremes of the whole store."""
        ordered = losses.double().sort().values.numpy()
        edges = _edges(found.minimum, found.maximum)
        return cls(
            minimum=found.minimum,
            maximum=found.maximum,
            quantiles=statistics.quantiles(ordered, statistics.QUANTILES),
            top_share=statistics.top_share(ordered),
            histogram=tuple(np.histogram(ordered.clip(min=edges[0]), edges)[0].tolist()),
            edges=tuple(edges.tolist()),
        )


@dataclass(frozen=True)
class Report(Indicators):
    """The report on a store; losses are in nats. ``print`` shows a text, ``plot`` draws it.

    If a store has more than 4,194,304 examples, quantiles, ``top_share``, the histogram and the rank correlation are computed on
    that many examples, sampled evenly. All other numbers include all examples.

    Attributes:
        examples: number of examples in the store.
        distribution: the distribution of the irreducible losses.
        by_class: one entry per class, highest median first. Empty without labels.
        bins: for each non-empty tenth of confidence, the number of predictions, mean confidence and accuracy.
        highest: (index, irreducible loss) of the highest.
        lowest: (index, irreducible loss) of the lowest.
        in_common: number of examples with a known irreducible loss in both stores; None without another store.
        pairs: irreducible losses here and in the other store, of some examples.
        store: the store.
        labels: the label of each example by index, shape (N,), integer, negative where it has none; None if unknown.
        class_names: by class; None if unknown.
        verdict: what the indicators mean.
    """

    examples: int
    distribution: Distribution
    by_class: tuple[ClassLosses, ...]
    bins: tuple[tuple[int, float, float], ...]
    highest: tuple[tuple[int, float], ...]
    lowest: tuple[tuple[int, float], ...]
    in_common: int | None
    pairs: tuple[tuple[float, float], ...] = field(repr=False)
    store: IrreducibleLossStore = field(repr=False, compare=False)
    labels: np.ndarray | None = field(default=None, repr=False, compare=False)
    class_names: tuple[str, ...] | None = None

    @property
    def well_filled_bins(self) -> tuple[tuple[int, float, float], ...]:
        """The ``bins`` with enough predictions, 20 and a thousandth of all, for their accuracy to mean something."""
        least = max(20, sum(n for n, _, _ in self.bins) / 1_000)
        return tuple(each for each in self.bins if each[0] >= least)

    def name_of(self, label: int | None) -> str:
        """The name of a class; its number if it has none."""
        return Examples(class_names=self.class_names).name_of(label)

    @property
    def verdict(self) -> Verdict:
        return judge(self)

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the distribution, and the classes, the calibration and the other store where they are known.

        Args:
            path: an image file to save the figure to, in the format of its suffix; None saves nothing.

        Returns:
            A ``matplotlib.figure.Figure``, which is not shown and need not be closed.

        Raises:
            ImportError: matplotlib is missing; the message names the extra.
        """
        return draw(self, optional(path_of, path, "path"))

    def to_html(
        self, path: str | os.PathLike[str], dataset: Any = None, *, selected: Any = None, show: Callable[[int], Any] | None = None
    ) -> None:
        """Write the report as one HTML page that needs no network and no server.

        Args:
            path: the file.
            dataset: the dataset, or a loader over it, to show examples of, by class if it shows labels: images, texts, or the
                first numbers. None: no examples, unless ``show`` is given.
            selected: how often each example was selected, by index, shape (N,), integer, such as ``SelectionLog.selected``.
            show: ``(index) -> image or text`` to show instead of the dataset's example.

        Raises:
            ValueError: the dataset is not the one that was scored, as far as labels and a sample show; nothing is written.
        """
        write_report(self, path, dataset, selected, show)

    def _repr_html_(self) -> str:
        return fragment(summary_of(self, self.name_of))

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
    class_names: Sequence[str] | None = None,
    **unknown: Any,
) -> Report:
    """Judge a store, as ``IrreducibleLossStore.report`` does.

    Args:
        store: the store.
        labels: see ``IrreducibleLossStore.report``.
        classes: C, at least 2; None: as in the store's metadata, or else from the labels.
        other: a store of the same data to compare with, such as one by a model fitted on another half.
        validation_loss: validation loss of the irreducible-loss model, in nats; None: as in the store's metadata.
        plain_accuracy: held-out accuracy on such labels of the model in training without selection, in [0, 1].
        top: how many of the highest and of the lowest examples to list.
        class_names: by class; None: those of the dataset in ``labels``, where it shows them.
        **unknown: refused, with the option that is meant.
    """
    refuse_unknown(unknown, options_of(report_on), "the report")
    if not isinstance(store, IrreducibleLossStore):
        raise TypeError(f"store must be an IrreducibleLossStore, got {shown(store)}")
    classes = optional(whole, classes, "classes", "the number of classes, at least 2, or None", 2)
    share = lambda accuracy: 0 <= accuracy <= 1  # noqa: E731
    plain_accuracy = optional(number, plain_accuracy, "plain_accuracy", "a share, in [0, 1], or None", share)
    validation_loss = optional(number, validation_loss, "validation_loss", "a loss in nats, or None")
    top = whole(top, "top", "a number of examples, at least 0", 0)
    by_index = None if labels is None else _labels(labels, store)
    names = class_names_of(labels) if class_names is None else checked_names(class_names, by_index)
    calibration = store.meta.calibration or CalibrationCounts()
    found = StoreStatistics(store, by_index, classes or calibration.classes or _classes(by_index), top)
    index, losses = statistics.known_of(store, statistics.sampled_rows(len(store)))
    distribution = Distribution.of(found, losses)
    pairs = None if other is None else _pairs(store, other, index, losses)
    return Report(
        **_indicators(store, found, distribution, pairs),
        validation_loss=store.meta.mean_validation_loss if validation_loss is None else validation_loss,
        plain_accuracy=plain_accuracy,
        examples=len(store),
        distribution=distribution,
        by_class=statistics.by_class(found, by_index, index, losses),
        bins=calibration.tenths(),
        highest=tuple(found.highest),
        lowest=tuple(found.lowest),
        in_common=None if pairs is None else len(pairs[0]),
        pairs=() if pairs is None else _thinned(*pairs),
        store=store,
        labels=by_index,
        class_names=names,
    )


def _indicators(
    store: IrreducibleLossStore, found: StoreStatistics, distribution: Distribution, pairs: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:
    """The fields of ``Indicators`` that the store alone determines."""
    meta = store.meta
    calibration = meta.calibration or CalibrationCounts()
    return {
        "known": found.known,
        "classes": found.classes,
        "mean": found.total / found.known if found.known else math.nan,
        "median": distribution.quantiles[2] if distribution.quantiles else math.nan,
        "above_chance": found.above / found.known if found.classes and found.known else None,
        "label_entropy": _entropy(found.labelled),
        **_calibration(calibration.tenths()),
        "halves": statistics.pearson(*calibration.halves),
        "other": None if pairs is None else statistics.spearman(*pairs),
        "models": len(meta.all_models),
        "folds": meta.cross_fit.folds if meta.cross_fit else 0,
    }


def _calibration(bins: tuple[tuple[int, float, float], ...]) -> dict[str, float]:
    """The indicators that summarize the bins of confidence; none without bins."""
    if not bins:
        return {}
    predictions = sum(n for n, _, _ in bins)
    return {
        "confidence": sum(n * confidence for n, confidence, _ in bins) / predictions,
        "accuracy": sum(n * accuracy for n, _, accuracy in bins) / predictions,
        "calibration_error": sum(n * abs(confidence - accuracy) for n, confidence, accuracy in bins) / predictions,
    }


def _labels(labels: Any, store: IrreducibleLossStore) -> np.ndarray | None:
    """The label of each example by index, shape (N,), integer; None where a dataset does not show them."""
    if isinstance(labels, (Tensor, Sequence)) or hasattr(labels, "__array__"):
        found = labels.cpu().numpy() if isinstance(labels, Tensor) else np.asarray(None if isinstance(labels, str) else labels)
        if found.ndim != 1 or (found.size and found.dtype.kind not in "iub"):
            got = f"{found.dtype} of shape {tuple(found.shape)}; or pass a dataset that shows its labels"
            raise TypeError(f"labels must be one whole number per example, shape (N,), got {got}")
    else:
        map_style(dataset_of(labels), "what labels are looked up in")
        known = labels_of(whole_of(dataset_of(labels)))
        if known is None:
            return None
        now: dict[str, Any] = {"length": len(known), "labels": labels_digest(known), "sample": {}}
        how = difference(store.meta.data, now) if store.meta.data else None
        if how:
            raise ValueError(f"this store was made from other data than these: {how}; pass the data that it was made from")
        found = known.cpu().numpy()
    if store.ids is None and len(found) != len(store):
        raise ValueError(
            f"labels must be one per example: expected the label of each of {len(store):,} examples, got {len(found):,}"
        )
    return found


def _classes(labels: np.ndarray | None) -> int | None:
    """C, from labels alone; None without two different classes."""
    highest = int(labels.max()) if labels is not None and len(labels) else 0
    return highest + 1 if highest else None


def _entropy(counts: Tensor | None) -> float | None:
    """The entropy of classes with these counts, in nats; None without any."""
    if counts is None or not counts.any():
        return None
    share = counts[counts > 0].double() / counts.sum()
    return float(-(share * share.log()).sum())


def _edges(minimum: float, maximum: float) -> np.ndarray:
    """Edges of a histogram over at most five decades, shape (BARS + 1,), ascending."""
    minimum, high = np.nan_to_num(minimum), maximum if maximum > 0 else 1.0
    return np.append(np.geomspace(np.clip(minimum, high * 1e-5, high / 10), high, BARS + 1)[:-1], np.nextafter(high, np.inf))


def _pairs(store: IrreducibleLossStore, other: IrreducibleLossStore, index: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """The irreducible losses, here and in another store, of the examples known to both."""
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


def _thinned(*sides: Tensor) -> tuple[tuple[float, float], ...]:
    """At most ``PAIRS`` pairs, spread evenly."""
    one, other = (side[:: len(side) // PAIRS + 1].tolist() for side in sides)
    return tuple(zip(one, other, strict=True))
