"""Communication between the processes of a training run."""

import json
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from rholoss.arguments import shown
from rholoss.isolation import derived_seed
from rholoss.states import Settings, different

_NUMBERS = 5  # that a rank may send at once


class Ranks:
    """The ranks of a process group, which must all call the same methods in the same order.

    Args:
        group: the process group; None for all processes.
        what: what needs them, for the error where ``torch.distributed`` is not initialized.
        instead: what to do without them, likewise.

    Attributes:
        rank: this process, from 0.
        size: the number of processes.
    """

    def __init__(
        self, group: Any = None, what: str = "a choice over all ranks", instead: str = "choose on each rank alone"
    ) -> None:
        _require_initialized(what, instead)
        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in the group; build the selector only on the ranks of the group")
        self._gathered = 0

    def __deepcopy__(self, memo: Any) -> "Ranks":
        return self  # a process group cannot be copied, and a copied selector talks to the same processes

    @property
    def device(self) -> torch.device:
        """The device that tensors must be on to be sent."""
        kinds = dist.Backend.backend_capability.get(dist.get_backend(self.group), ["cpu"])
        return torch.device("cpu") if "cpu" in kinds else torch.device(kinds[0], getattr(torch, kinds[0]).current_device())

    def all_gather_numbers(self, *numbers: int, error: Exception | None = None) -> Tensor:
        """Up to 5 numbers from every rank, (W, 5) int64, on the CPU; with ``error``, the others raise a RuntimeError with it."""
        self._gathered += 1
        mine = torch.tensor([error is not None, *numbers], dtype=torch.int64)
        sent = pad(mine, (0, _NUMBERS + 1 - len(mine)))
        received = self.all_gather(sent, [_NUMBERS + 1] * self.size).view(self.size, -1)
        if bool(received[:, 0].any()):
            reasons = self.all_gather_objects(None if error is None else f"{type(error).__name__}: {error}")
            if error is None:
                failed = int(received[:, 0].nonzero()[0])
                raise RuntimeError(f"rank {failed} failed, and the others stop with it: {reasons[failed]}")
        return received[:, 1:]

    def agree(self, settings: Settings, cure: str) -> None:
        """Raise the same ValueError on every rank if the settings, JSON values by name, differ between ranks; with the cure."""
        if len(self.all_gather_numbers(settings_number(settings))[:, 0].unique()) > 1:
            self.refuse_different(settings, cure)

    def refuse_different(self, settings: Settings, cure: str) -> None:
        """As ``agree``, where a rank's settings are known to differ."""
        first, *others = self.all_gather_objects(settings)
        rank, differ = next((rank, differ) for rank, its in enumerate(others, 1) if (differ := different(first, its)))
        place, (one, other) = next(iter(differ.items()))
        got = f"{one!r} on rank 0 and {other!r} on rank {rank}"
        raise ValueError(f"{place} must be the same on every rank, got {got}; {cure}")

    def share(self, n: int, do: Callable[[int], Any]) -> None:
        """Call a function with this rank's share of the numbers below n, in rounds; an error is raised on all in its round."""
        for first in range(0, n, self.size):
            with self.sharing_errors():
                if first + self.rank < n:
                    do(first + self.rank)
            self.all_gather_numbers()

    @contextmanager
    def sharing_errors(self) -> Iterator[None]:
        """A block whose errors are sent to the other ranks, which wait for this one in ``all_gather_numbers``."""
        gathered = self._gathered
        try:
            yield
        except Exception as error:
            if self._gathered == gathered:
                with suppress(RuntimeError):  # if another rank has failed as well, or is gone
                    self.all_gather_numbers(error=error)
            raise

    def all_gather(self, column: Tensor, sizes: list[int]) -> Tensor:
        """Gather a vector from each rank, of the given lengths and one dtype, in rank order, on the CPU."""
        sent = pad(column.to(self.device), (0, max(sizes) - len(column)))
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent, group=self.group)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)]).cpu()

    def all_reduce(self, tensor: Tensor, operation: str) -> Tensor:
        """The ``"SUM"`` or the ``"MIN"`` over all ranks of tensors of one shape, on the CPU."""
        total = tensor.detach().clone().to(self.device)
        dist.all_reduce(total, getattr(dist.ReduceOp, operation), group=self.group)
        return total.cpu()

    def all_gather_objects(self, mine: Any) -> list[Any]:
        """Gather an object from each rank."""
        everyones: list[Any] = [None] * self.size
        dist.all_gather_object(everyones, mine, group=self.group)
        return everyones

    def all_to_all(self, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        """Exchange rows: ``sent[r]`` of the rows go to rank r, ``received[r]`` rows come from it, all in rank order."""
        rows = rows.to(self.device).contiguous()
        received_rows = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(received_rows, rows, received, sent, group=self.group)
        return received_rows

    def all_to_all_objects(self, objects: list[Any]) -> list[Any]:
        """Send one object to each rank, and receive one from each."""
        packed = [torch.from_numpy(np.frombuffer(pickle.dumps(each), np.uint8).copy()) for each in objects]
        sent, one_each = [len(each) for each in packed], [1] * self.size
        received = self.all_to_all(torch.tensor(sent), one_each, one_each).tolist()
        parts = self.all_to_all(torch.cat(packed), sent, received).cpu().split(received)
        return [pickle.loads(part.numpy().tobytes()) for part in parts]


def settings_number(settings: Settings) -> int:
    """A number that identifies settings, in [0, 2^56)."""
    return derived_seed(json.dumps(settings, sort_keys=True))


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of processes; a RuntimeError if ``torch.distributed`` is not initialized."""
    _require_initialized("distributed=True", "leave it out")
    return dist.get_rank(), dist.get_world_size()


def group_of(group: Any) -> Any:
    """A process group, or None for all processes; a TypeError for anything else."""
    if group is None or isinstance(group, getattr(dist, "ProcessGroup", ())):
        return group
    raise TypeError(f"group must be a process group, or None for all processes, got {shown(group)}")


def is_initialized() -> bool:
    """Whether there are processes to communicate with."""
    return dist.is_available() and dist.is_initialized()


def _require_initialized(what: str, instead: str) -> None:
    if not is_initialized():
        raise RuntimeError(f"{what} needs torch.distributed to be initialized; call init_process_group first, or {instead}")
