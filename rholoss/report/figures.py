"""What all plots share: a figure of matplotlib, which is imported when one is drawn, and colours."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # of Okabe and Ito, whom the colour-blind can follow
INK, FILL, MARK, GRAY = "#31475e", "#9db9d3", COLOURS[1], "#7f8b97"


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """An empty figure, in inches, with a title over all of it; an ImportError names the extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("plots are drawn with matplotlib, which is not installed; run: pip install 'rholoss[plot]'") from None
    figure = Figure(figsize=(width, height), layout="constrained")
    if title:
        figure.suptitle(title)
    return figure


def finished(figure: Figure, path: str | os.PathLike[str] | None) -> Figure:
    """The figure, saved if a path is given, without the frame lines above and on the right."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def ink(i: int) -> str:
    """The i-th colour, in a circle."""
    return COLOURS[i % len(COLOURS)]


def legend_below(figure: Figure, axes: Any) -> Figure:
    """The figure with the legend of its axes below it, and a grid."""
    axes.set_axisbelow(True)
    axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
