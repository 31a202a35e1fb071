"""The data of the study: Fashion-MNIST with drawn noise, and CIFAR-10 with the labels that people gave in CIFAR-10N."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from experiments import features
from experiments.corruptions import wrong_labels
from experiments.readers import cifar, idx
from experiments.sources import human_labels
from torch import Tensor
from torch.utils.data import TensorDataset

from studies.holdout.variants import CLASSES

FOLDERS = {"Fashion-MNIST": ["fashion-mnist"], "CIFAR-10": ["cifar10", "cifar10n"]}  # in the folder of the data


@dataclass
class Task:
    """The data of one seed. ``true`` and ``is_wrong`` are for measuring, and for the clean holdout.

    Attributes:
        x: inputs, (N, d) float32.
        given: labels that training sees, (N,) int64.
        true: labels as published, (N,) int64.
        x_test: (M, d) float32.
        y_test: (M,) int64.
        seed: of the noise, the weights and the batches.
    """

    x: Tensor
    given: Tensor
    true: Tensor
    x_test: Tensor
    y_test: Tensor
    seed: int

    @property
    def training(self) -> TensorDataset:
        """The training examples with the given labels."""
        return TensorDataset(self.x, self.given)

    @property
    def is_wrong(self) -> Tensor:
        """Which given labels are wrong, (N,) bool."""
        return self.given != self.true


def load_task(root: Path, work: Path, data: str, noise: str, seed: int) -> Task:
    """One data set with one kind of noise.

    Args:
        root: the folder of the data, as ``experiments/README.md`` describes it.
        work: a folder for features, which are computed once.
        data: ``"Fashion-MNIST"`` or ``"CIFAR-10"``.
        noise: the share of wrong labels, drawn for each seed; or the name of a set of CIFAR-10N's labels, the same for all seeds.
        seed: of the noise.
    """
    if data == "Fashion-MNIST":
        x, true, x_test, y_test = _fashion_mnist(root)
        given, _ = wrong_labels(true, float(noise), CLASSES, seed=10_000 + seed, draws="plain")
    else:
        x, true, x_test, y_test = _cifar10(root, work)
        given = human_labels(root / "cifar10n", true)[noise]
    return Task(x, given, true, x_test, y_test, seed)


@lru_cache(1)
def _fashion_mnist(root: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standardized pixels and published labels, of the training data and of the test data."""
    parts = [idx.mnist(root / "fashion-mnist", part, "Fashion-MNIST") for part in ("train", "t10k")]
    x, x_test = ((images.float() / 255).flatten(1) for images, _ in parts)
    mean, std = x.mean(), x.std()
    return (x - mean) / std, parts[0][1], (x_test - mean) / std, parts[1][1]


@lru_cache(1)
def _cifar10(root: Path, work: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """CIFAR-10 as frozen features, which are computed once and kept in the working folder."""
    images, labels, test_images, test_labels = cifar.cifar10(root / "cifar10")
    key = features.digest("study of holdouts 1", images, test_images)
    generator = torch.Generator().manual_seed(0)
    x = features.cached(work, "patches", key, lambda: features.patch_features(images, test_images, generator=generator))
    return x["train"], labels, x["test"], test_labels
