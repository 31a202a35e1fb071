"""A store on disk: one ``.npz`` file with a format number, no pickle, written whole or not at all."""

import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

FORMAT = 1
_FIELDS: dict[str, Any] = {"losses": np.dtype("<f4"), "ids": np.dtype("<i8")}
_UNREADABLE = (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError, AttributeError)


def write_store(path: str | os.PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write to a temporary name in the same folder, flush to the disk, then rename: readers see the old file or the new one."""
    path = os.fspath(path)
    text = json.dumps({"format": FORMAT, "kind": "rholoss.IrreducibleLossStore", "meta": dict(meta)})
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "xb") as file:
            fields: dict[str, Any] = {name: np.asarray(array, dtype=_FIELDS[name]) for name, array in arrays.items()}
            np.savez(file, header=np.array(text), **fields)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def read_store(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the metadata of a store file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no store, is damaged, or is of a newer format; the message names it.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as raw:
            file = np.load(raw, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile) or "header" not in file.files:
                raise ValueError("it has no header")
            header = json.loads(str(file["header"]))
            if not isinstance(header, dict) or header.get("kind") != "rholoss.IrreducibleLossStore":
                raise ValueError("its header is another program's")
            version = header.get("format")
            if not isinstance(version, int) or version < 1:
                raise ValueError(f"its format number is {version!r}")
            if version > FORMAT:
                raise _NewerFormatError(version)
            arrays = {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise
    except _NewerFormatError as newer:
        raise ValueError(f"{path} has store format {newer.version}, this rholoss reads up to {FORMAT}; upgrade rholoss") from None
    except _UNREADABLE as error:
        why = "it holds pickled objects, which are never read" if "pickle" in str(error) else error
        raise ValueError(
            f"{path} is not a store that can be read ({why}): expected a .npz file written by IrreducibleLossStore.save; "
            "copy it again, or make the store anew"
        ) from error
    for name, array in arrays.items():
        if name not in _FIELDS or array.dtype != _FIELDS[name] or array.ndim != 1:
            raise ValueError(
                f"{path} is damaged: field {name!r} has dtype {array.dtype} and shape {array.shape}; make the store anew"
            )
    if "losses" not in arrays:
        raise ValueError(f"{path} is damaged: it has no losses; make the store anew")
    return arrays, header.get("meta", {})


class _NewerFormatError(Exception):
    def __init__(self, version: int) -> None:
        self.version = version
