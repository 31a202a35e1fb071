"""Rows of a batch: cut, slice and move batches of any structure, and keep their type.

A batch is nested containers (tuples, named tuples, lists, mappings, dataclasses) of *columns*: tensors and arrays with one row
per example, or lists with one entry per example. Scalars, strings and ``None`` belong to the whole batch and are passed through.
"""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from rholoss.devices import to_device

_PER_BATCH = (type(None), bool, int, float, complex, str, bytes, np.generic)

_SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}  # of which torch takes no rows


class Taker(Protocol):
    """Takes rows of a column, by the kind of column; ``own``: of a container that is cut by its own indexing."""

    def tensor(self, column: Any) -> Any: ...
    def array(self, column: Any) -> Any: ...
    def sequence(self, column: Any) -> Any: ...
    def own(self, column: Any) -> Any: ...


class Rows:
    """Rows by position, (n_b,) int64, on any device. They are copied to the host only for columns that are there."""

    def __init__(self, positions: Tensor) -> None:
        self.positions = positions
        self._on: dict[torch.device, Tensor] = {positions.device: positions}
        self._jagged: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # by id of offsets, which nested tensors of one shape share

    def on(self, device: torch.device) -> Tensor:
        """The positions on a device, copied once."""
        if device not in self._on:
            self._on[device] = to_device(self.positions, device)
        return self._on[device]

    def tensor(self, column: Tensor) -> Tensor:
        if column.is_nested:
            return as_type_of(column, self._nested(column))
        signed = _SIGNED.get(column.dtype)
        found = (column if signed is None else column.view(signed)).index_select(0, self.on(column.device))
        return as_type_of(column, found if signed is None else found.view(column.dtype))

    def array(self, column: np.ndarray) -> np.ndarray:
        return column[self.on(torch.device("cpu")).numpy()]

    def sequence(self, column: Any) -> Any:
        return _as_kind_of(column, [column[i] for i in self.on(torch.device("cpu")).tolist()])

    def own(self, column: Any) -> Any:
        if is_tensor_dict(column):
            return column[self.on(column.device or torch.device("cpu"))]
        by_position = getattr(column, "iloc", column)  # a frame's own index is by label
        return by_position[self.on(torch.device("cpu")).numpy()]

    def _nested(self, column: Any) -> Any:
        """Rows of a nested tensor; those that shared their offsets still do."""
        if column.layout != torch.jagged or column.lengths() is not None or column.values().shape[0] != column.offsets()[-1]:
            rows = column.unbind()
            return torch.nested.as_nested_tensor([rows[i] for i in self.on(torch.device("cpu")).tolist()], layout=column.layout)
        offsets = column.offsets()
        if id(offsets) not in self._jagged:
            at = self.on(offsets.device)
            lengths = offsets.diff()[at]
            ends = lengths.cumsum(0)
            inside = torch.arange(int(ends[-1]) if len(ends) else 0, device=offsets.device)
            places = inside + (offsets[:-1][at] - ends + lengths).repeat_interleave(lengths)
            self._jagged[id(offsets)] = offsets, places, torch.cat([ends.new_zeros(1), ends])
        _, places, its = self._jagged[id(offsets)]
        return torch.nested.nested_tensor_from_jagged(column.values().index_select(0, places), its)


class RowRange:
    """The rows from start to stop; tensors are returned as views."""

    def __init__(self, start: int, stop: int) -> None:
        self._slice = slice(start, stop)
        self._rows = Rows(torch.arange(start, stop))

    def tensor(self, column: Any) -> Any:
        is_sliceable = column.layout == torch.strided and not column.is_nested
        return as_type_of(column, column[self._slice]) if is_sliceable else self._rows.tensor(column)

    def array(self, column: Any) -> Any:
        return column[self._slice]

    def sequence(self, column: Any) -> Any:
        return _as_kind_of(column, column[self._slice])

    def own(self, column: Any) -> Any:
        return getattr(column, "iloc", column)[self._slice]


def as_type_of(column: Tensor, taken: Tensor) -> Tensor:
    """What was taken from a column, as its type and with its attributes, where it is a subclass of ``Tensor``."""
    kind = type(column)
    if kind in (Tensor, nn.Parameter):
        return taken
    if wraps_others(kind):
        if type(taken) is not kind:
            raise NotImplementedError(f"indexing a {kind.__name__} returns a {type(taken).__name__}")
        return taken
    if type(taken) is not kind:
        taken = taken.as_subclass(kind)
    vars(taken).update(vars(column))
    return taken


def wraps_others(kind: type[Tensor]) -> bool:
    """Whether a subclass holds other tensors and defines all operations on them, such as a nested or a quantized one."""
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__


