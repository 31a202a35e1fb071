"""How a model is run and its loss computed, for candidates and irreducible losses alike, without side effects."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from rholoss.arguments import function, one_of, optional, whole
from rholoss.batches import RowRange, cut, move, parts_of, wraps_others
from rholoss.isolation import Lender, Mode, channels_last_weights, device_of, module_of, preserve_state, undistributed, unwrapped
from rholoss.losses import LabelError, LossCheck, callable_name as callable_name, default_loss as default_loss

ChunkSize = int | Literal["auto"] | None
"""Most examples in one scoring pass: a number, ``"auto"`` for the rule of ``Scorer``, None for all."""

Forward = Callable[[Any, Any], tuple[Any, Any]]
"""``forward(model, batch) -> (outputs, targets)``: how a model is called on a batch of n examples."""

Reduce = Callable[[Any, Any, int], Any]
"""``reduce(outputs, targets, n)``: what to compute from the outputs for n examples."""

Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, targets) -> (n,)``: one loss per example, in nats where it is a negative log-likelihood."""

_How = tuple[Reduce, Mode | None, int | None]  # what is computed, in which mode, from which seed

IMAGES_AT_ONCE = 20  # on a CPU, by default
_LARGE = 2**20  # bytes of what is computed of a chunk, above which no chunks are made, or kept, by default

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
        try:
            return _logits(model(batch[0])), batch[1]
        except (TypeError, AttributeError) as error:
            if isinstance(batch[0], (tuple, list)) and batch[0] and isinstance(batch[0][0], str):
                cure = "tokenize them in the collate_fn of the loader, or in forward="
                raise TypeError(f"the model was called with texts, and failed ({error}); {cure}") from error
            raise
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
    With ``"auto"``, the size is that of ``rows_at_once`` in eval mode, and weights are ordered by ``channels_last_weights``, as
    long as this changes results by rounding only: in the 1st, 2nd, 4th, 8th ... pass some rows are scored twice, the second time
    beside different ones and with the weights as they are. If they differ, all passes are whole from then on, as for a loss or a
    model that compares the rows of a batch or draws random numbers.
    """

    task: Task = field(default_factory=Task)
    mode: Mode = "eval"
    chunk_size: ChunkSize = None
    lender: Lender = field(default_factory=Lender, compare=False, repr=False)
    check: LossCheck = field(default_factory=LossCheck, compare=False, repr=False)
    passes: dict[Any, int] = field(default_factory=dict, compare=False, repr=False)  # in chunks by default; -1: never again
    as_they_are: set[Any] = field(default_factory=set, compare=False, repr=False)  # whose weights keep their memory order

    def __post_init__(self) -> None:
        one_of(self.mode, "mode", ("eval", "train"))
        if not (isinstance(self.chunk_size, str) and self.chunk_size == "auto"):
            what = 'a number of examples, at least 1, None for all, or "auto"'
            object.__setattr__(self, "chunk_size", optional(whole, self.chunk_size, "chunk_size", what))

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
        model, how = undistributed(model), (reduce, mode, seed)  # ranks may score different numbers of times
        size, known = self._size(model, batch, n, how)
        if size is None or n <= size:
            return self._parts(model, batch, n, [0], n, how)[0]
        starts = list(range(0, n, size))
        starts[-1] = n - size  # the last chunk overlaps the one before, to have the same size
        passes = self.passes[known] = self.passes.get(known, 0) + 1
        is_checked = known is not None and passes & (passes - 1) == 0
        parts = self._fast(known, model, batch, n, starts, size, how)
        if is_checked and not _alike(parts[0], self._parts(model, batch, n, [size // 2], size, how)[0], size):
            self.passes[known] = -1
            return self._parts(model, batch, n, [0], n, how)[0]
        return _joined([*parts[:-1], _rows(parts[-1], size * len(parts) - n, size)])

    def _fast(self, known: Any, model: Any, *rows: Any) -> list[Any]:
        """The same as ``_parts``, by default with weights in channels-last order, unless the model cannot use such results."""
        is_full = self.task.dtype is None and not torch.is_autocast_enabled("cpu")  # casts take longer in that order
        if is_full and known is not None and known not in self.as_they_are:
            try:
                with channels_last_weights(model):
                    return self._parts(model, *rows)
            except RuntimeError:  # such as that of view()
                if self.passes[known] > 1:
                    raise
                self.as_they_are.add(known)
        return self._parts(model, *rows)

    def _parts(self, model: Any, batch: Any, n: int, starts: list[int], size: int, how: _How) -> list[Any]:
        """What is computed of the rows from each start on."""
        reduce, mode, seed = how
        with self.around(model, mode, seed) as device, self.lent(batch, model, mode, device) as batch:
            return [self._part(model, batch, n, (start, start + size), reduce, device) for start in starts]

    def _part(self, model: Any, batch: Any, n: int, rows: tuple[int, int], reduce: Reduce, device: torch.device | None) -> Any:
        chunk = batch if rows == (0, n) else cut(batch, RowRange(*rows), n)
        pair = self.task.forward(model, move(chunk, device) if device is not None else chunk)
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TypeError(f"forward(model, batch) must return a pair (outputs, targets), got {type(pair).__name__}")
        try:
            return reduce(*pair, rows[1] - rows[0])
        except LabelError as error:
            raise LabelError(str(error), rows[0] + error.row, n) from error

    def _size(self, model: Any, batch: Any, n: int, how: _How) -> tuple[int | None, Any]:
        """Examples in a chunk, None for all; and, where the rule says so, the key of what is computed, for ``passes``."""
        if self.chunk_size != "auto":
            return self.chunk_size, None
        reduce, mode, _ = how
        size = rows_at_once(model, batch, n) if (mode or self.mode) == "eval" else None
        if size is None:
            return None, None
        code = getattr(getattr(reduce, "__wrapped__", reduce), "__code__", None)
        known = id(model), id(self.task.forward), id(self.task.loss), code
        return size if self.passes.get(known, 0) >= 0 else None, known

    def lent(self, batch: Any, model: Any = None, mode: Mode | None = None, device: torch.device | None = None) -> Any:
        """The context in which a batch, or outputs and targets, are lent to a model or a loss that may change them in place."""
        borrower = id(model), getattr(model, "training", None), mode or self.mode, id(self.task.forward), id(self.task.loss)
        return self.lender.lend(batch, borrower, device)

    def keeps(self, pair: tuple[Any, Any], n: int) -> bool:
        """Whether to keep outputs and targets of a chunk of n examples, for a method that reads them after the loss."""
        return self.chunk_size == "auto" and all(_is_small(part, n) for part in pair)

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


def rows_at_once(model: Any, batch: Any, n: int) -> int | None:
    """How many of n examples to score at once, for speed on a CPU, where large results take new, slow memory in every pass.

    Images and the like, tensors (n, C, ...), if the model has weights of as many dimensions (convolutions): at most 20 rows
    and 2^18 numbers. Tokens, integers (n, T) with T >= 32: at most 64 sequences and 2,048 tokens. But at least 8, in chunks as
    equal as can be. None, for all at once: for anything else, such as vectors, on accelerators, and for a model whose weights are
    sharded, as ranks have to make the same number of passes.
    """
    if n <= 8:
        return None
    dense = [t for t in _tensors(batch) if t.layout == torch.strided and not t.is_nested]
    own = [t for t in dense if t.ndim > 2 or (t.ndim == 2 and t.shape[1] >= 32 and not t.is_floating_point())]
    device = device_of(model) if own else None
    if device is None or device.type != "cpu":
        return None
    most, dimensions = [], weight_dimensions(model)
    for tensor in (t for t in own if t.shape[0] == n and t.ndim <= dimensions):
        is_tokens = tensor.ndim == 2
        most.append(min(64, 2048 // tensor.shape[1]) if is_tokens else min(IMAGES_AT_ONCE, 2**18 // max(tensor[0].numel(), 1)))
    size = max(min(most, default=n), 8)
    return math.ceil(n / math.ceil(n / size)) if size < n else None


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return [tensor for _, part in parts_of(batch) or () for tensor in _tensors(part)]


def weight_dimensions(model: Any) -> int:
    """The most dimensions of a weight; 0 without weights, and if they are sharded, or not made yet."""
    most, own = 0, module_of(model)
    for module in own.modules() if own is not None else ():
        weights = [weight for weight in module._parameters.values() if weight is not None]
        if type(module).__module__.startswith("torch.distributed") or any(is_lazy(w) or wraps_others(type(w)) for w in weights):
            return 0
        most = max([most, *(weight.ndim for weight in weights)])
    return most


def _is_small(part: Any, n: int) -> bool:
    """Whether something is a small tensor of n rows."""
    is_dense = isinstance(part, Tensor) and part.layout == torch.strided and not part.is_nested
    return is_dense and part.shape[:1] == (n,) and part.numel() * part.element_size() <= _LARGE


def _alike(one: Any, other: Any, n: int) -> bool:
    """Whether results of n rows, the second of half a chunk later, are small tensors that differ by rounding only."""
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(_alike(*pair, n) for pair in zip(one, other, strict=True))
    if one is None or other is None:
        return one is other
    if not (_is_small(one, n) and _is_small(other, n)) or one.shape != other.shape:
        return False
    return torch.allclose(one[n // 2 :].double(), other[: n - n // 2].double(), rtol=1e-4, atol=1e-5, equal_nan=True)


def _rows(part: Any, start: int, stop: int) -> Any:
    """Rows of a chunk's result."""
    if part is None:
        return None
    if isinstance(part, tuple):
        return tuple(_rows(each, start, stop) for each in part)
    if not isinstance(part, Tensor):
        what = f"outputs of type {type(part).__name__} cannot be joined over chunks"
        raise TypeError(f"{what}; let forward= return tensors, or pass chunk_size=None")
    return part[start:stop]


def _joined(parts: list[Any]) -> Any:
    if any(part is None for part in parts):
        return None
    if isinstance(parts[0], tuple):
        return tuple(_joined(list(column)) for column in zip(*parts, strict=True))
    return torch.cat([_rows(part, 0, len(part)) for part in parts])
