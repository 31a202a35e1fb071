"""Files that are written whole or not at all, and ``.npz`` files with checksums; no pickle."""

import contextlib
import json
import os
import secrets
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


def write_npz(path: StrPath, header: str, arrays: Mapping[str, Any]) -> None:
    """Write a header and arrays to one ``.npz`` file, whole or not at all."""
    with atomic_write(os.fsdecode(path)) as file:
        np.savez(file, header=np.array(header), **arrays)


def open_npz(raw: IO[bytes]) -> tuple[Any, Mapping[str, np.ndarray]]:
    """The header that ``write_npz`` wrote, and its arrays, which are read on access; a ValueError if the file is damaged."""
    if raw.read(4) != b"PK\x03\x04":
        raise ValueError("it is no .npz file")
    raw.seek(0)
    file = np.load(raw, allow_pickle=False)
    if not isinstance(file, np.lib.npyio.NpzFile) or "header" not in file.files:
        raise ValueError("it has no header")
    if file.zip is None or file.zip.testzip() is not None:  # NumPy stops reading before the checksum
        raise ValueError("a checksum does not fit")
    return json.loads(str(file["header"])), file
