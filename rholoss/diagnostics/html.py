"""A run's selections as one self-contained HTML page."""

from __future__ import annotations

import math
import os
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rholoss.arguments import map_style
from rholoss.data.fingerprint import fingerprint
from rholoss.data.subset import dataset_of, labels_of, whole_of
from rholoss.report import page
from rholoss.report.gallery import Examples
from rholoss.report.html import footer, selection_galleries, shortened
from rholoss.report.svg import FILL, GRAY, HEIGHT, Chart, Scale, colour, span

if TYPE_CHECKING:
    from rholoss.diagnostics.comparison import ComparisonLog
    from rholoss.diagnostics.log import SelectionLog

BARS, POINTS, CLASSES = 30, 100, 20  # bars of a histogram, points of a line, classes to draw
Records = list[dict[str, float]]


def write_run(
    log: SelectionLog, path: str | os.PathLike[str], dataset: Any, comparison: ComparisonLog | None, every: int | None, show: Any
) -> None:
    """Write the page, see ``SelectionLog.to_html``."""
    if not log.steps:
        raise ValueError("nothing was selected yet; attach the log to a selector, or update it, before you write its page")
    whole = None if dataset is None else map_style(whole_of(dataset_of(dataset)), "dataset")
    if whole is not None and len(whole) != len(log.selected):
        what = f"expected the {len(log.selected):,} examples that the log counts, got a dataset of {len(whole):,}"
        raise ValueError(f"{what}; pass the whole dataset of the run")
    labels = None if whole is None else labels_of(whole)
    data = None if log.loader is None or whole is None else fingerprint(log.loader)
    examples = Examples.of(dataset, None if labels is None else labels.cpu().numpy(), None, show, data)
    body = summary_of(log, examples, comparison, every)
    if examples.dataset is not None or show is not None:
        body += page.section("Look at the examples", "", examples.menu(), *_galleries(log, examples))
    page.write_page(path, "What this run selected", body + footer())


