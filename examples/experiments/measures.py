"""What is measured: metrics on test data, and what a run's selections were made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from rholoss import Selection, functional
from rholoss.batches import move
from rholoss.isolation import device_of
from rholoss.scoring import default_forward


def accuracy(outputs: Tensor, targets: Tensor) -> float:
    """Share of the examples whose highest output is that of their class."""
    return float((outputs.argmax(1) == targets).double().mean())


def matthews(outputs: Tensor, targets: Tensor) -> float:
    """Matthews correlation of two classes, from -1 to 1; 0 if one is never predicted."""
    said, is_so = outputs.argmax(1).bool(), targets.bool()
    tp, tn, fp, fn = (float((a & b).sum()) for a, b in ((said, is_so), (~said, ~is_so), (said, ~is_so), (~said, is_so)))
    below = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    return (tp * tn - fp * fn) / below if below else 0.0


def auc(outputs: Tensor, targets: Tensor) -> float:
    """Area under the ROC curve of two classes: how likely a positive example scores above a negative one, ties half."""
    score, positive = outputs[:, 1].double() - outputs[:, 0].double(), targets.bool()
    rank = functional.ranks(score)
    n, total = int(positive.sum()), len(positive)
    return float((rank[positive].sum() - n * (n + 1) / 2) / (n * (total - n))) if 0 < n < total else float("nan")


def spearman(one: Tensor, other: Tensor) -> float:
    """Rank correlation."""
    return float(functional.spearman(one, other))


METRICS: dict[str, Callable[[Tensor, Tensor], float]] = {"accuracy": accuracy, "auc": auc, "matthews": matthews}


class Evaluation:
    """Measures models on a dataset, which is read once.

    Args:
        data: the dataset.
        metric: a name of ``METRICS``.
    """

    def __init__(self, data: Dataset[Any], metric: str) -> None:
        self.batches, self.small_batches = (list(DataLoader(data, batch_size=size)) for size in (1000, 50))
        self.metric = METRICS[metric]

    @torch.no_grad()
    def __call__(self, model: nn.Module) -> float:
        modes = [module.training for module in model.modules()]
        model.eval()
        device = device_of(model)
        convolves = any(isinstance(module, nn.Conv2d) for module in model.modules())
        batches = self.small_batches if convolves and device == torch.device("cpu") else self.batches  # twice as fast there
        pairs = [default_forward(model, move(batch, device)) for batch in batches]
        for module, was in zip(model.modules(), modes, strict=True):
            module.training = was
        return self.metric(*(torch.cat(column).cpu() for column in zip(*pairs, strict=True)))


class Tally:
    """Counts what was selected.

    Args:
        flags: what is known of the training examples, each (N,) bool by index.
        n: examples in the training data.
    """

    def __init__(self, flags: dict[str, Tensor], n: int) -> None:
        self.flags = flags
        self.times = torch.zeros(n, dtype=torch.int64)
        self.trained = self.right = self.repeated = 0
        self.overlaps: list[float] = []

    def add(self, selection: Selection, right: Tensor) -> None:
        """Count a selected batch.

        Args:
            selection: what was selected.
            right: whether the model got each right just before it was trained on it, shape (n_b,).
        """
        index = selection.index.cpu()
        if "overlap" in selection.notes:
            self.overlaps.append(float(selection.notes["overlap"]))
        self.trained += len(index)
        self.right += int(right.sum())
        self.repeated += int((self.times[index] > 0).sum())
        self.times.index_add_(0, index, torch.ones_like(index))

    def overlap(self) -> float | None:
        """The mean share of a proxy's choice that the model would have made itself; None where they were not compared."""
        return round(sum(self.overlaps) / len(self.overlaps), 5) if self.overlaps else None

    def shares(self) -> dict[str, float]:
        """The share of each flag among what was selected."""
        return {name: float(self.times[flag].sum()) / max(self.trained, 1) for name, flag in self.flags.items()}
