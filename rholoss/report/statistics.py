"""Losses summed up in bounded memory: a pass in chunks, and a sample for what has to be sorted; and their correlation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rholoss import functional
from rholoss.store import IrreducibleLossStore

CHUNK = 1 << 20  # rows that are read at a time
SAMPLE = 1 << 22  # rows that are sorted; of a larger store they are drawn evenly over it
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class ClassLosses(NamedTuple):
    """The irreducible losses of one class.

    Attributes:
        label: which class.
        examples: how many have a known irreducible loss.
        quantiles: 5, 25, 50, 75 and 95 %, in nats.
        above_guess: share above log(C).
    """

    label: int
    examples: int
    quantiles: tuple[float, ...]
    above_guess: float


class StoreStatistics:
    """What a pass over a store finds.

    Args:
        store: the store.
        labels: the label of each example, by index, shape (N,), integer; negative where it has none; None if not known.
        guess: log(C), or None.
        classes: C, or None.
        top: how many of the highest and of the lowest to keep.

    Attributes:
        known: how many irreducible losses are finite.
        total: their sum.
        minimum: the lowest; NaN without any.
        maximum: the highest.
        above: how many are above the guess.
        highest: (index, irreducible loss) of the highest, highest first.
        lowest: likewise.
        labelled: how many of each class, shape (C,), int64.
        labelled_above: how many of each class are above the guess, shape (C,), int64.
    """

    def __init__(
        self, store: IrreducibleLossStore, labels: np.ndarray | None, classes: int | None, guess: float | None, top: int
    ) -> None:
        self.known = self.above = 0
        self.total = 0.0
        self.minimum = self.maximum = math.nan
        self.highest: list[tuple[int, float]] = []
        self.lowest: list[tuple[int, float]] = []
        self.labelled = torch.zeros(classes or 0, dtype=torch.int64)
        self.labelled_above = torch.zeros(classes or 0, dtype=torch.int64)
        for rows in chunks(len(store)):
            index, losses = known_of(store, rows)
            if not len(losses):
                continue
            above = losses > (torch.inf if guess is None else guess)
            self.known += len(losses)
            self.total += float(losses.double().sum())
            self.above += int(above.sum())
            self.minimum = min(float(losses.min()), self.minimum) if self.minimum == self.minimum else float(losses.min())
            self.maximum = max(float(losses.max()), self.maximum) if self.maximum == self.maximum else float(losses.max())
            self._extremes(index, losses, top)
            if labels is not None and classes is not None:
                mine = labels_at(labels, index)
                refuse_too_large(mine, index, classes)
                self.labelled += torch.bincount(mine[mine >= 0], minlength=classes)
                self.labelled_above += torch.bincount(mine[above & (mine >= 0)], minlength=classes)

    def _extremes(self, index: Tensor, losses: Tensor, top: int) -> None:
        for kept, sign in ((self.highest, 1), (self.lowest, -1)):
            where = first_largest(sign * losses, top)
            kept += zip(index[where].tolist(), losses[where].tolist(), strict=True)
            kept.sort(key=lambda pair: -sign * pair[1])  # stable: of equal ones the lower index comes first
            del kept[top:]


def chunks(n: int) -> Iterator[Tensor]:
    """The rows 0 to n-1, int64, some at a time."""
    return (torch.arange(start, min(start + CHUNK, n)) for start in range(0, n, CHUNK))


def sampled_rows(n: int) -> Tensor:
    """Rows to sort, ascending, int64: all of them, or one at random of each of ``SAMPLE`` equal stretches."""
    if n <= SAMPLE:
        return torch.arange(n)
    where = torch.arange(SAMPLE, dtype=torch.float64)
    where += torch.rand(SAMPLE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (where * (n / SAMPLE)).long().clamp(max=n - 1)


def known_of(store: IrreducibleLossStore, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Index, int64, and irreducible loss, float32, of those of some rows that have a finite one, shape (m,), on the CPU."""
    there = rows.to(store.device)
    losses = store.losses[there].cpu()
    index = rows if store.ids is None else store.ids[there].cpu()
    finite = torch.isfinite(losses)
    return index[finite], losses[finite]


