"""Random states, of PyTorch, NumPy, Python and of what an object holds: set for a block, and put back."""

import hashlib
import random
import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def fork_rng(device: torch.device | None = None, seed: int | None = None) -> Iterator[None]:
    """Run a block, then restore the default generators of the CPU and of the device, an accelerator that the block may use.

    The block starts from ``seed``, or from the current state if None. No other device's generator is touched.
    """
    states = torch_states(device)
    module, _ = _generators_of(device)
    try:
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if module:
                with module.device(device) if hasattr(module, "device") else torch.no_grad():
                    module.manual_seed(seed)
        yield
    finally:
        set_torch_states(states, device)


def torch_states(device: torch.device | None) -> list[torch.Tensor]:
    """The states of the default generators of the CPU and, if it is an accelerator, of a device."""
    module, where = _generators_of(device)
    return [torch.get_rng_state(), *([module.get_rng_state(*where)] if module else [])]


def set_torch_states(states: list[torch.Tensor], device: torch.device | None) -> None:
    """Set what ``torch_states`` returned for a device of this kind; another kind of device keeps its own."""
    module, where = _generators_of(device)
    torch.set_rng_state(states[0])
    if module and len(states) > 1:
        module.set_rng_state(states[1], *where)


def _generators_of(device: torch.device | None) -> tuple[Any, tuple[torch.device, ...]]:
    """PyTorch's module of an accelerator's generator, None where there is none, and the arguments that name the device."""
    module = None if device is None or device.type == "cpu" else getattr(torch, device.type, None)
    return module if hasattr(module, "get_rng_state") else None, () if device is None or device.type == "mps" else (device,)


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
