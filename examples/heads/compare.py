"""Uniform sampling against RHO-LOSS on one task: the loop, the same for every task of this folder.

A task is described by its ``forward`` and its ``loss``. They serve to fit the irreducible-loss model, to compute the irreducible
losses, to score the candidates and to train.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, build_selector, fit_irreducible_model
from rholoss.scoring import Forward, Loss

N_B, KEEP = 16, 0.125  # examples in a training batch, and their share of the candidates
HOLDOUT, VALIDATION, TRAINING, TEST = 400, 100, 1600, 400  # all but the training data are clean
WRONG = 0.3  # of the training examples


@dataclass
class Task:
    """A task, with the data of one seed."""

    name: str
    measure: str  # what ``evaluate`` measures
    data: list[Any]  # holdout, validation, training and test data
    is_wrong: Tensor  # (TRAINING,) bool
    model: Callable[[], nn.Module]
    forward: Forward
    loss: Loss
    evaluate: Callable[[nn.Module, Any], float]  # of a model and a batch of all test data
    collate: Callable[[list[Any]], Any] | None = None

    def loader(self, data: Any, size: int = 128, shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(data, batch_size=size, shuffle=shuffle, drop_last=shuffle, collate_fn=self.collate)


def draw_wrong(generator: torch.Generator) -> Tensor:
    """Which training examples are wrong, shape (TRAINING,), bool."""
    is_wrong = torch.zeros(TRAINING, dtype=torch.bool)
    is_wrong[torch.randperm(TRAINING, generator=generator)[: round(WRONG * TRAINING)]] = True
    return is_wrong


def optimizer_of(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3)


def train(task: Task, model: nn.Module, store: IrreducibleLossStore, method: str, steps: int, seed: int) -> tuple[float, float]:
    """The test measure at the end, and the share of wrong examples among the selected."""
    torch.manual_seed(seed)
    keep = 1.0 if method == "uniform" else KEEP
    loader = task.loader(task.data[2], N_B, shuffle=True)
    selector = build_selector(method, loader, model, store=store, keep=keep, forward=task.forward, loss=task.loss)
    optimizer, wrong = optimizer_of(model.parameters()), 0
    while selector.step < steps:
        for batch in selector:
            optimizer.zero_grad()
            task.loss(*task.forward(model, batch)).mean().backward()
            optimizer.step()
            wrong += int(task.is_wrong[selector.last.index].sum())
            if selector.step == steps:
                break
    model.eval()
    with torch.no_grad():
        return task.evaluate(model, next(iter(task.loader(task.data[3], TEST)))), wrong / (steps * N_B)


def compare(make: Callable[[int], Task], steps: int, seeds: int) -> None:
    """Print a line for each method: means over the seeds."""
    results: dict[str, list[tuple[float, float]]] = {"uniform": [], "rho_loss": []}
    for seed in range(seeds):
        torch.manual_seed(seed)
        task = make(seed)
        holdout, validation, training = task.loader(task.data[0], 32), task.loader(task.data[1]), task.loader(task.data[2])
        hooks = {"forward": task.forward, "loss": task.loss}
        small = task.model()
        fit = fit_irreducible_model(small, holdout, validation, epochs=40, optimizer=optimizer_of, progress=False, **hooks)
        store = IrreducibleLossStore.from_model(fit, training, progress=False, **hooks)
        initial = task.model()
        for method, runs in results.items():
            runs.append(train(task, copy.deepcopy(initial), store, method, steps, seed))
    print(f"{task.name}: {steps} steps of {N_B} examples, {WRONG:.0%} of the data wrong; means over {seeds} seeds")
    for method, runs in results.items():
        measured, wrong = (mean(values) for values in zip(*runs, strict=True))
        print(f"  {method:<10}{task.measure} {measured:.3f}   wrong among the selected {wrong:.1%}")


def main(*tasks: Callable[[int], Task], steps: int = 300) -> None:
    parser = argparse.ArgumentParser(description="Uniform against RHO-LOSS.")
    parser.add_argument("--steps", type=int, default=steps, help=f"training steps of each run (default: {steps})")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds (default: 3)")
    options = parser.parse_args()
    if min(options.steps, options.seeds) < 1:
        parser.error(f"expected at least 1 step and 1 seed, got {options.steps} and {options.seeds}")
    torch.set_num_threads(1)  # models this small only wait for more
    for make in tasks:
        compare(make, options.steps, options.seeds)
