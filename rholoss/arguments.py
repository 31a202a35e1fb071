"""What an argument may be: one check for each kind, with one form of message: ``name must be X, got Y; do Z``.

Whatever is public calls these before it does any work. They return the value as Python's own type: NumPy's numbers and tensors of
no dimension are accepted where numbers are, ``True`` and ``False`` are not.
"""

import difflib
import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Value = TypeVar("Value")

FRACTION = "a fraction in (0, 1]"
LARGEST = 2**63 - 1


def shown(value: Any) -> str:
    """A value on one short line, for a message."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__} of shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:80]}..."


def whole(value: Any, name: str, what: str = "a whole number, at least 1", least: int = 1, most: int = LARGEST) -> int:
    """A whole number from ``least`` to ``most``; a ValueError says ``what`` it must be."""
    number: Any = item(value)
    if isinstance(number, bool) or not isinstance(number, Integral) or not least <= int(number) <= most:
        raise ValueError(f"{name} must be {what}, got {shown(value)}")
    return int(number)


def number(value: Any, name: str, what: str, fits: Callable[[float], bool] = math.isfinite) -> float:
    """A real number that ``fits``, never NaN; a ValueError says ``what`` it must be."""
    real = item(value)
    if not isinstance(real, bool) and isinstance(real, Real):
        try:
            real = float(real)
        except OverflowError:
            real = math.inf
        if real == real and fits(real):
            return real
    raise ValueError(f"{name} must be {what}, got {shown(value)}")


def fraction(value: Any, name: str, what: str = FRACTION) -> float:
    """A number in (0, 1]."""
    return number(value, name, what, lambda share: 0 < share <= 1)


def optional(check: Callable[..., Value], value: Any, name: str, *how: Any, **more: Any) -> Value | None:
    """None, or what another check returns."""
    return None if value is None else check(value, name, *how, **more)


def seed_of(value: Any, name: str = "seed") -> int:
    """A seed: a whole number, as torch takes it."""
    return whole(value, name, "a whole number, such as 0, of at most 64 bits", -(2**63), 2**64 - 1)


def flag(value: Any, name: str) -> bool:
    """True or False, and nothing that merely counts as one of them."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {shown(value)}")
    return bool(value)


def one_of(value: Any, name: str, choices: Iterable[str], cure: str = "") -> str:
    """One of some words."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {shown(value)}{cure and f'; {cure}'}")
    return value


def function(value: Any, name: str, form: str) -> Any:
    """A callable of the form ``(model, batch) -> (outputs, targets)``; its number of arguments is checked where it is known."""
    if not callable(value):
        raise TypeError(f"{name} must be a function {form}, got {shown(value)}")
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):  # written in C, for example
        return value
    try:
        inside = form[1 : form.index(")")]
        signature.bind(*inside.split(",") if inside else ())
    except TypeError as error:
        called = getattr(value, "__qualname__", type(value).__name__)
        raise TypeError(f"{name} must be a function {form}, got {called}{signature}: {error}") from None
    return value


def device_named(value: Any, name: str = "device") -> torch.device:
    """A device that is there, from itself or its name."""
    what = f"{name} must be a device or its name, such as 'cpu' or 'cuda:0', got {shown(value)}"
    if not isinstance(value, (str, torch.device)):
        raise TypeError(what)
    try:
        device = torch.device(value)
        if device.type != "cpu":
            torch.empty(0, device=device)
    except Exception as error:  # each kind of device fails in its own way
        raise ValueError(f"{what}, which is not available: {str(error).splitlines()[0]}") from None
    return device


def path_of(value: Any, name: str = "path") -> str:
    """A path as a string; a number, which would be an open file, is none."""
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise TypeError(f"{name} must be a path, such as 'il.npz', got {shown(value)}")
    path = os.fsdecode(value)
    if not path or "\0" in path:
        raise ValueError(f"{name} must be a path, such as 'il.npz', got {shown(value)}")
    return path


def file_of(value: Any, name: str = "path") -> str:
    """A path to write a file to, which no folder has."""
    path = path_of(value, name)
    if os.path.isdir(path):
        raise ValueError(f"{name} must be a file to write, got the folder {path}; name a file in it")
    return path


MAP_STYLE = "a map-style dataset, with __getitem__ and __len__"


def map_style(value: Any, name: str, least: int = 0, what: str = MAP_STYLE) -> Any:
    """A dataset that is read by index, of at least so many examples."""
    try:
        n = len(value) if hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping)) else -1
    except (TypeError, NotImplementedError):
        n = -1
    if n < 0:
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    if n < least:
        raise ValueError(f"{name} must have at least {least} example, got an empty {type(value).__name__}")
    return value


def iterable(value: Any, name: str, what: str) -> Any:
    """Several values, of which a string is none."""
    if isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) == 0 or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


def mapping(value: Any, name: str, what: str) -> Any:
    """Values by name."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


def model_of(value: Any, name: str = "model", what: str = "a model that can be called, such as a torch.nn.Module") -> Any:
    """Any callable."""
    if not callable(value):
        raise TypeError(f"{name} must be {what}, got {shown(value)}")
    return value


_MEANT = {  # words that other libraries use
    "keep": ("ratio", "fraction", "share", "percent", "keep_ratio"),
    "batch_size": ("bs", "n_b", "size"),
    "optimizer": ("lr", "learning_rate", "weight_decay", "optim"),
    "steps": ("epochs", "n_steps", "max_steps", "total_steps", "iterations"),
    "loss": ("criterion", "loss_fn", "loss_func"),
    "forward": ("forward_fn",),
    "dtype": ("precision", "amp_dtype"),
    "seed": ("generator", "random_state"),
    "trusted": ("trusted_set", "trusted_data", "clean", "holdout"),
}


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Raise a TypeError that suggests the right name if one of the given options of ``owner`` is not a known one."""
    known = list(known)
    for name in given:
        if name not in known:
            close = [option for option, words in _MEANT.items() if name in words and option in known]
            close = close or difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}=? " if close else ""
            raise TypeError(f"{owner} got an unexpected option {name}=; {hint}The options are {', '.join(known)}")


def options_of(build: Callable[..., Any]) -> list[str]:
    """The names of the options that a function or class takes by keyword."""
    kinds = (inspect.Parameter.KEYWORD_ONLY,)
    return [name for name, parameter in inspect.signature(build).parameters.items() if parameter.kind in kinds]


def item(value: Any) -> Any:
    """A Python number from NumPy's numbers and from arrays and tensors of no dimension; anything else as it is."""
    return value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) and value.ndim == 0 else value
