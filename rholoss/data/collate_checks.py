"""Do the rows of a batch belong to the examples, in their order?  What a collate function can do to them, and how it shows."""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from rholoss.batches import parts_of
from rholoss.data.index import CARRY_THE_INDEX, some

_OR_CARRY = f"or let each example hold its index: {CARRY_THE_INDEX}"


def check_examples(index: Any, examples: Any, collate: Any) -> None:
    """Refuse examples that are None, which a collate function drops or replaces."""
    if not isinstance(examples, list):
        return
    broken = [i for i, example in zip(index, examples, strict=False) if _is_nothing(example)]
    if broken:
        what = f"expected an example for each index, got None for {some(broken)}"
        why = f"if {_name(collate)} drops or replaces it, rows move to other indices"
        cure = "return a valid example from __getitem__, leave it out with rholoss.IndexedSubset"
        raise ValueError(f"{what}: {why}; {cure}, {_OR_CARRY}")


def check_rows(n: int, batch: Any, collate: Any = None) -> None:
    """Refuse a batch in which nothing has ``n`` rows, of a collate function, or of ``IndexedBatches`` if None."""
    sizes: list[int] = []
    if _may_have(batch, n, sizes) is not False:
        return
    if collate is None:
        what = f"expected one row per index, {n}, got {sizes[0]} rows in a batch"
        raise ValueError(f"{what}; let index= of IndexedBatches return the indices of exactly the examples in the batch")
    what = f"expected one row per example, {n}, got {sizes[0]} from {_name(collate)}, so that their indices are lost"
    cure = "let __getitem__ return a valid example for each index, leave broken ones out with rholoss.IndexedSubset"
    if sizes[0] > n and sizes[0] % n == 0:
        shape = f"({n}, {sizes[0] // n}, ...)"
        cure = f"stack the rows of one example in a dimension of its own, shape {shape}, and reduce it in forward="
    raise ValueError(f"{what}; {cure}, {_OR_CARRY}")


def check_order(examples: list[Any], batch: Any, collate: Any) -> None:
    """Refuse a batch of which some rows equal examples at other places, and not those at their own.

    If examples are too similar to distinguish, or another column kept its place, rows are equal by coincidence.
    """
    with suppress(LookupError, TypeError):  # examples that are not alike
        pairs = list(_pairs(examples, batch))
        columns = [_contents(leaves, column) for leaves, column in pairs]
        for (own, rows), (_, column) in zip(columns, pairs, strict=True):
            places = {content: i for i, content in enumerate(own)}
            moved = {i: places.get(row, -1) for i, row in enumerate(rows) if row != own[i]}
            found = set(moved.values()) - {-1}
            if not 1 < len(found) == len(moved) or len(places) < len(own) or not _is_telling(own, column):
                continue
            if not any(its_rows[i] == its[i] != its[j] for its, its_rows in columns if its for i, j in moved.items()):
                what = f"{_name(collate)} sorted, dropped or replaced examples: rows {some(list(moved))} are not those read there"
                raise ValueError(f"{what}, so that their indices are lost; keep examples in their order, {_OR_CARRY}")


def _name(collate: Any) -> str:
    return f"the collate_fn {getattr(collate, '__name__', type(collate).__name__)}"


def _is_nothing(example: Any) -> bool:
    if isinstance(example, (tuple, dict)) and not hasattr(example, "_fields"):
        return all(part is None for part in (example.values() if isinstance(example, dict) else example))
    return example is None


def _may_have(batch: Any, n: int, sizes: list[int]) -> bool | None:
    """Whether a batch has a column of n rows; None if unknown. ``sizes`` collects the rows of other columns."""
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim == 0:
            return None
        sizes.append(batch.size(0) if isinstance(batch, Tensor) else len(batch))
        is_second = not getattr(batch, "is_nested", False) and tuple(batch.shape)[1:2] == (n,)  # (time, example)
        return True if sizes[-1] == n else None if is_second else False
    if isinstance(batch, PackedSequence):
        return None
    if isinstance(batch, (list, tuple)) and len(batch) == n:
        return True
    verdicts = [_may_have(part, n, sizes) for _, part in parts_of(batch) or ()]
    if True in verdicts:
        return True
    return False if False in verdicts else None


def _pairs(examples: list[Any], batch: Any) -> Iterator[tuple[list[Any], Tensor]]:
    """Each column of a batch that is made like its examples, with what they hold there."""
    first = examples[0]
    if isinstance(batch, Tensor):
        if batch.ndim > 0 and len(batch) == len(examples) and batch.device.type == "cpu" and batch.layout == torch.strided:
            yield examples, batch
    elif isinstance(batch, Mapping) and isinstance(first, Mapping):
        for key in batch.keys() & first.keys():
            yield from _pairs([example[key] for example in examples], batch[key])
    elif isinstance(batch, (list, tuple)) and isinstance(first, (list, tuple)) and len(batch) == len(first):
        for i, part in enumerate(batch):
            yield from _pairs([example[i] for example in examples], part)


def _contents(leaves: list[Any], column: Tensor) -> tuple[list[bytes], list[bytes]]:
    """What examples and rows begin with, as bytes: as much as the shortest has, since rows may be padded; nothing if unlike."""
    try:
        own = [torch.as_tensor(leaf).to(column.dtype) for leaf in leaves]
    except (TypeError, ValueError, RuntimeError):
        return [], []
    if any(leaf.ndim != column.ndim - 1 or leaf.shape[1:] != column.shape[2:] for leaf in own):
        return [], []
    if column.ndim == 1:
        own, column = [leaf[None] for leaf in own], column[:, None]
    shortest = min(column.shape[1], *(len(leaf) for leaf in own))
    return [_bytes(leaf[:shortest]) for leaf in own], [_bytes(row[:shortest]) for row in column]


def _is_telling(own: list[bytes], column: Tensor) -> bool:
    """Whether contents are hardly equal by coincidence: of many numbers, or of some that have many values."""
    size = column.element_size()
    numbers = len(own[0]) // size
    values = {content[i : i + size] for content in own for i in range(0, len(content), size)} if numbers < 32 else {b"", b"1"}
    return column.ndim > 1 and len(values) ** numbers > 10_000 * len(own)


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()