def first_largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest values, the largest first and of equal ones the first, shape (k,) or (n,) if n is less."""
    k = min(k, len(values))
    if not k:
        return torch.empty(0, dtype=torch.int64)
    where = torch.nonzero(values >= values.topk(k).values[-1]).flatten()
    return where[values[where].sort(descending=True, stable=True).indices[:k]]


def labels_at(labels: np.ndarray, index: Tensor) -> Tensor:
    """The labels of some examples, int64."""
    low, high = (int(index.min()), int(index.max())) if len(index) else (0, -1)
    if low < 0 or high >= len(labels):
        raise ValueError(
            f"labels must be by index, for indices from {low} to {high}, got {len(labels):,} labels; if they are in the order of "
            "store.ids, judge rholoss.IrreducibleLossStore(store.losses, meta=store.meta)"
        )
    return torch.from_numpy(labels[index.numpy()].astype(np.int64))


def refuse_too_large(labels: Tensor, index: Tensor, classes: int) -> None:
    """Raise a ValueError if a label is none of the classes."""
    wrong = torch.nonzero(labels >= classes).flatten()
    if len(wrong):
        raise ValueError(
            f"expected labels from 0 to {classes - 1}, got {int(labels[wrong[0]])} at index {int(index[wrong[0]])}; pass the "
            "number of classes as classes="
        )


def by_class(found: StoreStatistics, labels: Tensor, losses: Tensor) -> list[ClassLosses]:
    """The losses of each class that has any, the highest median first.

    Args:
        found: of the store.
        labels: of the sampled examples, shape (m,), int64.
        losses: of the sampled examples, shape (m,).
    """
    order = losses.argsort()
    order = order[labels[order].argsort(stable=True)]
    ordered = losses[order].double().numpy()
    edges = np.searchsorted(labels[order].numpy(), np.arange(len(found.labelled) + 1))
    rows = []
    for label, (count, above) in enumerate(zip(found.labelled.tolist(), found.labelled_above.tolist(), strict=True)):
        mine = ordered[edges[label] : edges[label + 1]]
        if len(mine):
            rows.append(ClassLosses(label, count, quantiles(mine, QUANTILES[:5]), above / count))
    return sorted(rows, key=lambda each: -each.quantiles[2])


def quantiles(ordered: np.ndarray, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles of ascending values, between two of them in proportion."""
    where = np.asarray(shares) * (len(ordered) - 1)
    low = np.floor(where).astype(int)
    high = np.minimum(low + 1, len(ordered) - 1)
    return tuple(float(value) for value in ordered[low] + (where - low) * (ordered[high] - ordered[low]))


def top_share(ordered: np.ndarray, share: float = 0.01) -> float:
    """Share of the sum of ascending values that the highest of them hold; at least one of them counts."""
    total = ordered.sum()
    return float(ordered[-max(1, round(share * len(ordered))) :].sum() / total) if total else 0.0


def pearson(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """The correlation, in [-1, 1], from sums; None where one side does not vary.

    Args:
        n: pairs.
        x: sum of the first of each pair.
        y: of the second.
        xx: sum of squares of the first.
        yy: of the second.
        xy: sum of products.
    """
    varies = [n * squares - total * total for squares, total in ((xx, x), (yy, y))]
    if n < 2 or varies[0] <= 1e-12 * n * xx or varies[1] <= 1e-12 * n * yy:
        return None
    return float(np.clip((n * xy - x * y) / (varies[0] * varies[1]) ** 0.5, -1, 1))


def spearman(one: Any, other: Any) -> float | None:
    """Rank correlation of pairs, in [-1, 1]; None for fewer than two, or where one side does not vary.

    Examples:
        >>> round(spearman([1.0, 2.0, 3.0], [10.0, 100.0, 1000.0]), 9)
        1.0
    """
    value = float(functional.spearman(*(torch.as_tensor(side, dtype=torch.float64) for side in (one, other))))
    return None if math.isnan(value) else value
