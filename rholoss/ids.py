"""Names of examples as 64-bit ids."""

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor


def hash_ids(names: Iterable[str | bytes]) -> Tensor:
    """A 64-bit id for each name, shape (n,), int64: wherever ids or indices are taken, names are hashed like this.

    The id is the BLAKE2b digest of 8 bytes of the name in UTF-8, read as a little-endian signed integer, so that other programs
    can make it too. Among a hundred million names two share an id with a chance of 3 in 10,000; a store refuses them.

    Args:
        names: strings, or bytes taken as they are.

    Examples:
        >>> hash_ids(["img/0001.jpg"]).tolist()
        [6363927864770536222]
    """
    digest, ids = hashlib.blake2b, bytearray()
    for name in names:
        ids += digest(name.encode() if isinstance(name, str) else name, digest_size=8).digest()
    return torch.from_numpy(np.frombuffer(ids, "<i8"))


def are_names(values: Any) -> bool:
    """Whether values are a column of strings, rather than of numbers."""
    if isinstance(values, Tensor):
        return False
    if hasattr(values, "dtype"):
        kind = getattr(values.dtype, "kind", "O")
        return kind in "US" or (kind == "O" and len(values) > 0 and isinstance(np.asarray(values)[0], (str, bytes)))
    return isinstance(values, (list, tuple)) and len(values) > 0 and isinstance(values[0], (str, bytes))


def tensor_of(values: Any) -> Tensor:
    """Values as a tensor that shares their memory; of an array that must not be written to, such as a mapped one, a copy."""
    if isinstance(values, Tensor):
        return values
    array = np.asarray(values)
    return torch.as_tensor(array if array.flags.writeable else array.copy())


def some(values: list[Any], most: int = 5) -> str:
    """The first of some indices, and how many more there are, for a message."""
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most:,} more" if len(values) > most else "")