def summary_of(log: SelectionLog, examples: Examples, comparison: ComparisonLog | None = None, every: int | None = None) -> str:
    """The numbers and the charts, as HTML."""
    numbers = log.summary()
    every = every or -(-log.steps // POINTS)
    figures = [_shares(log, log.over_time(every)), *_scores(log, log.scores_over_time(every)), _counts(log)]
    figures += [_classes(log, examples)] if examples.labels is not None else []
    parts = [f"<h1>What this run selected</h1><p>{escape(_in_words(log, numbers))}</p>", page.cards(_cards(log, numbers))]
    parts.append(page.charts(*map(str, figures)))
    if comparison is not None and comparison.batches:
        parts.append(_agreement(comparison))
    return "".join(parts)


def _in_words(log: SelectionLog, numbers: dict[str, float]) -> str:
    said = f"{numbers['batches']:,.0f} steps selected {numbers['selected']:,.0f} of {numbers['candidates']:,.0f} candidates"
    flags = [
        f"{numbers[f'{name}/selected']:.1%} of the selected are {name}, {numbers[f'{name}/data']:.1%} of the data"
        for name in log.flags
    ]
    return ". ".join([said, *flags]) + "."


def _cards(log: SelectionLog, numbers: dict[str, float]) -> list[tuple[str, str]]:
    found = [("steps", f"{numbers['batches']:,.0f}"), ("examples of the data", f"{len(log.selected):,}")]
    found += [("never selected", f"{numbers['never_selected']:.1%}"), ("selected before", f"{numbers['repeated']:.1%}")]
    found += [("most selections of one example", f"{numbers['most_selected']:,.0f}")]
    found += [(f"{name}, among the selected", f"{numbers[f'{name}/selected']:.1%}") for name in log.flags]
    if "correct/selected" in numbers:
        found.append(("already correct, among the selected", f"{numbers['correct/selected']:.1%}"))
    return found


def _shares(log: SelectionLog, records: Records) -> Chart:
    steps = [record["step"] for record in records]
    lines = [(name, f"{name}, selected", f"{name}, in the data", f"{name}/data") for name in log.flags]
    if "correct/selected" in records[0]:
        lines.append(("correct", "already correct, selected", "already correct, of the candidates", "correct/candidates"))
    percent = {key: [100 * record[key] for record in records] for key in records[0]}
    drawn = [percent[key] for name, _, _, other in lines for key in (f"{name}/selected", other)] + [percent["repeated"]]
    high = span([value for line in drawn for value in line], 1.0).high
    chart = Chart("Shares of the selected", _along(steps), Scale(0, high), "step", "share, %")
    for i, (name, title, other, key) in enumerate(lines):
        chart.line(steps, percent[f"{name}/selected"], colour(i), title)
        chart.line(steps, percent[key], colour(i), other, dash=True, width=1.2)
    chart.line(steps, percent["repeated"], GRAY, "selected before")
    return chart


def _scores(log: SelectionLog, records: Records) -> list[Chart]:
    """Quantiles of the scores of the candidates and of the selected."""
    steps = [record["step"] for record in records]
    of = {name: [[record[f"{name}/{q}"] for record in records] for q in QUANTILES] for name in ("candidates", "selected")}
    values = [value for lines in of.values() for line in lines for value in line if math.isfinite(value)]
    if not values:
        return []
    chart = Chart("Scores: median, middle half and nine tenths", _along(steps), span(values, min(values)), "step", "score")
    for i, (name, (low, lower, middle, upper, high)) in enumerate(of.items()):
        chart.band(steps, low, high, colour(i), 0.2)
        chart.band(steps, lower, upper, colour(i), 0.4)
        chart.line(steps, middle, colour(i), name)
    return [chart]


def _counts(log: SelectionLog) -> Chart:
    """How often examples were selected; for those with the first flag and the others, if there are flags."""
    times = log.selected
    first = next(iter(log.flags.items()), None)
    parts = {"all": times} if first is None else {first[0]: times[first[1]], f"not {first[0]}": times[~first[1]]}
    wide = -(-max(int(times.max()), 1) // BARS)  # counts of a bar; 0 has a bar of its own
    bars = -(-max(int(times.max()), 1) // wide) + 1
    shares = {
        name: (100 * torch.bincount((mine + wide - 1) // wide, minlength=bars) / max(len(mine), 1)).tolist()
        for name, mine in parts.items()
    }
    high = span([value for each in shares.values() for value in each]).high
    named = range(0, bars, -(-bars // 8))
    names = [(bar, "never" if bar == 0 else f"{wide * bar}" if wide == 1 else f"{wide * (bar - 1) + 1}+") for bar in named]
    chart = Chart(
        "How often examples were selected", Scale(-0.6, bars - 0.4), Scale(0, high), "times selected", "share, %", xnames=names
    )
    for i, (name, values) in enumerate(shares.items()):
        ink = colour(1 - i) if first else FILL
        for bar, value in enumerate(values):
            left = bar + 0.8 * (i / len(shares) - 0.5)
            chart.bar(left, left + 0.8 / len(shares), 0, value, ink, f"{name}: {value:.1f} %")
        chart.named(name if first else "", ink, "area")
    return chart


def _classes(log: SelectionLog, examples: Examples) -> Chart:
    """The share of each class among the selected and in the data."""
    assert examples.labels is not None
    labels = torch.from_numpy(examples.labels.astype(np.int64))
    known = labels >= 0
    classes = torch.tensor(examples.classes[:CLASSES])
    top = int(labels.max()) + 1 if len(labels) else 1
    selected, data = (
        torch.bincount(labels[known], w[known], top) for w in (log.selected.double(), torch.ones(len(labels)).double())
    )
    pairs = [
        ((100 * each / each.sum().clamp(min=1))[classes].tolist(), name)
        for each, name in ((data, "in the data"), (selected, "selected"))
    ]
    names = [shortened(examples.name_of(label)) for label in classes.tolist()]
    high = span([value for values, _ in pairs for value in values]).high
    chart = Chart(
        "Classes",
        Scale(0, high),
        Scale(len(names) - 0.4, -0.6),
        "share, %",
        ynames=list(enumerate(names)),
        height=max(HEIGHT, 60 + 17 * len(names)),
    )
    for i, (values, name) in enumerate(pairs):
        ink = (GRAY, colour(0))[i]
        for row, value in enumerate(values):
            chart.bar(0, value, row - 0.38 + 0.38 * i, row + 0.38 * i, ink, f"{names[row]}: {value:.1f} % {name}")
        chart.named(name, ink, "area")
    return chart


def _agreement(comparison: ComparisonLog) -> str:
    """The overlap and the rank correlation of each two methods, as tables."""
    names = ["own (trains)", *comparison.names[1:]]
    overlap = [[f"{100 * value:.0f}" for value in row] for row in comparison.overlap().tolist()]
    correlation = [[f"{round(value, 2) + 0.0:+.2f}" for value in row] for row in comparison.correlation().tolist()]
    first = f"Of the row's choice, the column chooses too, in %; uniform sampling: {100 * comparison.uniform_overlap:.0f}."
    tables = []
    for lead, values in ((first, overlap), ("Rank correlation of the scores.", correlation)):
        rows = [[name, *row] for name, row in zip(names, values, strict=True)]
        tables.append(f"<div><p>{escape(lead)}</p>{page.table(['', *names], rows)}</div>")
    return page.section("What other methods would have selected", "", *tables)


def _galleries(log: SelectionLog, examples: Examples) -> list[str]:
    selected, drawn = log.selected, log.drawn
    flags = log.flags

    def caption(place: int) -> str:
        mine = "".join(f"<br><em>{escape(name)}</em>" for name, flag in flags.items() if flag[place])
        return f"{int(selected[place]):,} of {int(drawn[place]):,} times{mine}"

    return selection_galleries(examples, selected, torch.nonzero(drawn > 0).flatten(), caption)


def _along(steps: list[float]) -> Scale:
    return Scale(min(steps), max(max(steps), min(steps) + 1))


QUANTILES = ("q05", "q25", "q50", "q75", "q95")
