"""Scoring in eval mode against scoring in train mode, on networks with BatchNorm.

    python examples/studies/scoring_mode.py [--seeds 10] [--steps 400]

The data, the irreducible-loss model and the loop come from quickstart.py. The network has BatchNorm, with and without dropout.
The runs differ only in the mode in which RHO-LOSS scores. Prints a table as Markdown: medians over the seeds, lowest and highest
in brackets.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path
from statistics import median

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # where quickstart.py is

import torch
from quickstart import N_B, first_at, fit_small_network, split_digits, train
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, build_selector


def network(dropout: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_in in (64, 256):
        layers += [nn.Linear(n_in, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def spread(values: list[float]) -> str:
    """Median, and lowest to highest in brackets."""
    low, middle, high = (f"{value:.1f}".removesuffix(".0") for value in (min(values), median(values), max(values)))
    return f"{middle} ({low} to {high})"


def main() -> None:
    parser = argparse.ArgumentParser(description="Scoring in eval mode against scoring in train mode.")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds (default: 10)")
    parser.add_argument("--steps", type=int, default=400, help="training steps of each run (default: 400)")
    options = parser.parse_args()
    names = ["steps to uniform's best accuracy - 2 points", "test accuracy at the end, %", "wrong among the selected, %"]
    print(f"| network | scored in | {' | '.join(names)} |\n|---|---|---|---|---|")
    for title, dropout in (("BatchNorm", 0.0), ("BatchNorm and dropout", 0.5)):
        rows: dict[str, list[tuple[float, float, float]]] = {"eval mode": [], "train mode": []}
        for seed in range(options.seeds):
            print(f"{title}, seed {seed + 1} of {options.seeds} ...", file=sys.stderr, flush=True)
            torch.manual_seed(seed)
            digits = split_digits(0.3, seed)
            store = IrreducibleLossStore.from_model(fit_small_network(digits, seed), digits.training)
            initial = network(dropout)

            def run(method: str, digits=digits, store=store, initial=initial, seed=seed, **how):
                model = copy.deepcopy(initial)
                generator = torch.Generator().manual_seed(seed)
                loader = DataLoader(digits.training, batch_size=N_B, shuffle=True, drop_last=True, generator=generator)
                return train(
                    build_selector(method, loader, model, store=store, **how), model, digits, options.steps, method, seed
                )

            target = max(run("uniform", keep=1.0).accuracy) - 0.02
            for row, mode in (("eval mode", "eval"), ("train mode", "train")):
                selected = run("rho_loss", keep=0.1, mode=mode)
                there = first_at(selected, target)
                steps = float("inf") if there is None else selected.steps[there]
                rows[row].append((steps, 100 * selected.accuracy[-1], 100 * selected.wrong_among_selected))
        for row, results in rows.items():
            print(f"| {title} | {row} | {' | '.join(spread(list(column)) for column in zip(*results, strict=True))} |")


if __name__ == "__main__":
    main()
