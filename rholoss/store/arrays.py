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
from rholoss.store.blocks import Blocks, ids_fault, losses_fault
from rholoss.store.id_index import LEAST, MOST, IdIndex
from rholoss.store.predictions import Predictions
from rholoss.store.serialization import read_store

_BLOCK = 1 << 20  # rows to check at a time


@dataclass(frozen=True, eq=False)
class StoreArrays:
    """Losses and predictions by id. Mapped arrays are shared by their copies, and pickled as the place of their files.

    The arrays of a large folder may hold blocks that are not checked yet: read ``checked.losses`` and ``checked.ids``.
    """

    losses: Tensor  # (N,) float32, in the order of the ids
    ids: Tensor | None  # (N,) int64, ascending; None for indices 0 to N-1
    files: tuple[str, ...] = ()  # that the arrays are mapped from, named by their checksums
    predictions: Predictions | None = None  # (N, 1 + k) each, in the order of the ids
    blocks: tuple[Blocks, ...] = ()  # of the losses, and of the ids, that are checked as they are read
    mapped_index: IdIndex | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> StoreArrays:
        """Arrays that are in order, and checked or ``Blocks``, without a copy; and their ``index``, if they have one."""
        given = [arrays[name] for name in ("losses", "ids") if name in arrays]
        blocks = tuple(each for each in given if isinstance(each, Blocks))
        plain = [each.array if isinstance(each, Blocks) else each for each in given]
        several = [arrays[name] for name in Predictions._fields if name in arrays]
        files = tuple(str(array.filename) for array in [*plain, *several] if isinstance(array, np.memmap))
        losses, *ids = (torch.from_numpy(array) for array in plain)
        return cls(losses, ids[0] if ids else None, files, Predictions.from_arrays(arrays), blocks, arrays.get("index"))

    @property
    def checked(self) -> StoreArrays:
        """These arrays, of which every block is checked now."""
        for each in self.blocks:
            each.check()
        return self

    @cached_property
    def index(self) -> IdIndex | None:
        """What finds the rows of ids faster than a search; None where there is nothing to gain."""
        if self.mapped_index or self.ids is None or self.ids.device.type != "cpu" or not LEAST <= len(self.ids) < MOST:
            return self.mapped_index
        return IdIndex(self.ids.numpy())

    def look_up(self, index: Tensor) -> Tensor:
        """The losses of some examples, shape (n,), float32; NaN where one has none.

        Raises:
            IndexError: an index is outside 0 to N-1, for arrays without ids on the CPU; elsewhere it gets NaN.
        """
        losses, ids = self.losses, self.ids
        if not len(losses):
            return torch.full(index.shape, torch.nan, dtype=torch.float32, device=losses.device)
        if ids is None and losses.device.type == "cpu":
            return self._at(index)
        if self.index is not None:
            rows, is_known = self.index.rows(index.long().flatten().numpy())
            values = losses.numpy().take(rows, mode="clip")
            self._check(rows)
            if np.count_nonzero(is_known) < len(is_known):
                values[~is_known] = np.nan
            return torch.from_numpy(values).view(index.shape)
        position = (index if ids is None else torch.searchsorted(ids, index)).clamp(0, len(losses) - 1)
        found = position == index if ids is None else ids[position] == index
        if self.blocks:
            self._check(position.numpy())
        return torch.where(found, losses[position], torch.nan)

    def _at(self, index: Tensor) -> Tensor:
        """The losses of indices, without ids."""
        try:
            found = self.losses.index_select(0, index)
        except (IndexError, RuntimeError) as error:
            out = index[(index < 0) | (index >= len(self.losses))].tolist()
            if not out:
                raise
            which = f"expected indices from 0 to {len(self.losses) - 1}, got {some(out)}"
            raise IndexError(f"{which}; was this store made for another dataset?") from error
        self._check(index.numpy())
        return found

    def _check(self, rows: np.ndarray) -> None:
        for blocks in self.blocks:
            blocks.check(rows)

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

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays by name, in the memory of the host."""
        named = (("losses", self.losses), ("ids", self.ids))
        columns = {name: each.cpu().numpy() for name, each in named if each is not None}
        return columns if self.predictions is None else columns | self.predictions.arrays()

    def refuse_negative(self) -> None:
        """Raise a ValueError that names the losses below 0."""
        negative = torch.nonzero((self.losses < 0) & (self.losses > -torch.inf)).flatten()
        if len(negative):
            which = negative if self.ids is None else self.ids[negative]
            raise ValueError(
                f"irreducible losses must be at least 0, got {len(which):,} that are negative: indices {some(which.tolist())}; "
                "add one constant to the loss, here and in the selector: the ranking stays the same"
            )

    def refuse_unsaved(self) -> None:
        """Raise a ValueError for what a store never has: ids that do not ascend, negative losses, or what does not match them."""
        if self.ids is not None and self.ids.shape != self.losses.shape:
            raise ValueError(f"expected one id per irreducible loss, got {len(self.ids):,} ids for {len(self.losses):,} losses")
        for start in range(0, len(self.losses), _BLOCK) if not self.blocks else ():
            fault = losses_fault(self.losses[start : start + _BLOCK].numpy())
            fault = fault or ("" if self.ids is None else ids_fault(self.ids[start : start + _BLOCK + 1].numpy()))
            if fault:
                raise ValueError(fault)
        if self.predictions is not None:
            self.predictions.check(len(self.losses))

    @cached_property
    def digest(self) -> str:
        """What identifies the arrays, on any device and mapped or not."""
        return "".join(tensor_digest(array) for array in (self.checked.losses, self.ids) if array is not None)

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

    def to(self, device: torch.device | str) -> StoreArrays:
        """The arrays in the memory of a device."""
        target = torch.device(device)
        ids = None if self.ids is None else to_device(self.ids, target)
        predictions = None if self.predictions is None else self.predictions.to(target)
        return StoreArrays(to_device(self.checked.losses, target), ids, predictions=predictions)

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
