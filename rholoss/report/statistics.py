"""Statistics of a store in bounded memory: one pass in chunks, and a sample for what has to be sorted."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rholoss import functional
from rholoss.store import IrreducibleLossStore

CHUNK = 1 << 20  # rows to read at a time
SAMPLE = 1 << 22  # rows to sort; in a larger store they are sampled evenly
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


class ClassLosses(NamedTuple):
    """The irreducible losses of one class."""

    label: int
    examples: int  # with a known irreducible loss
    quantiles: tuple[float, ...]  # 5, 25, 50, 75 and 95 %, in nats
    above_chance: float  # share above log(C), in [0, 1]


class StoreStatistics:
    """The statistics that one pass over a store computes; ``labels`` are by index, shape (N,), integer, negative for none."""

    def __init__(self, store: IrreducibleLossStore, labels: np.ndarray | None, classes: int | None, top: int) -> None:
        self.classes = classes
        self.known = self.above = 0  # finite irreducible losses, and those above the chance level, log(C)
        self.total = 0.0  # nats, the sum of the finite ones
        self.minimum = self.maximum = math.nan
        self.highest: list[tuple[int, float]] = []  # (index, irreducible loss), highest first
        self.lowest: list[tuple[int, float]] = []  # lowest first
        # known examples in each class, and those above the chance level, (C,) int64
        is_labelled = labels is not None and classes is not None
        self.labelled = torch.zeros(classes or 0, dtype=torch.int64) if is_labelled else None
        self.labelled_above = torch.zeros(classes or 0, dtype=torch.int64)
        for start in range(0, len(store), CHUNK):
            index, losses = known_of(store, torch.arange(start, min(start + CHUNK, len(store))))
            if len(losses):
                self._count(index, losses, labels)
                self._keep_extremes(index, losses, top)

    def _count(self, index: Tensor, losses: Tensor, labels: np.ndarray | None) -> None:
        above = losses > (math.log(self.classes) if self.classes else torch.inf)
        self.known += len(losses)
        self.total += float(losses.double().sum())
        self.above += int(above.sum())
        self.minimum = float(np.fmin(self.minimum, float(losses.min())))
        self.maximum = float(np.fmax(self.maximum, float(losses.max())))
        if self.labelled is not None and labels is not None:
            mine = labels_at(labels, index, len(self.labelled))
            self.labelled += torch.bincount(mine[mine >= 0], minlength=len(self.labelled))
            self.labelled_above += torch.bincount(mine[above & (mine >= 0)], minlength=len(self.labelled))

    def _keep_extremes(self, index: Tensor, losses: Tensor, top: int) -> None:
        for kept, sign in ((self.highest, 1), (self.lowest, -1)):
            where = first_largest(sign * losses, top)
            kept += zip(index[where].tolist(), losses[where].tolist(), strict=True)
            kept.sort(key=lambda pair: -sign * pair[1])  # stable: among equal ones the lower index comes first
            del kept[top:]


def sampled_rows(n: int) -> Tensor:
    """Rows to sort, ascending, int64: all of them, or a random one from each of ``SAMPLE`` equal chunks."""
    if n <= SAMPLE:
        return torch.arange(n)
    where = torch.arange(SAMPLE, dtype=torch.float64)
    where += torch.rand(SAMPLE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return (where * (n / SAMPLE)).long().clamp(max=n - 1)


def known_of(store: IrreducibleLossStore, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Index, int64, and irreducible loss, float32, of the rows where it is finite, shape (m,), on the CPU."""
    there = rows.to(store.device)
    losses = store.losses[there].cpu()
    index = rows if store.ids is None else store.ids[there].cpu()
    finite = torch.isfinite(losses)
    return index[finite], losses[finite]


def first_largest(values: Tensor, k: int) -> Tensor:
    """Positions of the k largest values, or of all if fewer: largest first, and the first of equal ones first."""
    k = min(k, len(values))
    if not k:
        return torch.empty(0, dtype=torch.int64)
    where = torch.nonzero(values >= values.topk(k).values[-1]).flatten()
    return where[values[where].sort(descending=True, stable=True).indices[:k]]


def labels_at(labels: np.ndarray, index: Tensor, classes: int) -> Tensor:
    """The labels of some examples, int64, checked to be less than ``classes``."""
    low, high = (int(index.min()), int(index.max())) if len(index) else (0, -1)
    if low < 0 or high >= len(labels):
        raise ValueError(
            f"labels must be by index, for indices from {low} to {high}, got {len(labels):,} labels; if they are in the order of "
            "store.ids, judge rholoss.IrreducibleLossStore(store.losses, meta=store.meta)"
        )
    found = torch.from_numpy(labels[index.numpy()].astype(np.int64))
    wrong = torch.nonzero(found >= classes).flatten()
    if len(wrong):
        got = f"{int(found[wrong[0]])} at index {int(index[wrong[0]])}"
        raise ValueError(f"expected labels from 0 to {classes - 1}, got {got}; pass the number of classes as classes=")
    return found


def by_class(found: StoreStatistics, labels: np.ndarray | None, index: Tensor, losses: Tensor) -> tuple[ClassLosses, ...]:
    """The losses of each class that has any, highest median first; ``index`` and ``losses``, shape (m,), are the sample's."""
    if labels is None or found.labelled is None:
        return ()
    mine = labels_at(labels, index, len(found.labelled))
    order = losses.argsort()
    order = order[mine[order].argsort(stable=True)]
    ordered = losses[order].double().numpy()
    edges = np.searchsorted(mine[order].numpy(), np.arange(len(found.labelled) + 1))
    rows = []
    for label, (count, above) in enumerate(zip(found.labelled.tolist(), found.labelled_above.tolist(), strict=True)):
        of_class = ordered[edges[label] : edges[label + 1]]
        if len(of_class):
            rows.append(ClassLosses(label, count, quantiles(of_class, QUANTILES[:5]), above / count))
    return tuple(sorted(rows, key=lambda each: -each.quantiles[2]))


def quantiles(values: np.ndarray, shares: tuple[float, ...]) -> tuple[float, ...]:
    """Quantiles of values, interpolated linearly; empty without values."""
    return tuple(np.quantile(values, shares).tolist()) if len(values) else ()


def top_share(ordered: np.ndarray, share: float = 0.01) -> float:
    """Share of the sum of ascending values in the highest of them; at least one value counts."""
    total = ordered.sum()
    return float(ordered[-max(1, round(share * len(ordered))) :].sum() / total) if total else 0.0


def pearson(n: float, x: float, y: float, xx: float, yy: float, xy: float) -> float | None:
    """The correlation of n pairs (x, y), in [-1, 1], from sums of x, y, x², y² and xy; None where one side does not vary."""
    varies = [n * squares - total * total for squares, total in ((xx, x), (yy, y))]
    if n < 2 or varies[0] <= 1e-12 * n * xx or varies[1] <= 1e-12 * n * yy:
        return None
    return float(np.clip((n * xy - x * y) / (varies[0] * varies[1]) ** 0.5, -1, 1))


def spearman(one: Any, other: Any) -> float | None:
    """Rank correlation of pairs, in [-1, 1]; None for fewer than two pairs, or where one side does not vary."""
    value = float(functional.spearman(*(torch.as_tensor(side, dtype=torch.float64) for side in (one, other))))
    return None if math.isnan(value) else value
