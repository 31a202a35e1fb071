"""Ways to score for less: forward passes on smaller inputs, or through a part of the network only.

What these return is handed over as ``forward=``, to the selector and, for the same view of the data, to whatever makes the
store. The loop goes on training on whole inputs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rholoss.batches import each_tensor
from rholoss.isolation import device_of, preserve_state
from rholoss.scoring import Forward, default_forward


def lower_resolution(scale: float, forward: Forward | None = None) -> Forward:
    """Score images at a lower resolution: a quarter of the work at ``scale=0.5``. The network must take images of any size.

    Args:
        scale: of height and width, in (0, 1].
        forward: what the smaller batch is handed to; None for the default.

    Raises:
        ValueError: ``scale`` is out of its range.
    """
    if not 0 < scale <= 1:
        raise ValueError(f"scale must be the share of height and width to keep, in (0, 1], got {scale!r}")

    def smaller(tensor: Tensor) -> Tensor:
        is_image = tensor.ndim == 4 and tensor.is_floating_point()
        return F.interpolate(tensor, scale_factor=scale, mode="area") if is_image else tensor

    return on_changed(smaller, forward)


def shorter(length: int, forward: Forward | None = None) -> Forward:
    """Score sequences by their first tokens only: integer and boolean tensors (n, T, ...) are cut to T = ``length``.

    Args:
        length: tokens to keep, at least 1.
        forward: what the shorter batch is handed to; None for the default.

    Raises:
        ValueError: ``length`` is below 1.
    """
    if length < 1:
        raise ValueError(f"length must be a number of tokens, at least 1, got {length!r}")

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:, :length] if tensor.ndim >= 2 and not tensor.is_floating_point() else tensor

    return on_changed(cut, forward)


def channels_last(forward: Forward | None = None) -> Forward:
    """Score images in channels-last memory order, which convolutions are often faster in; no value changes.

    The weights take part in it once they are in that order too: ``model.to(memory_format=torch.channels_last)``.

    Args:
        forward: what the batch is handed to; None for the default.
    """

    def order(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return on_changed(order, forward)


def on_changed(change: Callable[[Tensor], Tensor], forward: Forward | None = None) -> Forward:
    """A forward pass on a batch whose tensors are changed first.

    Args:
        change: called with each tensor.
        forward: what the changed batch is handed to; None for the default.
    """
    then = forward or default_forward

    def changed(model: Any, batch: Any) -> tuple[Any, Any]:
        return then(model, each_tensor(batch, change))

    return changed


def compiled(forward: Forward | None = None, **options: Any) -> Forward:
    """The forward pass through ``torch.compile``, for one shape: give the selector a ``chunk_size``, so that all chunks have it.

    Compiling takes half a minute, once for each mode, and needs a C++ compiler on a CPU. The result differs in the last bits. A
    forward pass that is used for several models, or for training too, is compiled for each: give them one of their own.

    Args:
        forward: what to compile; None for the default.
        **options: of ``torch.compile``, such as ``mode="reduce-overhead"`` for CUDA graphs.
    """
    fast: Forward = torch.compile(forward or default_forward, **{"dynamic": False, **options})
    return fast


class ShallowExit(nn.Module):
    """A proxy that is the first layers of the network itself, and a small head on them: pass it as ``proxy=``.

    Only the head is trained along; the layers are the network's own and learn with it.

    Args:
        trunk: layers of the model in training.
        head: from what they give to the outputs.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
        >>> proxy = ShallowExit(model[:2], torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.AdamW(proxy.head.parameters())
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with preserve_state(self.trunk, device_of(self.trunk)):  # in eval mode: its running statistics are the loop's
            features = self.trunk(*inputs, **named)
        return self.head(features)
