"""A store on disk: one ``.npz`` file with a format number, no pickle, written whole or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from typing import Any

import numpy as np

FORMAT = 1
_FIELDS: dict[str, Any] = {"losses": np.dtype("<f4"), "ids": np.dtype("<i8")}


def write_store(path: str | os.PathLike[str], arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Write to a temporary name in the same folder, flush to the disk, then rename: readers see the old file or the new one."""
    path = os.fspath(path)
    text = json.dumps({"format": FORMAT, "kind": "rholoss.IrreducibleLossStore", "meta": dict(meta)})
    fields: dict[str, Any] = {name: np.asarray(array, dtype=_FIELDS[name]) for name, array in arrays.items()}
    partial = f"{path}.{secrets.token_hex(8)}.partial"
    try:
        with open(partial, "xb") as file:
            np.savez(file, header=np.array(text), **fields)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
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
            if file.zip is None or file.zip.testzip() is not None:  # NumPy itself stops reading short of the checksum
                raise ValueError("a checksum does not fit")
            header = json.loads(str(file["header"]))
            if not isinstance(header, dict) or header.get("kind") != "rholoss.IrreducibleLossStore":
                raise ValueError("its header is another program's")
            if not isinstance(header.get("format"), int) or header["format"] < 1:
                raise ValueError(f"its format number is {header.get('format')!r}")
            newer = header["format"] > FORMAT
            arrays = {} if newer else {name: file[name] for name in file.files if name != "header"}
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged file can fail in any way
        why = "it holds pickled objects, which are never read" if "pickle" in str(error) else error
        raise ValueError(
            f"{path} is not a store that can be read ({why}): expected a .npz file written by IrreducibleLossStore.save; "
            "copy it again, or make the store anew"
        ) from error
    if newer:
        raise ValueError(f"{path} has store format {header['format']}, this rholoss reads up to {FORMAT}; upgrade rholoss")
    for name, array in arrays.items():
        if name not in _FIELDS or array.dtype != _FIELDS[name] or array.ndim != 1:
            raise ValueError(
                f"{path} is damaged: field {name!r} has dtype {array.dtype} and shape {array.shape}; make the store anew"
            )
    if "losses" not in arrays:
        raise ValueError(f"{path} is damaged: it has no losses; make the store anew")
    return arrays, header.get("meta", {})
