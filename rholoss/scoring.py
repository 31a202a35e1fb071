"""How a model is run and its loss computed, for candidates and irreducible losses alike, without side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rholoss.arguments import function, one_of, optional, whole
from rholoss.batches import RowRange, cut, move
from rholoss.isolation import Lender, Mode, device_of, module_of, preserve_state, undistributed, unwrapped
from rholoss.losses import LossCheck, callable_name as callable_name, default_loss as default_loss

Forward = Callable[[Any, Any], tuple[Any, Any]]
"""``forward(model, batch) -> (outputs, targets)``: how a model is called on a batch of n examples."""

Reduce = Callable[[Any, Any, int], Any]
"""``reduce(outputs, targets, n)``: what to compute from the outputs for n examples."""

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, targets) -> (n,)``: one loss per example, in nats where it is a negative log-likelihood."""

_PASS_FORWARD = "pass forward=(model, batch) -> (outputs, targets), or a task= with it"


def default_forward(model: Any, batch: Any) -> tuple[Any, Any]:
    """Call a model as usual: ``model(x)`` for a pair (x, y), ``model(**inputs)`` for a mapping with ``labels`` or ``label``.

    The inputs are all other entries of the mapping, by name. If the outputs have ``logits``, these are returned as outputs.

    Args:
        model: any callable.
        batch: a pair (x, y), or a mapping.

    Returns:
        (outputs, targets).

    Raises:
        TypeError: the batch is neither; pass ``forward``.
    """
    if isinstance(batch, Mapping):
        name = next((name for name in ("labels", "label") if name in batch), None)
        if name is None:
            raise TypeError(f"expected a mapping with 'labels' or 'label', got the keys {list(batch)}; {_PASS_FORWARD}")
        inputs = {key: value for key, value in batch.items() if key != name}
        try:
            outputs = model(**inputs)
        except TypeError as error:
            if "unexpected keyword argument" in str(error):
                raise TypeError(f"{error}; the batch has {list(inputs)}: {_PASS_FORWARD}") from error
            raise
        return _logits(outputs), batch[name]
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return _logits(model(batch[0])), batch[1]
    what = f"a {type(batch).__name__} of {len(batch)}" if isinstance(batch, (tuple, list)) else type(batch).__name__
    raise TypeError(f"expected a batch (x, y) or a mapping with labels, got {what}; {_PASS_FORWARD}")


def _logits(outputs: Any) -> Any:
    if isinstance(outputs, Mapping) and "logits" in outputs:
        return outputs["logits"]
    return getattr(outputs, "logits", outputs)


