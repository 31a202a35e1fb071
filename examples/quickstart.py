"""Uniform sampling against RHO-LOSS on handwritten digits, where part of the training labels are wrong.

    python examples/quickstart.py [--seeds 5] [--steps 800] [--noise 0.3] [--keep 0.1] [--out results/quickstart]

Each seed splits the 1,797 digits of scikit-learn into a clean holdout of 300, training data and clean test data. A share of the
training labels is replaced by another class. An irreducible-loss model is fitted on the holdout, and every training example gets
its irreducible loss. Then one loop trains the same network twice from the same weights: with plain batches, and with RHO-LOSS.
Prints a table, and writes results.json and a plot of test accuracy against steps and against seconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import Fit, IrreducibleLossStore, Selector, build_selector, fit_irreducible_model

HOLDOUT, VALIDATION, TRAINING = 300, 60, 960  # validation is a part of the holdout; the rest of the digits is the test data
N_B = 32  # examples in a training batch
EVALUATE_EVERY = 5  # steps


@dataclass
class Digits:
    """One seed's split. ``is_wrong`` marks the training examples with a wrong label."""

    holdout: TensorDataset
    validation: TensorDataset
    training: TensorDataset
    is_wrong: Tensor
    test: TensorDataset


@dataclass
class Run:
    """What one training run did. Seconds are of selecting and training, without evaluation."""

    method: str
    seed: int
    steps: list[int]
    seconds: list[float]
    accuracy: list[float]
    examples_trained: int
    examples_scored: int
    wrong_among_selected: float
    irreducible_seconds: float
    irreducible_accuracy: float = 0.0


def split_digits(noise: float, seed: int) -> Digits:
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=generator)
    fit, validation = order[: HOLDOUT - VALIDATION], order[HOLDOUT - VALIDATION : HOLDOUT]
    training, test = order[HOLDOUT : HOLDOUT + TRAINING], order[HOLDOUT + TRAINING :]
    is_wrong = torch.zeros(TRAINING, dtype=torch.bool)
    is_wrong[torch.randperm(TRAINING, generator=generator)[: round(noise * TRAINING)]] = True
    another = (y[training] + torch.randint(1, 10, (TRAINING,), generator=generator)) % 10
    labels = torch.where(is_wrong, another, y[training])
    parts = [TensorDataset(x[part], y[part]) for part in (fit, validation, test)]
    return Digits(parts[0], parts[1], TensorDataset(x[training], labels), is_wrong, parts[2])


def make_network(width: int, depth: int) -> nn.Sequential:
    sizes = [64] + [width] * depth
    layers = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.5)) for a, b in pairwise(sizes)]
    return nn.Sequential(*(module for layer in layers for module in layer), nn.Linear(width, 10))


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)


@torch.no_grad()
def evaluate(model: nn.Module, data: TensorDataset) -> tuple[float, float]:
    """Accuracy and mean loss."""
    was = model.training
    model.eval()
    logits, y = model(data.tensors[0]), data.tensors[1]
    model.train(was)
    return (logits.argmax(1) == y).float().mean().item(), nn.functional.cross_entropy(logits, y).item()


def fit_small_network(digits: Digits, seed: int, epochs: int = 300) -> Fit:
    """The irreducible-loss model."""
    small = make_network(width=256, depth=1)
    return fit_irreducible_model(small, digits.holdout, digits.validation, epochs=epochs, patience=30, seed=seed, progress=False)


def train(selector: Selector, model: nn.Module, digits: Digits, steps: int, method: str, seed: int) -> Run:
    """The loop, the same for every method."""
    torch.manual_seed(seed)
    run = Run(method, seed, [], [], [], 0, 0, 0.0, 0.0)
    optimizer = optimizer_of(model)
    wrong, seconds = 0, 0.0
    began = time.perf_counter()
    while selector.step < steps:
        for x, y in selector:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            wrong += int(digits.is_wrong[selector.last.index].sum())
            run.examples_trained += len(x)
            run.examples_scored += len(selector.last.candidate_index) if method != "uniform" else 0
            if selector.step % EVALUATE_EVERY == 0:
                seconds += time.perf_counter() - began
                run.steps.append(selector.step)
                run.seconds.append(seconds)
                run.accuracy.append(evaluate(model, digits.test)[0])
                began = time.perf_counter()
            if selector.step == steps:
                break
    run.wrong_among_selected = wrong / run.examples_trained
    return run


