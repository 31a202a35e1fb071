"""Losses by index: look-up, on the device where scoring happens or in memory-mapped files, and keeping."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from rholoss.ids import some, tensor_of
from rholoss.indexing import as_index
from rholoss.storefile import read_store, write_mapped, write_store


class LossTable:
    """A loss for each of some examples, found by index: the ground of ``IrreducibleLossStore``, which says what it takes."""

    def __init__(self, losses: Any, ids: Any = None, *, meta: Mapping[str, Any] | None = None) -> None:
        given = (torch.as_tensor(losses) if isinstance(losses, (list, tuple)) else tensor_of(losses)).detach()
        if isinstance(losses, (list, tuple)) and given.is_floating_point():
            given = torch.as_tensor(losses, dtype=torch.float32)  # whatever the default dtype is
        losses = given
        if not losses.is_floating_point():
            raise TypeError(f"irreducible losses must be floating, got {losses.dtype}")
        if losses.ndim != 1:
            raise ValueError(f"irreducible losses must be one per example, shape (N,), got {tuple(losses.shape)}")
        self.losses = losses.to(torch.float32, copy=True)
        self.ids: Tensor | None = None
        self.meta = dict(meta or {})
        self._files: list[str] = []  # that the arrays are mapped from
        if ids is not None:
            self.losses, self.ids = _sorted_by_id(self.losses, as_index(ids).to(losses.device))
        negative = torch.nonzero((self.losses < 0) & (self.losses > -torch.inf)).flatten()
        if len(negative):
            which = negative if self.ids is None else self.ids[negative]
            raise ValueError(
                f"irreducible losses must be at least 0, got {len(which):,} that are negative: indices {some(which.tolist())}; a "
                "constant added to the loss, here and in the selector, changes nothing"
            )

    @classmethod
    def _of(cls, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> Self:
        """A store over arrays that are in order and checked, without a copy."""
        store = cls.__new__(cls)
        store.losses = torch.from_numpy(arrays["losses"])
        store.ids = torch.from_numpy(arrays["ids"]) if "ids" in arrays else None
        store.meta = dict(meta)
        store._files = [str(array.filename) for array in arrays.values() if isinstance(array, np.memmap)]
        return store

    @property
    def is_mapped(self) -> bool:
        return bool(self._files)

    def __copy__(self) -> Self:
        twin = type(self).__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A copy of its own; of a mapped store, one that shares the mapped files, which nobody writes to."""
        memo.update({id(array): array for array in (self.losses, self.ids) if self.is_mapped})
        twin = memo[id(self)] = copy.copy(self)
        vars(twin).update(copy.deepcopy(vars(self), memo))
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """All of it; of a mapped store not the arrays but where they lie, from where unpickling maps them again."""
        mapped = {"losses", "ids"} if self.is_mapped else set()
        return {name: value for name, value in vars(self).items() if name not in mapped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if not self.is_mapped:
            return
        folder = os.path.dirname(self._files[0])
        there = self.load(folder)
        if there._files != self._files:  # they are named by their checksums
            raise ValueError(f"{folder} holds another store than when this one was pickled; load the one that you mean")
        self.losses, self.ids = there.losses, there.ids

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Irreducible losses of the examples with these indices, shape (n,), in nats; NaN where an example has none.

        Raises:
            IndexError: an index is outside 0 to N-1, for a store without ids on the CPU; elsewhere it gets NaN.
        """
        if not len(self):
            return torch.full(index.shape, torch.nan, dtype=torch.float32, device=self.device)
        if self.ids is None and self.device.type == "cpu":
            try:
                return self.losses.index_select(0, index)
            except (IndexError, RuntimeError) as error:
                out = index[(index < 0) | (index >= len(self))].tolist()
                if not out:
                    raise
                raise IndexError(
                    f"expected indices from 0 to {len(self) - 1}, got {some(out)}; was this store made for another dataset?"
                ) from error
        position = (index if self.ids is None else torch.searchsorted(self.ids, index)).clamp(0, len(self) - 1)
        found = position == index if self.ids is None else self.ids[position] == index
        return torch.where(found, self.losses[position], torch.nan)

    @property
    def device(self) -> torch.device:
        return self.losses.device

    @property
    def size(self) -> str:
        """How many examples, in words."""
        return f"{len(self):,} examples" + ("" if self.ids is None else " with ids")

    @property
    def coverage(self) -> float:
        """Share of the store's examples whose irreducible loss is known and finite, in [0, 1]."""
        return float(torch.isfinite(self.losses).double().mean()) if len(self) else 0.0

    def to(self, device: torch.device | str) -> Self:
        """This store on a device; itself if it is there."""
        if torch.device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.losses, moved._files = self.losses.to(device), []
        moved.ids = None if self.ids is None else self.ids.to(device)
        return moved

    def save(self, path: str | os.PathLike[str], *, mapped: bool = False) -> None:
        """Write the store to one ``.npz`` file; if that fails, a file that was there stays as it was.

        Args:
            path: the file.
            mapped: write a folder of arrays instead, which ``load`` maps into memory rather than reads.

        Raises:
            OSError: it cannot be written.
        """
        arrays = {"losses": self.losses.cpu().numpy()}
        if self.ids is not None:
            arrays["ids"] = self.ids.cpu().numpy()
        if mapped:
            write_mapped(path, len(self), [arrays], self.meta)
        else:
            write_store(path, arrays, self.meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a store that ``save`` wrote, and check it against its checksums. Nothing in the file is ever executed.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read.
            ValueError: the file is not a store, is damaged, or is of a newer format; the message names it.
        """
        arrays, meta = read_store(path)
        if isinstance(arrays["losses"], np.memmap):
            return cls._of(arrays, meta)
        try:
            return cls(arrays["losses"], arrays.get("ids"), meta=meta)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fsdecode(path)} is damaged: {error}; make the store anew") from error

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.size}, coverage={self.coverage:.1%}, device={self.device})"


def _sorted_by_id(losses: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    if ids.shape != losses.shape:
        raise ValueError(f"expected one id per irreducible loss, got {len(ids):,} ids for {len(losses):,} losses")
    ids, order = ids.sort(stable=True)
    repeated = ids[1:][ids[1:] == ids[:-1]].unique()
    if len(repeated):
        raise ValueError(
            f"{len(repeated):,} ids appear more than once: {some(repeated.tolist())}; every example has one irreducible loss"
        )
    return losses[order], ids
