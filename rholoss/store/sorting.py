"""Rows in the order of their ids, in bounded memory: sorted on disk, and merged from several sources."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from rholoss.data.index import some

RUN = 1 << 24  # rows to sort in memory
_WINDOW = 1 << 20  # rows of all sources to merge at a time


class Named:
    """How many ids there are, and the first few, for a message."""

    def __init__(self) -> None:
        self.n = 0
        self.first: list[int] = []

    def add(self, ids: Any) -> None:
        """Count ids, ascending."""
        self.n += len(ids)
        self.first += [int(each) for each in ids[: 5 - len(self.first)]]

    def refuse(self, message: str) -> None:
        """Raise a ValueError with a message of ``n`` and ``which`` if there are any."""
        if self.n:
            which = some(self.first) + (f" and {self.n - 5:,} more" if self.n > 5 else "")
            raise ValueError(message.format(n=f"{self.n:,}", which=which))


class Rows(NamedTuple):
    """Ids and their irreducible losses.

    Attributes:
        ids: shape (m,), int64.
        losses: shape (m,), float32, in nats.
    """

    ids: np.ndarray
    losses: np.ndarray

    def at(self, which: np.ndarray | slice) -> Rows:
        """Some of the rows."""
        return Rows(self.ids[which], self.losses[which])


def in_order(sources: Sequence[Rows]) -> Iterator[Rows]:
    """The rows of sources that ascend, in pieces; all rows of one id are in one piece, those of the first source first."""
    done = [0] * len(sources)
    size = max(_WINDOW // max(len(sources), 1), 1)
    while open_ := [i for i, source in enumerate(sources) if done[i] < len(source.ids)]:
        windows = {i: sources[i].ids[done[i] : done[i] + size] for i in open_}
        last = min(window[-1] for window in windows.values())  # of no source is there a lower one left after its window
        taken = []
        for i, window in windows.items():
            n = int(window.searchsorted(last, "right"))
            taken.append(sources[i].at(slice(done[i], done[i] + n)))
            done[i] += n
        together = Rows(*(np.concatenate(column) for column in zip(*taken, strict=True)))
        yield together if len(taken) == 1 else together.at(together.ids.argsort(kind="stable"))


def sorted_on_disk(pieces: Iterable[Rows], folder: str) -> list[Rows]:
    """Rows in any order, as sources for ``in_order``; all but a few are written to files in a folder."""
    runs: list[Rows] = []
    waiting: list[Rows] = []
    n = 0
    for piece in pieces:
        waiting.append(piece)
        n += len(piece.ids)
        if n >= RUN:
            runs.append(_written(_sorted(waiting), os.path.join(folder, f"{len(runs)}.run")))
            waiting, n = [], 0
    return [*runs, _sorted(waiting)] if waiting else runs


def _sorted(pieces: list[Rows]) -> Rows:
    together = Rows(*(np.concatenate(column) for column in zip(*pieces, strict=True)))
    pieces.clear()
    in_place = bool((together.ids[1:] >= together.ids[:-1]).all())
    return together if in_place else together.at(together.ids.argsort(kind="stable"))


def _written(rows: Rows, path: str) -> Rows:
    """The same rows, mapped from a file."""
    n = len(rows.ids)
    with open(path, "xb") as file:
        file.write(rows.ids.data)
        file.write(rows.losses.data)
    ids = np.memmap(path, np.int64, "r", 0, (n,))
    return Rows(ids, np.memmap(path, np.float32, "r", 8 * n, (n,)))
