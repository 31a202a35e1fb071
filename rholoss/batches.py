"""Rows of a batch: cut, slice and move batches of any structure, and keep their type.

A batch is nested containers (tuples, named tuples, lists, mappings, dataclasses) of *columns*: tensors and arrays with one row
per example, or lists with one entry per example. Scalars, strings and ``None`` belong to the whole batch and are passed through.
"""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rholoss.devices import to_device

_PER_BATCH = (type(None), bool, int, float, complex, str, bytes, np.generic)


class Taker(Protocol):
    """Takes rows of a column, by the kind of column."""

    def tensor(self, column: Any) -> Any: ...
    def array(self, column: Any) -> Any: ...
    def sequence(self, column: Any) -> Any: ...


class Rows:
    """Rows by position, (n_b,) int64, on any device. They are copied to the host only for columns that are there."""

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self._on: dict[torch.device, Tensor] = {positions.device: positions}

    def on(self, device: torch.device) -> Tensor:
        """The positions on a device, copied once."""
        if device not in self._on:
            self._on[device] = to_device(self.positions, device)
        return self._on[device]

    def tensor(self, column: Tensor) -> Tensor:
        return column.index_select(0, self.on(column.device))

    def array(self, column: np.ndarray) -> np.ndarray:
        return column[self.on(torch.device("cpu")).numpy()]

    def sequence(self, column: Any) -> Any:
        return type(column)(column[i] for i in self.on(torch.device("cpu")).tolist())


class RowRange:
    """The rows from start to stop; tensors are returned as views."""

    def __init__(self, start: int, stop: int) -> None:
        self._slice = slice(start, stop)

    def tensor(self, column: Any) -> Any:
        return column[self._slice]

    array = tensor

    def sequence(self, column: Any) -> Any:
        return type(column)(column[self._slice])


def cut(batch: Any, rows: Taker, n: int) -> Any:
    """The chosen rows of a batch of ``n`` examples, as the same type; an error names a field whose rows are unknown."""
    if type(batch) in (tuple, list) and len(batch) != n and all(type(c) is Tensor and c.ndim and len(c) == n for c in batch):
        return type(batch)(rows.tensor(column) for column in batch)  # a fast path with the same result
    return _cut(batch, rows, n, "batch")


