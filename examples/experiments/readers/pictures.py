"""Data sets that are a picture a file: CINIC-10's folders and Clothing-1M's lists. Only paths and labels are read here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.readers.files import find, lines_of, wrong

CINIC_CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
Paths = np.ndarray  # (n,) of str


def cinic10(folder: Path, part: str) -> tuple[Paths, Tensor]:
    """Paths (n,) and labels (n,), int64, of the part ``"train"``, ``"valid"`` or ``"test"``: a folder a class, sorted by name."""
    where = find(folder, part, data="CINIC-10")
    paths, labels = [], []
    for label, name in enumerate(CINIC_CLASSES):
        found = sorted(str(path) for path in find(where, name, data="CINIC-10").glob("*.png"))
        if not found:
            raise wrong(where / name, "pictures that end in .png", "none", "CINIC-10")
        paths += found
        labels += [label] * len(found)
    return np.array(paths), torch.tensor(labels)


def clothing1m(folder: Path, part: str) -> tuple[Paths, Tensor]:
    """Paths (n,) and labels (n,), int64, from 0 to 13, in the order of a list.

    Args:
        folder: that which holds ``images`` and the lists, or the lists in ``annotations``.
        part: ``"noisy_train"``, ``"clean_train"``, ``"clean_val"`` or ``"clean_test"``.
    """
    lists = folder / "annotations" if (folder / "annotations").is_dir() else folder
    key_file = find(lists, f"{part}_key_list.txt", data="Clothing-1M")
    label_file = find(lists, f"{part.split('_')[0]}_label_kv.txt", data="Clothing-1M")
    known = {}
    for number, line in enumerate(lines_of(label_file, "Clothing-1M"), 1):
        path, _, label = line.rpartition(" ")
        if not path or not label.isdigit() or int(label) > 13:
            raise wrong(
                label_file, "a path and a label from 0 to 13 in each line", f"{line[:80]!r} in line {number:,}", "Clothing-1M"
            )
        known[path] = int(label)
    keys = lines_of(key_file, "Clothing-1M")
    missing = [key for key in keys if key not in known]
    if missing or not keys:
        got = f"none for {len(missing):,} of {len(keys):,}, such as {missing[0]!r}" if missing else "no line"
        raise wrong(key_file, f"paths with a label in {label_file.name}", got, "Clothing-1M")
    return np.array([str(folder / key) for key in keys]), torch.tensor([known[key] for key in keys])
