"""Sentences with a label, in tab-separated files: CoLA and SST-2."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from experiments.readers.files import find, lines_of, wrong

SENTENCES = tuple[list[str], Tensor]


def cola(folder: Path) -> tuple[SENTENCES, SENTENCES]:
    """Sentences and labels (n,), int64, 1 for acceptable: training data, and development data.

    The files are GLUE's ``train.tsv`` and ``dev.tsv``, or the corpus's own ``in_domain_train.tsv``, and ``in_domain_dev.tsv``
    followed by ``out_of_domain_dev.tsv``, which GLUE joined: four columns, no header, and quotation marks are just that.
    """
    train = _rows(find(folder, "train.tsv", "in_domain_train.tsv", data="CoLA"), "CoLA", columns=4, label=1, sentence=3)
    if (folder / "dev.tsv").exists():
        return train, _rows(folder / "dev.tsv", "CoLA", columns=4, label=1, sentence=3)
    files = [find(folder, f"{name}_dev.tsv", data="CoLA") for name in ("in_domain", "out_of_domain")]
    (inside, inside_labels), (outside, outside_labels) = (_rows(f, "CoLA", columns=4, label=1, sentence=3) for f in files)
    return train, (inside + outside, torch.cat([inside_labels, outside_labels]))


def sst2(folder: Path) -> tuple[SENTENCES, SENTENCES]:
    """Sentences and labels (n,), int64, 1 for praise: GLUE's ``train.tsv`` and ``dev.tsv``, two columns under a header."""
    files = [find(folder, f"{part}.tsv", data="SST-2") for part in ("train", "dev")]
    train, dev = (_rows(path, "SST-2", columns=2, label=1, sentence=0, header=True) for path in files)
    return train, dev


def _rows(path: Path, data: str, columns: int, label: int, sentence: int, header: bool = False) -> SENTENCES:
    lines = lines_of(path, data)
    if header and (not lines or lines[0].split("\t") != ["sentence", "label"]):
        raise wrong(path, "the header 'sentence<tab>label'", repr(lines[0][:80]) if lines else "an empty file", data)
    sentences, labels = [], []
    for number, line in enumerate(lines[header:], 1 + header):
        fields = line.split("\t")
        if len(fields) != columns or fields[label] not in ("0", "1"):
            raise wrong(path, f"{columns} columns, and 0 or 1 in that of the label", f"{line[:80]!r} in line {number:,}", data)
        sentences.append(fields[sentence].strip())
        labels.append(int(fields[label]))
    if not sentences:
        raise wrong(path, "sentences", "none", data)
    return sentences, torch.tensor(labels)
