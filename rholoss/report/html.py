"""The report on a store as one self-contained HTML page."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rholoss._version import __version__
from rholoss.data.index import is_readable
from rholoss.data.subset import checked_labels, dataset_of, whole_of
from rholoss.report import page
from rholoss.report.gallery import Examples
from rholoss.report.suspects import Suspects, find_suspects
from rholoss.report.svg import GRAY, HEIGHT, Chart, Scale, colour, span

if TYPE_CHECKING:
    from rholoss.report.report import Report

MOST_CLASSES = 20  # to draw
KIND = {"yes": "yes", "with a gate": "gate", "no": "no", "unknown": ""}  # of the verdict's frame


def write_report(report: Report, path: str | os.PathLike[str], dataset: Any, selected: Any, show: Any) -> None:
    """Write the page, see ``Report.to_html``."""
    store = report.store
    whole = whole_of(dataset_of(dataset))
    n = len(whole) if is_readable(whole) else None
    if n is not None and store.ids is None and n != len(store):
        what = f"expected the {len(store):,} examples of the store, got a dataset of {n:,}"
        raise ValueError(f"{what}; pass the whole dataset that the store was made from")
    examples = Examples.of(dataset, report.labels, report.class_names, show, store.meta.data)
    counts = None if selected is None else checked_labels(selected, _length(report), "selected")
    body = summary_of(report, examples.name_of) + _galleries(report, examples, counts)
    page.write_page(path, "Report on irreducible losses", body + footer())


def summary_of(report: Report, name_of: Callable[[int], str]) -> str:
    """The verdict, the numbers and the charts, as HTML."""
    share = f"{report.known:,} of {report.examples:,} examples have an irreducible loss"
    by = f", made by {report.models} model{'s' * (report.models != 1)}" if report.models else ""
    by += f", cross-fitted in {report.folds} folds" if report.folds else ""
    verdict = "".join(f"<p>{escape(sentence)}</p>" for sentence in report.verdict.sentences)
    parts = [f"<h1>Can this store be trusted?</h1><p>{escape(share + by)}.</p>"]
    parts.append(f'<div class="verdict {KIND[report.verdict.helps]}">{verdict}</div>')
    if report.known:
        parts += [page.cards(_numbers(report)), page.charts(*_charts(report, name_of)), _classes(report, name_of)]
    return "".join(parts)


def footer() -> str:
    """The last line of a page."""
    return f"<footer>Made by rholoss {__version__}. Losses are in nats. Nothing on this page comes from the network.</footer>"


def _numbers(report: Report) -> list[tuple[str, str]]:
    numbers = [("examples", f"{report.examples:,}"), ("median loss", f"{report.median:.3g}"), ("mean loss", f"{report.mean:.3g}")]
    if report.above_chance is not None:
        numbers.append((f"above chance, log({report.classes})", f"{report.above_chance:.1%}"))
    if report.accuracy is not None and report.confidence is not None:
        numbers += [("accuracy on these labels", f"{report.accuracy:.1%}"), ("mean confidence", f"{report.confidence:.1%}")]
    numbers.append(("of the total loss in the highest 1 %", f"{report.distribution.top_share:.1%}"))
    return numbers


def _charts(report: Report, name_of: Callable[[int], str]) -> list[str]:
    found = [_distribution(report)]
    found += [_by_class(report, name_of)] if report.by_class else []
    found += [_calibration(report)] if report.bins else []
    found += [_two_stores(report)] if report.pairs else []
    return [str(chart) for chart in found]


def _distribution(report: Report) -> Chart:
    of = report.distribution
    chart = Chart(
        "How the irreducible losses are distributed",
        Scale(of.edges[0], of.edges[-1], log=True),
        span(of.histogram, 0.0),
        "irreducible loss, nats" + (" (the first bar: and less)" if of.minimum < of.edges[0] else ""),
        "examples",
    )
    for count, low, high in zip(of.histogram, of.edges, of.edges[1:], strict=False):
        chart.bar(low, high, 0, count, about=f"{low:.3g} to {high:.3g}: {count:,}")
    marks = [(report.median, f"median, {report.median:.3g}", colour(0), True)]
    if report.classes:
        marks.append((math.log(report.classes), f"chance level, {math.log(report.classes):.3g}", colour(1), False))
    for value, name, ink, dash in marks:
        inside = min(max(value, of.edges[0]), of.edges[-1])
        chart.line([inside] * 2, [chart.y.low, chart.y.high], ink, name, dash)
    return chart


def _by_class(report: Report, name_of: Callable[[int], str]) -> Chart:
    rows = report.by_class[:MOST_CLASSES]
    names = [shortened(name_of(each.label)) for each in rows]
    high = max(*(each.quantiles[-1] for each in rows), math.log(report.classes or 1))
    of = f"the {len(rows)} worst of {len(report.by_class):,}" if len(rows) < len(report.by_class) else "the worst first"
    chart = Chart(
        f"By class, {of}: 5, 25, 50, 75 and 95 %",
        span([high]),
        Scale(len(rows) - 0.5, -0.5),
        "irreducible loss, nats",
        ynames=list(enumerate(names)),
        height=max(HEIGHT, 60 + 17 * len(rows)),
    )
    for row, (each, name) in enumerate(zip(rows, names, strict=True)):
        low, q1, median, q3, most = each.quantiles
        chart.line([low, most], [row, row], colour(0), width=1)
        chart.bar(q1, q3, row - 0.3, row + 0.3, about=f"{name}: median {median:.3g}, {each.examples:,} examples")
        chart.line([median, median], [row - 0.3, row + 0.3], colour(0), width=2.5)
    if report.classes:
        chance = math.log(report.classes)
        chart.line([chance, chance], [len(rows) - 0.5, -0.5], colour(1), "chance level", width=1.5)
    return chart


def _calibration(report: Report) -> Chart:
    names = "confidence (area: number of predictions)", "accuracy on these labels"
    chart = Chart("Calibration", Scale(0, 1.04), Scale(0, 1.04), *names)
    chart.line([0, 1], [0, 1], GRAY, "as confident as correct", dash=True, width=1)
    joined = report.well_filled_bins
    chart.line([confidence for _, confidence, _ in joined], [accuracy for _, _, accuracy in joined], colour(0))
    most = max(n for n, _, _ in report.bins)
    for n, confidence, accuracy in report.bins:
        about = f"{n:,} predictions: confidence {confidence:.3f}, accuracy {accuracy:.3f}"
        chart.dot(confidence, accuracy, 2.5 + 9 * math.sqrt(n / most), colour(0), about)
    return chart


def _two_stores(report: Report) -> Chart:
    points = np.asarray(report.pairs).clip(1e-4)
    ends = Scale(float(points.min()) / 1.5, float(points.max()) * 1.5, log=True)
    much = "" if report.other is None else f": rank correlation {report.other:.3f}"
    chart = Chart(f"Two stores{much}", ends, ends, "irreducible loss here, nats", "in the other store, nats")
    for x, y in points.tolist():
        chart.dot(x, y, 1.8, colour(0), strong=0.35)
    chart.line([ends.low, ends.high], [ends.low, ends.high], GRAY, dash=True, width=1)
    return chart


def _classes(report: Report, name_of: Callable[[int], str]) -> str:
    if not report.by_class:
        return ""
    rows = [
        (name_of(each.label), f"{each.examples:,}", f"{each.quantiles[2]:.3f}", f"{each.above_chance:.1%}")
        for each in report.by_class
    ]
    inner = page.table(("class", "examples", "median loss", "above chance"), rows)
    return f"<details><summary>The classes as a table</summary>{inner}</details>"


def _galleries(report: Report, examples: Examples, counts: Tensor | None) -> str:
    """The examples with extreme losses, suspicious labels and extreme counts."""
    if (examples.dataset is None and examples.show is None and counts is None) or not report.known:
        return ""
    store = report.store
    rows = torch.nonzero(torch.isfinite(losses := store.losses.cpu())).flatten()
    index = rows if store.ids is None else store.ids.cpu()[rows]
    order = losses[rows].argsort(stable=True)
    lowest = index[order]
    found: Suspects | None = None if store.predictions is None else find_suspects(store)

    def caption(index: int) -> str:
        often = "" if counts is None or not 0 <= index < len(counts) else f"<br>{int(counts[index]):,} selections"
        return f"loss {float(store[torch.tensor([index])]):.3g}{often}"

    parts = []
    if found is not None and len(found):
        columns = ("index", "suggested_class", "suggested_probability")
        better = {i: (c, p) for i, c, p in zip(*(found.columns[name].tolist() for name in columns), strict=True)}

        def suggestion(index: int) -> str:
            other, p = better[index]
            return f"<em>{escape(examples.name_of(other))}</em> {p:.0%}<br>{caption(index)}"

        parts.append(examples.gallery("Labels that are probably wrong", SUSPECTS, torch.tensor(list(better)), suggestion))
    parts.append(examples.gallery("Highest irreducible loss", HIGHEST, lowest.flip(0), caption))
    parts.append(examples.gallery("Lowest irreducible loss", LOWEST, lowest, caption))
    if counts is not None:
        parts += selection_galleries(examples, counts, index, caption)
    return page.section("Look at the examples", "", examples.menu(), *parts)


def selection_galleries(examples: Examples, counts: Tensor, index: Tensor, caption: Callable[[int], str]) -> list[str]:
    """The most selected of some examples, and a sample of those never selected; ``counts`` are by index, (N,), int64."""
    index = index[(index >= 0) & (index < len(counts))]
    often = index[counts[index].argsort(descending=True, stable=True)]
    never = index[counts[index] == 0]
    never = never[torch.randperm(len(never), generator=torch.Generator().manual_seed(0))]
    return [
        examples.gallery("Most selected", MOST, often[counts[often] > 0], caption),
        examples.gallery("Never selected", f"A random sample of the {len(never):,} that were never selected.", never, caption),
    ]


def shortened(name: str, most: int = 18) -> str:
    """A name of at most so many characters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _length(report: Report) -> int:
    """N, for counts by index."""
    ids = report.store.ids
    return (
        report.examples
        if ids is None
        else max(int(ids[-1]) + 1 if len(ids) else 0, (report.store.meta.data or {}).get("length") or 0)
    )


HIGHEST = "Wrong labels, unclear examples, and what the irreducible-loss model could not learn. Selection avoids them."
LOWEST = "What the irreducible-loss model finds easiest. Selection takes them while the model in training has not learned them."
SUSPECTS = "The label, then the class that the irreducible-loss models predict, with its probability; the worst first."
MOST = "Selected most often; the number is how often."
