"""Census-Income (KDD): people of 1994 and 1995, and whether they earn more than 50,000 dollars."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from experiments.readers.files import find, wrong

COLUMNS = 42  # of which the last is the label
WEIGHT = 24  # how many people a row stands for: made for statistics, and not known of a person
MONEY = (5, 16, 17, 18)  # wage per hour, gains, losses, dividends: most are 0, some are huge
NUMBERS = (0, *MONEY, 30, 39)  # age, and how many persons and weeks
CATEGORIES = tuple(i for i in range(COLUMNS - 1) if i not in (*NUMBERS, WEIGHT))
LABELS = {"- 50000.": 0, "50000+.": 1}


FILES = ("census-income.data", "census-income.test")
Tables = dict[str, Tensor]
PARTS = ("train", "test")


def census(folder: Path) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Columns (n, d), float32, and labels (n,), int64, 1 for more than 50,000: training data, and test data.

    Args:
        folder: that which holds ``census-income.data`` and ``census-income.test``: comma-separated, without a header.
    """
    return encoded(tables(folder))


def tables(folder: Path) -> Tables:
    """What is in the files, as numbers: of each part its ``numbers`` (n, 7), ``kinds`` (n, 33) and ``labels`` (n,).

    Kinds are numbered as they come up in the training data; -1 is a kind that does not. The survey's weight is dropped.
    """
    codes: list[dict[str, int]] = [{} for _ in CATEGORIES]
    made: Tables = {}
    for part, name in zip(PARTS, FILES, strict=True):
        columns = _table(find(folder, name, data="Census-Income"), codes, grow=part == "train")
        made |= {f"{part} {name}": values for name, values in zip(("numbers", "kinds", "labels"), columns, strict=True)}
    return made


def encoded(tables: Tables) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Numbers standardised (amounts of money after a logarithm), and a column for each kind of a category.

    Both by the training data alone.
    """
    numbers = {part: _logarithms(tables[f"{part} numbers"]) for part in PARTS}
    mean, std = numbers["train"].mean(0), numbers["train"].std(0) + 1e-6
    sizes = (tables["train kinds"].long().amax(0) + 1).tolist()
    columns = (_columns((numbers[part] - mean) / std, tables[f"{part} kinds"].long(), sizes) for part in PARTS)
    one, other = ((x, tables[f"{part} labels"]) for x, part in zip(columns, PARTS, strict=True))
    return one, other


def _logarithms(numbers: Tensor) -> Tensor:
    money = [NUMBERS.index(i) for i in MONEY]
    changed = numbers.clone()
    changed[:, money] = numbers[:, money].log1p()
    return changed


def _table(path: Path, codes: list[dict[str, int]], grow: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers (n, 7), codes of categories (n, 33), -1 for a value that is not in the training data, and labels (n,)."""
    numbers, kinds, labels = [], [], []
    for number, fields in _fields(path):
        try:
            numbers.append([float(fields[i]) for i in NUMBERS])
            labels.append(LABELS[fields[-1]])
        except (ValueError, KeyError) as error:
            got = f"{error} in line {number:,}"
            raise wrong(path, f"numbers in columns {NUMBERS} and a label of {list(LABELS)}", got, "Census-Income") from error
        values = (fields[i] for i in CATEGORIES)
        if grow:
            kinds.append([seen.setdefault(value, len(seen)) for seen, value in zip(codes, values, strict=True)])
        else:
            kinds.append([seen.get(value, -1) for seen, value in zip(codes, values, strict=True)])
    if not labels:
        raise wrong(path, "rows", "none", "Census-Income")
    return torch.tensor(numbers), torch.from_numpy(np.array(kinds, dtype=np.int16)), torch.tensor(labels)


def _fields(path: Path) -> Iterator[tuple[int, list[str]]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                fields = [field.strip() for field in line.split(",")]
                if len(fields) != COLUMNS:
                    raise wrong(path, f"{COLUMNS} columns in each row", f"{len(fields)} in line {number:,}", "Census-Income")
                yield number, fields


def _columns(numbers: Tensor, kinds: Tensor, sizes: list[int]) -> Tensor:
    firsts = torch.tensor([0, *sizes[:-1]]).cumsum(0) + numbers.shape[1]
    table = torch.zeros(len(numbers), numbers.shape[1] + sum(sizes))
    table[:, : numbers.shape[1]] = numbers
    rows, columns = (kinds >= 0).nonzero(as_tuple=True)
    table[rows, (kinds + firsts)[rows, columns]] = 1
    return table
