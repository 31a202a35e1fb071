"""A report as text."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rholoss.report.report import Report

SHOWN = 10  # classes
LOST = 0.9  # share of a class above chance from which selection would leave it out


def text_of(report: Report) -> str:
    """A report in words and small tables, in lines of at most 100 characters."""
    parts = [_made(report)]
    if report.known:
        parts += [_distribution(report), _classes(report), _calibration(report), _agreement(report), _extremes(report)]
    return "\n\n".join([*parts, f"Verdict\n{report.verdict}"])


def _made(report: Report) -> str:
    by = f", made by {report.models} model{'s' * (report.models != 1)}" if report.models else ""
    by += f", cross-fitted in {report.folds} folds" if report.folds else ""
    share = report.known / report.examples if report.examples else 0.0
    known = "all known" if report.known == report.examples else f"{report.known:,} known ({share:.1%})"
    return f"Irreducible losses of {report.examples:,} examples, {known}{by}"


def _distribution(report: Report) -> str:
    names = ("5 %", "25 %", "50 %", "75 %", "95 %", "99 %")
    of = report.distribution
    lines = [
        "Distribution, in nats",
        f"  mean {report.mean:.4f}, lowest {of.minimum:.4f}, highest {of.maximum:.4f}",
        "  " + "".join(f"{name:>10}" for name in names),
        "  " + "".join(f"{value:>10.4f}" for value in of.quantiles),
        f"  the highest 1 % of the examples hold {of.top_share:.1%} of the total",
    ]
    if report.above_chance is None:
        lines.append("  the share above chance is not known: no number of classes was counted or given")
    else:
        chance = math.log(report.classes or 1)
        lines.append(f"  {report.above_chance:.1%} are above log({report.classes}) = {chance:.3f}, the chance level")
    return "\n".join(lines)


def _classes(report: Report) -> str:
    if not report.by_class:
        return "By class: not known, as there are no labels"
    n = len(report.by_class)
    lines = [
        f"By class, the worst first{f' ({SHOWN} of {n:,})' if n > SHOWN else ''}",
        f"  {'class':>8}{'examples':>12}{'median':>10}{'above chance':>16}",
    ]
    for label, examples, quantiles, above in report.by_class[:SHOWN]:
        lines.append(f"  {label:>8}{examples:>12,}{quantiles[2]:>10.4f}{above:>16.1%}")
    lost = [label for label, examples, _, above in report.by_class if examples and above > LOST]
    if lost:
        names = ", ".join(map(str, lost[:SHOWN])) + (f" and {len(lost) - SHOWN:,} more" if len(lost) > SHOWN else "")
        lines.append(
            f"  lost: {names}. Nearly all of their labels are above chance, and selection with a gate would leave them out"
        )
    return "\n".join(lines)


def _calibration(report: Report) -> str:
    if not report.bins:
        return "Calibration: not known, as no class predictions were counted"
    return (
        "Calibration on these labels\n"
        f"  mean confidence {report.confidence:.3f}, accuracy {report.accuracy:.3f}, gap {report.gap:+.3f}, expected calibration "
        f"error {report.calibration_error:.3f}"
    )


def _agreement(report: Report) -> str:
    lines = []
    if report.halves is not None:
        lines.append(f"  between two halves of the models: {report.halves:.3f} (Pearson)")
    if report.other is not None:
        lines.append(f"  with the other store: {report.other:.3f} (Spearman, {report.in_common:,} examples in common)")
    elif report.in_common is not None:
        lines.append(f"  with the other store: not known, {report.in_common:,} examples in common, or all alike")
    if not lines:
        return "Correlation: not known, as there are no two halves of models and no other store"
    return "\n".join(["Correlation", *lines])


def _extremes(report: Report) -> str:
    lines = []
    for name, pairs in (("Highest", report.highest), ("Lowest", report.lowest)):
        text = ", ".join(f"{index} ({loss:.4g})" for index, loss in pairs) or "none requested"
        lines.append(textwrap.fill(f"{name}, by index: {text}", 100, subsequent_indent="  "))
    return "\n".join(lines)
