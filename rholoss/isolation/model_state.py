"""What forward passes change in a model beyond its modes: put back where it can be, and reported where not."""

import random
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import is_lazy

from rholoss.batches import is_readable, version_of

_CONTAINERS = (list, tuple, dict, OrderedDict, defaultdict, deque)
_OF_ANY_MODULE = frozenset(vars(nn.Module()))  # modes and hooks, and where parameters, buffers and children are
_blocks: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()  # how many blocks each model was in
_moving: WeakSet[nn.Module] = WeakSet()  # modules with buffers that moved in one, and models that drew from NumPy or Python
_reported: WeakSet[nn.Module] = WeakSet()


@contextmanager
def same_state(model: nn.Module, modules: list[nn.Module], every_block: bool) -> Iterator[None]:
    """Run a block, then put back buffers, the weights of embeddings with ``max_norm``, and NumPy's and Python's random state.

    Few models change in eval mode: all is saved in the 1st, 2nd, 4th, 8th ... block, in the others only what ever changed, unless
    ``every_block``. Weights and plain attributes are only watched; a warning names those that changed.
    """
    count = _blocks[model] = _blocks.get(model, 0) + 1
    looks = count & (count - 1) == 0
    whole, moving = every_block or looks, _moving if len(_moving) else ()
    saved = [(module, _saved(module)) for module in modules if whole or _renormalizes(module) or module in moving]
    generators = (random.getstate(), np.random.get_state()) if whole or model in moving else None  # noqa: NPY002
    before = {module: _watched(module) for module in modules if module not in _reported} if looks else {}
    try:
        yield
    finally:
        _moving.update([module for module, put_back in saved if put_back()])
        if generators is not None and _put_back_generators(*generators):
            _moving.add(model)
    _report({module: _moved(then, _watched(module), count > 1) for module, then in before.items()})


def _saved(module: nn.Module) -> Callable[[], bool]:
    """A function that puts back a module's buffers, and returns whether they had changed."""
    held: list[dict[str, Any]] = [module._buffers, *([module._parameters] if _renormalizes(module) else [])]
    tensors: list[tuple[dict[str, Any], str, Tensor]]
    tensors = [(names, name, tensor) for names in held for name, tensor in names.items() if _is_made(tensor)]
    saved = [(names, name, tensor, version_of(tensor), tensor.detach().clone()) for names, name, tensor in tensors]

    def put_back() -> bool:
        changed = False
        for names, name, tensor, version, value in saved:
            is_new = names.get(name) is not tensor or version_of(tensor) != version
            changed |= is_new or (is_readable(tensor) and not torch.equal(tensor, value))  # batch_norm counts no version
            tensor.data.copy_(value)  # .data: a backward pass may be waiting for this very buffer
            names[name] = tensor
        return changed

    return put_back


def _is_made(tensor: Tensor | None) -> bool:
    """Whether a buffer is there, and not yet to be made by a lazy module's first forward pass."""
    return tensor is not None and not is_lazy(tensor)


def _renormalizes(module: nn.Module) -> bool:
    """Whether a module is an embedding that changes its weights in the forward pass."""
    return isinstance(module, (nn.Embedding, nn.EmbeddingBag)) and module.max_norm is not None


def _put_back_generators(python: Any, numpy: Any) -> bool:
    now: Any = np.random.get_state()  # noqa: NPY002
    changed = random.getstate() != python or now[2:] != numpy[2:] or not np.array_equal(now[1], numpy[1])
    if changed:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
    return changed


def _watched(module: nn.Module) -> dict[str, Any]:
    """The plain attributes and weights of a module as they are; none where they belong to a framework or are not made yet."""
    if type(module).__module__.startswith("torch.distributed") or isinstance(module, LazyModuleMixin):
        return {}
    weights = {} if _renormalizes(module) else {k: p for k, p in module._parameters.items() if type(p) is nn.Parameter}
    computed = {name.removesuffix("_orig") for name in weights if name.endswith("_orig")}  # by the hooks of torch.nn.utils
    computed |= {name.removesuffix("_v") for name in weights if name.endswith("_v") and f"{name[:-1]}g" in weights}
    plain = {name: value for name, value in vars(module).items() if name not in _OF_ANY_MODULE | computed}
    return {name: _as_it_is(value) for name, value in (plain | weights).items()}


class _Was(NamedTuple):
    tensor: Tensor
    version: int


def _as_it_is(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Was(value, version_of(value))
    if type(value) in _CONTAINERS:
        return [_as_it_is(part) for part in (value.values() if isinstance(value, dict) else value)]
    return value


def _moved(old: dict[str, Any], new: dict[str, Any], again: bool) -> list[str]:
    """The names of what changed; what was None, a flag or not there may have been made once, unless it changes ``again``."""
    names = [name for name in old.keys() | new.keys() if not _is_same(old.get(name), new.get(name))]
    return sorted(name for name in names if again or not (old.get(name) is None or isinstance(old[name], bool)))


def _is_same(old: Any, new: Any) -> bool:
    if isinstance(old, list) and isinstance(new, list):
        return len(old) == len(new) and all(map(_is_same, old, new))
    if isinstance(old, _Was) and isinstance(new, _Was):
        (a, version), (b, now) = old, new
        if a is b:
            return bool(version == now)
        alike = (a.shape, a.dtype, a.device, a.layout) == (b.shape, b.dtype, b.device, b.layout)
        return alike and torch.equal(a, b)  # such as the weight that the older torch.nn.utils.weight_norm computes
    return old is new or (isinstance(old, (int, float, str)) and type(old) is type(new) and old == new)


def _report(moved: dict[nn.Module, list[str]]) -> None:
    found = {module: names for module, names in moved.items() if names}
    if not found:
        return
    _reported.update(found)
    names = ", ".join(f"{type(module).__name__}.{name}" for module, names in list(found.items())[:3] for name in names[:3])
    what = f"a forward pass that only scored changed {names}, and training starts from there"
    cure = "keep such state in buffers (register_buffer), which are put back, or put it back in forward="
    warnings.warn(f"{what}; {cure}; for a counter or a cache that training does not read, ignore this warning", stacklevel=2)