def compare(seed: int, steps: int, noise: float, keep: float) -> list[Run]:
    """Both methods on one seed's split, from the same initial weights."""
    torch.manual_seed(seed)
    digits = split_digits(noise, seed)
    began = time.perf_counter()
    fit = fit_small_network(digits, seed)
    store = IrreducibleLossStore.from_model(fit, digits.training, progress=False)
    irreducible_seconds = time.perf_counter() - began
    initial = make_network(width=512, depth=2)
    runs = []
    for method, share in (("uniform", 1.0), ("rho_loss", keep)):  # uniform is the plain loop: it keeps every batch as it comes
        model = copy.deepcopy(initial)
        generator = torch.Generator().manual_seed(seed)
        loader = DataLoader(digits.training, batch_size=N_B, shuffle=True, drop_last=True, generator=generator)
        selector = build_selector(method, loader, model, store=store, keep=share)
        runs.append(train(selector, model, digits, steps, method, seed))
    runs[-1].irreducible_seconds = irreducible_seconds
    runs[-1].irreducible_accuracy, _ = evaluate(fit.model, digits.test)
    return runs


def first_at(run: Run, target: float) -> int | None:
    """Position of the first evaluation at or above a target accuracy, or None."""
    return next((i for i, accuracy in enumerate(run.accuracy) if accuracy >= target), None)


def spread(values: list[float], form: str = "{:.0f}") -> str:
    """Median, and lowest to highest in brackets."""
    low, mid, high = (form.format(v) for v in (min(values), statistics.median(values), max(values)))
    return f"{mid} ({low} to {high})"


def percent(values: list[float]) -> str:
    return spread([100 * value for value in values], "{:.1f}")


def reach(pairs: list[tuple[Run, float]], what: str) -> list[float]:
    """Steps or seconds to each run's target; infinite if a run never reaches it."""
    found = [(run, first_at(run, target)) for run, target in pairs]
    return [getattr(run, what)[i] if i is not None else float("inf") for run, i in found]


def table(runs: list[Run], noise: float) -> str:
    """The comparison as text: medians over the seeds, lowest and highest in brackets."""
    uniform, rho = ([run for run in runs if run.method == method] for method in ("uniform", "rho_loss"))
    targets = [max(run.accuracy) - 0.02 for run in uniform]
    pairs = {"uniform": list(zip(uniform, targets, strict=True)), "RHO-LOSS": list(zip(rho, targets, strict=True))}
    rows = [("", "uniform", "RHO-LOSS")]

    def row(name: str, fn: Callable[[list[tuple[Run, float]]], str]) -> None:
        rows.append((name, *(fn(pairs[method]) for method in ("uniform", "RHO-LOSS"))))

    row("steps to uniform's best accuracy - 2 points", lambda p: spread(reach(p, "steps")))
    row("  examples trained on until then", lambda p: spread([N_B * s for s in reach(p, "steps")], "{:,.0f}"))
    row(
        "  examples scored until then",
        lambda p: spread(
            [r.examples_scored / r.steps[-1] * s for (r, _), s in zip(p, reach(p, "steps"), strict=True)], "{:,.0f}"
        ),
    )
    row("  seconds, irreducible-loss model excluded", lambda p: spread(reach(p, "seconds"), "{:.2f}"))
    row(
        "  seconds, irreducible-loss model included",
        lambda p: spread([s + r.irreducible_seconds for (r, _), s in zip(p, reach(p, "seconds"), strict=True)], "{:.2f}"),
    )
    row("best test accuracy, %", lambda p: percent([max(r.accuracy) for r, _ in p]))
    row(f"test accuracy at the end, step {uniform[0].steps[-1]}, %", lambda p: percent([r.accuracy[-1] for r, _ in p]))
    in_data = f"{100 * noise:.0f} in the data"
    row(f"wrong labels among the selected, % ({in_data})", lambda p: percent([r.wrong_among_selected for r, _ in p]))
    row("seconds in all, irreducible-loss model excluded", lambda p: spread([r.seconds[-1] for r, _ in p], "{:.2f}"))
    widths = [max(len(line[i]) for line in rows) for i in range(3)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in rows]
    lines.insert(1, "-" * len(max(lines, key=len)))
    ratios, in_seconds = (
        [a / b for a, b in zip(*(reach(p, what) for p in pairs.values()), strict=True)] for what in ("steps", "seconds")
    )
    costs = [(b.seconds[-1] / b.steps[-1]) / (a.seconds[-1] / a.steps[-1]) for a, b in zip(uniform, rho, strict=True)]
    lines += [
        "",
        f"RHO-LOSS needs {spread(ratios, '{:.1f}')} times fewer steps; each costs {spread(costs, '{:.1f}')} times the seconds.",
        f"In seconds, the irreducible-loss model excluded, it is there {spread(in_seconds, '{:.1f}')} times as soon.",
        f"The irreducible-loss model alone, trained on clean labels: {percent([r.irreducible_accuracy for r in rho])} % right.",
        f"Medians over {len(uniform)} seeds, lowest and highest in brackets. So small a task shows the method, not its speed.",
    ]
    return "\n".join(lines)


