"""Lending a batch to code that may change it in place, and taking it back as it was."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rholoss.batches import copy_of, each_tensor, is_readable, name_of, version_of


class Lender:
    """Lends batches to borrowers, such as a model in a mode, in containers of their own.

    The first loan of each borrower is a copy. If that comes back changed, all its loans are copies; otherwise the next ones are
    the tensors themselves, whose versions are compared afterwards. Not noticed after the first loan, or on an accelerator: writes
    to ``tensor.data``, or to memory that a tensor shares.
    """

    def __init__(self) -> None:
        self._changes: dict[Hashable, bool] = {}

    @contextmanager
    def lend(self, batch: Any, borrower: Hashable, device: torch.device | None = None) -> Iterator[Any]:
        """A block that may change what it is given; tensors on another device than ``device`` are moved there anyway.

        Raises:
            ValueError: a borrower that never changed a batch changed this one, which is lost.
        """
        changes = self._changes.get(borrower)
        loan = _Loan(changes is not False, device)
        yield from loan.handing_out(batch)
        if changes is None:
            self._changes[borrower] = loan.came_back_changed()
        if lost := loan.lost():
            self._changes[borrower] = True
            names = ", ".join(str(name_of(tensor, batch)) for tensor in lost)
            what = f"the forward pass or the loss changed {names} in place while it only scored"
            cure = "change a copy, such as x.clone(), in the model or in forward="
            raise ValueError(f"{what}: expected the batch as it was loaded, to train on; {cure}")


class _Loan:
    """The tensors of one loan, and how they were."""

    def __init__(self, copies: bool, device: torch.device | None) -> None:
        self._copies, self._device = copies, device
        self._lent: dict[int, tuple[Tensor, int, Tensor, bool]] = {}  # by id: own, its version, lent, flag

    def handing_out(self, batch: Any) -> Iterator[Any]:
        try:
            yield each_tensor(batch, self._lend, apart=True)
        finally:
            for _, _, lent, flag in self._lent.values():
                if lent.requires_grad != flag:
                    lent.requires_grad_(flag)

    def _lend(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._lent:  # a batch may hold the same tensor twice
            is_moved = self._device is not None and tensor.device != self._device
            lent = copy_of(tensor) if self._copies and not is_moved else tensor
            self._lent[id(tensor)] = tensor, version_of(tensor), lent, lent.requires_grad
        return self._lent[id(tensor)][2]

    def lost(self) -> list[Tensor]:
        """The tensors of the batch itself that were changed in place."""
        return [tensor for tensor, version, _, _ in self._lent.values() if version_of(tensor) != version]

    def came_back_changed(self) -> bool:
        """Whether copies were changed: compared by content, where that waits for no accelerator, else by version."""
        pairs = [(own, lent) for own, _, lent, _ in self._lent.values() if own is not lent]
        return any(version_of(lent) > 0 or (is_readable(own) and not torch.equal(own, lent)) for own, lent in pairs)
