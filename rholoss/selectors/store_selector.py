"""The base class of methods that look up irreducible losses."""

from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.selector import Selector
from rholoss.store import IrreducibleLossStore
from rholoss.store.checks import refuse_changed_data, refuse_gaps, refuse_not_finite, refuse_other_data, warn_of_other_loss


class StoreSelector(Selector):
    """Base class of selectors with a store, which is checked against the loader first. Other arguments: see ``Selector``.

    Args:
        store: irreducible losses of the loader's dataset.

    Raises:
        ValueError: the store belongs to another dataset (or another order, or other labels), or lacks the irreducible loss of an
            example that may be drawn; the message says what differs.
    """

    needs_all: ClassVar[bool] = True
    """Whether every example that may be drawn needs an irreducible loss."""
    looks_up_on_host: ClassVar[bool] = False
    """Whether the host needs the irreducible losses, so that the store stays where the loader's indices are."""

    def __init__(self, loader: Any, model: Any, store: IrreducibleLossStore, **options: Unpack[SelectorOptions]) -> None:
        if not isinstance(store, IrreducibleLossStore):
            cure = "make one with IrreducibleLossStore.from_model(il_model, dataset), .load(path), or of losses by index"
            raise TypeError(f"expected store to be an IrreducibleLossStore, got {type(store).__name__}; {cure}")
        super().__init__(loader, model, **options)
        refuse_gaps(store, self.view.drawable() if self.needs_all else None, self.view.dataset_length)
        self._data = refuse_other_data(store, loader)
        self._compared = -1 if hasattr(self.dataset, "set_epoch") else 0  # the latest epoch in which the data were compared
        if model is not None:
            warn_of_other_loss(store, self.scorer.task.loss)
        self.store = store
        self._formula = store.meta.formula

    def begin_epoch(self, epoch: int) -> None:
        """Look at a sample of the data again, in epochs 1, 2, 4, 8 and so on: every index must stand for the same example."""
        super().begin_epoch(epoch)
        if epoch > self._compared and epoch & (epoch - 1) == 0:
            self._compared = epoch
            refuse_changed_data(self._data, self.loader, epoch, may_grow=not self.needs_all)

    def irreducible_loss(self, candidates: Candidates) -> Tensor:
        """The irreducible loss of each candidate, shape (n_B,), float32, in nats."""
        losses = self.look_up(candidates)
        # On an accelerator this check would stall the queue; the check of the score finds the same.
        if losses.device.type == "cpu" and not bool(torch.isfinite(losses).all()):
            refuse_not_finite(losses, candidates.loader_index.cpu(), self.view.names(candidates.batch))
        return to_device(losses, candidates.device)

    def look_up(self, candidates: Candidates) -> Tensor:
        """The store's value of each candidate, shape (n_B,), float32, in nats, on the store's device; NaN if unknown."""
        candidates.expect_formula(self._formula)
        if self.store.is_mapped:  # it stays on the disk, and the loader's index is on the CPU
            return self.store[candidates.loader_index.cpu()]
        index = candidates.loader_index if self.looks_up_on_host else candidates.index
        self.store = self.store.to(index.device)
        return self.store[index]

    def settings(self) -> dict[str, Any]:
        return {**super().settings(), "store": self.store.digest}

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "store": self.store}
