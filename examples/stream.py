"""RHO-LOSS over a stream: handwritten digits in files of JSON lines, read by two workers, identified by keys.

    python examples/stream.py [--seeds 3] [--steps 200]

The data are the 1,797 digits of scikit-learn: 300 with trusted labels, 960 for training, and the rest for testing. 30 % of the
training labels are replaced by another class. The training digits are written to eight files, where each line has a key, an image
and a label. They are then read as a stream only: once, to score them with a model of the trusted digits, and again without end,
shuffled, to train on. Prints the test accuracy after equal steps, and the share of wrong labels among the examples trained on,
for plain batches and for RHO-LOSS.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset, get_worker_info

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, fit_irreducible_model

FILES, N_B, N_SELECTED = 8, 320, 32


class Lines(IterableDataset):
    """The examples of files of JSON lines, each worker its own files; once and in order, or without an end and shuffled."""

    def __init__(self, files: list[Path], endless: bool = False, seed: int = 0) -> None:
        self.files, self.endless, self.seed = files, endless, seed

    def __iter__(self) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        mine = self.files if info is None else self.files[info.id :: info.num_workers]
        rng = random.Random(self.seed)
        while True:
            lines = [line for file in mine for line in file.read_text().splitlines()]
            if self.endless:
                rng.shuffle(lines)  # with more data than fits, shuffle files and a buffer
            for line in lines:
                row = json.loads(line)
                yield {**row, "image": torch.tensor(row["image"])}
            if not self.endless:
                return


def forward(model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return model(batch["image"]), batch["label"]


def write(folder: Path, images: Tensor, labels: Tensor, is_wrong: Tensor) -> list[Path]:
    files = [folder / f"{number}.jsonl" for number in range(FILES)]
    rows = zip(images.tolist(), labels.tolist(), is_wrong.tolist(), strict=True)
    lines = [json.dumps({"key": f"digit/{i:04d}", "image": x, "label": y, "is_wrong": w}) for i, (x, y, w) in enumerate(rows)]
    for number, file in enumerate(files):
        file.write_text("\n".join(lines[number::FILES]))
    return files


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10))


def train(model: nn.Module, batches: Iterable[dict[str, Any]], steps: int) -> float:
    """Train for some steps; the share of wrong labels among what was trained on."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    wrong = []
    for batch in itertools.islice(batches, steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(*forward(model, batch)).backward()
        optimizer.step()
        wrong.append(batch["is_wrong"].float().mean().item())
    return statistics.mean(wrong)


def one_seed(seed: int, steps: int, folder: Path) -> dict[str, tuple[float, float]]:
    """Test accuracy and share of wrong labels, by method."""
    torch.manual_seed(seed)
    digits = load_digits()
    images, labels = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    trusted, validation, training, test = torch.randperm(len(images)).split([240, 60, 960, 537])
    is_wrong = torch.arange(len(training)) < 0.3 * len(training)
    given = torch.where(is_wrong, (labels[training] + torch.randint(1, 10, is_wrong.shape)) % 10, labels[training])
    files = write(folder, images[training], given, is_wrong)

    parts = [TensorDataset(images[part], labels[part]) for part in (trusted, validation)]
    fit = fit_irreducible_model(make_network(), *parts, epochs=100, seed=seed)
    once = DataLoader(Lines(files), batch_size=N_B, num_workers=2)
    store = IrreducibleLossStore.from_model(fit, IndexedBatches(once, index="key"), forward=forward)

    outcomes = {}
    for method in ("uniform", "RHO-LOSS"):
        torch.manual_seed(seed)
        model = make_network()
        size = N_SELECTED if method == "uniform" else N_B
        batches: Any = DataLoader(Lines(files, endless=True, seed=seed), batch_size=size, num_workers=2)
        if method == "RHO-LOSS":
            named = IndexedBatches(batches, index="key")
            batches = RhoLossSelector(named, model, store, batch_size=N_SELECTED, forward=forward)
        wrong = train(model, batches, steps)
        right = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()
        outcomes[method] = right, wrong
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    if options.seeds < 1 or options.steps < 1:
        parser.error("--seeds and --steps must be at least 1")
    runs = []
    for seed in range(options.seeds):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_seed(seed, options.steps, Path(folder)))
    print(f"after {options.steps} steps of {N_SELECTED} examples, median (lowest to highest) of {options.seeds} seeds, in %")
    print(f"{'':10}{'test accuracy':24}wrong labels among the selected (30 in the data)")
    for method in runs[0]:
        columns = (sorted(100 * run[method][i] for run in runs) for i in (0, 1))
        texts = [f"{statistics.median(c):.1f} ({c[0]:.1f} to {c[-1]:.1f})" for c in columns]
        print(f"{method:10}{texts[0]:24}{texts[1]}")


if __name__ == "__main__":
    main()
