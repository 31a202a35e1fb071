"""A guest in the user's run: whatever a block does to a model's modes and buffers and to random state is put back."""

import hashlib
import random
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

Mode = Literal["eval", "train", "dropout"]


@contextmanager
def fork_rng(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Run a block, then put the CPU's and the device's default generators back as they were.

    Args:
        device: an accelerator whose generator may be used in the block.
        seed: start the block from this seed; None starts it from the state as it is. No other device's generator is touched.
    """
    cpu = torch.get_rng_state()
    module: Any = None if device is None or device.type == "cpu" else getattr(torch, device.type, None)
    where = () if device is None or device.type == "mps" else (device,)
    accelerator = module.get_rng_state(*where) if module else None
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if module:
                with module.device(device) if hasattr(module, "device") else torch.no_grad():
                    module.manual_seed(seed)
        yield
    finally:
        torch.set_rng_state(cpu)
        if module:
            module.set_rng_state(accelerator, *where)


def derived_seed(*parts: int | str) -> int:
    """A seed made of numbers and words: another for each combination, the same in every process.

    What is drawn from it has nothing to do with what the user draws from the bare numbers.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")


@contextmanager
def seeded(*parts: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block from a seed made of some numbers, for PyTorch, NumPy and Python alike, then put all generators back.

    Args:
        *parts: whole numbers; each combination is a seed of its own, the same in every process.
        device: an accelerator whose generator may be used in the block.
    """
    seed = derived_seed(*parts)
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        with fork_rng(device, seed):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


@contextmanager
def preserve_state(model: Any, device: torch.device | None, mode: Mode = "eval", seed: int | None = None) -> Iterator[None]:
    """Run a block under no_grad with a model in a mode, then give back modes, buffers and random state as they were.

    Args:
        model: a module or its method; of any other callable the modes cannot be set.
        device: the model's device.
        mode: ``"eval"``; ``"train"``: as the modules are; ``"dropout"``: all in train mode but those that keep running
            statistics.
        seed: seed of what the block draws; None goes on from the global state.

    Each module's own flag is set and put back, not ``model.train(...)``, which would thaw a frozen BatchNorm.
    """
    model = module_of(model)
    modules = list(model.modules()) if model is not None else []
    flags = [(module, module.training) for module in modules]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(fork_rng(device, seed))
        if mode != "eval":
            stack.enter_context(_same_buffers(modules))
        try:
            for module, was in flags:
                wanted = {"eval": False, "train": was, "dropout": not hasattr(module, "running_mean")}[mode]
                if was != wanted:
                    module.training = wanted
            yield
        finally:
            for module, was in flags:
                if module.training != was:
                    module.training = was


@contextmanager
def _same_buffers(modules: list[nn.Module]) -> Iterator[None]:
    saved = [(module, name, buffer, buffer.clone()) for module in modules for name, buffer in module.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for module, name, buffer, value in saved:
            buffer.data.copy_(value)  # .data: a backward pass may be waiting for this very buffer
            if getattr(module, name) is not buffer:
                setattr(module, name, buffer)


def module_of(model: Any) -> nn.Module | None:
    """A model if it is a module, the module of a bound method such as ``module.forward``, or None for another callable."""
    model = getattr(model, "__self__", model)
    return model if isinstance(model, nn.Module) else None


def undistributed(model: Any) -> Any:
    """A model without the ``DistributedDataParallel`` around it, whose every forward pass talks to the other ranks."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def device_of(model: Any) -> torch.device | None:
    """The device of a model's parameters or buffers, or None if it has none."""
    module = module_of(model)
    layers: Iterable[nn.Module] = () if module is None else module.modules()
    held = (each for layer in layers for each in (*layer._parameters.values(), *layer._buffers.values()) if each is not None)
    first = next(held, None)
    return None if first is None else first.device