def plot(runs: list[Run], folder: Path) -> None:
    """Draw ``accuracy.png``, and ``accuracy_dark.png`` for pages with a dark background."""
    for name, how, line in (("accuracy", "default", "black"), ("accuracy_dark", "dark_background", "white")):
        with style.context(how):
            draw(runs, line).savefig(folder / f"{name}.png", dpi=240)


def draw(runs: list[Run], line: str) -> Figure:
    """Test accuracy against steps and against seconds: the median over the seeds, lowest to highest shaded."""
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    uniform = [run for run in runs if run.method == "uniform"]
    target = 100 * (statistics.median(max(run.accuracy) for run in uniform) - 0.02)
    for method, label, color in (("uniform", "uniform", "#7f8b97"), ("rho_loss", "RHO-LOSS", "#d55e00")):
        mine = [run for run in runs if run.method == method]
        accuracy = [[100 * value for value in at_once] for at_once in zip(*(run.accuracy for run in mine), strict=True)]
        low, mid, high = ([of(values) for values in accuracy] for of in (min, statistics.median, max))
        seconds = [statistics.median(values) for values in zip(*(run.seconds for run in mine), strict=True)]
        for axis, where in zip(axes, (mine[0].steps, seconds), strict=True):
            axis.plot(where, mid, color=color, label=label)
            axis.fill_between(where, low, high, color=color, alpha=0.25, linewidth=0)
    before = statistics.median(run.irreducible_seconds for run in mine)
    axes[1].plot([before + s for s in seconds], mid, ":", color=color, label="RHO-LOSS, irreducible-loss model included")
    for axis, name in zip(axes, ("steps", "seconds of selecting and training"), strict=True):
        axis.axhline(target, color=line, linestyle="--", linewidth=0.8, label="uniform's best - 2 points")
        axis.set(xscale="log", xlabel=name, ylabel="test accuracy, %", ylim=(target - 25, 100))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.label_outer()
        axis.grid(alpha=0.3)
    figure.suptitle(f"Handwritten digits, part of the training labels wrong: median and range of {len(mine)} seeds")
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def main(arguments: list[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description="Uniform against RHO-LOSS on handwritten digits.")
    parser.add_argument("--seeds", type=int, default=5, help="how many seeds (default: 5)")
    parser.add_argument("--steps", type=int, default=800, help="training steps of each run (default: 800)")
    parser.add_argument("--noise", type=float, default=0.3, help="share of the training labels that are wrong (default: 0.3)")
    parser.add_argument(
        "--keep", type=float, default=0.1, help="share of each candidate batch that RHO-LOSS keeps (default: 0.1)"
    )
    parser.add_argument("--out", type=Path, default=Path("results/quickstart"), help="where the plot and the results go")
    options = parser.parse_args(arguments)
    if options.seeds < 1 or options.steps < EVALUATE_EVERY or not 0 <= options.noise <= 1:
        parser.error(f"expected --seeds of at least 1, --steps of at least {EVALUATE_EVERY} and --noise from 0 to 1")
    torch.set_num_threads(1)  # seconds stay comparable on a busy machine
    options.out.mkdir(parents=True, exist_ok=True)
    runs = []
    for seed in range(options.seeds):
        print(f"seed {seed + 1} of {options.seeds} ...", file=sys.stderr, flush=True)
        runs += compare(seed, options.steps, options.noise, options.keep)
    print(table(runs, options.noise))
    (options.out / "results.json").write_text(json.dumps([asdict(run) for run in runs]))
    plot(runs, options.out)
    print(f"\nPlot: {options.out / 'accuracy.png'}; results: {options.out / 'results.json'}")
    return runs


if __name__ == "__main__":
    main()
