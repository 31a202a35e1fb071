"""Cheaper forward passes for scoring: on smaller inputs, or through a part of the network.

Pass them as ``forward=`` to the selector and, for the same view of the data, to what makes the store. Training inputs stay whole.
Each one calls its own argument ``forward``, or ``default_forward`` if that is None, with the changed batch.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rholoss.arguments import fraction, function, shown, whole
from rholoss.batches import each_tensor
from rholoss.isolation import device_of, preserve_state
from rholoss.scoring import Forward, default_forward


def lower_resolution(scale: float, forward: Forward | None = None) -> Forward:
    """Score images of any size at ``scale`` times their height and width, in (0, 1]; 0.5 takes a quarter of the work."""
    scale = fraction(scale, "scale", "the fraction of height and width to keep, in (0, 1]")

    def smaller(tensor: Tensor) -> Tensor:
        is_image = tensor.ndim == 4 and tensor.is_floating_point()
        return F.interpolate(tensor, scale_factor=scale, mode="area") if is_image else tensor

    return on_changed(smaller, forward)


def shorter(length: int, forward: Forward | None = None) -> Forward:
    """Score sequences by their first tokens: integer and boolean tensors (n, T, ...) are cut to T = ``length``, at least 1."""
    length = whole(length, "length", "a number of tokens, at least 1")

    def cut(tensor: Tensor) -> Tensor:
        return tensor[:, :length] if tensor.ndim >= 2 and not tensor.is_floating_point() else tensor

    return on_changed(cut, forward)


def channels_last(forward: Forward | None = None) -> Forward:
    """Score images in channels-last memory order, which is often faster for convolutions; no value changes.

    Convert the weights too: ``model.to(memory_format=torch.channels_last)``.
    """

    def order(tensor: Tensor) -> Tensor:
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

    return on_changed(order, forward)


def on_changed(change: Callable[[Tensor], Tensor], forward: Forward | None = None) -> Forward:
    """A forward pass on a changed batch: ``change`` is called with each tensor, then ``forward`` (None: the default)."""
    function(change, "change", "(tensor) -> tensor")
    then = _given(forward)
    return lambda model, batch: then(model, each_tensor(batch, change))


def compiled(forward: Forward | None = None, **options: Any) -> Forward:
    """The forward pass through ``torch.compile``, for one shape: give the selector a ``chunk_size``, so that all chunks have it.

    Compiling takes about half a minute for each mode, and a C++ compiler on a CPU. The last bits of the result differ. Make one
    for each model. The options are those of ``torch.compile``, such as ``mode="reduce-overhead"`` for CUDA graphs.
    """
    fast: Forward = torch.compile(_given(forward), **{"dynamic": False, **options})
    return fast


def _given(forward: Forward | None) -> Forward:
    return default_forward if forward is None else function(forward, "forward", "(model, batch) -> (outputs, targets)")


class ShallowExit(nn.Module):
    """A proxy made of the first layers of the model in training and a small head: pass it as ``proxy=``.

    Only the head is co-trained; the layers train with the model.

    Args:
        trunk: layers of the model in training.
        head: maps their features to outputs.

    Examples:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Linear(8, 3))
        >>> proxy = ShallowExit(model[:2], torch.nn.Linear(8, 3))
        >>> optimizer = torch.optim.AdamW(proxy.head.parameters())
    """

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        for name, part in (("trunk", trunk), ("head", head)):
            if not isinstance(part, nn.Module):
                raise TypeError(f"{name} must be a torch.nn.Module, got {shown(part)}")
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, *inputs: Any, **named: Any) -> Any:
        with preserve_state(self.trunk, device_of(self.trunk)):  # eval mode keeps its running statistics
            features = self.trunk(*inputs, **named)
        return self.head(features)