def copy_of(column: Tensor) -> Tensor:
    """A copy of a tensor, also of a subclass; it requires a gradient where the tensor does."""
    return as_type_of(column, column.detach().clone()).requires_grad_(column.requires_grad)


def version_of(tensor: Tensor) -> int:
    """How often a tensor was changed in place; 0 for one that cannot be, as it was made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def is_readable(tensor: Tensor) -> bool:
    """Whether contents can be compared, and without waiting for an accelerator."""
    is_dense = tensor.layout == torch.strided and not tensor.is_nested and not wraps_others(type(tensor))
    return is_dense and tensor.device.type == "cpu"


def is_tensor_dict(value: Any) -> bool:
    """Whether a value is of one of tensordict's classes, which know their batch size and are cut and moved as a whole."""
    kind = type(value)
    return kind not in (tuple, list, dict) and all(hasattr(kind, name) for name in ("batch_size", "apply", "to", "__getitem__"))


def cut(batch: Any, rows: Taker, n: int) -> Any:
    """The chosen rows of a batch of ``n`` examples, as the same type; an error names a field whose rows are unknown."""
    if type(batch) in (tuple, list) and len(batch) != n and all(type(c) is Tensor and c.ndim and c.size(0) == n for c in batch):
        return type(batch)(rows.tensor(column) for column in batch)  # a fast path with the same result
    return _cut(batch, rows, n, "batch")


def move(batch: Any, device: torch.device) -> Any:
    """The batch with every tensor on ``device``; the same object if nothing had to move."""
    if isinstance(batch, Tensor):
        return to_device(batch, device)
    if isinstance(batch, _PER_BATCH):
        return batch
    to: Callable[[torch.device], Any] | None = getattr(batch, "to", None)
    parts = None if is_tensor_dict(batch) else parts_of(batch)
    if parts is not None and not (isinstance(batch, tuple) and callable(to)):  # a PackedSequence keeps a part on the CPU
        return _rebuilt(batch, [move(part, device) for _, part in parts])
    if not callable(to):
        return batch
    twin = batch if isinstance(batch, tuple) or is_tensor_dict(batch) else copy.copy(batch)  # others may move in place
    moved = twin.to(device)
    return twin if moved is None else moved


def each_tensor(batch: Any, change: Callable[[Tensor], Tensor], apart: bool = False) -> Any:
    """The batch with every tensor in its containers changed; ``apart``: with containers and arrays of its own."""
    if isinstance(batch, Tensor):
        return change(batch)
    if apart and type(batch) in (tuple, list, dict):  # a fast path with the same result
        if isinstance(batch, dict):
            return {key: each_tensor(part, change, apart) for key, part in batch.items()}
        return type(batch)([each_tensor(part, change, apart) for part in batch])
    if isinstance(batch, _PER_BATCH):
        return batch
    if is_tensor_dict(batch):
        return batch.apply(change)
    if apart and isinstance(batch, np.ndarray):
        return batch.copy()
    parts = parts_of(batch)
    if parts is None:
        return batch
    changed = [each_tensor(part, change, apart) for _, part in parts]
    if not apart:
        return _rebuilt(batch, changed)
    try:
        return _rebuilt(batch, changed, apart=True)
    except (TypeError, ValueError, AttributeError):  # a container that cannot be made of its parts
        return batch


def name_of(column: Any, batch: Any, name: str = "batch") -> str | None:
    """The place of a column in a batch, such as ``batch['x']``; None if it is not there."""
    if batch is column:
        return name
    found = (name_of(column, part, name + its) for its, part in parts_of(batch) or ())
    return next((each for each in found if each is not None), None)


def _cut(batch: Any, rows: Taker, n: int, field: str) -> Any:
    if isinstance(batch, (Tensor, np.ndarray)):
        return _cut_column(batch, rows, n, field)
    if isinstance(batch, _PER_BATCH):
        return batch
    if is_tensor_dict(batch):
        if tuple(batch.batch_size[:1]) != (n,):
            expected = f"expected a {type(batch).__name__} with batch_size=[{n}], one row per example"
            raise ValueError(f"cannot tell the rows of {field}: {expected}, got batch_size={list(batch.batch_size)}")
        return rows.own(batch)
    parts = parts_of(batch)
    if parts is None:
        return _by_own_indexing(batch, rows, n, field)
    _refuse_further_rows(batch, parts, n, field)
    if _is_plain_sequence(batch) and _is_one_row_per_example(batch, n, field):
        return rows.sequence(batch)
    taken = _rebuilt(batch, [_cut(part, rows, n, field + name) for name, part in parts])
    if (encodings := _encodings_of(batch, n)) is not None and taken is not batch:
        taken._encodings = rows.sequence(encodings)
    return taken


