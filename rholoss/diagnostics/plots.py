"""Plots of selections, as matplotlib figures to call ``savefig`` on. They need ``pip install rholoss[plot]``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rholoss.diagnostics.comparison import ComparisonLog
from rholoss.diagnostics.log import SelectionLog
from rholoss.report.figures import GRAY, ink, legend_below, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_BARS = 30


def plot_shares(log: SelectionLog, every: int = 50) -> Figure:
    """The fraction of each flag among the selected examples, by step; dashed: in the data.

    Also the fractions that were already correct, if known (dashed: among the candidates), and that were selected before.
    ``every``: steps per point, at least 1.
    """
    records, step = _records(log.over_time(every))
    figure = new_figure(8, 4.5, "Shares of the selected")
    axes = figure.subplots()
    lines = [(name, f"{name}, in the data", f"{name}/data") for name in log.flags]
    if "correct/selected" in records[0]:
        lines.append(("correct", "already correct, of the candidates", "correct/candidates"))
    shares = {key: [100 * record[key] for record in records] for key in records[0]}
    for i, (name, reference, key) in enumerate(lines):
        label = f"{name}, selected" if name != "correct" else "already correct, selected"
        axes.plot(step, shares[f"{name}/selected"], color=ink(i), label=label)
        axes.plot(step, shares[key], color=ink(i), linestyle="--", linewidth=1, label=reference)
    axes.plot(step, shares["repeated"], color=GRAY, linestyle=":", label="selected before")
    axes.set(xlabel="step", ylabel="share, %", ylim=(0, None))
    return legend_below(figure, axes)


def plot_counts(log: SelectionLog, flag: str | None = None) -> Figure:
    """A histogram of how often examples were selected; with a flag, for the examples with and without it."""
    times = log.selected
    has = None if flag is None else log.flags[flag]
    parts = {"all": times} if has is None else {flag: times[has], f"not {flag}": times[~has]}
    highest = max(int(times.max()), 1)
    wide = -(-highest // _MOST_BARS)  # counts per bar; 0 has a bar of its own
    bars = -(-highest // wide) + 1
    figure = new_figure(8, 4, f"How often each of {len(times):,} examples was selected")
    axes = figure.subplots()
    for i, (name, mine) in enumerate(parts.items()):
        shares = 100 * torch.bincount((mine + wide - 1) // wide, minlength=bars) / max(len(mine), 1)
        at = torch.arange(bars) + 0.8 * ((i + 0.5) / len(parts) - 0.5)
        axes.bar(at.tolist(), shares.tolist(), 0.8 / len(parts), color=ink(i), label=name)
    named = list(range(0, bars, -(-bars // 12)))
    ends = [(wide * (bar - 1) + 1, wide * bar) for bar in named]
    axes.set_xticks(named, ["never", *(f"{low}" if low == high else f"{low}-{high}" for low, high in ends[1:])])
    axes.set(xlabel="times selected", ylabel="share of these examples, %")
    return legend_below(figure, axes)


def plot_scores(log: SelectionLog, every: int = 50) -> Figure:
    """Median, middle half and nine tenths of the finite scores of candidates, of each flag and of the selected, by step."""
    records, step = _records(log.scores_over_time(every))
    names = ["candidates", *log.flags, "selected"]
    figure = new_figure(3.2 * len(names), 3.8, "Scores")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        low, lower, middle, upper, high = ([r[f"{name}/{q}"] for r in records] for q in ("q05", "q25", "q50", "q75", "q95"))
        axes.fill_between(step, low, high, color=ink(0), alpha=0.2, linewidth=0, label="middle nine tenths")
        axes.fill_between(step, lower, upper, color=ink(0), alpha=0.4, linewidth=0, label="middle half")
        axes.plot(step, middle, color=ink(0), label="median")
        axes.set(title=name, xlabel="step")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("score")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def plot_agreement(log: ComparisonLog) -> Figure:
    """Overlaps of the choices of each two methods, and rank correlations of their scores."""
    names = ["own (trains)", *log.names[1:]]
    figure = new_figure(3 + 1.5 * len(names), 2.1 + 0.7 * len(names), f"Agreement of methods, {log.batches:,} batches")
    left, right = figure.subplots(1, 2)
    title = f"of the row's choice, the column chooses\ntoo, % (uniform sampling: {100 * log.uniform_overlap:.0f})"
    _matrix(left, 100 * log.overlap(), names, title, 0)
    _matrix(right, log.correlation(), names, "rank correlation of the scores\n", -1)
    right.set_yticklabels([])
    return figure


def _matrix(axes: Any, values: Tensor, names: list[str], title: str, lowest: float) -> None:
    top = 100.0 if lowest == 0 else 1.0
    form = "{:.0f}" if lowest == 0 else "{:.2f}"
    axes.imshow(values.tolist(), vmin=lowest * top, vmax=top, cmap="Blues" if lowest == 0 else "RdBu", aspect="auto")
    for i, row in enumerate(values.tolist()):
        for j, value in enumerate(row):
            dark = value > 0.6 * top or value < -0.6 * top
            style = {"ha": "center", "va": "center", "fontsize": 9, "color": "white" if dark else "black"}
            axes.text(j, i, form.format(round(value, 2) + 0.0), **style)
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(title, fontsize=10)


def _records(records: list[dict[str, float]]) -> tuple[list[dict[str, float]], list[float]]:
    if not records:
        raise ValueError("nothing was selected yet; attach the log to a selector, or update it, before you plot it")
    return records, [record["step"] for record in records]
