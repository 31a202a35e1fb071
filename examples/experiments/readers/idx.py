"""Images and labels in idx files, gzipped or not: MNIST, Fashion-MNIST and QMNIST; and AmbiguousMNIST's tensors."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.readers.files import content_of, find, wrong

TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path, data: str, ndim: int) -> Tensor:
    """The numbers of an idx file, as a tensor of the shape in its header."""
    content = content_of(path, data)
    if len(content) < 4 + 4 * ndim or content[:2] != b"\0\0" or content[2] not in TYPES or content[3] != ndim:
        raise wrong(path, f"an idx file of {ndim} dimensions", f"{len(content):,} bytes that begin {content[:4].hex()}", data)
    shape = np.frombuffer(content, ">i4", count=ndim, offset=4).tolist()
    kind = np.dtype(TYPES[content[2]])
    size = 4 + 4 * ndim + int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    if len(content) != size or min(shape) < 0:
        raise wrong(path, f"{size:,} bytes for the shape {tuple(shape)}", f"{len(content):,}", data)
    values = np.frombuffer(content, kind, offset=4 + 4 * ndim).reshape(shape)
    return torch.from_numpy(values.astype(kind.newbyteorder("=")))


def mnist(folder: Path, part: str, data: str = "MNIST") -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28), uint8, and labels (n,), int64, of the part ``"train"`` or ``"t10k"``, of MNIST or Fashion-MNIST."""
    images, labels = (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte")
    image_file, label_file = (find(folder, name, f"{name}.gz", data=data) for name in (images, labels))
    return _pair(image_file, read_idx(label_file, data, ndim=1), label_file, data)


def qmnist(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images and labels of QMNIST, as of MNIST.

    Args:
        folder: where its files are.
        part: ``"train"``: MNIST's 60,000; ``"test10k"``: MNIST's test data; ``"test50k"``: the 50,000 that MNIST left out.
    """
    of = "train" if part == "train" else "test"
    images, labels = (f"qmnist-{of}-images-idx3-ubyte", f"qmnist-{of}-labels-idx2-int")
    image_file, label_file = (find(folder, name, f"{name}.gz", data="QMNIST") for name in (images, labels))
    table = read_idx(label_file, "QMNIST", ndim=2)
    if table.shape[1] != 8 or table.dtype != torch.int32:
        raise wrong(label_file, "8 columns of int32", f"{table.shape[1]} of {table.dtype}", "QMNIST")
    x, y = _pair(image_file, table[:, 0], label_file, "QMNIST")
    rows = {"train": slice(None), "test10k": slice(10_000), "test50k": slice(10_000, None)}[part]
    return x[rows], y[rows]


def _pair(image_file: Path, labels: Tensor, label_file: Path, data: str) -> tuple[Tensor, Tensor]:
    images = read_idx(image_file, data, ndim=3)
    if images.dtype != torch.uint8 or images.shape[1:] != (28, 28):
        raise wrong(image_file, "images of 28 x 28 bytes", f"{images.dtype} of shape {tuple(images.shape)}", data)
    if len(images) != len(labels):
        raise wrong(label_file, f"{len(images):,} labels, as {image_file.name} has images", f"{len(labels):,}", data)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) <= 9:
        raise wrong(label_file, "labels from 0 to 9", f"{int(labels.min())} to {int(labels.max())}", data)
    return images.unsqueeze(1), labels.long()


def ambiguous_mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28), float in [0, 1], and their labels (n, k), int64: k draws of what each image could be."""
    paths = [find(folder, name, data="AmbiguousMNIST") for name in ("amnist_samples.pt", "amnist_labels.pt")]
    images, labels = (_tensor(path) for path in paths)
    if images.ndim != 4 or images.shape[1:] != (1, 28, 28) or not images.is_floating_point():
        raise wrong(paths[0], "float images of shape (n, 1, 28, 28)", f"{images.dtype} {tuple(images.shape)}", "AmbiguousMNIST")
    if labels.ndim != 2 or len(labels) != len(images) or labels.is_floating_point():
        raise wrong(paths[1], f"labels of shape ({len(images):,}, k)", f"{labels.dtype} {tuple(labels.shape)}", "AmbiguousMNIST")
    return images.float(), labels.long()


def _tensor(path: Path) -> Tensor:
    value: Any
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise wrong(path, "a tensor saved by PyTorch", str(error).splitlines()[0], "AmbiguousMNIST") from error
    if not isinstance(value, Tensor):
        raise wrong(path, "a tensor saved by PyTorch", type(value).__name__, "AmbiguousMNIST")
    return value
