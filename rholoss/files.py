"""Files that are written whole or not at all, and ``.npz`` files with checksums; no pickle."""

import contextlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np

StrPath = str | os.PathLike[str]


@contextlib.contextmanager
def atomic_write(path: str) -> Iterator[IO[bytes]]:
    """A file to write to, renamed to its path when complete: readers see the old file or the new one."""
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


def open_regular(path: StrPath) -> IO[bytes]:
    """A file to read; a ValueError for a pipe or a device, which could be waited for without end."""
    if not stat.S_ISREG(os.stat(path).st_mode) and not os.path.isdir(path):
        raise ValueError(f"{os.fsdecode(path)} cannot be read: it is no regular file")
    return open(path, "rb")


def write_npz(path: StrPath, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write a header, with the names of the fields, and arrays to one ``.npz`` file, whole or not at all."""
    text = json.dumps({**header, "fields": sorted(arrays)})
    with atomic_write(os.fsdecode(path)) as file:
        np.savez(file, header=np.array(text), **arrays)


def open_npz(raw: IO[bytes]) -> tuple[Any, Mapping[str, np.ndarray]]:
    """The header that ``write_npz`` wrote, and its arrays, which are read on access; a ValueError if the file is damaged."""
    if raw.read(4) != b"PK\x03\x04":
        raise ValueError("it is no .npz file")
    raw.seek(0)
    file = np.load(raw, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile) or "header" not in file.files or file.zip is None:
        raise ValueError("it has no header")
    if any(member.compress_type != zipfile.ZIP_STORED for member in file.zip.infolist()):  # could unpack to any size
        raise ValueError("it is compressed")
    if file.zip.testzip() is not None:  # NumPy stops reading before the checksum
        raise ValueError("a checksum does not fit")
    header = json.loads(str(file["header"]))
    fields = header.get("fields") if isinstance(header, dict) else None  # under a checksum, unlike the directory
    if fields is not None and sorted(file.files) != sorted([*fields, "header"]):
        raise ValueError("its fields are not those that its header names")
    return header, file
