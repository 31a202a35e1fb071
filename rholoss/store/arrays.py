"""The tensors of a store: in memory, or mapped from files that nobody writes to."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rholoss.data.index import some
from rholoss.devices import to_device
from rholoss.states import tensor_digest
from rholoss.store.predictions import Predictions
from rholoss.store.serialization import read_store

_BLOCK = 1 << 20  # rows to check at a time


@dataclass(frozen=True, eq=False)
class StoreArrays:
    """Losses and predictions by id. Mapped arrays are shared by their copies, and pickled as the place of their files."""

    losses: Tensor  # (N,) float32, in the order of the ids
    ids: Tensor | None  # (N,) int64, ascending; None for indices 0 to N-1
    files: tuple[str, ...] = ()  # that the arrays are mapped from, named by their checksums
    predictions: Predictions | None = None  # (N, 1 + k) each, in the order of the ids

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> StoreArrays:
        """Arrays that are in order and checked already, without a copy."""
        files = tuple(str(array.filename) for array in arrays.values() if isinstance(array, np.memmap))
        ids = torch.from_numpy(arrays["ids"]) if "ids" in arrays else None
        return cls(torch.from_numpy(arrays["losses"]), ids, files, Predictions.from_arrays(arrays))

    @classmethod
    def sorted(cls, losses: Tensor, ids: Tensor | None, predictions: Predictions | None = None) -> StoreArrays:
        """Losses in the order of their ids; a ValueError if the ids do not match the losses, or repeat."""
        if ids is None:
            return cls(losses, None, predictions=predictions)
        if ids.shape != losses.shape:
            raise ValueError(f"expected one id per irreducible loss, got {len(ids):,} ids for {len(losses):,} losses")
        ids, order = ids.sort(stable=True)
        repeated = ids[1:][ids[1:] == ids[:-1]].unique()
        if len(repeated):
            which = some(repeated.tolist())
            raise ValueError(f"{len(repeated):,} ids appear more than once: {which}; every example has one irreducible loss")
        return cls(losses[order], ids, predictions=None if predictions is None else predictions.rows(order))

    def refuse_unsaved(self) -> None:
        """Raise a ValueError for what a store never has: ids that do not ascend, negative losses, or what does not match them."""
        if self.ids is not None and self.ids.shape != self.losses.shape:
            raise ValueError(f"expected one id per irreducible loss, got {len(self.ids):,} ids for {len(self.losses):,} losses")
        for start in range(0, len(self.losses), _BLOCK):
            losses = self.losses[start : start + _BLOCK]
            if bool(((losses < 0) & (losses > -torch.inf)).any()):
                raise ValueError("irreducible losses must be at least 0, got negative ones")
            ids = None if self.ids is None else self.ids[start : start + _BLOCK + 1]
            if ids is not None and bool((ids[1:] <= ids[:-1]).any()):
                raise ValueError("its ids do not ascend, or appear more than once")
        if self.predictions is not None:
            self.predictions.check(len(self.losses))

    @cached_property
    def digest(self) -> str:
        """What identifies the arrays, on any device and mapped or not."""
        return "".join(tensor_digest(array) for array in (self.losses, self.ids) if array is not None)

    def losses_of(self, index: Tensor) -> Tensor:
        """The losses of some examples, shape (m,), float32; NaN where an example has none."""
        if not len(self.losses):
            return torch.full(index.shape, torch.nan, dtype=torch.float32, device=self.losses.device)
        rows, found = self._rows(index)
        return torch.where(found, self.losses[rows], torch.nan)

    def predictions_of(self, index: Tensor) -> Predictions | None:
        """The predictions of some examples, of m rows; None without any."""
        if self.predictions is None or not len(self.losses):
            return None
        rows, found = self._rows(index)
        return self.predictions.rows(rows).where(found)

    def _rows(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The rows of some examples, and whether each has one."""
        rows = (index if self.ids is None else torch.searchsorted(self.ids, index)).clamp(0, len(self.losses) - 1)
        return rows, rows == index if self.ids is None else self.ids[rows] == index

    def merged(self, other: StoreArrays) -> StoreArrays:
        """The examples of both; a ValueError if one has a loss in both."""
        each = [arrays.ids for arrays in (self, other) if arrays.ids is not None]
        index = torch.cat(each).unique() if each else torch.arange(len(self.losses), device=self.losses.device)
        mine, theirs = self.losses_of(index), other.losses_of(index)
        both = ~(torch.isnan(mine) | torch.isnan(theirs))
        if both.any():
            which = some(index[both].tolist())
            raise ValueError(f"{int(both.sum()):,} examples have an irreducible loss in both stores: indices {which}")
        one, another = self.predictions_of(index), other.predictions_of(index)
        predictions = one.filled(another) if one is not None and another is not None else one or another
        losses = torch.where(torch.isnan(mine), theirs, mine)
        return StoreArrays(losses, index if each else None, predictions=predictions)

    def to(self, device: torch.device | str) -> StoreArrays:
        """The arrays in the memory of a device."""
        target = torch.device(device)
        ids = None if self.ids is None else to_device(self.ids, target)
        predictions = None if self.predictions is None else self.predictions.to(target)
        return StoreArrays(to_device(self.losses, target), ids, predictions=predictions)

    def __deepcopy__(self, memo: dict[int, Any]) -> StoreArrays:
        return self if self.files else StoreArrays(*(copy.deepcopy(array, memo) for array in self._in_memory()))

    def _in_memory(self) -> tuple[Any, ...]:
        return self.losses, self.ids, (), self.predictions

    def __reduce__(self) -> tuple[Any, ...]:
        return (_mapped_again, (self.files,)) if self.files else (StoreArrays, self._in_memory())


def _mapped_again(files: tuple[str, ...]) -> StoreArrays:
    folder = os.path.dirname(files[0])
    there = StoreArrays.of(read_store(folder)[0])
    if there.files != files:
        raise ValueError(f"{folder} holds another store than when this one was pickled; load the one that you mean")
    return there
