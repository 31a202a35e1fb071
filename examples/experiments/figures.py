"""Figures of results: curves, speedups over settings, what was selected, rank correlations."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter

from experiments.report import pairs
from experiments.summary import BySeed, Results, best, speedups

AXES = {
    "step": "steps",
    "scored": "examples scored (uniform, SVP: none along the way)",
    "seconds": "seconds of selecting and training",
}
GRAYS = ("tab:gray", "black", "silver", "dimgray")  # plain training
COLORS = ("tab:orange", "tab:red", "tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:olive", "tab:cyan")


def draw(found: Mapping[str, Results], folder: Path) -> list[Path]:
    """All figures that the results give something for."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    for name, results in found.items():
        path = folder / f"experiments_{name}.png"
        figure = _figure_of(results)
        if figure is not None:
            figure.savefig(path, dpi=110)
            made.append(path)
    curves = [results for results in found.values() if results.experiment.kind == "methods" and any(map(_selects, results.rows))]
    if len(curves) > 1:
        _many(curves).savefig(folder / "experiments.png", dpi=110)
        made.append(folder / "experiments.png")
    return made


def _figure_of(results: Results) -> Figure | None:
    if results.experiment.kind == "pairs":
        return _strips(results)
    if results.experiment.kind in ("paying", "plans"):
        return _by_seconds(results)
    if any(row.get("rank_correlation") for rows in results.rows.values() for row in rows.values()):
        return _correlations(results)
    if results.experiment.shown:
        return _curves_and_shares(results)
    return None


def _median_curve(rows: BySeed, what: str) -> tuple[list[float], list[float], list[float], list[float]]:
    """What is on the horizontal axis (its median), and the lowest, median and highest metric in per cent."""
    runs = [row["evaluations"] for row in rows.values()]
    where = [statistics.median(values) for values in zip(*(run[what] for run in runs), strict=True)]
    metric = [[100 * value for value in values] for values in zip(*(run["metric"] for run in runs), strict=True)]
    low, mid, high = ([of(values) for values in metric] for of in (min, statistics.median, max))
    return where, low, mid, high


def _curves(axis: Axes, results: Results, labels: Iterable[str], what: str) -> None:
    grays, colors = cycle(GRAYS), cycle(COLORS)
    for label in labels:
        color = next(grays if label == "uniform" or label.startswith("uniform,") else colors)
        where, low, mid, high = _median_curve(results.rows[label], what)
        if where[-1] <= 0:
            continue
        axis.plot(where, mid, color=color, label=label, linewidth=1.4)
        axis.fill_between(where, low, high, color=color, alpha=0.2, linewidth=0)


def _dress(axis: Axes, results: Results, what: str, below: float = 12) -> None:
    """Labels, and a range that begins some points below uniform's best, or at 0."""
    metric = next(iter(results.baseline.values()))["metric"]
    tops = [100 * best(row) for rows in results.rows.values() for row in rows.values()]
    base = results.rows[results.tuned()] if results.experiment.kind in ("paying", "plans") else results.baseline
    goal = 100 * statistics.median(best(row) for row in base.values())
    axis.axhline(goal, color="tab:gray", linestyle="--", linewidth=0.8)
    axis.set(xscale="log", xlabel=AXES[what], ylabel=f"{metric}, %", ylim=(max(goal - below, 0), max(tops) + 1))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.xaxis.set_minor_formatter(StrMethodFormatter(""))
    axis.grid(alpha=0.3)


