"""Moves rows of batches between ranks."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rholoss.batches import Rows, as_type_of, cut, name_of, wraps_others
from rholoss.distributed import Ranks
from rholoss.isolation import derived_seed


@dataclass(frozen=True, eq=False)
class Share:
    """What one rank trains on, of what all ranks chose together."""

    mine: Tensor  # (n_b,) int64, ascending positions among the chosen
    own: Tensor  # (m,) int64, ascending positions of this rank's candidates that any rank trains on
    sent: list[Tensor]  # for each rank, positions of this rank's candidates that it trains on, int64
    received: list[int]  # how many rows come from each rank, this one included
    is_local: bool  # whether every rank trains only on its own candidates

    @classmethod
    def of(cls, rank: int, chosen: Tensor, sizes: list[int]) -> "Share":
        """As many rows as any other's, own candidates first; ``chosen``: ascending positions in the candidates of all ranks."""
        n_b, ends = len(chosen) // len(sizes), torch.tensor(sizes).cumsum(0)
        owner = torch.searchsorted(ends, chosen, right=True)
        counts = torch.bincount(owner, minlength=len(sizes))
        place = torch.arange(len(chosen)) - (counts.cumsum(0) - counts)[owner]  # among the chosen of its owner
        trainer = owner.clone()
        trainer[place >= n_b] = torch.arange(len(sizes)).repeat_interleave((n_b - counts).clamp(min=0))
        position = chosen - ends[rank] + sizes[rank]
        return cls(
            mine=torch.nonzero(trainer == rank).flatten(),
            own=position[owner == rank],
            sent=[position[(owner == rank) & (trainer == to)] for to in range(len(sizes))],
            received=torch.bincount(owner[trainer == rank], minlength=len(sizes)).tolist(),
            is_local=bool((trainer == owner).all()),
        )


class Exchange:
    """Moves rows of a batch to the ranks that train on them; they arrive in the order of the ranks that sent them.

    Rows of tensors travel as bytes, in one collective; lists and arrays are pickled. What belongs to a whole batch stays. Two
    ranks have the same ``digest`` if the rows of their candidate batches are interchangeable.
    """

    def __init__(self, ranks: Ranks, batch: Any, n: int) -> None:
        self._ranks, self._batch, self._n = ranks, batch, n
        self._columns: list[Any] = []
        cut(batch, _EachColumn(self._columns.append), n)
        for column in self._columns:
            if isinstance(column, Tensor) and not _is_of_bytes(column):
                _refuse(column)
        self._layouts = [_layout(column) for column in self._columns]
        self.digest = derived_seed(*self._layouts)

    def check(self, digests: Tensor) -> None:
        """Refuse columns that differ between ranks, for example in padding; ``digests`` are those of every rank, (W,), int64."""
        if bool((digests == digests[0]).all()):
            return
        everyones = self._ranks.all_gather_objects(list(zip(self._names(), self._layouts, strict=True)))
        here = everyones[0]
        rank, there = next((rank, other) for rank, other in enumerate(everyones) if other != here)
        if len(here) != len(there):
            fields = [name for name, _ in here], [name for name, _ in there]
            got = f"{fields[0]} on rank 0, {fields[1]} on rank {rank}"
            raise ValueError(f"batches must have the same fields on every rank, got {got}")
        (name, layout), (_, other) = next((a, b) for a, b in zip(here, there, strict=True) if a != b)
        what = f"rows of {name} must be alike on every rank, as they move between ranks"
        cure = "pad to a fixed length, or convert to one dtype, in the collate_fn"
        raise ValueError(f"{what}: got {layout} on rank 0, {other} on rank {rank}; {cure}")

    def __call__(self, share: Share) -> Any:
        """The rows of a share, as a batch of the same type."""
        if share.is_local:
            everything = torch.equal(share.own, torch.arange(self._n))
            return self._batch if everything else cut(self._batch, Rows(share.own), self._n)
        tensors = [column for column in self._columns if isinstance(column, Tensor)]
        others = [column for column in self._columns if not isinstance(column, Tensor)]
        arrived = {True: iter(self._tensors(tensors, share)), False: iter(self._others(others, share))}
        return self._with(next(arrived[isinstance(column, Tensor)]) for column in self._columns)

    def _with(self, columns: Iterator[Any]) -> Any:
        """The batch with other columns, in the order of its own."""
        return cut(self._batch, _EachColumn(lambda _: next(columns)), self._n)

    def _names(self) -> list[str | None]:
        marks = [object() for _ in self._columns]  # a batch may hold the same tensor twice
        marked = self._with(iter(marks))
        return [name_of(mark, marked) for mark in marks]

    def _tensors(self, columns: list[Tensor], share: Share) -> list[Tensor]:
        if not columns:
            return []
        rows, device = Rows(torch.cat(share.sent)), self._ranks.device
        sent = [_bytes(rows.tensor(column.detach()).to(device)) for column in columns]
        arrived = self._ranks.all_to_all(torch.cat(sent, 1), [len(to) for to in share.sent], share.received)
        parts = arrived.split([part.shape[1] for part in sent], 1)
        return [_like(column, part) for column, part in zip(columns, parts, strict=True)]

    def _others(self, columns: list[Any], share: Share) -> list[Any]:
        if not columns:
            return []
        sent = [
            [rows.array(column) if isinstance(column, np.ndarray) else rows.sequence(column) for column in columns]
            for rows in map(Rows, share.sent)
        ]
        arrived = zip(*self._ranks.all_to_all_objects(sent), strict=True)
        return [_joined(column, parts) for column, parts in zip(columns, arrived, strict=True)]


class _EachColumn:
    """Calls a function with each whole column of a batch, and puts the result in its place."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        self.tensor = self.array = self.sequence = change
        self.own = _refuse


def _is_of_bytes(column: Tensor) -> bool:
    """Whether a tensor's rows are its bytes; the tensors of a backend that is written in Python are subclasses, all of them."""
    is_own = wraps_others(type(column)) and column.device.type != torch._C._get_privateuse1_backend_name()
    return not (is_own or column.layout != torch.strided or column.is_nested)


def _refuse(column: Any) -> None:
    """Refuse what is not made of bytes or Python objects by row."""
    what = f"rows of a {type(column).__name__} cannot move between ranks"
    raise TypeError(f"{what}: expected dense tensors, arrays and lists; let the collate_fn return a dict of them")


def _layout(column: Any) -> str:
    """What rows need in common to be parts of one column."""
    if isinstance(column, Tensor):
        return f"{column.dtype} of shape {tuple(column.shape[1:])}"
    if isinstance(column, np.ndarray):
        return f"an array of {column.dtype.type.__name__} of shape {column.shape[1:]}"  # strings may have any length
    return f"a {type(column).__name__}"


def _bytes(rows: Tensor) -> Tensor:
    """Rows of any shape and dtype as bytes, shape (n, bytes in a row)."""
    return rows.reshape(len(rows), math.prod(rows.shape[1:])).contiguous().view(torch.uint8)


def _like(column: Tensor, rows: Tensor) -> Tensor:
    """Bytes as rows of a column, on its device."""
    like = column.new_empty(len(rows), *column.shape[1:])
    _bytes(like).copy_(rows)  # a view, since the tensor is new and contiguous
    return as_type_of(column, like)


def _joined(column: Any, parts: tuple[Any, ...]) -> Any:
    return np.concatenate(parts) if isinstance(column, np.ndarray) else type(column)(chain.from_iterable(parts))
