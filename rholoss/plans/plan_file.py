"""The file of a plan: columns in an uncompressed ``.npz``, mapped when opened, each block checked when first read."""

import io
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from typing import IO, Any

import numpy as np

from rholoss.files import StrPath, check_kind, explained, open_regular, plain_members, write_npz

FORMAT = 1
KIND = "rholoss.SelectionPlan"
BLOCK = 1 << 20  # rows that share a checksum
_TYPES = {"index": ("<u4", "<i8"), "ends": ("<i8",), "weights": ("<f4",), "scores": ("<f4",)}


def column_type(name: str, n: int) -> np.dtype[Any]:
    """The type of a column over n examples: of the index, the narrow one if they all have their numbers in it."""
    return np.dtype(_TYPES[name][-1 if n > 1 << 32 else 0])


class Column:
    """A mapped array whose blocks are checked when they are first read: a damaged one is a ValueError, never a wrong number."""

    def __init__(self, name: str, rows: np.ndarray, checksums: list[int]) -> None:
        self._name = name
        self._rows = rows
        self._checksums = checksums
        self._is_checked = [False] * len(checksums)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, start: int, stop: int) -> np.ndarray:
        """The rows from start to stop, read-only."""
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            if not self._is_checked[block]:
                self._check(block)
        return self._rows[start:stop]

    def _check(self, block: int) -> None:
        if _checksum(self._rows, block) != self._checksums[block]:
            raise ValueError(f"the plan's column {self._name!r} is damaged from row {block * BLOCK:,} on; copy the file again")
        self._is_checked[block] = True


def write_plan(path: StrPath, columns: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Write a plan, whole or not at all; columns that are mapped from files are read piece by piece."""
    described = {
        name: {"type": rows.dtype.str, "rows": len(rows), "checksums": _checksums(rows)} for name, rows in columns.items()
    }
    write_npz(path, {"format": FORMAT, "kind": KIND, "meta": dict(meta), "columns": described}, columns)


def read_plan(path: StrPath) -> tuple[dict[str, Column], dict[str, Any]]:
    """The columns and the metadata of a plan, without reading the rows.

    Raises:
        ValueError: the file is damaged, or is no plan.
        OSError: it cannot be opened.
    """
    cure = "copy it again, or record again"
    with explained(path, "a plan", cure), open_regular(path) as raw, zipfile.ZipFile(raw) as archive:
        members = plain_members(archive, raw.seek(0, os.SEEK_END))
        header = json.loads(str(np.lib.format.read_array(io.BytesIO(archive.read("header.npy")))))
        check_kind(header["kind"], KIND)
        newer, described = header["format"] > FORMAT, header["columns"]
        columns = {} if newer else {name: _mapped(path, raw, members[f"{name}.npy"], name, described[name]) for name in described}
    if newer:
        what = f"{os.fsdecode(path)} has plan format {header['format']}, this rholoss reads up to {FORMAT}"
        raise ValueError(f"{what}; upgrade rholoss")
    return columns, header["meta"]


def _mapped(path: StrPath, raw: IO[bytes], member: zipfile.ZipInfo, name: str, described: Mapping[str, Any]) -> Column:
    """A column in its place in the file; the header, under a checksum of its own, says what it has to be."""
    raw.seek(member.header_offset + 26)
    name_length, extra_length = struct.unpack("<HH", raw.read(4))
    raw.seek(member.header_offset + 30 + name_length + extra_length)
    np.lib.format.read_magic(raw)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(raw)
    rows, checksums = described["rows"], described["checksums"]
    if dtype.str not in _TYPES[name] or (dtype.str, shape, is_fortran) != (described["type"], (rows,), False):
        raise ValueError(f"column {name!r} has another type or length than its header says")
    if len(checksums) != -(-rows // BLOCK):
        raise ValueError(f"column {name!r} has {len(checksums)} checksums for {rows} rows")
    if not rows:
        return Column(name, np.empty(0, dtype), checksums)
    return Column(name, np.memmap(os.fsdecode(path), dtype, "r", raw.tell(), (rows,)), checksums)


def _checksums(rows: np.ndarray) -> list[int]:
    return [_checksum(rows, block) for block in range(-(-len(rows) // BLOCK))]


def _checksum(rows: np.ndarray, block: int) -> int:
    return zlib.crc32(np.ascontiguousarray(rows[block * BLOCK : (block + 1) * BLOCK]).data)