def _curves_and_shares(results: Results) -> Figure:
    """The metric against steps, examples scored and seconds, and what was selected."""
    labels = [label for label in results.experiment.shown if label in results.rows]
    figure = Figure(figsize=(12, 9), layout="constrained")
    axes = figure.subplots(2, 2)
    for axis, what in zip(axes.flat, AXES, strict=False):
        _curves(axis, results, labels, what)
        _dress(axis, results, what, below=100 if what == "step" else 12)
    _shares(axes.flat[3], results)
    count = len(results.baseline)
    figure.suptitle(f"{results.experiment.about}: median and range of {count} seeds (dashed: uniform's best)")
    figure.legend(*axes.flat[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _by_seconds(results: Results) -> Figure:
    """The metric against steps and seconds."""
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, what in zip(axes, ("step", "seconds"), strict=True):
        _curves(axis, results, results.rows, what)
        _dress(axis, results, what)
    figure.suptitle(f"{results.experiment.about}: median and range of {len(results.baseline)} seeds (dashed: uniform's best)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _shares(axis: Axes, results: Results) -> None:
    """Bars of what each method selected."""
    labels = [label for label in results.rows if not label.startswith("uniform,")]
    flags = [flag for flag, share in next(iter(results.baseline.values()))["in_data"].items() if share > 0]
    kinds = [*flags, "already correct", "selected before"]
    height = 0.8 / len(kinds)
    for k, kind in enumerate(kinds):
        field = {"already correct": "already_right", "selected before": "repeated"}.get(kind)
        values = [
            statistics.median(100 * (row[field] if field else row["selected"][kind]) for row in results.rows[label].values())
            for label in labels
        ]
        axis.barh([i + k * height for i in range(len(labels))], values, height, label=kind)
    axis.set_yticks([i + 0.4 - height / 2 for i in range(len(labels))], labels, fontsize=7)
    axis.invert_yaxis()
    axis.set(xlabel="share of the selected examples, %", xlim=(0, 100))
    axis.legend(fontsize=7)
    axis.grid(alpha=0.3, axis="x")


def _strips(results: Results) -> Figure:
    """How many times fewer steps selection takes, a point for each seed, setting by setting."""
    settings = pairs(results)
    figure = Figure(figsize=(8, 1.5 + 0.36 * len(settings)), layout="constrained")
    axis = figure.subplots()
    for place, (uniform, selecting) in enumerate(settings.values()):
        found = speedups(selecting, uniform)
        reached = [value for value in found if value > 0]
        axis.plot(reached, [place] * len(reached), "o", color="tab:orange", alpha=0.7)
        axis.plot([0.5] * (len(found) - len(reached)), [place] * (len(found) - len(reached)), "x", color="tab:red")
        axis.plot(max(statistics.median(found), 0.5), place, "|", color="black", markersize=14)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(settings)), list(settings))
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="times fewer steps to uniform's best, one point a seed (x: never; bar: median)")
    axis.set_xticks((1, 1.5, 2, 4, 8, 16))
    axis.set_xlim(
        0.4, 1.2 * max([2.0, *(value for uniform, selecting in settings.values() for value in speedups(selecting, uniform))])
    )
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.xaxis.set_minor_formatter(StrMethodFormatter(""))
    axis.set_title(results.experiment.about, fontsize=10)
    axis.grid(alpha=0.3, axis="x")
    return figure


def _correlations(results: Results) -> Figure:
    """Rank correlation of approximations with what they approximate, and the metric."""
    rows = next(rows for rows in results.rows.values() if any(row.get("rank_correlation") for row in rows.values()))
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    one, other = figure.subplots(1, 2)
    steps = next(iter(rows.values()))["evaluations"]["step"]
    for name in next(iter(rows.values()))["rank_correlation"]:
        curves = zip(*(row["rank_correlation"][name] for row in rows.values()), strict=True)
        one.plot(steps, [statistics.median(values) for values in curves], label=name)
    one.set(xlabel="steps", ylabel="rank correlation", ylim=(min(0.0, one.get_ylim()[0]), 1.02))
    one.set_title("with the score whose irreducible-loss model is co-trained", fontsize=10)
    one.legend(fontsize=8)
    one.grid(alpha=0.3)
    _curves(other, results, results.rows, "step")
    _dress(other, results, "step")
    other.legend(fontsize=8)
    return figure


def _selects(label: str) -> bool:
    """Whether it is RHO-LOSS, called so or by where its irreducible losses come from."""
    return label.startswith(("RHO-LOSS", "clean, 10,000", "none: cross-fitted"))


def _many(all_results: list[Results]) -> Figure:
    """Uniform, the best uniform and RHO-LOSS, a panel for each experiment."""
    columns = 4
    lines = -(-len(all_results) // columns)
    figure = Figure(figsize=(14, 3.1 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False)
    for axis, results in zip(axes.flat, all_results, strict=False):
        first, tuned = next(iter(results.experiment.setups)), results.tuned()
        labels = [first, tuned] if tuned != first else [first]
        labels += [label for label in results.rows if _selects(label)][:3]
        _curves(axis, results, labels, "step")
        _dress(axis, results, "step")
        axis.set_title(f"{results.experiment.name}", fontsize=9)
        axis.legend(fontsize=6, loc="lower right")
    for axis in axes.flat[len(all_results) :]:
        axis.set_axis_off()
    return figure
