"""What all engines score here: 16 x 16 images in Parquet parts, and a small CNN."""

import json
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
            *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()),
            nn.Linear(32 * (SIDE // 4) ** 2, CLASSES),
        )


def forward(model, batch):
    return model(batch["x"]), batch["y"]


def make_scorer(**options) -> IrreducibleLossScorer:
    return IrreducibleLossScorer(make_model, forward=forward, **options)


@contextmanager
def measured(n: int, processes: int) -> Iterator[None]:
    """Print the seconds of the block as one line of JSON, for the process that started this one."""
    began = time.perf_counter()
    yield
    seconds = time.perf_counter() - began
    print(json.dumps({"seconds": seconds, "rate": n / seconds / processes}))
    sys.stdout.flush()
