"""Texts with classes, from the files in which they are published, as word ids."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from experiments.readers import tweets
from torch import Tensor

WORDS, LENGTH = 8_000, {"newsgroups": 128, "reuters": 128, "tweets": 40, "sst2": 48, "cola": 32}
FILES = {
    "newsgroups": ("20newsgroups-train.tab", "20newsgroups-test.tab"),
    "reuters": ("reuters-r52-train.tab", "reuters-r52-test.tab"),
    "tweets": (tweets.FILE,),
    "sst2": ("train.tsv", "dev.tsv", "test.tsv"),  # the 872 sentences of the last alone would measure to 1.5 points only
    "cola": ("in_domain_train.tsv", "in_domain_dev.tsv"),
}


class Texts(NamedTuple):
    """Word ids, (n, l) int64, 0 for none and 1 for rare ones, and classes, (n,) int64; to train on, and to test on or None."""

    x: Tensor
    y: Tensor
    test: tuple[Tensor, Tensor] | None


def read_texts(name: str, root: Path) -> Texts:
    """The texts of a data set in a folder of its name.

    Raises:
        FileNotFoundError: a file is not there.
    """
    paths = [root / name / file for file in FILES[name]]
    missing = [path for path in paths if not path.exists()]
    if missing:
        raise FileNotFoundError(f"expected {missing[0]}; see examples/battery/README.md for where it comes from")
    trained, *others = [_pairs(name, path) for path in paths]
    seen = {text for text, _ in trained}
    tested = list({text: label for pairs in others for text, label in pairs if text not in seen}.items())
    parts = [trained, tested] if others else [trained]
    classes = sorted({label for _, label in parts[0]})
    known = {
        word: i + 2 for i, (word, _) in enumerate(Counter(w for text, _ in parts[0] for w in words(text)).most_common(WORDS - 2))
    }
    made = [
        (
            torch.stack([_ids(text, known, LENGTH[name]) for text, label in part if label in classes]),
            torch.tensor([classes.index(label) for _, label in part if label in classes]),
        )
        for part in parts
    ]
    return Texts(*made[0], made[1] if len(made) > 1 else None)


def words(text: str) -> list[str]:
    return re.findall(r"[a-z']+|[0-9]+|[^\sa-z0-9]", text.lower())


def _ids(text: str, known: dict[str, int], length: int) -> Tensor:
    ids = [known.get(word, 1) for word in words(text)][:length] or [1]
    return torch.tensor(ids + [0] * (length - len(ids)))


def _pairs(name: str, path: Path) -> list[tuple[str, str]]:
    """Texts and their labels, each text once."""
    if name == "tweets":
        found, classes, _ = tweets.tweets(path.parent)
        return [(text, tweets.CLASSES[label]) for text, label in zip(found, classes.tolist(), strict=True)]
    csv.field_size_limit(2**24)
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        return list(dict(_read(name, file)).items())


def _read(name: str, file: Iterable[str]) -> Iterable[tuple[str, str]]:
    rows = csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE if name in ("sst2", "cola") else csv.QUOTE_MINIMAL)
    if name == "sst2":
        return [(row[0], row[1]) for row in list(rows)[1:]]
    if name == "cola":
        return [(row[3], row[1]) for row in rows]
    return [(row[1], row[0]) for row in list(rows)[3:] if len(row) > 1]  # three header rows
