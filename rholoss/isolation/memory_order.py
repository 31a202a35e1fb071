"""The memory order of a network's weights while it is scored."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rholoss.isolation.unwrapping import module_of

_MOST = 2**22  # numbers in the weights, which are copied before each scoring pass


@contextmanager
def channels_last_weights(model: Any) -> Iterator[None]:
    """The float32 weights of two-dimensional convolutions in channels-last order, in which a CPU computes small networks faster.

    The parameters are the same objects, and have their own memory back at the end. Nothing changes for more than 4 million
    weights, as their copies would take longer, for weights in that order already, and for compiled networks, which would be
    compiled again.
    """
    weights = _weights(module_of(model))
    own = [weight.data for weight in weights]
    try:
        for weight in weights:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for weight, values in zip(weights, own, strict=True):
            weight.data = values


def _weights(network: nn.Module | None) -> list[Tensor]:
    """The distinct weights to convert; none if they are too many, or if a part of the network is compiled."""
    found: dict[int, Tensor] = {}
    for module in network.modules() if network is not None else ():
        is_compiled = "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        if is_compiled or isinstance(module, torch.jit.ScriptModule):
            return []
        weight = module._parameters.get("weight")
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and type(weight) is nn.Parameter and _is_usual(weight):
            found[id(weight)] = weight
    return list(found.values()) if sum(weight.numel() for weight in found.values()) <= _MOST else []


def _is_usual(weight: Tensor) -> bool:
    return weight.dtype is torch.float32 and not weight.is_inference()