def move(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on ``device``; the same object if nothing had to move."""
    if isinstance(batch, Tensor):
        return to_device(batch, device)
    if isinstance(batch, _PER_BATCH):
        return batch
    to: Callable[[torch.device], Any] | None = getattr(batch, "to", None)
    parts = parts_of(batch)
    if parts is not None and not (isinstance(batch, tuple) and callable(to)):  # a PackedSequence keeps a part on the CPU
        return _rebuilt(batch, [move(part, device) for _, part in parts])
    return to(device) if callable(to) else batch


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The batch with every tensor in its containers changed; everything else is the same."""
    if isinstance(batch, Tensor):
        return change(batch)
    parts = None if isinstance(batch, _PER_BATCH) else parts_of(batch)
    return batch if parts is None else _rebuilt(batch, [each_tensor(part, change) for _, part in parts])


def name_of(column: Any, batch: Any, name: str = "batch") -> str | None:
    """The place of a column in a batch, such as ``batch['x']``; None if it is not there."""
    if batch is column:
        return name
    found = (name_of(column, part, name + its) for its, part in parts_of(batch) or ())
    return next((each for each in found if each is not None), None)


def _cut(batch: Any, rows: Taker, n: int, field: str) -> Any:
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim == 0:
            return batch
        if len(batch) != n:
            got = f"expected {n} rows in the first dimension, one per example, got shape {tuple(batch.shape)}"
            cure = "collate this field with examples first, or leave it out of the batch"
            raise ValueError(f"cannot tell the rows of {field}: {got}; {cure}")
        return rows.tensor(batch) if isinstance(batch, Tensor) else rows.array(batch)
    if isinstance(batch, _PER_BATCH):
        return batch
    if _is_plain_sequence(batch) and _is_one_row_per_example(batch, n, field):
        return rows.sequence(batch)
    parts = parts_of(batch)
    if parts is None:
        expected = "expected a tensor, an array, or a tuple, list, mapping or dataclass of them"
        raise TypeError(f"cannot tell the rows of {field}: {expected}, got {type(batch).__name__}; collate it into one of these")
    return _rebuilt(batch, [_cut(part, rows, n, field + name) for name, part in parts])


def _is_plain_sequence(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and not hasattr(value, "_fields")


def _is_one_row_per_example(values: list[Any] | tuple[Any, ...], n: int, field: str) -> bool:
    """Whether a list is itself a column of n entries, not a container of columns."""
    columns = _holds_columns(values, n)
    if len(values) != n:
        if not columns and values and all(isinstance(value, _PER_BATCH) for value in values):
            raise ValueError(f"cannot tell the rows of {field}: expected {n} entries, one per example, got {len(values)}")
        return False
    if not columns:
        return True
    kinds = {(type(value), getattr(value, "dtype", None), getattr(value, "ndim", None)) for value in values}
    if n == 1 or len(kinds) > 1 or (field == "batch" and n == 2):  # (x, y) is two columns, also where there are two examples
        return False
    if field != "batch" and all(isinstance(value, Mapping) for value in values):
        return True  # such as the targets of object detection
    what = f"a list of {n} entries of one kind with {n} rows each could be {n} columns or {n} examples"
    cure = "collate columns into a dict or a named tuple, and examples into one stacked tensor"
    raise ValueError(f"cannot tell the rows of {field}: {what}; {cure}")


def _holds_columns(values: list[Any] | tuple[Any, ...], n: int) -> bool:
    verdicts = [_is_column(value, n) for value in values]
    return any(verdicts) and all(verdict is not False for verdict in verdicts)


def _is_column(value: Any, n: int) -> bool | None:
    """True for a value with n rows, None for a value of the whole batch, False for anything else."""
    if isinstance(value, (Tensor, np.ndarray)):
        return None if value.ndim == 0 else len(value) == n
    if isinstance(value, _PER_BATCH):
        return None
    if _is_plain_sequence(value) and len(value) == n:
        return True
    parts = parts_of(value)
    return parts is not None and _holds_columns([part for _, part in parts], n)


def parts_of(value: Any) -> list[tuple[str, Any]] | None:
    """The named parts of a container, or None for anything else."""
    if isinstance(value, Mapping):
        return [(f"[{key!r}]", part) for key, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(f".{name}", getattr(value, name)) for name in value._fields]
    if isinstance(value, (list, tuple)):
        return [(f"[{i}]", part) for i, part in enumerate(value)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    return None


def _rebuilt(container: Any, parts: list[Any]) -> Any:
    """A container of the same type around new parts; the container itself if no part has changed."""
    old = parts_of(container) or []
    if all(new is part for new, (_, part) in zip(parts, old, strict=True)):
        return container
    if isinstance(container, tuple):
        return container._make(parts) if hasattr(container, "_make") else type(container)(parts)
    fresh: Any
    if isinstance(container, list):
        fresh = copy.copy(container)
        fresh[:] = parts
    elif isinstance(container, (dict, UserDict)):
        fresh = copy.copy(container)  # keeps its other state, such as a default factory
        fresh.update(zip(container, parts, strict=True))
        if getattr(container, "__dict__", None) is container:  # its keys are also attributes
            fresh.__dict__ = fresh
    elif isinstance(container, Mapping):
        fresh = type(container)(dict(zip(container, parts, strict=True)))  # type: ignore[call-arg]
    else:
        fresh = copy.copy(container)
        for f, part in zip(dataclasses.fields(fresh), parts, strict=True):
            object.__setattr__(fresh, f.name, part)
    return fresh
