"""Plots of a rehearsal; matplotlib is imported only when something is drawn."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rholoss.report.figures import GRAY, finished, ink, new_figure

if TYPE_CHECKING:
    from rholoss.rehearsal.rehearsal import Rehearsal


def draw(rehearsal: Rehearsal, path: str | os.PathLike[str] | None) -> Any:
    """Draw a rehearsal, see ``Rehearsal.plot``."""
    figure = new_figure(10.4, 4.4, f"Rehearsal: {rehearsal.recipe}")
    left, right = figure.subplots(1, 2)
    for fold in sorted({each.fold for each in rehearsal.fits}):
        rounds = [each for each in rehearsal.fits if each.fold == fold]
        left.plot([r.steps for r in rounds], [r.validation_loss for r in rounds], color=ink(fold), label=f"half {fold + 1}")
    left.set(title="Fits of the small networks", xlabel="steps", ylabel="validation loss, nats")
    counts = [n for n, _, _ in rehearsal.calibration]
    agree = [(confidence, accuracy) for n, confidence, accuracy in rehearsal.calibration if n >= max(20, sum(counts) / 1_000)]
    right.plot([0, 1], [0, 1], color=GRAY, linewidth=1)
    if agree:
        right.plot(*zip(*agree, strict=True), marker="o", color=ink(0))
    share = rehearsal.wrong.share
    right.axhline(1 - share, color=ink(1), linestyle="--", label=f"1 - share of wrong labels, {share:.0%}")
    right.set(title="On labels that they have not seen", xlabel="confidence", ylabel="agreement", xlim=(0, 1), ylim=(0, 1.02))
    for axes in (left, right):
        axes.legend(frameon=False)
    return finished(figure, path)
