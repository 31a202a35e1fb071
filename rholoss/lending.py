"""Lending a batch to code that may change it in place, and taking it back as it was."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from rholoss.batches import copy_of, each_tensor, name_of, version_of


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
        loan = _Loan(copies=changes is not False, device=device)
        yield from loan.handing_out(batch)
        if changes is None:
            self._changes[borrower] = loan.came_back_changed()
        elif not changes and (changed := loan.newer()):
            self._changes[borrower] = True
            names = ", ".join(str(name_of(tensor, batch)) for tensor in changed)
            what = f"the forward pass or the loss changed {names} in place while it only scored, which it did not do before"
            cure = "change a copy, such as x.clone(), in the model or in forward="
            raise ValueError(f"{what}: expected the batch as it was loaded, to train on; {cure}")


class _Loan:
    """The tensors of one loan, and how they were."""

    def __init__(self, copies: bool, device: torch.device | None) -> None:
        self._copies, self._device = copies, device
        self._lent: dict[int, tuple[Tensor, Tensor, int, bool]] = {}  # by id: the batch's own, the lent one, version, flag

    def handing_out(self, batch: Any) -> Iterator[Any]:
        try:
            yield each_tensor(batch, self._lend, apart=True)
        finally:
            for _, lent, _, flag in self._lent.values():
                if lent.requires_grad != flag:
                    lent.requires_grad_(flag)

    def _lend(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._lent:  # a batch may hold the same tensor twice
            is_moved = self._device is not None and tensor.device != self._device
            lent = copy_of(tensor) if self._copies and not is_moved else tensor
            self._lent[id(tensor)] = tensor, lent, version_of(lent), lent.requires_grad
        return self._lent[id(tensor)][1]

    def newer(self) -> list[Tensor]:
        """The tensors that were changed in place."""
        return [tensor for tensor, lent, version, _ in self._lent.values() if version_of(lent) != version]

    def came_back_changed(self) -> bool:
        pairs = [(own, lent) for own, lent, _, _ in self._lent.values() if own is not lent and type(own) is Tensor]
        readable = [pair for pair in pairs if pair[0].device.type == "cpu" and pair[0].layout == torch.strided]
        return bool(self.newer()) or not all(torch.equal(*pair) for pair in readable)
