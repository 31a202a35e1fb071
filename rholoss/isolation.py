"""No side effects: a model's modes and buffers, and random states, are restored after a block; other changes are reported."""

import hashlib
import os
import random
import types
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rholoss.model_state import same_state

Mode = Literal["eval", "train", "dropout"]


@contextmanager
def fork_rng(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Run a block, then restore the default generators of the CPU and of the device, an accelerator that the block may use.

    The block starts from ``seed``, or from the current state if None. No other device's generator is touched.
    """
    cpu = torch.get_rng_state()
    module: Any = None if device is None or device.type == "cpu" else getattr(torch, device.type, None)
    module = module if hasattr(module, "get_rng_state") else None
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
    """A seed from numbers and words: different for each combination, the same in every process, unrelated to the numbers."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "little")


@contextmanager
def seeded(*parts: int, device: torch.device | None = None) -> Iterator[None]:
    """Run a block with PyTorch, NumPy and Python seeded by ``derived_seed``, then restore all generators."""
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
def own_generators_kept(holder: Any) -> Iterator[None]:
    """Run a block, then restore the random generators that an object holds: in its attributes, and in what these hold."""
    held = [(generator, _state_of(generator)) for generator in _generators(holder, 4, set())]
    try:
        yield
    finally:
        for generator, state in held:
            if isinstance(generator, random.Random):
                generator.setstate(state)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            else:
                generator.set_state(state)


def _state_of(generator: Any) -> Any:
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _generators(value: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    """The generators among an object's attributes and items, to some depth; long lists are taken for data."""
    if id(value) in seen or isinstance(value, (type, types.ModuleType, torch.Tensor, np.ndarray)):
        return
    seen.add(id(value))
    if isinstance(value, (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)):
        yield value
        return
    inside = value if isinstance(value, (dict, list, tuple)) else getattr(value, "__dict__", {})
    if depth and len(inside) <= 64:
        for each in list(inside.values()) if isinstance(inside, dict) else inside:
            yield from _generators(each, depth - 1, seen)


_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of models, and of the wrappers around them
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)  # a thread that the child does not have may hold one


def _lock_of(model: nn.Module) -> Any:
    lock = _locks.get(model)
    if lock is None:
        lock = _locks[model] = _locks.setdefault(unwrapped(model), RLock())
    return lock


@contextmanager
def preserve_state(model: Any, device: torch.device | None, mode: Mode = "eval", seed: int | None = None) -> Iterator[None]:
    """Run a block under no_grad with a model in a mode, then restore modes, buffers and random states, see ``same_state``.

    Each module's own flag is set and restored, as ``model.train(...)`` would unfreeze a frozen BatchNorm. ``"train"`` keeps the
    modules' current modes; ``"dropout"`` is train mode, except for modules with running statistics. Threads that score one model
    take turns.
    """
    model = module_of(model)
    with ExitStack() as stack:
        if model is not None:
            stack.enter_context(_lock_of(model))
        modules = list(model.modules()) if model is not None else []
        flags = [(module, module.training) for module in modules]
        stack.enter_context(torch.no_grad())
        stack.enter_context(fork_rng(device, seed))
        if model is not None:
            stack.enter_context(same_state(model, modules, every_block=mode != "eval"))
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
