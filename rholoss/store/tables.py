"""Stores as tables of other programs: Parquet, Arrow, data frames and columns of a data set."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from rholoss.arguments import map_style, optional, path_of, shown
from rholoss.data.fingerprint import difference, fingerprint
from rholoss.data.index import as_index, some
from rholoss.data.subset import dataset_of
from rholoss.files import StrPath, atomic_write
from rholoss.store.metadata import StoreMetadata
from rholoss.store.serialization import FORMAT, KIND, checked_header, write_mapped
from rholoss.store.sorting import Named, Rows, in_order, sorted_on_disk
from rholoss.store.store import IrreducibleLossStore
from rholoss.store.table_sources import Part, naming, parts_of_table, pyarrow

KEY = b"rholoss"  # of the metadata of a schema
ID, LOSS = "id", "irreducible_loss"
_PIECE = 1 << 20  # rows to read or write at a time


# --- out ------------------------------------------------------------------------------------------------------------------------


def table_of(store: IrreducibleLossStore) -> Any:
    """See ``IrreducibleLossStore.to_table``."""
    pa = pyarrow("to_table")
    return pa.Table.from_batches(_record_batches(store, pa), _schema(store, pa))


def write_table(store: IrreducibleLossStore, path: StrPath) -> None:
    """See ``IrreducibleLossStore.write_table``."""
    pa = pyarrow("write_table")
    schema = _schema(store, pa)
    with atomic_write(path_of(path)) as file, pa.parquet.ParquetWriter(file, schema, use_dictionary=False) as writer:
        for batch in _record_batches(store, pa):
            writer.write_batch(batch)


def _schema(store: IrreducibleLossStore, pa: Any) -> Any:
    header = {"format": FORMAT, "kind": KIND, "meta": store.meta.to_json()}
    return pa.schema([(ID, pa.int64()), (LOSS, pa.float32())], {KEY: json.dumps(header)})


def _record_batches(store: IrreducibleLossStore, pa: Any) -> Iterator[Any]:
    """The examples whose irreducible loss is known, in the order of their ids."""
    store = store.to("cpu")
    losses, ids = store.losses.numpy(), None if store.ids is None else store.ids.numpy()
    for start in range(0, len(store), _PIECE):
        part = losses[start : start + _PIECE]
        index = np.arange(start, start + len(part)) if ids is None else ids[start : start + _PIECE]
        known = np.isfinite(part)
        yield pa.record_batch([index[known], part[known]], schema=_schema(store, pa))


# --- in -------------------------------------------------------------------------------------------------------------------------


def store_from_table(
    source: Any, *, ids: str | None, losses: str, data: Any, path: StrPath | None, meta: Mapping[str, Any] | StoreMetadata | None
) -> IrreducibleLossStore:
    """See ``IrreducibleLossStore.from_table``."""
    for name, column in (("ids", ids), ("losses", losses)):
        if not (isinstance(column, str) or (name == "ids" and column is None)):
            raise TypeError(f"{name} must be the name of a column, got {shown(column)}")
    pa = pyarrow("from_table")
    path = optional(path_of, path, "path")
    reader = _Reader(pa, source, ids, losses)
    given = StoreMetadata.of(meta) if meta is not None else reader.meta()
    now = None
    if data is not None:
        map_style(dataset_of(data), "data")
        now = fingerprint(data)
    how = difference(given.data, now) if given.data and now else None
    if how:
        raise ValueError(f"this table was made from other data than these: {how}; make it again from this dataset")
    given = replace(given, data=now or given.data)
    with tempfile.TemporaryDirectory(dir=path and os.path.dirname(os.path.abspath(path))) as folder:
        runs = sorted_on_disk(reader.rows(), folder)
        return _stored(runs, given, None if now is None else int(now["length"]), path)


def _stored(runs: list[Rows], meta: StoreMetadata, expected: int | None, path: str | None) -> IrreducibleLossStore:
    """The store of sorted runs, in memory, or mapped at a path."""
    n = sum(len(run.ids) for run in runs)
    if not n:
        raise ValueError("expected at least one row, got a table without any")
    first, last = min(int(run.ids[0]) for run in runs), max(int(run.ids[-1]) for run in runs)
    length = expected or (meta.data or {}).get("length", n)
    is_dense = (first, last, n) == (0, length - 1, length)  # as ids that repeat are refused
    rows = _distinct(in_order(runs), expected)
    pieces: Iterator[dict[str, np.ndarray]] = (
        {"losses": each.losses} if is_dense else {"losses": each.losses, "ids": each.ids} for each in rows
    )
    if path is not None:
        write_mapped(path, n, pieces, meta.to_json())
        return IrreducibleLossStore.load(path)
    joined = list(pieces)
    arrays = {name: np.concatenate([piece[name] for piece in joined]) for name in joined[0]}
    return IrreducibleLossStore.of_arrays(arrays, meta.to_json())


def _distinct(pieces: Iterable[Rows], expected: int | None) -> Iterator[Rows]:
    """The rows, of which each id is another; a ValueError at the end names ids that repeat, or are not 0 to expected - 1."""
    repeated, foreign, missing = Named(), Named(), Named()
    below = 0  # ids that were met or are missing
    for rows in pieces:
        ids = rows.ids
        repeated.add(np.unique(ids[1:][ids[1:] == ids[:-1]]))
        if expected is not None:
            own = (ids >= 0) & (ids < expected)
            foreign.add(ids[~own])
            below = _find_missing(ids[own], below, missing)
        yield rows
    if expected is not None:
        missing.add(range(below, expected))
        cure = "this is the table of another data set, or a part of one"
        foreign.refuse(f"expected ids from 0 to {expected - 1:,}, got {{n}} others: {{which}}; {cure}")
        missing.refuse("{n} of " + f"{expected:,} examples have no row: ids {{which}}; score them, or leave data= out")
    cure = "every example has one irreducible loss: remove the parts that were scored twice"
    repeated.refuse("{n} ids appear more than once: {which}; " + cure)


def _find_missing(ids: np.ndarray, below: int, missing: Named) -> int:
    """Note ids from ``below`` on that ascending ids leave out, up to the last of them; returns the number after it."""
    if not len(ids):
        return below
    gaps = np.flatnonzero(np.diff(ids, prepend=below - 1) > 1)
    for gap in gaps.tolist():
        missing.add(range(below if gap == 0 else int(ids[gap - 1]) + 1, int(ids[gap])))
    return int(ids[-1]) + 1


class _Reader:
    """Reads ids and losses from whatever holds columns, a piece at a time."""

    def __init__(self, pa: Any, source: Any, ids: str | None, losses: str) -> None:
        self.pa, self.ids, self.losses = pa, ids, losses
        self.columns = [name for name in (ids, losses) if name is not None]
        self.parts = parts_of_table(pa, source, self.columns)
        if ids is None and len(self.parts) > 1:
            raise ValueError(
                f"the rows of {len(self.parts):,} files have no order that is an index; pass ids=, the name of the column"
            )

    def meta(self) -> StoreMetadata:
        """The metadata of the store that was written, empty for tables of others; a ValueError if parts differ in them."""
        found = {part.schema.metadata[KEY] for part in self.parts if KEY in (part.schema.metadata or {})}
        if len(found) > 1:
            raise ValueError("the parts of this table were written from different stores; read them one by one, and merge")
        return StoreMetadata.of(checked_header(json.loads(found.pop()))["meta"] if found else None)

    def rows(self) -> Iterator[Rows]:
        """The rows in their order; an error that names the part, and the row, of what is no id or no loss."""
        kinds: dict[str, str] = {}
        for part in self.parts:
            self._check_types(part, kinds)
        for part in self.parts:
            row = 0
            batches = part.batches()
            while True:
                with naming(part.name):
                    batch = next(batches, None)
                    if batch is None:
                        break
                    rows = Rows(self._ids(batch, row), self._losses(batch, row))
                yield rows
                row += batch.num_rows

    def _check_types(self, part: Part, kinds: dict[str, str]) -> None:
        with naming(part.name):
            for name in self.columns:
                if name not in part.schema.names:
                    cure = "pass the names of the columns as ids= and losses="
                    raise ValueError(f"expected a column {name!r}, got {part.schema.names}; {cure}")
                kind = str(part.schema.field(name).type)
                if kinds.setdefault(name, kind) != kind:
                    cure = f"cast the column to one type, such as {kinds[name]}, in all parts"
                    raise ValueError(f"column {name!r} is {kind} here and {kinds[name]} in other parts; {cure}")

    def _ids(self, batch: Any, row: int) -> np.ndarray:
        if self.ids is None:
            return np.arange(row, row + batch.num_rows)
        column, types = batch.column(self.ids), self.pa.types
        if types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if column.null_count:
            at = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))
            raise ValueError(f"{column.null_count:,} ids are null, the first in row {row + int(at[0]):,}; give every row an id")
        kind = column.type
        if types.is_integer(kind):
            return as_index(column.to_numpy(zero_copy_only=False), "ids").numpy()
        if not any(test(kind) for test in (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)):
            raise ValueError(f"ids must be integers, strings or bytes, got column {self.ids!r} of type {kind}")
        return as_index(column.to_pylist(), "ids").numpy()

    def _losses(self, batch: Any, row: int) -> np.ndarray:
        column = batch.column(self.losses)
        if not self.pa.types.is_floating(column.type):
            raise ValueError(f"irreducible losses must be floating, got column {self.losses!r} of type {column.type}")
        values = column.to_numpy(zero_copy_only=False).astype(np.float32)
        for bad, what in ((~np.isfinite(values), "not finite (null, NaN or infinite)"), (values < 0, "negative")):
            if bad.any():
                at = np.flatnonzero(bad)
                names = [batch.column(self.ids)[i].as_py() for i in at[:6].tolist()] if self.ids else (row + at[:6]).tolist()
                which = some(names) if len(at) <= 6 else f"{some(names[:5])} and {len(at) - 5:,} more"
                raise ValueError(f"{len(at):,} irreducible losses are {what}: ids {which}; score these examples again")
        return values
