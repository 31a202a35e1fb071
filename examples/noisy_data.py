"""Data with wrong labels, read from the files in which it is published: Fashion-MNIST, and CIFAR-10 with the labels of CIFAR-10N.

Fashion-MNIST (Xiao et al., 2017) comes as four idx files, gzipped or not. CIFAR-10 (Krizhevsky, 2009) is the folder
``cifar-10-batches-py``, and CIFAR-10N (Wei et al., 2022) the file ``CIFAR-10_human.pt`` with the labels that people gave to the
same 50,000 images. The last two are pickles: open only files that you trust.
"""

from __future__ import annotations

import gzip
import pickle
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CLASSES = 10
PATCH, SPACING = 6, 1  # pixels
HUMAN_LABELS = {name: f"{name}_label" for name in ("aggre", "worse")} | {f"random{i}": f"random_label{i}" for i in (1, 2, 3)}


@dataclass
class Data:
    """A classification task. ``given`` are the training labels as they came, ``true`` are for measuring only."""

    x: Tensor  # (N, d) float32
    given: Tensor  # (N,) int64
    true: Tensor  # (N,) int64
    x_test: Tensor  # (M, d) float32
    y_test: Tensor  # (M,) int64


def read_idx(folder: Path, name: str) -> Tensor:
    """An idx file of bytes, gzipped or not, as uint8 of the shape that it says."""
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)
    if path is None:
        raise FileNotFoundError(f"expected {name} or {name}.gz in {folder}")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content, ">i4", count=content[3], offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy())


def fashion_mnist(folder: Path) -> Data:
    """Fashion-MNIST, standardised pixels, with the published labels for both ``given`` and ``true``."""
    images = [(read_idx(folder, f"{part}-images-idx3-ubyte").float() / 255).flatten(1) for part in ("train", "t10k")]
    labels = [read_idx(folder, f"{part}-labels-idx1-ubyte").long() for part in ("train", "t10k")]
    mean, std = images[0].mean(), images[0].std()
    x, x_test = ((part - mean) / std for part in images)
    return Data(x, labels[0], labels[0], x_test, labels[1])


def wrong_labels(true: Tensor, share: float, seed: int) -> Tensor:
    """Labels of which exactly this share is another class than its own, drawn evenly from the others."""
    generator = torch.Generator().manual_seed(seed)
    is_wrong = torch.zeros(len(true), dtype=torch.bool)
    is_wrong[torch.randperm(len(true), generator=generator)[: round(share * len(true))]] = True
    return torch.where(is_wrong, (true + torch.randint(1, CLASSES, true.shape, generator=generator)) % CLASSES, true)


def cifar10_images(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 3, 32, 32), uint8, and labels, of the training and of the test data."""
    batches = [pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in sorted_batches(folder)]
    images = [torch.from_numpy(np.asarray(batch[b"data"])).view(-1, 3, 32, 32) for batch in batches]
    labels = [torch.tensor(batch[b"labels"]) for batch in batches]
    return torch.cat(images[:-1]), torch.cat(labels[:-1]), images[-1], labels[-1]


def sorted_batches(folder: Path) -> list[str]:
    names = [*sorted(path.name for path in folder.glob("data_batch_*")), "test_batch"]
    if len(names) < 2 or not (folder / "test_batch").exists():
        raise FileNotFoundError(f"expected data_batch_1 to data_batch_5 and test_batch in {folder}")
    return names


def cifar10n_labels(file: Path, which: str) -> Tensor:
    """The labels that people gave: "aggre", "random1", "random2", "random3" or "worse"."""
    labels = torch.load(file, weights_only=False)
    return torch.as_tensor(np.asarray(labels[HUMAN_LABELS[which]])).long()


def patch_features(train: Tensor, test: Tensor, filters: int = 160, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Frozen features of images, learnt without labels: a hundred times forwards to train on than a network on pixels.

    Patches of 6 x 6 pixels are brought to zero mean and unit variance and whitened; random ones of them are the filters; what
    exceeds 0.25 of a filter's response is averaged over each quarter of the image. After Coates and Ng, "The Importance of
    Encoding Versus Training with Sparse Coding and Vector Quantization", ICML 2011.

    Returns:
        Standardised features, shape (n, 4 * filters), of both.
    """
    generator = torch.Generator().manual_seed(seed)
    size = PATCH * PATCH * train.shape[1]
    sample = train[torch.randperm(len(train), generator=generator)[:20_000]].float()
    patches = []
    for part in sample.split(200):
        corner = torch.randint(train.shape[-1] - PATCH + 1, (2,), generator=generator)
        patches.append(part[:, :, corner[0] : corner[0] + PATCH, corner[1] : corner[1] + PATCH].flatten(1))
    patches = torch.cat(patches)
    patches = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 10).sqrt()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    whiten = vectors @ torch.diag((values + 0.1).rsqrt()) @ vectors.T
    white = (patches - mean) @ whiten
    chosen = torch.randperm(len(white), generator=generator)[:filters]
    bank = whiten @ F.normalize(white[chosen], dim=1).T  # (size, filters): one product instead of two
    weight = bank.T.reshape(len(chosen), train.shape[1], PATCH, PATCH).contiguous()

    def features(images: Tensor) -> Tensor:
        x = images.float()
        sums, squares = (F.avg_pool2d(v.mean(1, keepdim=True), PATCH, SPACING) for v in (x, x**2))
        std = ((squares - sums**2).clamp(min=0) * size / (size - 1) + 10).sqrt()
        response = (F.conv2d(x, weight) - sums * weight.sum((1, 2, 3))[:, None, None]) / std - (mean @ bank)[:, None, None]
        return F.adaptive_avg_pool2d((response - 0.25).clamp(min=0), 2).flatten(1)

    made = [torch.cat([features(part) for part in images.split(200)]) for images in (train, test)]
    mean_of, std_of = made[0].mean(0), made[0].std(0) + 1e-6
    return (made[0] - mean_of) / std_of, (made[1] - mean_of) / std_of