def _cut_column(column: Any, rows: Taker, n: int, field: str) -> Any:
    if column.ndim == 0:
        return column
    if _rows_in(column) != n:
        got = f"expected {n} rows in the first dimension, one per example, got shape {tuple(column.shape)}"
        cure = "collate this field with examples first, or leave it out of the batch"
        raise ValueError(f"cannot tell the rows of {field}: {got}; {cure}")
    if isinstance(column, np.ndarray):
        return rows.array(column)
    if not wraps_others(type(column)):
        _refuse_further_rows(column, [], n, field)
    try:
        return rows.tensor(column)
    except (NotImplementedError, RuntimeError) as error:
        if type(column) is Tensor and column.layout == torch.strided:
            raise
        what = f"a {type(column).__name__} of layout {column.layout} cannot be cut by rows"
        raise TypeError(f"cannot tell the rows of {field}: {what}; collate it into a dense tensor") from error


def _rows_in(column: Any) -> int:
    return column.size(0) if isinstance(column, Tensor) else len(column)


def _by_own_indexing(batch: Any, rows: Taker, n: int, field: str) -> Any:
    """Rows of an object with a length that returns one of its own type if it is indexed by positions, such as a frame."""
    with suppress(Exception):  # whatever the indexing of an unknown type raises
        if len(batch) == n and type(taken := rows.own(batch)) is type(batch):
            return taken
    expected = "expected a tensor, an array, or a tuple, list, mapping or dataclass of them"
    raise TypeError(f"cannot tell the rows of {field}: {expected}, got {type(batch).__name__}; collate it into one of these")


def _encodings_of(batch: Any, n: int) -> Any:
    """What a tokenizer's batch remembers of each row: one encoding for each, or None."""
    encodings = vars(batch).get("_encodings") if isinstance(batch, UserDict) else None
    return encodings if isinstance(encodings, list) and len(encodings) == n else None


def _refuse_further_rows(container: Any, parts: list[tuple[str, Any]], n: int, field: str) -> None:
    """Refuse a container whose attributes, beside its parts, hold something that could be one entry per example."""
    attributes = getattr(container, "__dict__", None)
    if not attributes or attributes is container or n == 1:
        return
    known = {id(part) for _, part in parts} | {id(_encodings_of(container, n))}
    for name, value in attributes.items():
        if _could_be_rows(value, n, known):
            what = f"the attribute {name!r} of a {type(container).__name__} holds {n} entries, which could be one per example"
            cure = "make it a field of the batch, which is cut, or remove it in the collate_fn"
            raise TypeError(f"cannot tell the rows of {field}: {what}; {cure}")


def _could_be_rows(value: Any, n: int, known: set[int]) -> bool:
    if id(value) in known or isinstance(value, (*_PER_BATCH, type)):
        return False
    if isinstance(value, (Tensor, np.ndarray)):
        return value.ndim > 0 and _rows_in(value) == n
    if isinstance(value, (Mapping, list, tuple)):
        parts = list(value.values() if isinstance(value, Mapping) else value)
        if isinstance(value, tuple) and len(parts) == 2 and all(isinstance(part, (int, float)) for part in parts):
            return False  # such as the height and width of all images
        is_rows = len(parts) == n and not isinstance(value, Mapping) and not all(id(part) in known for part in parts)
        return is_rows or any(_could_be_rows(part, n, known) for part in parts)
    try:
        return len(value) == n
    except TypeError:
        return False


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
        return None if value.ndim == 0 else _rows_in(value) == n
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


def _rebuilt(container: Any, parts: list[Any], apart: bool = False) -> Any:
    """A container of the same type around new parts; unless ``apart``, the container itself if no part has changed."""
    old = parts_of(container) or []
    if not (apart and not isinstance(container, tuple)) and all(new is part for new, (_, part) in zip(parts, old, strict=True)):
        return container
    if isinstance(container, tuple):
        return _as_kind_of(container, parts)
    fresh: Any
    if isinstance(container, list):
        return _as_kind_of(container, parts)
    if isinstance(container, (dict, UserDict)):
        fresh = copy.copy(container)  # keeps its other state, such as a default factory
        if dataclasses.is_dataclass(container):  # an output of transformers, which has its own ways
            for key, part in zip(container, parts, strict=True):
                fresh[key] = part
        else:
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


def _as_kind_of(sequence: Any, parts: Any) -> Any:
    """A list or tuple of the same type around other parts, with the same attributes."""
    if isinstance(sequence, list):
        fresh = copy.copy(sequence)
        fresh[:] = parts
        return fresh
    made = sequence._make(parts) if hasattr(sequence, "_make") else type(sequence)(parts)
    if type(sequence) is not tuple and getattr(sequence, "__dict__", None):
        vars(made).update(vars(sequence))
    return made
