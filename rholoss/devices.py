"""Accelerators of any kind: copies, events and errors that the host does not wait for."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device. The host waits for a copy to the CPU only, which is not complete before."""
    return tensor.to(device, non_blocking=device.type != "cpu")


def recorded(device: torch.device, timing: bool = False) -> Any:
    """An event at the present end of the device's queue; None for the CPU and for a device without events."""
    if device.type == "cpu":
        return None
    try:
        if hasattr(torch, "accelerator"):
            event, stream = torch.Event(device, enable_timing=timing), torch.accelerator.current_stream(device)
        else:  # PyTorch before 2.6
            module: Any = getattr(torch, device.type)
            event, stream = module.Event(enable_timing=timing), module.current_stream(device)
        event.record(stream)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return None
    return event


class LateErrors:
    """Errors that depend on values on a device. On the CPU they are raised at once.

    On an accelerator they are raised when the value, copied asynchronously, has arrived at the host, usually one step later.
    """

    def __init__(self) -> None:
        self._pending: deque[tuple[Any, Tensor, Tensor, Callable[[], Exception]]] = deque()

    def raise_if(self, failed: Tensor, explain: Callable[[], Exception]) -> None:
        """Raise ``explain()``, now or later, if a scalar bool is true; and now for those before it that have arrived."""
        self.raise_arrived()
        on_host = failed.to("cpu", non_blocking=True)
        arrived = recorded(failed.device)
        if arrived is not None:
            self._pending.append((arrived, on_host, failed, explain))
        elif bool(failed):
            raise explain()

    def raise_arrived(self) -> None:
        """Raise the first error that has arrived."""
        while self._pending and self._pending[0][0].query():
            _, on_host, _, explain = self._pending.popleft()
            if bool(on_host):
                raise explain()

    def wait(self) -> None:
        """Wait for all, and raise the first error; for the end of an epoch."""
        while self._pending:
            arrived, on_host, failed, explain = self._pending.popleft()
            if bool(on_host if arrived.query() else failed):
                raise explain()

    def __getstate__(self) -> dict[str, Any]:
        return {"_pending": deque()}
