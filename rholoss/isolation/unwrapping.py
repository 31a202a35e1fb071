"""The user's own model: behind wrappers, adapters, partials and bound methods; and the device it is on."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel


def module_of(model: Any) -> nn.Module | None:
    """The model if it is a module, the module of a bound method such as ``module.forward`` or of a partial, else None."""
    while isinstance(model, partial):
        model = model.func
    model = getattr(model, "__self__", model)
    return model if isinstance(model, nn.Module) else None


def undistributed(model: Any) -> Any:
    """A model without ``DistributedDataParallel`` around it, whose forward pass synchronizes with the other ranks."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def unwrapped(model: Any) -> Any:
    """The user's own model inside ``DataParallel``, DDP, FSDP, ``torch.compile``, adapters such as PEFT's, and partials."""
    while True:
        found = module_of(model)
        model = model if found is None else found
        inside = getattr(model, "_orig_mod", None)  # of a compiled module
        if inside is None and type(model).__name__ in ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"):
            inside = model.module
        if inside is None and callable(getattr(model, "get_base_model", None)):
            inside = model.get_base_model()
        if inside is None or inside is model:
            return model
        model = inside


def device_of(model: Any) -> torch.device | None:
    """The device of a model's parameters or buffers, or None without any; a ValueError if all are on the meta device."""
    module = module_of(model)
    layers: Iterable[nn.Module] = () if module is None else module.modules()
    held = (each for layer in layers for each in (*layer._parameters.values(), *layer._buffers.values()) if each is not None)
    last = None
    for last in held:
        if not last.is_meta:
            return last.device
    if last is not None:
        cure = "load them, or move it with model.to_empty(device=...) and initialize it, before it is used"
        raise ValueError(f"{type(module).__name__} is on the meta device, where it has no weights; {cure}")
    return None
