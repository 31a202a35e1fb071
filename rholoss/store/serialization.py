"""A store on disk: one ``.npz`` file or a folder of memory-mapped arrays, without pickle, written whole or not at all."""

import contextlib
import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np

from rholoss.files import (
    StrPath,
    check_kind,
    explained,
    locked,
    open_npz,
    open_regular,
    read_json,
    remove_on_failure,
    rest_checksum,
    write_json,
    write_npz,
)
from rholoss.store.blocks import FAULTS, Blocks, Checksums, sound
from rholoss.store.id_index import LEAST, MOST, IdIndex, Intervals

FORMAT = 1
KIND = "rholoss.IrreducibleLossStore"
MANIFEST = "store.json"
_FIELDS: dict[str, Any] = {
    **{"losses": np.dtype("<f4"), "ids": np.dtype("<i8")},  # one number of each example
    **{"classes": np.dtype("<i4"), "probabilities": np.dtype("<f4")},  # several, see ``Predictions``
}
_MAPPED = {**_FIELDS, "table": np.dtype("<u4")}
_ARRAY = re.compile(rf"({'|'.join(_MAPPED)})-[0-9a-f]{{8}}\.npy")  # named by checksum, so no file is ever written twice
_BLOCK = 1 << 20
SMALL = 1 << 24  # rows of a folder that are checked when it is opened; of more, each block when it is first read


