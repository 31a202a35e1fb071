"""The study's tables, as Markdown."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator

from experiments.readers.cifar import HUMAN_LABELS

from studies.holdout.results import Line, Results, at_end
from studies.holdout.variants import MAIN, MORE, RECIPES, Cell

HOW = ("", ", gate", ", gate, bounded")  # ways to score, as the ends of the variants' names


def tables(lines: list[Line]) -> str:
    """All tables as text, each under its name."""
    parts = by_name(lines)
    return "\n\n".join(["Medians over the seeds, lowest and highest in brackets.", *(f"## {n}\n\n{t}" for n, t in parts.items())])


def by_name(lines: list[Line]) -> dict[str, str]:
    """Every table, by the name that a page asks for it by."""
    results = Results(lines)
    parts = {}
    for bar in (name for name in MAIN if name.startswith("uniform")):
        against = Results(lines, bar)
        if against.uniform:
            parts[f"against {bar}"] = overview(against)
    for cell in results.cells:
        name = f"{cell[0]}, {title(cell[1])}"
        rate = next(line["rate"] for line in lines if (line["data"], line["noise"]) == cell)
        parts[name] = f"{cell_tables(results, cell, MAIN)}\n\n{100 * rate:.1f} % of the labels are wrong."
        if results.variants(cell, MORE):
            parts[f"{name}: other models and gates"] = cell_tables(results, cell, MORE)
    return parts | {"where selection ends": ending_table(results), "signs": indicator_tables(results)}


def updated(page: str, parts: dict[str, str]) -> str:
    """A page with the tables between ``<!-- study NAME -->`` and ``<!-- end -->`` made again."""

    def fresh(match: re.Match[str]) -> str:
        return f"<!-- study {match[1]} -->\n\n{parts[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- study (.+?) -->.*?<!-- end -->", fresh, page, flags=re.DOTALL)


def show(value: float, form: str) -> str:
    """A number, or "never" if it is infinite."""
    return "never" if math.isinf(value) else format(value, form)


def median(values: Iterable[float], form: str) -> str:
    return show(statistics.median(values), form)


def show_times(value: float, form: str) -> str:
    """How many times fewer steps, or "never" for 0."""
    return format(value, form) if value else "never"


def spread(values: Iterable[float], form: str, shown: Callable[[float, str], str] = show) -> str:
    """Median, and lowest to highest in brackets; one number if they are the same."""
    values = list(values)
    low, mid, high = (shown(of(values), form) for of in (min, statistics.median, max))
    return mid if low == high else f"{mid} ({low} to {high})"


def cell_tables(results: Results, cell: Cell, among: Iterable[str]) -> str:
    """What each variant needed in a cell, and what it reached."""
    needed = [
        ["", "steps to uniform's best", "times fewer", "scored until then", "seconds until then", "irreducible losses included"]
    ]
    reached = [["", "best, %", "at the end, %", "wrong among the selected, %", "seeds"]]
    for name in results.variants(cell, among):
        lines = results.of(cell, name)
        scored = [results.per_step(line, "scored") if line["scored"] else 0 for line in lines]
        until = [results.per_step(line, "seconds") for line in lines]
        before = [line.get("irreducible_seconds", 0.0) for line in lines]
        row = [
            name,
            spread([results.steps(line) for line in lines], ",.0f"),
            spread(map(results.fewer, lines), ".1f", show_times),
        ]
        row += [median(scored, ",.0f"), median(until, ".1f")]
        needed.append([*row, median([a + b for a, b in zip(until, before, strict=True)], ".1f")])
        row = [name, spread([100 * max(line["accuracy"]) for line in lines], ".1f")]
        row += [spread([100 * at_end(line) for line in lines], ".1f")]
        reached.append([*row, spread([100 * statistics.fmean(line["wrong"]) for line in lines], ".1f"), str(len(lines))])
    return f"{markdown(needed)}\n\n{markdown(reached)}"


def overview(results: Results) -> str:
    """Every main variant: how many times fewer steps, and points above the bar at the end; two tables for each data set."""
    made = []
    for data in dict.fromkeys(data for data, _ in results.cells):
        cells = [cell for cell in results.cells if cell[0] == data]
        found = {name: [results.of(cell, name) for cell in cells] for name in MAIN if name != results.bar}
        for what, cell_of in ("times fewer steps", fewer), ("points at the end", gained):
            head = [f"{data}: {what}", *(title(noise) for _, noise in cells)]
            rows = [[name, *(cell_of(results, at) for at in lines)] for name, lines in found.items() if any(lines)]
            made.append(markdown([head, *rows]))
    return "\n\n".join(made)


def fewer(results: Results, lines: list[Line]) -> str:
    """Times fewer steps, as a cell of a table."""
    times = statistics.median(map(results.fewer, lines)) if lines else None
    return "" if times is None else show_times(times, ".1f")


def gained(results: Results, lines: list[Line]) -> str:
    """Points at the end, as a cell of a table."""
    return median(map(results.gain, lines), "+.1f") if lines else ""


def indicator_tables(results: Results) -> str:
    """What the irreducible losses show by themselves, and how selection by them went."""
    signs = [["data: irreducible losses", "mean (in validation), nats", "above log(C), %", "accuracy on given labels, %"]]
    signs[0] += ["confidence - accuracy, points", "agreement of the halves"]
    went = [["times fewer steps", "plain", "gate", "gate, bounded"]]
    picked = [["wrong labels among the selected, %", "in the data", "plain", "gate", "gate, bounded"]]
    for name, ways, lines in recipes(results):
        if "agreement" not in lines[0]["indicators"]:
            continue
        found = {name: statistics.median([line["indicators"][name] for line in lines]) for name in lines[0]["indicators"]}
        shares = [f"{100 * found[each]:.1f}" for each in ("worse_than_a_guess", "accuracy", "confidence_minus_accuracy")]
        agreement = "" if math.isnan(found["agreement"]) else f"{found['agreement']:.2f}"  # there is none of a single model
        signs.append([name, f"{found['mean']:.2f} ({found['validation_loss']:.2f})", *shares, agreement])
        wrong = [median([100 * statistics.fmean(line["wrong"]) for line in way], ".0f") if way else "" for way in ways]
        went.append([name, *(fewer(results, way) for way in ways)])
        picked.append([name, f"{100 * lines[0]['rate']:.0f}", *wrong])
    return "\n\n".join(map(markdown, (signs, went, picked)))


def ending_table(results: Results) -> str:
    """Accuracy of the irreducible-loss models, and accuracy at the end of selection by their losses."""
    rows = [["data: irreducible losses", "their models, %", "plain at the end, %", "gate", "gate, bounded", "uniform"]]
    for name, ways, lines in recipes(results):
        models = spread([100 * line["irreducible_accuracy"] for line in lines], ".1f")
        ends = [spread([100 * at_end(line) for line in way], ".1f") if way else "" for way in ways]
        cell = lines[0]["data"], lines[0]["noise"]
        rows.append([name, models, *ends, median([100 * at_end(line) for line in results.of(cell, "uniform")], ".1f")])
    return markdown(rows)


def recipes(results: Results) -> Iterator[tuple[str, list[list[Line]], list[Line]]]:
    """For each cell and source of irreducible losses: its name, the lines of each way to score, and the first that there are."""
    for cell in results.cells:
        for recipe in RECIPES:
            ways = [results.of(cell, f"{recipe}{how}") for how in HOW]
            if lines := next((way for way in ways if way), None):
                yield f"{cell[0]}, {title(cell[1])}: {recipe}", ways, lines


def title(noise: str) -> str:
    return f"human labels {noise}" if noise in HUMAN_LABELS else f"{100 * float(noise):.0f} % wrong"


def markdown(rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])
