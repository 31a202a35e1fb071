"""Files that are written whole or not at all, and read only if their checksums fit; no pickle."""

import contextlib
import errno
import json
import math
import os
import pickle
import secrets
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
import torch

StrPath = str | os.PathLike[str]
KINDS = {
    "rholoss.IrreducibleLossStore": "a store of irreducible losses",
    "rholoss.SelectionPlan": "a plan",
    "rholoss.ReferenceLossCache": "a cache of reference losses",
}
_BLOCK = 1 << 20  # bytes
_IS_FOLDER = 0x10  # an attribute of a zip file's member; PyTorch reads none of its bytes then, and takes what is in memory


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, renamed to its path when complete: readers see the old file or the new one. A link stays a link."""
    path = os.path.realpath(path)
    if os.path.exists(path) and not os.path.isfile(path):
        got = "a folder; name a file in it" if os.path.isdir(path) else "a special file; choose another path"
        raise OSError(errno.EEXIST, f"expected a regular file to replace, or none, got {got}", path)
    partial = f"{path}.{secrets.token_hex(8)}.partial"
    with remove_on_failure([partial]):
        with open(partial, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextlib.contextmanager
def remove_on_failure(files: list[str], folder: str | None = None) -> Iterator[None]:
    """If the block fails, remove these files, and the folder if it is then empty."""
    try:
        yield
    except BaseException:
        for file in files:
            with contextlib.suppress(OSError):
                os.unlink(file)
        with contextlib.suppress(OSError):
            if folder is not None:
                os.rmdir(folder)
        raise


@contextlib.contextmanager
def locked(folder: str) -> Iterator[bool]:
    """Wait for other processes and threads that have locked a folder, and lock it; yields whether this system can."""
    with contextlib.ExitStack() as stack:
        try:
            import fcntl

            handle = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, handle)
            fcntl.flock(handle, fcntl.LOCK_EX)
            can = True
        except (ImportError, OSError):  # Windows, some network file systems
            can = False
        yield can


def open_regular(path: StrPath) -> IO[bytes]:
    """A file to read; a ValueError for a pipe or a device, which could be waited for without end."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise ValueError(f"{os.fsdecode(path)} cannot be read: it is no regular file")
    return open(path, "rb")


@contextlib.contextmanager
def explained(path: StrPath, what: str, cure: str) -> Iterator[None]:
    """Turn whatever reading a damaged file raises into a ValueError; what the system refuses stays an OSError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a damaged offset
            raise
        is_pickle = isinstance(error, pickle.UnpicklingError) or "pickle" in str(error)
        why = "it holds pickled objects, which are never read" if is_pickle else str(error) or type(error).__name__
        raise ValueError(f"{os.fsdecode(path)} is not {what} that can be read ({why}): {cure}") from error


def write_npz(path: StrPath, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a header, with the names of the fields, and arrays to one ``.npz`` file, whole or not at all."""
    text = json.dumps({**header, "fields": sorted(arrays)})
    with atomic_write(os.fsdecode(path)) as file:
        np.savez(file, header=np.array(text), **arrays)


def open_npz(raw: IO[bytes]) -> tuple[Any, Mapping[str, np.ndarray]]:
    """The header that ``write_npz`` wrote, and its arrays, which are read on access; a ValueError if the file is damaged."""
    zip_checksums(raw)
    file = np.load(raw, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile) or "header" not in file.files:
        raise ValueError("it has no header")
    header = json.loads(str(file["header"]))
    if not isinstance(header, dict) or sorted(file.files) != sorted([*header.get("fields", ()), "header"]):
        raise ValueError("its fields are not those that its header names")
    return header, file


def check_kind(kind: Any, expected: str) -> None:
    """A ValueError unless the kind in a header is the expected one."""
    if kind != expected:
        known = KINDS.get(kind) if isinstance(kind, str) else None
        raise ValueError("its header was written by another program" if known is None else f"it is {known}")


def zip_checksums(raw: IO[bytes]) -> dict[str, int]:
    """The checksum of each member of a zip file, by name; a ValueError if one does not fit, or if it is not plain and single."""
    if raw.read(4) != b"PK\x03\x04":
        raise ValueError("it is no .npz file, nor one of torch.save in its present format")
    with zipfile.ZipFile(raw) as file:
        members = plain_members(file, raw.seek(0, os.SEEK_END))
        if any(member.external_attr & _IS_FOLDER for member in members.values()) or file.testzip() is not None:
            raise ValueError("a checksum does not fit")  # which neither NumPy nor PyTorch looks at to the end
    raw.seek(0)
    return {name: member.CRC for name, member in members.items()}


def plain_members(file: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members of a zip file of so many bytes, by name, before any is read; a ValueError if one is compressed or repeated."""
    members = file.infolist()
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):  # could unpack to any size
        raise ValueError("it is compressed")
    by_name = {member.filename: member for member in members}
    if len(by_name) < len(members) or sum(member.file_size for member in members) > size:
        raise ValueError("a part of it is there twice")
    return by_name


def rest_checksum(file: IO[bytes], most: float = math.inf) -> int:
    """The CRC-32 of what an open file holds from its present place on, of so many bytes at most, read piece by piece."""
    checksum = 0
    while block := file.read(int(min(most, _BLOCK))):
        checksum, most = zlib.crc32(block, checksum), most - len(block)
    return checksum


def write_torch(path: StrPath, state: Any) -> None:
    """Write tensors and plain values with ``torch.save``, whole or not at all."""
    with atomic_write(os.fsdecode(path)) as file:
        torch.save(state, file)


def read_torch(raw: IO[bytes], device: torch.device | str | None = "cpu") -> Any:
    """Tensors and plain values of a file of ``torch.save``; a ValueError if one of its checksums does not fit."""
    zip_checksums(raw)
    return torch.load(raw, map_location=device, weights_only=True)


def write_json(path: StrPath, values: Any) -> None:
    """Write JSON values below a line with their checksum, whole or not at all."""
    content = _with_checksum(json.dumps(values).encode())
    with atomic_write(os.fsdecode(path)) as file:
        file.write(content)


def read_json(path: StrPath) -> Any:
    """The values that ``write_json`` wrote; a ValueError if a byte of the file has changed."""
    with open_regular(path) as file:
        content = file.read()
    text = content[content.find(b"\n") + 1 : -1]
    if content != _with_checksum(text):
        raise ValueError(f"the checksum of {os.path.basename(os.fsdecode(path))} does not fit")
    return json.loads(text)


def _with_checksum(text: bytes) -> bytes:
    return b"%08x\n%b\n" % (zlib.crc32(text), text)