def write_store(path: StrPath, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write one ``.npz`` file; if that fails with an OSError, an existing file is unchanged."""
    write_npz(path, _header(meta), {name: np.asarray(array, dtype=_FIELDS[name]) for name, array in arrays.items()})


def write_mapped(path: StrPath, n: int | None, pieces: Iterable[Mapping[str, np.ndarray]], meta: Mapping[str, Any]) -> None:
    """Write a folder of arrays of n rows that can be memory-mapped, given in pieces to join, all with the same fields.

    An existing store stays readable until the new one is complete, and remains if that fails. If n is None, the rows are counted.
    """
    path = os.fsdecode(path)
    header = json.loads(json.dumps(_header(meta)))  # an error before anything is written
    new = None if os.path.isdir(path) else path
    os.makedirs(path, exist_ok=True)
    partial = {name: os.path.join(path, f"{name}.{secrets.token_hex(8)}.partial") for name in _MAPPED}
    with remove_on_failure(list(partial.values()), new):
        written = _write_arrays(partial, pieces)
        rows = next(iter(written.values())).rows
        if rows != (rows if n is None else n) or any(each.rows != rows for each in written.values()):
            raise ValueError(f"expected {n} rows of each field, got {[each.rows for each in written.values()]}")
        manifest: dict[str, Any] = {"header": header, "rows": rows}
        if "ids" in written and LEAST <= rows < MOST:
            ids = np.lib.format.open_memmap(partial["ids"], "r")
            intervals = Intervals.of(ids)
            written |= _write_arrays(partial, ({"table": piece} for piece in intervals.rows(ids)))
            manifest["intervals"] = intervals.to_json()
        names = {name: f"{name}-{each.whole:08x}.npy" for name, each in written.items()}
        manifest |= {"arrays": names, "checksums": {name: each.blocks for name, each in written.items()}}
        with locked(path) as is_alone:  # only who holds the lock names arrays, or removes what no manifest names
            _put(path, {partial[name]: final for name, final in names.items()}, manifest)
            for name in set(_arrays_in(path)) - set(names.values()) if is_alone else ():
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(path, name))


def _put(path: str, files: Mapping[str, str], manifest: dict[str, Any]) -> None:
    """Give complete arrays their names, and then the store its manifest; on failure, remove those of no manifest."""
    old, where = _arrays_in(path), os.path.join(path, MANIFEST)
    named: list[str] = []
    with remove_on_failure(named):
        try:
            for file, final in files.items():
                named += [os.path.join(path, final)] if final not in old else []
                os.replace(file, os.path.join(path, final))
            write_json(where, manifest)
        except BaseException:
            with contextlib.suppress(OSError, ValueError):
                if read_json(where) == manifest:  # interrupted when it was complete
                    named.clear()
            raise


def _arrays_in(path: str) -> list[str]:
    return [name for name in os.listdir(path) if _ARRAY.fullmatch(name)]


def _write_arrays(paths: Mapping[str, str], pieces: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Checksums]:
    """Write arrays to ``.npy`` files, piece by piece; returns their checksums."""
    files: dict[str, IO[bytes]] = {}
    written: dict[str, Checksums] = {}
    columns: dict[str, tuple[int, ...]] = {}
    with contextlib.ExitStack() as stack:
        for piece in pieces:
            for name, array in piece.items():
                if name not in files:
                    files[name], written[name] = stack.enter_context(open(paths[name], "xb")), Checksums()
                    _write_header(files[name], name, (0, *array.shape[1:]))
                    columns[name] = array.shape[1:]
                for start in range(0, len(array), _BLOCK):
                    rows = np.ascontiguousarray(array[start : start + _BLOCK], dtype=_MAPPED[name])
                    written[name].update(rows)
                    files[name].write(rows.data)
        for name, file in files.items():
            _write_header(file, name, (written[name].rows, *columns[name]))
            file.flush()
            os.fsync(file.fileno())
    return written


def _write_header(file: IO[bytes], name: str, shape: tuple[int, ...]) -> None:
    """Write the header of an array to the beginning of a file; it is of one length for any number of rows."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(file, {"descr": _MAPPED[name].str, "fortran_order": False, "shape": shape})


def read_store(path: StrPath) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays and the metadata of a store, checked; the arrays of a folder are memory-mapped, copied on write.

    Those of a large folder are ``Blocks``, which are checked as they are read, and an ``IdIndex`` of the ids as ``index``.
    """
    path = os.fsdecode(path)
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, MANIFEST)):
        raise ValueError(f"{path} is a folder without a {MANIFEST}: it is not a store, or its writing has not finished")
    cure = "expected a .npz file or a folder from IrreducibleLossStore.save; copy it again, or make the store again"
    with explained(path, "a store", cure):
        header, arrays = _read_folder(path) if os.path.isdir(path) else _read_npz(path)
    if header["format"] > FORMAT:
        raise ValueError(f"{path} has store format {header['format']}, this rholoss reads up to {FORMAT}; upgrade rholoss")
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            continue
        if name not in _FIELDS or array.dtype != _FIELDS[name] or array.ndim != _dimensions(name):
            what = f"field {name!r} has dtype {array.dtype} and shape {array.shape}"
            raise ValueError(f"{path} is damaged: {what}; make the store again")
    if "losses" not in arrays:
        raise ValueError(f"{path} is damaged: it has no losses; make the store again")
    if ("classes" in arrays) != ("probabilities" in arrays):
        raise ValueError(f"{path} is damaged: it has classes or probabilities, not both; make the store again")
    return arrays, header["meta"]


def _dimensions(name: str) -> int:
    return 2 if name in ("classes", "probabilities") else 1


def _header(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "kind": KIND, "meta": dict(meta)}


def checked_header(header: Any) -> dict[str, Any]:
    """The header of a store, if it is one; else a ValueError."""
    check_kind(header.get("kind") if isinstance(header, dict) else None, KIND)
    if not isinstance(header.get("format"), int) or header["format"] < 1:
        raise ValueError(f"its format number is {header.get('format')!r}")
    if not isinstance(header.setdefault("meta", {}), dict):
        raise ValueError("its metadata are no mapping")
    return header


def _read_npz(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with open_regular(path) as raw:
        values, file = open_npz(raw)
        header = checked_header(values)
        fields = [] if header["format"] > FORMAT else [name for name in file if name != "header"]
        if not _FIELDS.keys() >= set(fields):
            raise ValueError(f"it holds {', '.join(fields)}, expected {', '.join(_FIELDS)}")
        return header, {name: file[name] for name in fields}


def _read_folder(path: str, before: Any = None) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    manifest = None
    try:
        manifest = read_json(os.path.join(path, MANIFEST))
        return _read_arrays(path, manifest)
    except (FileNotFoundError, IsADirectoryError):
        if manifest == before:
            raise ValueError("one of its files is missing") from None
        return _read_folder(path, manifest)  # a newer store may have replaced this one meanwhile


def _read_arrays(path: str, manifest: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    header = checked_header(manifest["header"])
    if header["format"] > FORMAT:
        return header, {}
    rows, intervals, checksums = manifest["rows"], manifest.get("intervals"), manifest.get("checksums", {})
    sizes = {**dict.fromkeys(_FIELDS, rows), "table": intervals and intervals["bases"][-1]}
    maps = {
        name: _map(os.path.join(path, os.path.basename(file)), name, sizes[name]) for name, file in manifest["arrays"].items()
    }
    found: dict[str, Any] = dict(maps)
    for name, array in maps.items():
        if rows > SMALL and checksums and array.ndim == 1:
            found[name] = Blocks(array, checksums[name], FAULTS.get(name, sound))
        else:
            _check_whole(array, name)
    table = found.pop("table", None)
    if table is not None:
        found["index"] = IdIndex(found["ids"], Intervals.from_json(intervals), table)
    return header, found


def _map(path: str, name: str, rows: int) -> np.memmap:
    """An array of a folder, memory-mapped, if it is of the shape and type that it has to be."""
    with open_regular(path) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"{os.path.basename(path)} has another version of NumPy's format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        if shape[:1] != (rows,) or len(shape) != _dimensions(name) or dtype != _MAPPED.get(name):
            raise ValueError(f"field {name!r} has dtype {dtype} and shape {shape}, in a store of {rows} rows")
        if os.fstat(file.fileno()).st_size != file.tell() + math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{os.path.basename(path)} is not of the length that its header says")
        return np.memmap(file, dtype, "c", file.tell(), shape)


def _check_whole(array: np.memmap, name: str) -> None:
    """Raise a ValueError if a mapped array does not fit the checksum in the name of its file."""
    path = os.fspath(array.filename or "")
    with open_regular(path) as file:
        file.seek(array.offset)
        checksum = rest_checksum(file)
    if os.path.basename(path) != f"{name}-{checksum:08x}.npy":
        raise ValueError(f"the checksum of {os.path.basename(path)} does not fit")
