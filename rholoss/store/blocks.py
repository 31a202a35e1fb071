"""Mapped arrays that are checked block by block, when their rows are first read."""

import mmap
import os
import zlib
from collections.abc import Callable

import numpy as np

ROWS = 1 << 14  # of a block, which share a checksum


class Checksums:
    """The checksum of each block of an array, and of the whole, as the array is written piece by piece."""

    def __init__(self) -> None:
        self.whole = self.rows = 0
        self.blocks: list[int] = []

    def update(self, rows: np.ndarray) -> None:
        """Add contiguous rows, shape (m,)."""
        self.whole = zlib.crc32(rows.data, self.whole)
        start = 0
        while start < len(rows):
            left = -self.rows % ROWS
            part = rows[start : start + (left or ROWS)]
            if left:
                self.blocks[-1] = zlib.crc32(part.data, self.blocks[-1])
            else:
                self.blocks.append(zlib.crc32(part.data))
            self.rows, start = self.rows + len(part), start + len(part)


def sound(rows: np.ndarray) -> str:
    """What is wrong with the rows of any array: nothing."""
    return ""


def losses_fault(rows: np.ndarray) -> str:
    """What is wrong with irreducible losses; an empty string if nothing."""
    return "irreducible losses must be at least 0, got negative ones" if ((rows < 0) & (rows > -np.inf)).any() else ""


def ids_fault(rows: np.ndarray) -> str:
    """What is wrong with ids; an empty string if nothing."""
    return "its ids do not ascend, or appear more than once" if (rows[1:] <= rows[:-1]).any() else ""


FAULTS = {"losses": losses_fault, "ids": ids_fault}


class Blocks:
    """A mapped array whose blocks are checked once, before the first number of each is returned.

    Until all of it is asked for, the system reads no more than the pages and blocks that are: with less memory than the file
    is large, what a disk reads ahead would only drive out what is needed.

    Args:
        array: mapped, shape (n,).
        checksums: of each block.
        fault: what is wrong with the rows of a block whose checksum fits, and the row after them; empty if nothing.
    """

    def __init__(self, array: np.memmap, checksums: list[int], fault: Callable[[np.ndarray], str]) -> None:
        if len(checksums) != -(-len(array) // ROWS):
            raise ValueError(f"expected a checksum for every {ROWS:,} of {len(array):,} rows, got {len(checksums):,}")
        self.array = array
        self._checksums = checksums
        self._fault = fault
        self._left = len(checksums)
        self._is_checked = np.zeros(len(checksums), bool)
        self._advise("MADV_RANDOM")

    def check(self, rows: np.ndarray | None = None) -> None:
        """Check the blocks of these rows, integer, or of all; a ValueError names the file if one is damaged."""
        if rows is None:
            self._advise("MADV_NORMAL")
        if self._left:
            blocks = np.arange(len(self._is_checked)) if rows is None else np.minimum(rows // ROWS, len(self._is_checked) - 1)
            for block in np.unique(blocks[~self._is_checked[blocks]]).tolist():
                self._check(block)
                self._is_checked[block] = True
            self._left = len(self._is_checked) - int(np.count_nonzero(self._is_checked))

    def _advise(self, advice: str, start: int = 0, stop: int | None = None) -> None:
        """Tell the system how rows will be read, where it listens."""
        if hasattr(mmap, advice) and len(self.array):
            head, size = self.array.offset % mmap.ALLOCATIONGRANULARITY, self.array.itemsize
            first = (head + start * size) // mmap.PAGESIZE * mmap.PAGESIZE
            last = head + min(len(self.array) if stop is None else stop, len(self.array)) * size
            self.array._mmap.madvise(getattr(mmap, advice), first, last - first)  # type: ignore[attr-defined]

    def _check(self, block: int) -> None:
        self._advise("MADV_WILLNEED", block * ROWS, (block + 1) * ROWS + 1)
        rows = self.array[block * ROWS : (block + 1) * ROWS + 1]
        fault = "" if zlib.crc32(rows[:ROWS].data) == self._checksums[block] else "its checksum does not fit"
        fault = fault or self._fault(rows)
        if fault:
            where = f"{os.fspath(self.array.filename or '')} is damaged in rows {block * ROWS:,} to {(block + 1) * ROWS - 1:,}"
            raise ValueError(f"{where}: {fault}; copy the store again, or make it again")
