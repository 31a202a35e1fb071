"""Plots of a plan; matplotlib is imported only when something is drawn."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from rholoss.report.figures import FILL, GRAY, finished, ink, new_figure

if TYPE_CHECKING:
    from rholoss.plans.plan import SelectionPlan

_MOST_BARS = 20


def draw_plan(plan: SelectionPlan, path: str | os.PathLike[str] | None, flags: Mapping[str, Any], every: int) -> Any:
    """Draw a plan, see ``SelectionPlan.plot``."""
    figure = new_figure(10.4, 4.4, f"Plan: {plan.steps:,} steps of {plan.n_b}, from {plan.n:,} examples")
    left, right = figure.subplots(1, 2)
    _times_selected(left, plan)
    _over_time(right, plan, flags, every)
    return finished(figure, path)


def _times_selected(axes: Any, plan: SelectionPlan) -> None:
    counts = plan.counts()
    most = int(counts.max())
    wide = -(-most // _MOST_BARS)  # counts of a bar; 0 has a bar of its own
    bars = torch.bincount((counts + wide - 1) // wide)
    shares = 100 * bars / len(counts)
    axes.bar(range(len(shares)), shares.tolist(), color=FILL)
    ends = [(wide * (bar - 1) + 1, wide * bar) for bar in range(len(shares))]
    names = ["never", *(f"{low}" if low == high else f"{low}-{high}" for low, high in ends[1:])]
    shown = range(0, len(shares), -(-len(shares) // 8))
    axes.set_xticks(list(shown), [names[i] for i in shown])
    used = float((counts > 0).double().mean())
    axes.set(title=f"{used:.1%} of the examples are used", xlabel="times selected", ylabel="share of the examples, %")


def _over_time(axes: Any, plan: SelectionPlan, flags: Mapping[str, Any], every: int) -> None:
    records = plan.over_time(flags, every)
    steps = [record["step"] for record in records]
    axes.plot(steps, [100 * record["repeated"] for record in records], color=GRAY, linestyle=":", label="selected before")
    for i, name in enumerate(flags):
        share = float(torch.as_tensor(flags[name]).double().mean())
        axes.plot(steps, [100 * record[name] for record in records], color=ink(i), label=f"{name}, selected")
        axes.axhline(100 * share, color=ink(i), linestyle="--", linewidth=1, label=f"{name}, in the data")
    axes.set(title="Over the plan", xlabel="step", ylabel="share of the selections, %", ylim=(0, None))
    axes.legend(frameon=False)