def check_loss(loss: Any, n: int) -> Tensor:
    """The loss as float32; raises an error with the remedy if it is not one value per example."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must return a tensor of one value per example, shape ({n},), got {type(loss).__name__}")
    if loss.shape != (n,):
        cure = "pass reduction='none' to the loss" if loss.ndim == 0 else "reduce it to one value per example"
        raise ValueError(f"loss must be one value per example, shape ({n},), got {tuple(loss.shape)}; {cure}")
    return loss.float()


@dataclass(frozen=True)
class Task:
    """How a model is called on a batch and what its loss is; one task serves the store, the fit and the selector.

    Args:
        forward: ``(model, batch) -> (outputs, targets)``.
        loss: ``(outputs, targets) -> (n,)``.
        dtype: autocast dtype for scoring, ``torch.bfloat16`` or ``torch.float16``; None for the model's own precision and any
            autocast that is already active. A fit trains in the model's own precision.

    Examples:
        >>> import torch
        >>> from rholoss import IrreducibleLossStore, Task
        >>> task = Task(forward=lambda model, batch: (model(batch["x"]), batch["y"]))
        >>> data = [{"x": torch.zeros(5), "y": 1}, {"x": torch.ones(5), "y": 0}]
        >>> IrreducibleLossStore.from_model(torch.nn.Linear(5, 3), data, task=task)
        IrreducibleLossStore(2 examples, coverage=100.0%, device=cpu)
    """

    forward: Forward = default_forward
    loss: Loss = default_loss
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        function(self.forward, "forward", "(model, batch) -> (outputs, targets)")
        function(self.loss, "loss", "(outputs, targets) -> (n,)")
        if not (self.dtype is None or any(self.dtype is kind for kind in (torch.bfloat16, torch.float16))):
            raise ValueError(f"dtype must be torch.bfloat16, torch.float16, or None for the model's own, got {self.dtype!r}")

    @classmethod
    def of(
        cls, task: Task | None = None, forward: Forward | None = None, loss: Loss | None = None, dtype: torch.dtype | None = None
    ) -> Task:
        """The given task, or a new one from separate hooks; a ValueError if both are given."""
        if task is None:
            return cls(default_forward if forward is None else forward, default_loss if loss is None else loss, dtype)
        given = {"forward": forward, "loss": loss, "dtype": dtype}
        twice = ", ".join(f"{name}=" for name, value in given.items() if value is not None)
        if twice:
            raise ValueError(f"pass task= or {twice}, not both; the task already has them")
        if not isinstance(task, cls):
            raise TypeError(f"task must be a rholoss.Task(forward=, loss=, dtype=), got {type(task).__name__}")
        return task


@dataclass(frozen=True)
class Scorer:
    """Runs a model without side effects: modes, buffers, gradients, grad mode, random state and the batch are preserved.

    A batch of more than ``chunk_size`` examples is scored in passes of exactly this size, so that a compiled model compiles once.
    """

    task: Task = field(default_factory=Task)
    mode: Mode = "eval"
    chunk_size: int | None = None
    lender: Lender = field(default_factory=Lender, compare=False, repr=False)
    check: LossCheck = field(default_factory=LossCheck, compare=False, repr=False)

    def __post_init__(self) -> None:
        one_of(self.mode, "mode", ("eval", "train"))
        size = optional(whole, self.chunk_size, "chunk_size", "a number of examples, at least 1, or None for all")
        object.__setattr__(self, "chunk_size", size)

    def losses(self, outputs: Any, targets: Any, n: int) -> Tensor:
        """The loss of each of n examples, checked, shape (n,), float32."""
        self.check.meet(self.task.loss, outputs, targets)
        return check_loss(self.task.loss(outputs, targets), n)

    def refuse_causal(self, model: Any) -> None:
        """Refuse a causal language model of ``transformers`` with the default loss, which does not shift its labels."""
        if self.task.loss is not default_loss or self.task.forward is not default_forward:
            return
        module: Any = module_of(unwrapped(model))
        config = getattr(module, "__dict__", {}).get("config")
        if getattr(config, "is_encoder_decoder", True) is False and getattr(module, "can_generate", bool)():
            what = f"{type(module).__name__} predicts the next token, but the default loss does not shift its labels"
            raise ValueError(f"{what}; pass loss=rholoss.tokens.causal_loss to the selector and to from_model")

    @contextmanager
    def around(self, model: Any, mode: Mode | None = None, seed: int | None = None) -> Iterator[torch.device | None]:
        """The context in which a model is scored; yields the model's device."""
        device = device_of(model)
        with preserve_state(model, device, mode or self.mode, seed), self.autocast(device):
            yield device

    def run(self, model: Any, batch: Any, n: int, reduce: Reduce, mode: Mode | None = None, seed: int | None = None) -> Any:
        """``reduce(outputs, targets, rows)`` over the chunks of a batch of n examples, joined along the first dimension."""
        model = undistributed(model)  # ranks may score different numbers of times
        with self.around(model, mode, seed) as device, self.lent(batch, model, mode, device) as batch:
            parts = []
            done = 0
            for chunk, start, stop in self._chunks(batch, n):
                pair = self.task.forward(model, move(chunk, device) if device is not None else chunk)
                if not (isinstance(pair, tuple) and len(pair) == 2):
                    raise TypeError(f"forward(model, batch) must return a pair (outputs, targets), got {type(pair).__name__}")
                parts.append(_from_row(reduce(*pair, stop - start), done - start, self.in_one_pass(n)))
                done = stop
        return _joined(parts)

    def lent(self, batch: Any, model: Any = None, mode: Mode | None = None, device: torch.device | None = None) -> Any:
        """The context in which a batch, or outputs and targets, are lent to a model or a loss that may change them in place."""
        borrower = id(model), getattr(model, "training", None), mode or self.mode, id(self.task.forward), id(self.task.loss)
        return self.lender.lend(batch, borrower, device)

    def in_one_pass(self, n: int) -> bool:
        """Whether n examples fit in one forward pass."""
        return self.chunk_size is None or n <= self.chunk_size

    def _chunks(self, batch: Any, n: int) -> Iterator[tuple[Any, int, int]]:
        """Chunks of one size with their first and last row; the last one overlaps the one before, to have the same size."""
        if self.in_one_pass(n):
            yield batch, 0, n
            return
        size = self.chunk_size or n
        for start in range(0, n, size):
            start = min(start, n - size)
            yield cut(batch, RowRange(start, start + size), n), start, start + size

    @contextmanager
    def autocast(self, device: torch.device | None) -> Iterator[None]:
        """Autocast in the scoring dtype, or in any active one."""
        kind = device.type if device is not None else "cpu"
        ambient = torch.is_autocast_enabled(kind)
        if self.task.dtype is None and not ambient:
            yield
            return
        # No cache of its own: weights cast here carry no gradient, and the user's autocast would train on them.
        with torch.autocast(kind, dtype=self.task.dtype or torch.get_autocast_dtype(kind), cache_enabled=False):
            yield


def _from_row(part: Any, row: int, whole: bool) -> Any:
    """The rows of a chunk's result from a row on; all of them for a single chunk."""
    if whole:
        return part
    if isinstance(part, tuple):
        return tuple(_from_row(p, row, whole) for p in part)
    if not isinstance(part, Tensor):
        what = f"outputs of type {type(part).__name__} cannot be joined over chunks"
        raise TypeError(f"{what}; let forward= return tensors, or leave chunk_size=None")
    return part[max(row, 0) :]


def _joined(parts: list[Any]) -> Any:
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return torch.cat(parts)
