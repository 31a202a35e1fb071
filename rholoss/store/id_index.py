"""Rows of sorted ids without a search through all of them: a table of where each interval of ids begins."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from rholoss.store.blocks import ROWS, Blocks

LEAST = 1 << 20  # ids from which the table is faster than a binary search
MOST = 1 << 32  # rows that a table of uint32 can name
_PIECE = 1 << 20  # rows to read at a time
_GAPS = 255  # most gaps between ranges of ids that have intervals of their own
_STEPS = 8  # from the first row of an interval on, before a binary search


@dataclass(frozen=True)
class Intervals:
    """Equal intervals within each range of ids, with 1 or 2 ids in each where the ids of the range are spread evenly.

    Attributes:
        starts: the lowest id of each range, shape (r,), int64, ascending.
        shifts: an interval of the range holds 2^shift numbers, shape (r,), uint64.
        bases: the number of the first interval of each range, and of all intervals, shape (r + 1,), int64.
    """

    starts: np.ndarray
    shifts: np.ndarray
    bases: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray) -> Intervals:
        """Intervals for ids, shape (n,), int64, ascending, n at least 1; ranges are divided by the widest gaps."""
        rows = np.array([0, *_after_gaps(ids), len(ids)])
        starts, lasts = ids[rows[:-1]], ids[rows[1:] - 1]
        spans = [int(last) - int(start) for start, last in zip(starts, lasts, strict=True)]
        shifts = [max(0, (2 * span // n).bit_length() - 1) for span, n in zip(spans, np.diff(rows).tolist(), strict=True)]
        sizes = [(span >> shift) + 1 for span, shift in zip(spans, shifts, strict=True)]
        return cls(starts, np.array(shifts, np.uint64), np.cumsum([0, *sizes]))

    @classmethod
    def from_json(cls, values: Any) -> Intervals:
        """The intervals that ``to_json`` described."""
        return cls(*(np.array(values[name], kind) for name, kind in (("starts", "i8"), ("shifts", "u8"), ("bases", "i8"))))

    def to_json(self) -> dict[str, list[int]]:
        """JSON values."""
        return {name: getattr(self, name).tolist() for name in ("starts", "shifts", "bases")}

    def number(self, ids: np.ndarray) -> np.ndarray:
        """The number of the interval of each id, int64; for an id beyond a range, that of the last interval of a range."""
        if len(self.starts) == 1:
            offset = (ids - self.starts).view(np.uint64) >> self.shifts
            return np.minimum(offset, np.uint64(self.bases[1] - 1)).view(np.int64)
        which = np.maximum(self.starts.searchsorted(ids, "right") - 1, 0)
        offset = (ids - self.starts[which]).view(np.uint64) >> self.shifts[which]
        base = self.bases[which]
        return base + np.minimum(offset, (self.bases[which + 1] - 1 - base).view(np.uint64)).view(np.int64)

    def rows(self, ids: np.ndarray) -> Iterator[np.ndarray]:
        """The first row of each interval, or of the next id if it is empty, in pieces, uint32; ids as in ``of``."""
        done = 0
        for start in range(0, len(ids), _PIECE):
            numbers = self.number(ids[start : start + _PIECE])
            firsts = np.flatnonzero(np.diff(numbers, prepend=done - 1))
            yield np.repeat((start + firsts).astype(np.uint32), np.diff(numbers[firsts], prepend=done - 1))
            done = int(numbers[-1]) + 1


def _after_gaps(ids: np.ndarray) -> list[int]:
    """The rows after the widest gaps between ids, ascending: those much wider than is usual among these ids."""
    firsts = ids[::ROWS]
    widths = np.diff(firsts).view(np.uint64)
    wide = np.flatnonzero(widths > 64 * np.median(widths)) if len(widths) else np.empty(0, np.int64)
    wide = np.sort(wide[np.argsort(widths[wide])[-_GAPS:]])
    blocks = [(block * ROWS, ids[block * ROWS : (block + 1) * ROWS + 1]) for block in wide.tolist()]
    return [start + 1 + int(np.argmax(np.diff(rows).view(np.uint64))) for start, rows in blocks]


class IdIndex:
    """Finds the rows of ids; what it reads of blocks is checked.

    Args:
        ids: shape (n,), int64, ascending: an array, or mapped blocks.
        intervals: of these ids; None: they are made.
        table: the first row of each interval: an array, or mapped blocks; None: it is made.
    """

    def __init__(self, ids: np.ndarray | Blocks, intervals: Intervals | None = None, table: Any = None) -> None:
        self._ids, self._check_ids = _array_of(ids)
        self._intervals = intervals or Intervals.of(self._ids)
        made = np.concatenate(list(self._intervals.rows(self._ids))) if table is None else table
        self._table, self._check_table = _array_of(made)

    def rows(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The row of each id, shape (m,), int64, and whether it is there, bool; if not, the row is another one."""
        numbers = self._intervals.number(ids)
        rows = first = self._table.take(numbers, mode="clip").astype(np.int64)
        there = self._ids.take(rows, mode="clip")
        for _ in range(_STEPS):
            is_before = there < ids
            if not np.count_nonzero(is_before):
                break
            rows = rows + is_before
            there = self._ids.take(rows, mode="clip")
        else:
            is_before = there < ids
            rows[is_before] = self._searched(ids[is_before])
            there = self._ids.take(rows, mode="clip")
        self._check_table(numbers)
        self._check_ids(first)
        self._check_ids(rows)
        return rows, there == ids

    def _searched(self, ids: np.ndarray) -> np.ndarray:
        """The rows of ids that are crowded into their intervals."""
        rows = self._ids.searchsorted(ids)
        before, at = np.maximum(rows - 1, 0), np.minimum(rows, len(self._ids) - 1)
        self._check_ids(before)
        self._check_ids(at)
        if not (((self._ids[before] < ids) | (rows == 0)) & ((self._ids[at] >= ids) | (rows > at))).all():
            self._check_ids(None)  # a damaged row has misled the search
        return rows


def _array_of(array: np.ndarray | Blocks) -> tuple[np.ndarray, Callable[[np.ndarray | None], None]]:
    """An array, and what checks some of its rows, or all."""
    if isinstance(array, Blocks):
        return array.array.view(np.ndarray), array.check
    return array.view(np.ndarray), lambda rows: None
