"""The study's tables, as Markdown."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

from experiments.readers.cifar import HUMAN_LABELS

from studies.holdout.results import Line, Results, at_end
from studies.holdout.variants import MAIN, MORE, RECIPES, Cell

HOW = ("", ", gate", ", gate, bounded")  # ways to score, as the ends of the variants' names


def tables(lines: list[Line]) -> str:
    """All tables as text."""
    results = Results(lines)
    text = ["Medians over the seeds, lowest and highest in brackets."]
    for bar in (name for name in MAIN if name.startswith("uniform")):
        against = Results(lines, bar)
        if against.uniform:
            text += ["", f'## Overview: times fewer steps to the best accuracy of "{bar}"; points above it at the end', ""]
            text += overview(against)
    for cell in results.cells:
        at = [line for line in lines if (line["data"], line["noise"]) == cell]
        text += ["", f"## {cell[0]}, {title(cell[1])}: {100 * at[0]['rate']:.1f} % of the labels are wrong", ""]
        text += cell_table(results, cell, MAIN)
        if results.variants(cell, MORE):
            text += ["", "### Other irreducible-loss models and gates", "", *cell_table(results, cell, MORE)]
    text += [
        "",
        "## Where selection ends, and how good the irreducible-loss models are by themselves",
        "",
        *ending_table(results),
    ]
    text += ["", "## What the irreducible losses show by themselves", "", *indicator_table(results)]
    return "\n".join(text)


def show(value: float, form: str) -> str:
    """A number, or "never" if it is infinite."""
    return "never" if math.isinf(value) else format(value, form)


def median(values: Iterable[float], form: str) -> str:
    return show(statistics.median(values), form)


def spread(values: Iterable[float], form: str) -> str:
    """Median, and lowest to highest in brackets; one number if they are the same."""
    values = list(values)
    low, mid, high = (show(of(values), form) for of in (min, statistics.median, max))
    return mid if low == high else f"{mid} ({low} to {high})"


def cell_table(results: Results, cell: Cell, among: Iterable[str]) -> list[str]:
    """What each variant needed and reached in a cell."""
    head = ["", "steps to uniform's best", "times fewer", "scored until then", "seconds until then", "with making the losses"]
    rows = [[*head, "best, %", "at the end, %", "wrong among selected, %", "seeds"]]
    for name in results.variants(cell, among):
        lines = results.of(cell, name)
        until = [results.per_step(line, "seconds") for line in lines]
        before = [line.get("irreducible_seconds", 0.0) for line in lines]
        row = [name, spread([results.steps(line) for line in lines], ",.0f"), spread(map(results.fewer, lines), ".1f")]
        row += [
            median([results.per_step(line, "scored") if line["scored"] else 0 for line in lines], ",.0f"),
            median(until, ".1f"),
        ]
        row.append(median([a + b for a, b in zip(until, before, strict=True)], ".1f"))
        row += [
            spread([100 * max(line["accuracy"]) for line in lines], ".1f"),
            spread([100 * at_end(line) for line in lines], ".1f"),
        ]
        rows.append([*row, spread([100 * statistics.fmean(line["wrong"]) for line in lines], ".1f"), str(len(lines))])
    return markdown(rows)


def overview(results: Results) -> list[str]:
    """Every main variant in every cell: how many times fewer steps, and points above the bar at the end."""
    rows = [["", *(f"{data}, {title(noise)}" for data, noise in results.cells)]]
    for name in MAIN:
        lines = [results.of(cell, name) for cell in results.cells]
        if name != results.bar and any(lines):
            rows.append([name, *(outcome(results, at) for at in lines)])
    return markdown(rows)


def outcome(results: Results, lines: list[Line]) -> str:
    """Times fewer steps, and points at the end, as one cell of a table."""
    if not lines:
        return ""
    fewer = statistics.median(map(results.fewer, lines))
    return f"{f'{fewer:.1f} x' if fewer else 'never'}; {median(map(results.gain, lines), '+.1f')}"


def indicator_table(results: Results) -> list[str]:
    """What the irreducible losses show by themselves, and how selection by them went."""
    names = ["worse_than_a_guess", "accuracy", "confidence_minus_accuracy", "agreement"]
    head = ["", "irreducible losses", "mean, nats", "in validation, nats", "worse than a guess, %", "accuracy on given labels, %"]
    head += ["confidence - accuracy, points"]
    head += [
        "agreement of the halves",
        "wrong labels, %",
        "plain: times fewer; points",
        "gate: times fewer; points",
        "gate, bounded: times fewer; points",
        "wrong selected, %",
    ]
    rows = [head]
    for cell in results.cells:
        for recipe in RECIPES:
            ways = [results.of(cell, f"{recipe}{how}") for how in HOW]
            lines = next((way for way in ways if way), None)
            if not lines or names[-1] not in lines[0]["indicators"]:
                continue
            found = {name: statistics.median([line["indicators"][name] for line in lines]) for name in lines[0]["indicators"]}
            agreement = "" if math.isnan(found[names[3]]) else f"{found[names[3]]:.2f}"  # there is none of a single model
            row = [f"{cell[0]}, {title(cell[1])}", recipe, *(f"{found[name]:.2f}" for name in ("mean", "validation_loss"))]
            row += [
                *(f"{100 * found[name]:.1f}" for name in names[:3]),
                agreement,
                f"{100 * lines[0]['rate']:.0f}",
            ]
            row += [outcome(results, way) for way in ways]
            wrong = [median([100 * statistics.fmean(line["wrong"]) for line in way], ".0f") if way else "" for way in ways]
            rows.append([*row, ", ".join(filter(None, wrong))])
    return markdown(rows)


def ending_table(results: Results) -> list[str]:
    """Accuracy of the irreducible-loss models, and accuracy at the end of selection by their losses."""
    rows = [
        ["", "irreducible losses", "their models, %", *(f"{how} at the end, %" for how in ("plain", "gate", "gate, bounded"))]
    ]
    rows[0].append("uniform at the end, %")
    for cell in results.cells:
        uniform = median([100 * at_end(line) for line in results.of(cell, "uniform")], ".1f")
        for recipe in RECIPES:
            ways = [results.of(cell, f"{recipe}{how}") for how in HOW]
            lines = next((way for way in ways if way), None)
            if lines:
                models = spread([100 * line["irreducible_accuracy"] for line in lines], ".1f")
                ends = [spread([100 * at_end(line) for line in way], ".1f") if way else "" for way in ways]
                rows.append([f"{cell[0]}, {title(cell[1])}", recipe, models, *ends, uniform])
    return markdown(rows)


def title(noise: str) -> str:
    return f"human labels {noise}" if noise in HUMAN_LABELS else f"{100 * float(noise):.0f} % wrong"


def markdown(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]
