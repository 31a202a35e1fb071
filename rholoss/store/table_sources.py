"""Whatever holds columns, as parts of Arrow batches: Parquet files and folders, Arrow tables, data frames, data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rholoss.arguments import path_of, shown

ROWS = 1 << 17  # to read at a time
_EXPECTED = "a Parquet or Arrow file, a folder of Parquet files, an Arrow table, a data frame, a data set, or columns by name"


@dataclass(frozen=True)
class Part:
    """A part of a table.

    Attributes:
        name: of its file; empty if it has none.
        schema: the Arrow schema.
        batches: reads its rows, in Arrow batches.
    """

    name: str
    schema: Any
    batches: Callable[[], Iterator[Any]]


def pyarrow(what: str) -> Any:
    """The package; an ImportError that names the extra without it."""
    try:
        import pyarrow as pa
        import pyarrow.parquet
    except ImportError:
        raise ImportError(f"{what} needs pyarrow, which is not installed; run: pip install 'rholoss[tables]'") from None
    return pa


@contextmanager
def naming(part: str) -> Iterator[None]:
    """Turn what reading a part raises into a ValueError that names it; what the system refuses stays an OSError."""
    try:
        yield
    except Exception as error:
        if (isinstance(error, OSError) and error.errno is not None) or not part:
            raise
        raise ValueError(f"{part}: {error}") from error


def parts_of_table(pa: Any, source: Any, columns: list[str]) -> list[Part]:
    """The parts of a table, of which some columns are read; all files are opened, before any row is read.

    Raises:
        TypeError: it is no table.
        ValueError: a file is damaged, or a folder holds what no finished job writes; the message names it.
    """
    if isinstance(source, (str, bytes, os.PathLike)):
        path = path_of(source, "source")
        return [_file_part(pa, file, columns) for file in (_files_of(path) if os.path.isdir(path) else [path])]
    if hasattr(source, "scanner"):  # a data set of pyarrow or Lance
        return [_part(source.schema, lambda: source.scanner(columns=columns, batch_size=ROWS).to_reader())]
    if hasattr(source, "with_format") and hasattr(source, "column_names"):  # of datasets
        chosen = source.select_columns([name for name in columns if name in source.column_names]).with_format("arrow")
        return [_part(chosen.features.arrow_schema, lambda: _batches_of(chosen.iter(ROWS)))]
    if hasattr(source, "__arrow_c_stream__") or isinstance(source, (pa.RecordBatch, pa.RecordBatchReader)):
        table = source if isinstance(source, pa.RecordBatchReader) else pa.table(source)
        return [_part(table.schema, lambda: table if table is source else table.to_batches(ROWS))]
    if isinstance(source, Mapping):
        with naming("source"):
            table = pa.table({name: _column(pa, values) for name, values in source.items()})
        return [_part(table.schema, lambda: table.to_batches(ROWS))]
    raise TypeError(f"source must be {_EXPECTED}, got {shown(source)}")


def _part(schema: Any, batches: Callable[[], Any]) -> Part:
    return Part("", schema, lambda: iter(batches()))


def _batches_of(tables: Any) -> Iterator[Any]:
    for table in tables:
        yield from table.to_batches()


def _column(pa: Any, values: Any) -> Any:
    return values if isinstance(values, (pa.Array, pa.ChunkedArray)) else pa.array(values)


def _files_of(folder: str) -> list[str]:
    """The Parquet files of a folder and those below it, as engines write them, ascending."""
    found = []
    for where, folders, names in os.walk(folder):
        if "_temporary" in folders:
            raise ValueError(
                f"{os.path.join(where, '_temporary')} is there: a job still writes this table, or was killed; run it again"
            )
        folders[:] = sorted(name for name in folders if not name.startswith((".", "_")))
        for name in sorted(name for name in names if not name.startswith((".", "_"))):
            if not name.endswith(".parquet"):
                what = f"{os.path.join(where, name)} is no Parquet file: it is half written, or belongs elsewhere"
                raise ValueError(f"{what}; expected files that end in .parquet, wait for the job or move it away")
            found.append(os.path.join(where, name))
    if not found:
        raise ValueError(f"expected Parquet files in {folder}, got none")
    return found


def _file_part(pa: Any, path: str, columns: list[str]) -> Part:
    with open(path, "rb") as file:
        magic = file.read(6)
    cure = "it is half written or damaged, or of another format; write it again"
    with naming(path):
        try:
            if magic == b"ARROW1":
                with pa.memory_map(path) as mapped:
                    schema = pa.ipc.open_file(mapped).schema
                return Part(path, schema, lambda: _arrow_batches(pa, path))
            with pa.parquet.ParquetFile(path) as file:
                schema = file.schema_arrow
        except pa.ArrowException as error:
            raise ValueError(f"this is no Parquet file that can be read ({str(error).splitlines()[0]}): {cure}") from error
    return Part(path, schema, lambda: _parquet_batches(pa, path, columns))


def _arrow_batches(pa: Any, path: str) -> Iterator[Any]:
    with pa.memory_map(path) as mapped:
        reader = pa.ipc.open_file(mapped)
        yield from (reader.get_batch(i) for i in range(reader.num_record_batches))


def _parquet_batches(pa: Any, path: str, columns: list[str]) -> Iterator[Any]:
    with pa.parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20) as file:
        yield from file.iter_batches(ROWS, columns=columns, use_threads=False)
