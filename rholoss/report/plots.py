"""Plots of a report; matplotlib is imported only when something is drawn."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from rholoss.report.figures import FILL, INK, MARK, finished, new_figure

if TYPE_CHECKING:
    from rholoss.report.report import Report

MOST_CLASSES = 20  # to draw


def draw(report: Report, path: str | os.PathLike[str] | None) -> Any:
    """Draw a report, see ``Report.plot``."""
    panels = [_distribution]
    panels += [_classes] if report.by_class else []
    panels += [_calibration] if report.bins else []
    panels += [_two_stores] if report.pairs else []
    columns = math.ceil(len(panels) / 2) if len(panels) > 3 else len(panels)
    rows = math.ceil(len(panels) / columns)
    title = f"Irreducible losses of {report.examples:,} examples"
    figure = new_figure(max(6.4, 5.2 * columns), 4.8 * rows, title)
    for panel, axes in zip(panels, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        panel(axes, report)
    return finished(figure, path)


def _decades(axis: Any, span: float) -> None:
    """Thin out the numbers along a logarithmic axis so that they do not overlap."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,) if span > 200 else (1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _distribution(axes: Any, report: Report) -> None:
    of, line = report.distribution, {"ymax": 0.84, "linewidth": 1.5}  # the legend is above
    edges = of.edges
    axes.stairs(of.histogram, edges, fill=True, color=FILL)
    less = " (the first bar: and less)" if of.minimum < edges[0] else ""
    axes.set(xscale="log", title="Distribution", xlabel=f"irreducible loss, nats{less}", ylabel="examples")
    _decades(axes.xaxis, edges[-1] / edges[0])
    if report.classes:
        label = f"chance level, log({report.classes}): {report.above_chance or 0:.1%} above"
        axes.axvline(math.log(report.classes), color=MARK, label=label, **line)
    if report.known:
        where = max(report.median, edges[0])
        axes.axvline(where, color=INK, linestyle="--", label=f"median {report.median:.3g}", **line)
    axes.set_ylim(0, 1.25 * max(*of.histogram, 1))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", frameon=False, fontsize="small")


def _classes(axes: Any, report: Report) -> None:
    shown = report.by_class[:MOST_CLASSES]
    rows = np.arange(len(shown))
    low, q1, median, q3, high = np.array([each.quantiles for each in shown]).T
    axes.hlines(rows, low, high, color=INK, linewidth=1)
    axes.barh(rows, q3 - q1, left=q1, height=0.6, color=FILL, edgecolor=INK, linewidth=1)
    axes.vlines(median, rows - 0.3, rows + 0.3, color=INK, linewidth=2.5)
    axes.set_yticks(rows, [report.name_of(each.label) for each in shown])
    axes.axvline(math.log(report.classes or 1), color=MARK, linewidth=1.5)
    axes.set_ylim(max(len(shown), 5) - 0.5, -0.5)
    axes.set_xlim(0, 1.05 * max(*high, math.log(report.classes or 1)))
    axes.tick_params("y", labelsize=10 - 3 * (len(shown) > 12))
    of = f"the {len(shown)} worst of {len(report.by_class):,}" if len(shown) < len(report.by_class) else "the worst first"
    axes.set(title=f"By class, {of}", xlabel="irreducible loss, nats: 5, 25, 50, 75 and 95 %", ylabel="class")


def _calibration(axes: Any, report: Report) -> None:
    counts, confidence, accuracy = zip(*report.bins, strict=True)
    axes.plot([0, 1], [0, 1], color="gray", linewidth=1, linestyle=":")
    joined = report.well_filled_bins
    axes.plot([each[1] for each in joined], [each[2] for each in joined], color=INK, linewidth=1.5)
    areas = 20 + 380 * np.asarray(counts) / max(counts)
    axes.scatter(confidence, accuracy, s=areas, color=FILL, edgecolors=INK, zorder=3)
    axes.set(title=f"Calibration: confidence {report.confidence:.3f}, accuracy {report.accuracy:.3f}")
    axes.set(xlim=(0, 1.04), ylim=(0, 1.04), aspect="equal")
    axes.set(xlabel="confidence (area: number of predictions)", ylabel="accuracy on these labels")


def _two_stores(axes: Any, report: Report) -> None:
    points = np.asarray(report.pairs).clip(1e-4)
    axes.scatter(points[:, 0], points[:, 1], s=6, color=INK, alpha=0.3, linewidths=0)
    ends = [points.min() / 1.5, points.max() * 1.5]
    axes.plot(ends, ends, color="gray", linewidth=1, linestyle=":")
    much = "" if report.other is None else f", rank correlation {report.other:.3f}"
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal", title=f"Two stores{much}")
    axes.set(xlabel="irreducible loss here, nats", ylabel="irreducible loss in the other store, nats")
