"""The irreducible-loss models: one or several, and what they are known by."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rholoss.fitting import Fit
from rholoss.guest import module_of


class Checkpoints:
    """One model with the weights of several checkpoints in turn, such as those along one training run: an ensemble.

    The model has its own weights back when all have been seen.

    Args:
        model: the model.
        states: state dicts, or paths of files that ``torch.save`` wrote them to.
    """

    def __init__(self, model: nn.Module, states: Sequence[Mapping[str, Any] | str | os.PathLike[str]]) -> None:
        self.model = model
        self.states = list(states)

    def __len__(self) -> int:
        return len(self.states)

    def __iter__(self) -> Iterator[nn.Module]:
        own = {name: value.clone() for name, value in self.model.state_dict().items()}
        try:
            for state in self.states:
                weights = state if isinstance(state, Mapping) else torch.load(state, map_location="cpu", weights_only=True)
                self.model.load_state_dict(weights)
                yield self.model
        finally:
            self.model.load_state_dict(own)


def as_models(model: Any) -> Sequence[Any] | Checkpoints:
    """The models that are meant: one, the model of a ``Fit``, or each of several."""
    if isinstance(model, (Checkpoints, list, tuple, nn.ModuleList)):
        if not len(model):
            raise ValueError("expected a model, or several, got none")
        return model if isinstance(model, Checkpoints) else [each.model if isinstance(each, Fit) else each for each in model]
    model = model.model if isinstance(model, Fit) else model
    if not callable(model):
        raise TypeError(f"expected a model, a list of models, a Fit or Checkpoints, got {type(model).__name__}")
    return [model]


def describe(model: Any) -> dict[str, Any]:
    """What a model is known by, as JSON values; of a callable that is no module only its name."""
    module = module_of(model)
    if module is None:
        return {"class": getattr(model, "__qualname__", type(model).__name__), "parameters": None, "digest": None}
    weights = hashlib.blake2b(digest_size=8)
    for name, value in module.state_dict().items():
        weights.update(name.encode())
        if isinstance(value, Tensor):
            value = value.detach().cpu().contiguous()
            weights.update(f"{value.dtype} {tuple(value.shape)}".encode())
            weights.update(value.flatten().view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    count = sum(parameter.numel() for parameter in module.parameters())
    return {"class": type(module).__name__, "parameters": count, "digest": weights.hexdigest()}
