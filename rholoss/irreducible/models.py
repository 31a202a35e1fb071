"""The irreducible-loss models: one or several, and the digests that identify them."""

import functools
import hashlib
import os
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rholoss.arguments import iterable, model_of, path_of, shown
from rholoss.files import explained, open_regular, zip_checksums
from rholoss.irreducible.fit import Fit
from rholoss.isolation import device_of, module_of
from rholoss.losses import callable_name, closed_over
from rholoss.states import digest


class Checkpoints:
    """An ensemble: one model with the weights of several checkpoints in turn, such as those of one training run.

    The model gets its own weights back after the last one.

    Args:
        model: the model.
        states: state dicts, or paths of files that ``torch.save`` wrote.

    Raises:
        ValueError: when it is iterated, if a file is damaged, holds more than tensors and plain values, or has changed since it
            was read first.
    """

    def __init__(self, model: nn.Module, states: Sequence[Mapping[str, Any] | str | os.PathLike[str]]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, whose weights are replaced, got {shown(model)}")
        self.model = model
        self.states = list(iterable(states, "states", "several state dicts or paths, such as ['a.pt', 'b.pt']"))
        for state in self.states:
            if not isinstance(state, Mapping):
                path_of(state, "each of states")
        self._checksums: dict[str, dict[str, int]] = {}  # of each file, when it was read first

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[nn.Module]:
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            for state in self.states:
                self.model.load_state_dict(state if isinstance(state, Mapping) else self._read(os.fsdecode(state)))
                yield self.model
        finally:
            self.model.load_state_dict(own)

    def _read(self, path: str) -> Any:
        cure = "expected a state dict as torch.save writes it now; copy it again, or torch.save the one that torch.load returns"
        with explained(path, "a checkpoint", cure), open_regular(path) as file:
            checksums = zip_checksums(file)
            if self._checksums.setdefault(path, checksums) != checksums:
                raise ValueError("it has changed since its weights were used first; copy checkpoints that a run overwrites")
            return torch.load(file, map_location="cpu", weights_only=True)


def as_models(model: Any) -> Sequence[Any] | Checkpoints:
    """A list of models from one model, a ``Fit``, or several of them."""
    if isinstance(model, (Checkpoints, list, tuple, nn.ModuleList)):
        if not len(model):
            raise ValueError("model must be a model, or several, got none")
        each = model if isinstance(model, Checkpoints) else [one.model if isinstance(one, Fit) else one for one in model]
        return each if isinstance(each, Checkpoints) else [model_of(one, "each model") for one in each]
    model = model.model if isinstance(model, Fit) else model
    return [model_of(model, "model", "a model, a list of models, a Fit or Checkpoints")]


def describe(model: Any) -> dict[str, Any]:
    """A model as JSON values: its class, number of parameters and a digest of its layers and weights, or of its code."""
    module = module_of(model)
    if module is None:
        return {"class": callable_name(model), "parameters": None, "digest": code_digest(model)}
    device_of(module)  # refuses one without weights
    layers = [(name, type(layer).__name__) for name, layer in module.named_modules()]
    weights = hashlib.blake2b(repr(layers).encode(), digest_size=8)
    for name, value in module.state_dict().items():
        weights.update(name.encode())
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            weights.update(f"{value.dtype} {tuple(value.shape)}".encode())
            weights.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    count = sum(parameter.numel() for parameter in module.parameters())
    return {"class": type(module).__name__, "parameters": count, "digest": weights.hexdigest()}


def code_digest(function: Any) -> str:
    """A digest of a callable's code, defaults and closure; global variables that it uses are not included."""
    return digest(repr(_parts(function, 0)).encode())


def _parts(value: Any, depth: int) -> Any:
    """A value as nested tuples that are the same in every process."""
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        return value
    if isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        return (str(array.dtype), array.shape, digest(np.ascontiguousarray(array).tobytes()))
    if depth > 8:
        return type(value).__qualname__
    if isinstance(value, (tuple, list)):
        return tuple(_parts(part, depth + 1) for part in value)
    if isinstance(value, types.CodeType):
        return (value.co_code, value.co_names, _parts(value.co_consts, depth + 1))
    if isinstance(value, nn.Module):
        return tuple(describe(value).values())
    if isinstance(value, functools.partial):
        return tuple(_parts(part, depth + 1) for part in (value.func, value.args, sorted(value.keywords.items())))
    if isinstance(value, types.FunctionType):
        cells = list(closed_over(value).values())
        return tuple(_parts(part, depth + 1) for part in (value.__qualname__, value.__code__, value.__defaults__, cells))
    return getattr(value, "__qualname__", type(value).__qualname__)
