"""The study's plots."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from studies.holdout.results import Results
from studies.holdout.tables import title
from studies.holdout.variants import Cell

COLOURS = {
    "uniform": "tab:gray",
    "uniform, lr 3e-4": "black",
    "clean holdout": "tab:green",
    "dirty holdout": "tab:red",
    "cross-fit": "tab:orange",
}
COLOURS |= {"cross-fit, gate": "tab:blue", "cross-fit, gate, bounded": "tab:purple"}


def band(axis: Any, steps: list[int], runs: list[list[float]], label: str, **style: Any) -> None:
    """Draw the median over the seeds, and shade from the lowest to the highest."""
    low, mid, high = ([of(values) for values in zip(*runs, strict=True)] for of in (min, statistics.median, max))
    axis.plot(steps, mid, label=label, **style)
    axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def legend(figure: Any) -> None:
    """Draw one legend for all panels, below them."""
    found = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found, loc="outside lower center", ncols=min(len(found), 5))


def plot_accuracy(results: Results, path: Path) -> None:
    """Test accuracy against steps, a panel for each cell."""
    rows, columns = -(-len(results.cells) // 3), min(3, len(results.cells))
    figure = Figure(figsize=(4 * columns, 3.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(results.cells) :]:
        axis.set_visible(False)
    for axis, cell in zip(axes, results.cells, strict=False):
        top = 0.0
        for name in results.variants(cell, COLOURS):
            lines = results.of(cell, name)
            steps = [lines[0]["evaluate_every"] * (i + 1) for i in range(len(lines[0]["accuracy"]))]
            runs = [[100 * value for value in line["accuracy"]] for line in lines]
            top = max(top, *(max(run) for run in runs))
            band(axis, steps, runs, name, color=COLOURS[name])
        target = 100 * statistics.median(max(line["accuracy"]) for line in results.of(cell, "uniform"))
        axis.axhline(target, color="black", linestyle="--", linewidth=0.8, label="best of uniform")
        axis.set(
            xscale="log",
            title=f"{cell[0]}, {title(cell[1])}",
            xlabel="steps",
            ylabel="test accuracy, %",
            ylim=(target - 9, top + 0.5),
        )
        axis.grid(alpha=0.3)
    legend(figure)
    figure.savefig(path, dpi=90)


def plot_mechanism(results: Results, path: Path, cell: Cell = ("Fashion-MNIST", "0.3")) -> None:
    """Mean loss of the wrong and of the right labels during training, and the share of wrong labels among the selected."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name in results.variants(cell, [name for name in COLOURS if name.startswith("cross-fit")]):
        lines = results.of(cell, name)
        steps = [at[0] for at in lines[0]["probe"]]
        for axis, column in ((axes[0], 3), (axes[1], 1)):
            band(axis, steps, [[at[column] for at in line["probe"]] for line in lines], name, color=COLOURS[name])
        every = lines[0]["evaluate_every"]
        steps = [every * (i + 1) for i in range(len(lines[0]["wrong"]))]
        band(axes[2], steps, [[100 * value for value in line["wrong"]] for line in lines], name, color=COLOURS[name])
    lines = results.of(cell, "cross-fit")
    for axis, which in ((axes[0], 1), (axes[1], 0)):
        axis.axhline(
            statistics.median(line["irreducible_loss"][which] for line in lines),
            color="black",
            linestyle="--",
            label="their irreducible loss",
        )
    axes[2].axhline(100 * lines[0]["rate"], color="black", linestyle=":", label="share in the data")
    for axis, name in zip(
        axes, ("wrong labels: mean loss, nats", "right labels: mean loss, nats", "wrong among the selected, %"), strict=True
    ):
        axis.set(xlabel="steps", ylabel=name, ylim=(0, None))
        axis.grid(alpha=0.3)
    legend(figure)
    figure.suptitle(f"{cell[0]}, {title(cell[1])}: median and range over {len(lines)} seeds")
    figure.savefig(path, dpi=90)
