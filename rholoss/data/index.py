"""Which examples a loader yields: indices, ids, and ``IndexedBatches`` for loaders that know them."""

import copy
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from rholoss.arguments import function, iterable, shown


def hash_ids(names: Iterable[str | bytes]) -> Tensor:
    """A 64-bit id for each name, shape (n,), int64; wherever ids or indices are accepted, names are hashed like this.

    The id is the 8-byte BLAKE2b digest of the name in UTF-8, read as a little-endian signed integer. Among a hundred million
    names, the probability that two share an id is 3 in 10,000; a store refuses them.

    Args:
        names: strings, or bytes, which are hashed as they are.

    Examples:
        >>> hash_ids(["img/0001.jpg"]).tolist()
        [6363927864770536222]
    """
    digest, ids = hashlib.blake2b, bytearray()
    for name in iterable(names, "names", "several strings, such as ['img/0001.jpg']"):
        if not isinstance(name, (str, bytes)):
            raise TypeError(f"names must be strings or bytes, got {shown(name)} among them; convert it with str()")
        ids += digest(name.encode() if isinstance(name, str) else name, digest_size=8).digest()
    return torch.from_numpy(np.frombuffer(ids, "<i8"))


def are_names(values: Any) -> bool:
    """Whether values are a column of strings rather than numbers."""
    if isinstance(values, Tensor):
        return False
    if hasattr(values, "dtype"):
        kind = getattr(values.dtype, "kind", "O")
        return kind in "US" or (kind == "O" and len(values) > 0 and isinstance(np.asarray(values)[0], (str, bytes)))
    return isinstance(values, (list, tuple)) and len(values) > 0 and isinstance(values[0], (str, bytes))


def tensor_of(values: Any, name: str = "values") -> Tensor:
    """Values as a tensor that shares their memory; read-only arrays, such as mapped ones, are copied."""
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
        return torch.as_tensor(array if array.flags.writeable else array.copy())
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be numbers, a tensor, an array or a list, got {shown(values)}") from None


def some(values: list[Any], most: int = 5) -> str:
    """The first few indices, and how many more there are, for a message."""
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most:,} more" if len(values) > most else "")


CARRY_THE_INDEX = (
    "wrap it in rholoss.IndexedBatches(loader, index=...) with the place of the indices in a batch, "
    "or in rholoss.IndexedBatches(pairs) if it yields (index, batch)"
)


class IndexedBatch(NamedTuple):
    """A batch, and the indices of its examples.

    Attributes:
        index: indices of the examples in the dataset, shape (n,), int64.
        batch: the batch as the user's loader yields it.
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, on purpose
    batch: Any


class IndexedBatches:
    """Adapter for loaders whose batches report the indices of their examples.

    A map-style ``DataLoader`` does not need it.

    Args:
        batches: a loader or any other iterable of batches.
        index: where a batch holds its indices: a key, a position, or a function of the batch. The indices stay in the batch.
            None: every item is a pair (index, batch).

    Examples:
        >>> import torch
        >>> pairs = [(torch.tensor([4, 2]), {"x": torch.zeros(2, 3)})]
        >>> [indexed.index.tolist() for indexed in IndexedBatches(pairs)]
        [[4, 2]]
        >>> batches = [{"id": torch.tensor([4, 2]), "x": torch.zeros(2, 3)}]
        >>> [indexed.index.tolist() for indexed in IndexedBatches(batches, index="id")]
        [[4, 2]]
    """

    def __init__(self, batches: Iterable[Any], index: str | int | Callable[[Any], Any] | None = None) -> None:
        if not hasattr(batches, "__getitem__") or isinstance(batches, (str, bytes, Mapping)) or getattr(batches, "ndim", 1) == 0:
            iterable(batches, "batches", "a loader or another iterable of batches")
        if isinstance(index, bool) or not (index is None or isinstance(index, (str, int)) or callable(index)):
            what = "the key or position of the indices in a batch, a function of the batch, or None"
            raise TypeError(f"index must be {what}, got {shown(index)}")
        self.batches = batches
        self.index = function(index, "index", "(batch) -> indices") if callable(index) else index

    def __iter__(self) -> Iterator[IndexedBatch]:
        return (self._indexed(item) for item in self.batches)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "batches": idle(self.batches)}

    def over(self, batches: Iterable[Any]) -> "IndexedBatches":
        """The same adapter around other batches."""
        return IndexedBatches(batches, self.index)

    def names(self, batch: Any) -> list[Any] | None:
        """The names of a batch's examples, where it holds names at ``index``; else None."""
        found = batch[self.index] if isinstance(self.index, (str, int)) else None
        return list(found) if found is not None and are_names(found) else None

    def _indexed(self, item: Any) -> IndexedBatch:
        if self.index is None:
            if not (isinstance(item, (tuple, list)) and len(item) == 2):
                cure = "pass index= for batches that hold their indices"
                raise TypeError(f"expected pairs (index, batch), got {type(item).__name__}; {cure}")
            return IndexedBatch(as_index(item[0]), item[1])
        if callable(self.index):
            return IndexedBatch(as_index(self.index(item)), item)
        try:
            found = item[self.index]
        except (KeyError, IndexError, TypeError) as error:
            fields = f"the keys {list(item)}" if isinstance(item, Mapping) else type(item).__name__
            what = f"expected the indices of a batch at {self.index!r}, got {fields}"
            raise type(error)(f"{what}; pass its key, position or a function as index=") from error
        return IndexedBatch(as_index(found), item)


