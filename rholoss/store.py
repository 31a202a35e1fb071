"""Irreducible losses by index, on the device where scoring happens."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rholoss.indexing import as_index
from rholoss.scoring import Forward, Loss
from rholoss.storefile import read_store, write_store
from rholoss.sweep import Progress, sweep


class IrreducibleLossStore:
    """The irreducible loss of every example: its loss under a model that never trained on it.

    Args:
        losses: irreducible losses in nats, shape (N,), floating; NaN where an example has none. Kept as float32.
        ids: the index of each, shape (N,), int64, distinct, in any order. None: the indices are 0 to N-1.
        meta: what made these losses; JSON values by string. Saved with the store.

    Raises:
        ValueError: the losses are not one-dimensional, or the ids do not match them or repeat.
        TypeError: the losses are not floating.

    Examples:
        >>> import torch
        >>> store = IrreducibleLossStore([0.5, 0.25, 2.0])
        >>> store[torch.tensor([2, 0])]
        tensor([2.0000, 0.5000])
        >>> IrreducibleLossStore([0.5, 0.25], ids=[700, 40])[torch.tensor([40])]
        tensor([0.2500])
    """

    def __init__(self, losses: Any, ids: Any = None, *, meta: Mapping[str, Any] | None = None) -> None:
        losses = torch.as_tensor(losses).detach()
        if not losses.is_floating_point():
            raise TypeError(f"irreducible losses must be floating, got {losses.dtype}")
        if losses.ndim != 1:
            raise ValueError(f"irreducible losses must be one per example, shape (N,), got {tuple(losses.shape)}")
        self.losses = losses.to(torch.float32, copy=True)
        self.ids: Tensor | None = None
        self.meta = dict(meta or {})
        if ids is not None:
            self.losses, self.ids = _sorted_by_id(self.losses, as_index(ids).to(losses.device))

    @classmethod
    def from_model(
        cls,
        model: Any,
        data: Any,
        *,
        forward: Forward | None = None,
        loss: Loss | None = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        progress: Progress = None,
    ) -> IrreducibleLossStore:
        """Score every example with the irreducible-loss model, in eval mode, without leaving a trace in the model.

        Args:
            model: the irreducible-loss model: trained, but never on the examples of ``data``.
            data: the dataset that training will read (without augmentation, in the paper), a loader over it, or
                ``IndexedBatches``. Of a loader, the collate function, workers and sampler are used; no example is dropped at
                the end.
            forward: ``(model, batch) -> (outputs, targets)``; the one that the selector is given.
            loss: ``(outputs, targets) -> (n,)``; the one that the selector is given.
            batch_size: examples in one forward pass; None for the loader's own, or 256 for a dataset.
            dtype: autocast dtype; None for the model's own precision.
            progress: ``True`` for a bar (needs the extra ``rholoss[progress]``), ``False`` for none, None for a bar on a terminal
                where it is installed, or a function called with (examples done, examples in all or None).

        Raises:
            ValueError: a loss is not one value per example, or not finite.
        """
        index, losses, n = sweep(model, data, forward=forward, loss=loss, batch_size=batch_size, dtype=dtype, progress=progress)
        bad = index[~torch.isfinite(losses)]
        if len(bad):
            raise ValueError(
                f"the loss of {len(bad):,} of {len(index):,} examples under the irreducible-loss model is not finite: indices "
                f"{_some(bad.sort().values.tolist())}; check its weights and these examples"
            )
        meta = {"model": type(model).__name__, "loss": getattr(loss, "__name__", type(loss).__name__) if loss else "default_loss"}
        unique = index.unique()
        by_index = losses.new_empty(len(unique)).index_copy_(0, torch.searchsorted(unique, index), losses)
        whole = len(unique) == n and int(unique[0]) == 0 and int(unique[-1]) == n - 1
        return cls(by_index, None if whole else unique, meta=meta)

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Irreducible losses of the examples with these indices, shape (n,), in nats; NaN where an example has none.

        Raises:
            IndexError: an index is outside 0 to N-1, for a store without ids on the CPU; elsewhere it gets NaN.
        """
        if not len(self):
            return torch.full(index.shape, torch.nan, device=self.device)
        if self.ids is None and self.device.type == "cpu":
            try:
                return self.losses.index_select(0, index)
            except (IndexError, RuntimeError) as error:
                out = index[(index < 0) | (index >= len(self))].tolist()
                if not out:
                    raise
                raise IndexError(
                    f"expected indices from 0 to {len(self) - 1}, got {_some(out)}; was this store made for another dataset?"
                ) from error
        position = (index if self.ids is None else torch.searchsorted(self.ids, index)).clamp(0, len(self) - 1)
        found = position == index if self.ids is None else self.ids[position] == index
        return torch.where(found, self.losses[position], torch.nan)

    @property
    def device(self) -> torch.device:
        return self.losses.device

    @property
    def coverage(self) -> float:
        """Share of the store's examples whose irreducible loss is known and finite, in [0, 1]."""
        return float(torch.isfinite(self.losses).double().mean()) if len(self) else 0.0

    def to(self, device: torch.device | str) -> IrreducibleLossStore:
        """This store on a device; itself if it is there."""
        if torch.device(device) == self.device:
            return self
        moved = copy.copy(self)
        moved.losses = self.losses.to(device)
        moved.ids = None if self.ids is None else self.ids.to(device)
        return moved

    def merge(self, other: IrreducibleLossStore) -> IrreducibleLossStore:
        """The examples of both stores; each example's irreducible loss may be known to one of them only.

        Raises:
            ValueError: both know some example, or they hold different numbers of examples without ids.
        """
        if (self.ids is None) != (other.ids is None) or (self.ids is None and len(self) != len(other)):
            raise ValueError(
                f"stores without ids must hold the same examples to be merged, got {_size(self)} and {_size(other)}; give both "
                "of them ids, or neither"
            )
        other = other.to(self.device)
        if self.ids is None or other.ids is None:
            ids = torch.arange(len(self), device=self.device)
        else:
            ids = torch.cat([self.ids, other.ids]).unique()
        mine, theirs = self[ids], other[ids]
        both = torch.isfinite(mine) & torch.isfinite(theirs)
        if both.any():
            raise ValueError(
                f"{int(both.sum()):,} examples have an irreducible loss in both stores: indices {_some(ids[both].tolist())}"
            )
        return IrreducibleLossStore(
            torch.where(torch.isnan(mine), theirs, mine), None if self.ids is None else ids, meta={**other.meta, **self.meta}
        )

    def refuse_gaps(self, index: Tensor | None, dataset_length: int | None) -> None:
        """Check that this store belongs to a dataset and knows every example that may be drawn from it.

        Args:
            index: the indices that may be drawn, int64; None where only drawing tells.
            dataset_length: N, or None where it is not known.

        Raises:
            ValueError: the lengths differ, or an irreducible loss is missing, NaN or infinite; the message names how many and
                which.
        """
        if self.ids is None and dataset_length is not None and dataset_length != len(self):
            raise ValueError(
                f"this store holds the irreducible losses of {len(self):,} examples, but the loader's dataset has "
                f"{dataset_length:,}: "
                "it was made for another dataset. Make it from the dataset that the loader reads, with "
                "IrreducibleLossStore.from_model(il_model, dataset)"
            )
        if index is not None:
            refuse_not_finite(self[index.to(self.device)], index)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the store to one ``.npz`` file; if that fails, a file that was there stays as it was.

        Raises:
            OSError: the file cannot be written.
        """
        arrays = {"losses": self.losses.cpu().numpy()}
        if self.ids is not None:
            arrays["ids"] = self.ids.cpu().numpy()
        write_store(path, arrays, self.meta)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IrreducibleLossStore:
        """Read a store that ``save`` wrote. Nothing in the file is ever executed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file is not a store, is damaged, or is of a newer format; the message names it.
        """
        arrays, meta = read_store(path)
        try:
            return cls(arrays["losses"], arrays.get("ids"), meta=meta)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)} is damaged: {error}; make the store anew") from error

    def __repr__(self) -> str:
        return f"IrreducibleLossStore({_size(self)}, coverage={self.coverage:.1%}, device={self.device})"


def _sorted_by_id(losses: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    if ids.shape != losses.shape:
        raise ValueError(f"expected one id per irreducible loss, got {len(ids):,} ids for {len(losses):,} losses")
    ids, order = ids.sort(stable=True)
    repeated = ids[1:][ids[1:] == ids[:-1]].unique()
    if len(repeated):
        raise ValueError(
            f"{len(repeated):,} ids appear more than once: {_some(repeated.tolist())}; every example has one irreducible loss"
        )
    return losses[order], ids


def refuse_not_finite(losses: Tensor, index: Tensor) -> None:
    """Raise a ValueError that names the examples without a finite irreducible loss, if there are any."""
    finite = torch.isfinite(losses).to(index.device)
    if not bool(finite.all()):
        which = index[~finite].sort().values
        raise ValueError(
            f"{len(which):,} of {len(index):,} examples have no finite irreducible loss (missing, NaN or infinite): indices "
            f"{_some(which.tolist())}. "
            "Score them with IrreducibleLossStore.from_model, or keep the loader's sampler from drawing them"
        )


def _size(store: IrreducibleLossStore) -> str:
    return f"{len(store):,} examples" + ("" if store.ids is None else " with ids")


def _some(values: list[int], most: int = 5) -> str:
    return ", ".join(map(str, values[:most])) + (f" and {len(values) - most:,} more" if len(values) > most else "")
