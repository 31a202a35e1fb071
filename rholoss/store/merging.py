"""One store out of several, in memory or in bounded memory on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch

from rholoss.arguments import shown
from rholoss.store.arrays import StoreArrays
from rholoss.store.metadata import StoreMetadata
from rholoss.store.predictions import Predictions
from rholoss.store.serialization import write_mapped
from rholoss.store.sorting import Named, Rows, in_order
from rholoss.store.store import IrreducibleLossStore

_PIECE = 1 << 20  # rows to read at a time
TWICE = "{n} examples have an irreducible loss in both stores: indices {which}"


def merged(stores: Sequence[Any], path: str | None) -> IrreducibleLossStore:
    """See ``IrreducibleLossStore.merge``."""
    first = stores[0]
    for other in stores[1:]:
        if not isinstance(other, IrreducibleLossStore):
            raise TypeError(f"others must be stores, as IrreducibleLossStore.load returns them, got {shown(other)}")
        if (first.ids is None) != (other.ids is None) or (first.ids is None and len(first) != len(other)):
            raise ValueError(
                f"stores without ids must hold the same examples to be merged, got {first.size} and {other.size}; give both "
                "of them ids, or neither"
            )
    if len(stores) == 1 and path is None:
        return first
    meta = reduce(_merged_metadata, (store.meta for store in stores))
    arrays = [store.to("cpu") for store in stores]
    sides = [Rows(np.empty(0, np.int64) if store.ids is None else store.ids.numpy(), store.losses.numpy()) for store in arrays]
    pieces = _by_position(sides) if first.ids is None else _by_id(sides, is_whole=_are_whole(sides, meta))
    pieces = _with_predictions(pieces, arrays)
    if path is not None:
        write_mapped(path, None, pieces, meta.to_json())
        return IrreducibleLossStore.load(path)
    joined = list(pieces)
    together = {name: np.concatenate([piece[name] for piece in joined]) for name in joined[0]}
    return IrreducibleLossStore.of_arrays(together, meta.to_json()).to(first.device)


def _with_predictions(pieces: Iterator[dict[str, np.ndarray]], stores: list[Any]) -> Iterator[dict[str, np.ndarray]]:
    """Pieces with the predictions that the stores have for their examples, if any does."""
    sides = [StoreArrays(each.losses, each.ids, predictions=each.predictions) for each in stores if each.predictions is not None]
    start = 0
    for piece in pieces:
        index = torch.from_numpy(piece["ids"]) if "ids" in piece else torch.arange(start, start + len(piece["losses"]))
        start += len(index)
        found = [predictions for side in sides if (predictions := side.predictions_of(index)) is not None]
        yield piece | (reduce(Predictions.filled, found).arrays() if found else {})


def _merged_metadata(one: StoreMetadata, other: StoreMetadata) -> StoreMetadata:
    one.check_mergeable(other)
    return one.merged(other)


def _are_whole(sides: list[Rows], meta: StoreMetadata) -> bool:
    """Whether the ids of all sides are the indices of a whole dataset, 0 to N-1."""
    n, known = (meta.data or {}).get("length"), [side.ids for side in sides if len(side.ids)]
    if (
        not known
        or n is None
        or sum(map(len, known)) < n
        or min(ids[0] for ids in known)
        or max(ids[-1] for ids in known) != n - 1
    ):
        return False
    return n == sum(int(np.count_nonzero(np.diff(rows.ids, prepend=rows.ids[0] - 1))) for rows in in_order(sides))


def _by_position(sides: list[Rows]) -> Iterator[dict[str, np.ndarray]]:
    """The losses of all sides, each by position, in pieces; a ValueError at the end names those that two of them have."""
    twice = Named()
    for start in range(0, max(len(sides[0].losses), 1), _PIECE):
        table = np.stack([side.losses[start : start + _PIECE] for side in sides])
        twice.add(start + np.flatnonzero((~np.isnan(table)).sum(0) > 1))
        yield {"losses": np.fmax.reduce(table)}
    twice.refuse(TWICE)


def _by_id(sides: list[Rows], is_whole: bool) -> Iterator[dict[str, np.ndarray]]:
    """The losses of all sides by id, in pieces, without ids if they are those of a whole dataset; else as ``_by_position``."""
    twice = Named()
    for rows in in_order(sides) if any(len(side.ids) for side in sides) else sides[:1]:
        first = np.flatnonzero(np.diff(rows.ids, prepend=rows.ids[:1] - 1))
        if len(first) < len(rows.ids):
            counts = np.add.reduceat((~np.isnan(rows.losses)).astype(np.int64), first)
            twice.add(rows.ids[first[counts > 1]])
            rows = Rows(rows.ids[first], np.fmax.reduceat(rows.losses, first))
        yield {"losses": rows.losses} if is_whole else {"losses": rows.losses, "ids": rows.ids}
    twice.refuse(TWICE)
