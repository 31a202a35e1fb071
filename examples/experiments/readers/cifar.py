"""CIFAR-10 and CIFAR-100, as pickled batches or binary files, and the labels that people gave to CIFAR-10.

A pickle can run code when it is opened. These are opened without: nothing but numbers, strings, containers and NumPy arrays
comes out of them, and anything else in them is an error.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments.readers.files import find, wrong

HUMAN_LABELS = {name: f"{name}_label" for name in ("aggre", "worse")} | {f"random{i}": f"random_label{i}" for i in (1, 2, 3)}
BATCHES = [f"data_batch_{i}" for i in range(1, 6)]
PIXELS = 3 * 32 * 32


def _dtype(name: str | bytes, align: int = 0, copy: int = 0) -> np.dtype[Any]:
    """As Python 2 pickled it: the name in bytes, the flags as numbers."""
    return np.dtype(name.decode("ascii") if isinstance(name, bytes) else name, align=bool(align), copy=bool(copy))


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


def _empty() -> bytes:
    """As Python 3 pickles ``b""`` for Python 2."""
    return b""


_reconstruct = np.zeros(1).__reduce__()[0]
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): _dtype,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "bytes"): _empty,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name}, which a batch of images has no use for")
        return ALLOWED[module, name]


def unpickled(path: Path, data: str) -> Any:
    """What was pickled by Python 2 or 3, if that is no more than containers, numbers, strings and arrays."""
    try:
        return _Unpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
    except Exception as error:  # a damaged pickle raises anything
        raise wrong(path, "a pickled batch of images", f"{type(error).__name__}: {error}", data) from error


def cifar10(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images (n, 3, 32, 32), uint8, and labels (n,), int64, of the training data, then of the test data.

    Args:
        folder: that which holds ``cifar-10-batches-py`` or ``cifar-10-batches-bin``.
    """
    where = find(folder, "cifar-10-batches-py", "cifar-10-batches-bin", data="CIFAR-10")
    if where.name.endswith("py"):
        parts = [_pickled(find(where, name, data="CIFAR-10"), b"labels", 10, "CIFAR-10") for name in (*BATCHES, "test_batch")]
    else:
        names = [f"{name}.bin" for name in (*BATCHES, "test_batch")]
        parts = [_binary(find(where, name, data="CIFAR-10"), 1, 10, "CIFAR-10") for name in names]
    images, labels = (torch.cat(columns[:-1]) for columns in zip(*parts, strict=True))
    return images, labels, *parts[-1]


def cifar100(folder: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same of CIFAR-100, with its fine labels.

    Args:
        folder: that which holds ``cifar-100-python`` or ``cifar-100-binary``.
    """
    parts = [_cifar100(folder, name, b"fine_labels", 100) for name in ("train", "test")]
    return *parts[0], *parts[1]


def superclasses(folder: Path) -> dict[int, int]:
    """The superclass, from 0 to 19, of each class of CIFAR-100 that is in its test data."""
    _, fine = _cifar100(folder, "test", b"fine_labels", 100)
    _, coarse = _cifar100(folder, "test", b"coarse_labels", 20)
    return dict(sorted(set(zip(fine.tolist(), coarse.tolist(), strict=True))))


def _cifar100(folder: Path, name: str, key: bytes, classes: int) -> tuple[Tensor, Tensor]:
    where = find(folder, "cifar-100-python", "cifar-100-binary", data="CIFAR-100")
    if where.name.endswith("python"):
        return _pickled(find(where, name, data="CIFAR-100"), key, classes, "CIFAR-100")
    column = 0 if key == b"coarse_labels" else 1
    return _binary(find(where, f"{name}.bin", data="CIFAR-100"), 2, classes, "CIFAR-100", column)


def cifar10n(folder: Path) -> dict[str, Tensor]:
    """Labels that people gave to CIFAR-10's training images: ``aggre``, ``worse``, ``random1`` to ``random3``, and ``clean``.

    Each has shape (n,), int64, in the order of the images.
    """
    path = find(folder, "CIFAR-10_human.pt", data="CIFAR-10N")
    allowed = [(value, ".".join(name)) for name, value in ALLOWED.items()]
    kinds = {type(np.dtype(kind)) for kind in ("int64", "int32", "uint8")}
    try:
        with torch.serialization.safe_globals([*allowed, *kinds]):
            content = torch.load(path, weights_only=True)
        labels = {name: torch.as_tensor(content[key]).long() for name, key in (HUMAN_LABELS | {"clean": "clean_label"}).items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, TypeError) as error:
        raise wrong(path, "six sets of labels", f"{type(error).__name__}: {str(error).splitlines()[0]}", "CIFAR-10N") from error
    for name, values in labels.items():
        _check(values, 10, path, "CIFAR-10N", f" of {name}")
    if len({values.shape for values in labels.values()}) > 1:
        raise wrong(path, "as many labels in each set", str({k: tuple(v.shape) for k, v in labels.items()}), "CIFAR-10N")
    return labels


def _pickled(path: Path, key: bytes, classes: int, data: str) -> tuple[Tensor, Tensor]:
    batch = unpickled(path, data)
    if not isinstance(batch, dict) or b"data" not in batch or key not in batch:
        got = sorted(map(str, batch)) if isinstance(batch, dict) else type(batch).__name__
        raise wrong(path, f"a batch with b'data' and {key!r}", str(got), data)
    pixels, labels = np.asarray(batch[b"data"]), torch.as_tensor(np.asarray(batch[key]))
    if pixels.dtype != np.uint8 or pixels.shape != (len(labels), PIXELS):
        raise wrong(path, f"bytes of shape ({len(labels):,}, {PIXELS:,})", f"{pixels.dtype} of shape {pixels.shape}", data)
    _check(labels, classes, path, data)
    return torch.from_numpy(pixels.reshape(-1, 3, 32, 32).copy()), labels.long()


def _binary(path: Path, labels: int, classes: int, data: str, column: int = 0) -> tuple[Tensor, Tensor]:
    """Records of some labels, one byte each, of which one counts, and an image."""
    content = np.frombuffer(path.read_bytes(), np.uint8)
    size = labels + PIXELS
    if not len(content) or len(content) % size:
        raise wrong(path, f"records of {size:,} bytes", f"{len(content):,} bytes", data)
    table = torch.from_numpy(content.reshape(-1, size).copy())
    values = table[:, column].long()
    _check(values, classes, path, data)
    return table[:, labels:].reshape(-1, 3, 32, 32), values


def _check(labels: Tensor, classes: int, path: Path, data: str, of: str = "") -> None:
    if labels.ndim != 1 or labels.is_floating_point() or not len(labels):
        raise wrong(path, f"a list of whole numbers as labels{of}", f"{labels.dtype} of shape {tuple(labels.shape)}", data)
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise wrong(path, f"labels{of} from 0 to {classes - 1}", f"{int(labels.min())} to {int(labels.max())}", data)
