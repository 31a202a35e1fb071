"""What all engines score here: 16 x 16 images in Parquet parts, and a small CNN."""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn

from rholoss import IrreducibleLossScorer

SIDE, CLASSES, PARTS = 16, 10, 8


def columns(start: int, stop: int) -> dict[str, np.ndarray]:
    """The examples from one index to another, the same in every process."""
    index = np.arange(start, stop)
    pixels = np.sin(index[:, None] * 0.37 + np.arange(SIDE * SIDE) * (0.05 + index[:, None] % CLASSES * 0.01))
    return {"id": index, "x": pixels.astype(np.float32), "y": index % CLASSES}


def write_parts(folder: Path, n: int) -> None:
    """The examples as a folder of Parquet files."""
    folder.mkdir()
    for part, rows in enumerate(np.array_split(np.arange(n), PARTS)):
        made = columns(int(rows[0]), int(rows[-1]) + 1)
        made["x"] = pa.FixedSizeListArray.from_arrays(pa.array(made["x"].ravel()), SIDE * SIDE)
        pq.write_table(pa.table(made), folder / f"part-{part:05d}.parquet", row_group_size=4096)


def make_model() -> nn.Module:
    """The irreducible-loss model; a real one would be read from a checkpoint that every worker sees."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, SIDE, SIDE)),
            *(nn.Conv2d(1, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Linear(128 * (SIDE // 4) ** 2, CLASSES),
        )


def forward(model, batch):
    return model(batch["x"]), batch["y"]


class Clocked(IrreducibleLossScorer):
    """Leaves when each batch began and ended in the folder ``CLOCKS``, a file for each process; else as the class above it."""

    def __call__(self, batch):
        began = time.time()
        scored = super().__call__(batch)
        if os.environ.get("CLOCKS") and hasattr(scored, "__len__"):  # an iterator of batches comes back here for each of them
            with open(f"{os.environ['CLOCKS']}/{os.getpid()}", "a") as clock:
                print(began, time.time(), len(scored), file=clock)
        return scored


def make_scorer(**options) -> IrreducibleLossScorer:
    return Clocked(make_model, forward=forward, **options)


@contextmanager
def measured() -> Iterator[None]:
    """Print the seconds of the block as one line of JSON, for the process that started this one."""
    began = time.perf_counter()
    yield
    print(json.dumps({"seconds": time.perf_counter() - began}))
    sys.stdout.flush()
