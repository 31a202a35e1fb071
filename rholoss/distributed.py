"""Processes that choose together: what they tell each other, and who trains on what."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

_NUMBERS = 5  # that a rank may tell when ranks meet


class Ranks:
    """The ranks of a process group, which all call the same methods in the same order.

    Args:
        group: the process group; None for all processes.

    Attributes:
        rank: which of them this is, from 0.
        size: how many there are.
    """

    def __init__(self, group: Any = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "a choice over all ranks needs torch.distributed to be initialized; call init_process_group first, or let the "
                "method choose alone"
            )
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not one of the group; build the selector on the ranks of the group only")
        self._gathered = 0

    def __deepcopy__(self, memo: Any) -> "Ranks":
        return self  # a process group cannot be copied, and a copy of a selector talks to the same processes

    @property
    def device(self) -> torch.device:
        """Where tensors have to be to be sent."""
        return (
            torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self.group) == "nccl" else torch.device("cpu")
        )

    def all_gather_numbers(self, *numbers: int, error: Exception | None = None) -> Tensor:
        """What every rank tells, up to 5 numbers each: shape (W, 5), int64, on the CPU.

        Args:
            *numbers: what this one tells.
            error: why this one cannot go on.

        Raises:
            RuntimeError: another rank cannot go on; the message says why.
        """
        self._gathered += 1
        mine = torch.tensor([error is not None, *numbers], dtype=torch.int64)
        told = self.all_gather(pad(mine, (0, _NUMBERS + 1 - len(mine))), [_NUMBERS + 1] * self.size).view(self.size, -1)
        if bool(told[:, 0].any()):
            reasons = self.all_gather_objects(None if error is None else f"{type(error).__name__}: {error}")
            if error is None:
                failed = int(told[:, 0].nonzero()[0])
                raise RuntimeError(f"rank {failed} failed, and the others stop with it: {reasons[failed]}")
        return told[:, 1:]

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """A block whose errors are told to the other ranks, where they wait for this one in ``all_gather_numbers``."""
        gathered = self._gathered
        try:
            yield
        except Exception as error:
            if self._gathered == gathered:
                with suppress(RuntimeError):  # of a rank that failed as well, or is gone
                    self.all_gather_numbers(error=error)
            raise

    def all_gather(self, column: Tensor, sizes: list[int]) -> Tensor:
        """A vector of each rank's, of the given lengths and one dtype, in rank order, on the CPU."""
        sent = pad(column.to(self.device), (0, max(sizes) - len(column)))
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent, group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).cpu()

    def all_gather_objects(self, mine: Any) -> list[Any]:
        """An object of each rank's."""
        everyones: list[Any] = [None] * self.size
        dist.all_gather_object(everyones, mine, group=self.group)
        return everyones

    def all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Rows from every rank, in rank order.

        Args:
            rows: what goes to rank 0, then to rank 1 and so on.
            sent: how many rows go to each.
            received: how many come from each.
        """
        rows = rows.to(self.device).contiguous()
        received_rows = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(received_rows, rows, received, sent, group=self.group)
        return received_rows

    def all_to_all_objects(self, objects: list[Any]) -> list[Any]:
        """An object from every rank, for one to each."""
        packed = [torch.from_numpy(np.frombuffer(pickle.dumps(each), np.uint8).copy()) for each in objects]
        sent, one_each = [len(each) for each in packed], [1] * self.size
        received = self.all_to_all(torch.tensor(sent), one_each, one_each).tolist()
        parts = self.all_to_all(torch.cat(packed), sent, received).cpu().split(received)
        return [pickle.loads(part.numpy().tobytes()) for part in parts]


def rank_and_size() -> tuple[int, int]:
    """This process's rank and how many there are.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "distributed=True needs torch.distributed to be initialized; call init_process_group first, or leave it out"
        )
    return dist.get_rank(), dist.get_world_size()
