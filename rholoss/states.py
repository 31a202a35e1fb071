"""What made a state or a rank's share, as settings that can be compared; and states that load whole or not at all."""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Self

from rholoss.isolation import unwrapped
from rholoss.losses import callable_name

Settings = dict[str, Any]
"""JSON values by name."""

OF_THE_POSITION = ("n_b", "n_B", "redraws", "drop_last", "loader", "data")
"""Settings without which a position in an epoch means nothing."""

_CANNOT = "this state cannot be loaded"
_PLAIN = (bool, int, float, str, type(None))


def described(value: Any) -> Any:
    """A value as JSON: numbers and words as they are, arrays as a digest, code by its name, other objects as their class."""
    if isinstance(value, (np.generic, *_PLAIN)):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} {tensor_digest(value)}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}" + ("" if value.dtype.hasobject else f" {digest(np.ascontiguousarray(value))}")
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, nn.Module):
        value = unwrapped(value)
        return callable_name(value) if next(value.parameters(), None) is None else type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [described(part) for part in value]
        return parts if len(parts) <= 8 else f"{len(parts):,} items {digest(repr(parts))}"
    if isinstance(value, functools.partial):
        return [described(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, types.FunctionType):
        return callable_name(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {each.name: described(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {"class": type(value).__qualname__, **own}
    return getattr(value, "__qualname__", type(value).__qualname__)


def tensor_digest(tensor: Tensor) -> str:
    """16 hexadecimal digits that identify the content of a tensor."""
    return digest(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())


def digest(content: Any) -> str:
    """16 hexadecimal digits that identify bytes, an array or a text."""
    return hashlib.blake2b(content.encode() if isinstance(content, str) else content, digest_size=8).hexdigest()


def arguments(cls: type, args: Iterable[Any], options: Mapping[str, Any], besides: Collection[str]) -> Settings:
    """The arguments of a constructor, and the defaults of those of its base classes, described."""
    own = _named_parameters(cls)
    given = {**dict(zip(own, args, strict=False)), **options}
    known = {name: default for base in reversed(cls.__mro__) for name, default in _named_parameters(base).items()}
    return {name: described(given.get(name, known[name])) for name in sorted({**known, **own}) if name not in besides}


class RecordsOptions:
    """Base class that describes the arguments of a constructor as an object is made, whatever the constructor keeps of them."""

    own_options: Settings
    not_recorded: ClassVar[Collection[str]] = ()
    __signature__: ClassVar[inspect.Signature]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        whole = inspect.signature(cls.__init__)
        cls.__signature__ = whole.replace(parameters=list(whole.parameters.values())[1:])  # ``__new__`` would hide it

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Describe the arguments."""
        self = super().__new__(cls)
        self.own_options = arguments(cls, args, options, besides=cls.not_recorded)
        return self


@functools.cache
def _named_parameters(cls: type) -> dict[str, Any]:
    """The named parameters of a class's own constructor, with their defaults."""
    if cls.__init__ is object.__init__:  # type: ignore[misc]
        return {}
    _, *parameters = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
    return {each.name: each.default for each in parameters if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)}


def flat(value: Any, place: str = "") -> dict[str, Any]:
    """Nested mappings and lists as one mapping, by places such as ``models[0].digest``."""
    if isinstance(value, Mapping):
        parts = [(f"{place}.{key}" if place else str(key), part) for key, part in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{place}[{i}]", part) for i, part in enumerate(value)]
    else:
        return {place: value}
    return {inner: leaf for its, part in parts for inner, leaf in flat(part, its).items()} or {place: value}


def shared(settings: Settings, besides: Collection[str] = ()) -> Settings:
    """Settings for ranks to compare, by place: without some, and what code closes over, which may be a rank or a device."""
    kept = {place: value for place, value in flat(settings).items() if name_of(place) not in besides}
    return {place: value.split(" with ")[0] if isinstance(value, str) else value for place, value in kept.items()}


def different(mine: Settings, its: Settings) -> dict[str, tuple[Any, Any]]:
    """The two values of each place in which settings differ; "nothing" where one has no such place."""
    one, other = flat(mine), flat(its)
    pairs = {place: (one.get(place, "nothing"), other.get(place, "nothing")) for place in {**one, **other}}
    return {place: pair for place, pair in pairs.items() if pair[0] != pair[1]}


def name_of(place: str) -> str:
    """The setting that a place belongs to: ``n_b`` for ``parts[0].n_b``, ``loader`` for ``loader[1].class``."""
    return next(name for part in place.split(".") if (name := part.split("[")[0]) != "parts")


def check_settings(mine: Settings, its: Settings, allow: Collection[str] = ()) -> set[str]:
    """Refuse a state with other settings, except those whose names are in ``allow``; returns the names that differ."""
    allow, known = {allow} if isinstance(allow, str) else set(allow), {*map(name_of, flat(mine)), "data"}
    if unknown := allow - known:
        raise ValueError(f"allow must name settings that may differ, from {sorted(known)}, got {sorted(unknown)}")
    differ = different(mine, its)
    for place, (expected, got) in differ.items():
        if (name := name_of(place)) not in allow:
            cure = f"build the selector as it was, or pass allow=[{name!r}] to load the state all the same"
            lost = ", from the next epoch on" if name in OF_THE_POSITION else ""
            raise ValueError(f"{_CANNOT}: expected {place} = {expected!r}, got {got!r}; {cure}{lost}")
    return set(map(name_of, differ))


def taken(state: Any, name: Any, *kinds: Any, least: int | None = None) -> Any:
    """An entry of a state, checked, such as a tensor of as many examples as the dataset has.

    Args:
        state: the mapping.
        name: the entry.
        *kinds: what it may be: None, a type, a tensor (one of its dtype and shape), or a mapping (one with its keys).
        least: the lowest number that it may be.

    Raises:
        ValueError: it is missing, or something else.
    """
    if not isinstance(state, Mapping) or name not in state:
        got = f"the entries {sorted(map(str, state))}" if isinstance(state, Mapping) else f"{type(state).__name__}"
        raise ValueError(f"{_CANNOT}: expected an entry {name!r}, got {got}; pass what state_dict() returned")
    value = state[name]
    low = least is not None and isinstance(value, (int, float)) and value < least
    if low or not any(_is_of(value, kind) for kind in kinds):
        words = " or ".join(_in_words(kind) for kind in kinds) + (f", at least {least}" if least is not None else "")
        got = _in_words(value if isinstance(value, (Tensor, Mapping)) else type(value)) + (f" {value}" if low else "")
        raise ValueError(f"{_CANNOT}: expected {name} to be {words}, got {got}; pass what state_dict() returned")
    return value


def _is_of(value: Any, kind: Any) -> bool:
    if isinstance(kind, Tensor):
        return isinstance(value, Tensor) and value.dtype == kind.dtype and value.shape == kind.shape
    if isinstance(kind, Mapping):
        return isinstance(value, Mapping) and set(value) == set(kind)
    if kind is None or kind is bool:
        return value is None if kind is None else isinstance(value, bool)
    return isinstance(value, kind) and not isinstance(value, bool)


def _in_words(kind: Any) -> str:
    if isinstance(kind, Tensor):
        return f"a tensor of {kind.dtype} and shape {tuple(kind.shape)}"
    return f"a mapping of {sorted(map(str, kind))}" if isinstance(kind, Mapping) else getattr(kind, "__name__", str(kind))


@contextmanager
def restoring(restore: Callable[[], Any] = lambda: None) -> Iterator[None]:
    """A block that loads or checks a state: if it fails, what was before is restored, and the error is a ValueError."""
    try:
        yield
    except Exception as error:
        with suppress(Exception):  # of a method that cannot load its own state
            restore()
        if isinstance(error, ValueError):
            raise
        raise ValueError(f"{_CANNOT} ({type(error).__name__}: {error}); pass what state_dict() returned") from error