def as_index(values: Any, name: str = "indices") -> Tensor:
    """Indices as an int64 tensor of shape (n,); names are hashed, see ``rholoss.hash_ids``."""
    try:
        if type(values) is list and values and type(values[0]) is int:
            array = np.array(values)
            if array.dtype == np.int64 and array.ndim == 1:
                return torch.from_numpy(array)
        if are_names(values):
            return hash_ids(values)
        index = torch.as_tensor(values) if isinstance(values, (list, tuple, range)) else tensor_of(values)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(values).__name__}: {str(values)[:80]}"
        raise TypeError(f"{name} must be integers, one per example, got {got}; {CARRY_THE_INDEX}") from error
    if index.numel() == 0:  # an empty list has a floating dtype
        return index.long()
    if index.dtype.is_floating_point or index.dtype.is_complex or index.dtype == torch.bool:
        raise TypeError(f"{name} must be integers, got dtype {index.dtype}; {CARRY_THE_INDEX}")
    if index.ndim != 1:
        raise ValueError(f"{name} must be one per example, shape (n,), got shape {tuple(index.shape)}; {CARRY_THE_INDEX}")
    return index.long()


def copy_loader(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A copy of a loader, of the same class, with some attributes changed."""
    inner = vars(loader).get("base_dataloader")
    if inner is not None:  # accelerate's loader passes on the batches of another
        shell: DataLoader[Any] = object.__new__(type(loader))
        vars(shell).update(vars(loader), base_dataloader=copy_loader(inner, **changes))
        return shell
    twin = copy.copy(loader)
    vars(twin).update(changes, _iterator=None)  # DataLoader refuses setattr after __init__; workers are the copy's own
    if hasattr(twin, "_initial_iter_for_state_dict"):  # a StatefulDataLoader whose state was requested
        vars(twin).update(_initial_iter_for_state_dict=False)
    return twin


def idle(batches: Any) -> Any:
    """A copy of a loader without its running workers, which cannot be pickled; anything else unchanged."""
    return copy_loader(batches) if isinstance(batches, DataLoader) else batches


def is_map_style(loader: object) -> bool:
    """Whether a loader reads a dataset by index."""
    return isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset)


def is_readable(data: Any) -> bool:
    """Whether a dataset can be read by index."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset)


def check_indexed(item: Any, loader: object) -> IndexedBatch:
    """The item if it is an ``IndexedBatch``; else a TypeError, as a loader subclass may override ``__iter__``."""
    if not isinstance(item, IndexedBatch):
        raise TypeError(
            f"{type(loader).__name__} overrides how batches are yielded and lost the index: expected an IndexedBatch, got "
            f"{type(item).__name__}; yield the items of super().__iter__() unchanged, or {CARRY_THE_INDEX}"
        )
    return item
