"""A store on disk: one ``.npz`` file or a folder of memory-mapped arrays, without pickle, written whole or not at all."""

import contextlib
import errno
import json
import os
import re
import secrets
import zlib
from collections.abc import Iterable, Mapping
from typing import IO, Any

import numpy as np

from rholoss.files import StrPath, atomic_write, open_npz, open_regular, remove_on_failure, write_npz

FORMAT = 1
KIND = "rholoss.IrreducibleLossStore"
MANIFEST = "store.json"
_FIELDS: dict[str, Any] = {"losses": np.dtype("<f4"), "ids": np.dtype("<i8")}
_ARRAY = re.compile(rf"({'|'.join(_FIELDS)})-[0-9a-f]{{8}}\.npy")  # named by checksum, so no file is ever written twice
_BLOCK = 1 << 20


def write_store(path: StrPath, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write one ``.npz`` file; if that fails with an OSError, an existing file is unchanged."""
    write_npz(path, _header(meta), {name: np.asarray(array, dtype=_FIELDS[name]) for name, array in arrays.items()})


def write_mapped(path: StrPath, n: int, pieces: Iterable[Mapping[str, np.ndarray]], meta: Mapping[str, Any]) -> None:
    """Write a folder of arrays of n rows that can be memory-mapped, given in pieces to join, all with the same fields.

    An existing store stays readable until the new one is complete, and remains if that fails.
    """
    path = os.fsdecode(path)
    header = json.loads(json.dumps(_header(meta)))  # an error before anything is written
    new = None if os.path.isdir(path) else path
    os.makedirs(path, exist_ok=True)
    old = {name for name in os.listdir(path) if _ARRAY.fullmatch(name)}
    partial = {name: os.path.join(path, f"{name}.{secrets.token_hex(8)}.partial") for name in _FIELDS}
    ours = list(partial.values())  # to be removed on failure
    with remove_on_failure(ours, new):
        checksums = _write_arrays(partial, n, pieces)
        names = {name: f"{name}-{checksum:08x}.npy" for name, checksum in checksums.items()}
        for name, final in names.items():
            where = os.path.join(path, final)
            os.replace(partial[name], where)
            ours += [where] if final not in old else []
        text = json.dumps({"header": header, "rows": n, "arrays": names})
        with atomic_write(os.path.join(path, MANIFEST)) as manifest:
            manifest.write(f"{zlib.crc32(text.encode()):08x}\n{text}\n".encode())
    for name in old - set(names.values()):  # of the replaced store
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(path, name))


def _write_arrays(paths: Mapping[str, str], n: int, pieces: Iterable[Mapping[str, np.ndarray]]) -> dict[str, int]:
    """Write arrays of n rows to ``.npy`` files, piece by piece; returns their checksums."""
    files: dict[str, IO[bytes]] = {}
    checksums: dict[str, int] = {}
    with contextlib.ExitStack() as stack:
        for piece in pieces:
            for name, array in piece.items():
                if name not in files:
                    files[name] = stack.enter_context(open(paths[name], "xb"))
                    shape = {"descr": _FIELDS[name].str, "fortran_order": False, "shape": (n,)}
                    np.lib.format.write_array_header_1_0(files[name], shape)
                    checksums[name] = 0
                for start in range(0, len(array), _BLOCK):
                    content = np.ascontiguousarray(array[start : start + _BLOCK], dtype=_FIELDS[name]).tobytes()
                    checksums[name] = zlib.crc32(content, checksums[name])
                    files[name].write(content)
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    return checksums


def read_store(path: StrPath) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a store, checked; the arrays of a folder are memory-mapped, copied on write."""
    path = os.fsdecode(path)
    if os.path.isdir(path) and not os.path.exists(os.path.join(path, MANIFEST)):
        raise ValueError(f"{path} is a folder without a {MANIFEST}: it is not a store, or its writing has not finished")
    try:
        header, arrays = _read_folder(path) if os.path.isdir(path) else _read_npz(path)
    except Exception as error:  # a damaged file can fail in any way
        if isinstance(error, (FileNotFoundError, IsADirectoryError)) and os.path.isdir(path):
            raise ValueError(f"{path} is damaged: one of its files is missing; copy it again, or make the store again") from None
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a damaged offset
            raise
        why = "it holds pickled objects, which are never read" if "pickle" in str(error) else error
        expected = "expected a .npz file or a folder from IrreducibleLossStore.save; copy it again, or make the store again"
        raise ValueError(f"{path} is not a store that can be read ({why}): {expected}") from error
    if header["format"] > FORMAT:
        raise ValueError(f"{path} has store format {header['format']}, this rholoss reads up to {FORMAT}; upgrade rholoss")
    for name, array in arrays.items():
        if name not in _FIELDS or array.dtype != _FIELDS[name] or array.ndim != 1:
            what = f"field {name!r} has dtype {array.dtype} and shape {array.shape}"
            raise ValueError(f"{path} is damaged: {what}; make the store again")
    if "losses" not in arrays:
        raise ValueError(f"{path} is damaged: it has no losses; make the store again")
    return arrays, header["meta"]


def _header(meta: Mapping[str, Any]) -> dict[str, Any]:
    return {"format": FORMAT, "kind": KIND, "meta": dict(meta)}


def _checked_header(header: Any) -> dict[str, Any]:
    if not isinstance(header, dict) or header.get("kind") != KIND:
        raise ValueError("its header was written by another program")
    if not isinstance(header.get("format"), int) or header["format"] < 1:
        raise ValueError(f"its format number is {header.get('format')!r}")
    if not isinstance(header.setdefault("meta", {}), dict):
        raise ValueError("its metadata are no mapping")
    return header


def _read_npz(path: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with open_regular(path) as raw:
        values, file = open_npz(raw)
        header = _checked_header(values)
        newer = header["format"] > FORMAT
        return header, {} if newer else {name: file[name] for name in file if name != "header"}


def _read_folder(path: str, before: bytes = b"") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    with open(os.path.join(path, MANIFEST), "rb") as file:
        manifest = file.read()
    try:
        return _read_arrays(path, manifest)
    except FileNotFoundError:
        if manifest == before:
            raise
        return _read_folder(path, manifest)  # a newer store may have replaced this one meanwhile


def _read_arrays(path: str, content: bytes) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    checksum, text = content.rstrip(b"\n").split(b"\n")
    if int(checksum, 16) != zlib.crc32(text):
        raise ValueError("the checksum of its manifest does not fit")
    manifest = json.loads(text)
    header = _checked_header(manifest["header"])
    arrays: dict[str, np.ndarray] = {}
    for name, inner in {} if header["format"] > FORMAT else manifest["arrays"].items():
        where = os.path.join(path, os.path.basename(inner))
        array = np.lib.format.open_memmap(where, mode="c")
        if array.shape != (manifest["rows"],) or _checksum(where, array.offset) != int(inner.split("-")[1].split(".")[0], 16):
            raise ValueError(f"the checksum of {inner} does not fit")
        arrays[name] = array
    return header, arrays


def _checksum(path: str, offset: int) -> int:
    """The checksum of a file from an offset on."""
    checksum = 0
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            checksum = zlib.crc32(block, checksum)
    return checksum
