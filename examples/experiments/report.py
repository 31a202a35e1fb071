"""Turns results into tables and figures.

    python examples/experiments/report.py [NAME ...] [--results FILE]      # prints the tables
    python examples/experiments/report.py --figures docs/pages             # draws the figures too
    python examples/experiments/report.py --update docs/pages/experiments.md

Medians over the seeds, lowest and highest in brackets. Targets are each seed's own: the best metric on the test data of plain
training with the same initial weights, at any of its evaluations.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

from experiments.experiments import EXPERIMENTS
from experiments.overview import lines
from experiments.paying import columns as columns_in_seconds, columns_of_making, columns_of_plans
from experiments.results import RESULTS, read
from experiments.summary import (
    BySeed,
    Results,
    best,
    metric_at,
    number,
    percent,
    results_of,
    seconds,
    seconds_to_reach,
    speedups,
    spread,
    times,
    to_reach,
)

SHOWN_PLANS = ("a plan", "half a plan, then below the gate")
TITLES = {  # of the experiments with plans
    "plans-cnn": "Fashion-MNIST, 30 % wrong, convolutions",
    "plans-wide": "Fashion-MNIST, 30 % wrong, MLP",
    "plans-clean": "Fashion-MNIST, clean, MLP",
    "plans-cifar10n-random1": "CIFAR-10N, 17 % wrong, MLP",
    "plans-cifar10n-worse": "CIFAR-10N, 40 % wrong, MLP",
}
Column = tuple[str, Callable[[BySeed], str]]


def table(title: str, columns: list[Column], rows: dict[str, BySeed]) -> str:
    """A table in Markdown: a row for each label."""
    lines = [[title, *(name for name, _ in columns)]]
    lines += [[label, *(cell(mine) for _, cell in columns)] for label, mine in rows.items()]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def tables(title: str, parts: list[list[Column]], rows: dict[str, BySeed]) -> str:
    """One table under the other, each narrow enough for a screen."""
    return "\n\n".join(table(title, columns, rows) for columns in parts)


def of_rows(value: Callable[[Any], float], form: Callable[[float], str]) -> Callable[[BySeed], str]:
    return lambda rows: spread([value(row) for row in rows.values()], form)


def outcome(results: Results) -> str:
    """Steps to plain training's best, how many times fewer that is, and where each method ends."""
    base, tuned = results.baseline, results.tuned()
    columns: list[Column] = [
        ("steps to uniform's best", lambda rows: spread(to_reach(rows, base, "step"), number)),
        ("times fewer", lambda rows: spread(speedups(rows, base), times)),
        ("times fewer to 1 point less", lambda rows: spread(speedups(rows, base, 0.01), times)),
    ]
    if results.rows[tuned] is not base:
        columns += [
            ("steps to the best uniform's best", lambda rows: spread(to_reach(rows, results.rows[tuned], "step"), number)),
            ("times fewer than it", lambda rows: spread(speedups(rows, results.rows[tuned]), times)),
        ]
    shortest = min(row["evaluations"]["step"][-1] for rows in results.rows.values() for row in rows.values())
    ends: list[Column] = [
        (f"at step {shortest:,}, %", of_rows(lambda row: metric_at(row, shortest), percent)),
        ("best, %", of_rows(best, percent)),
        ("at the end, %", of_rows(lambda row: row["final"], percent)),
        ("steps in all", of_rows(lambda row: row["evaluations"]["step"][-1], number)),
    ]
    note = "" if results.rows[tuned] is base else f"\n\nThe best uniform: {tuned}."
    return tables("method", [columns, ends], results.rows) + note


def selected(results: Results) -> str:
    """What the methods trained on."""
    shares = next(iter(results.baseline.values()))["in_data"]
    columns: list[Column] = [
        (
            f"{flag}, % ({percent(share)} in the data)",
            of_rows(lambda row, flag=flag: row["selected"].get(flag, float("nan")), percent),
        )
        for flag, share in shares.items()
        if share > 0
    ]
    columns += [
        ("already correct, %", of_rows(lambda row: row["already_right"], percent)),
        ("selected before, %", of_rows(lambda row: row["repeated"], percent)),
    ]
    return table("method", columns, results.rows)


def cost(results: Results) -> str:
    """What it takes to get to plain training's best."""
    base = results.baseline
    columns: list[Column] = [
        ("steps", lambda rows: spread(to_reach(rows, base, "step"), number)),
        ("examples scored", lambda rows: spread(to_reach(rows, base, "scored"), number)),
        ("seconds", lambda rows: spread(to_reach(rows, base, "seconds"), seconds)),
        ("seconds, irreducible losses included", lambda rows: spread(seconds_to_reach(rows, base), seconds)),
        ("milliseconds a step", of_rows(lambda row: 1000 * row["seconds"] / row["evaluations"]["step"][-1], seconds)),
    ]
    return table("to uniform's best", columns, results.rows)


def paired(results: Results) -> str:
    """Uniform and what is compared with it for each of several settings."""
    columns: list[Column] = [
        ("uniform's best, %", lambda rows: spread([best(row) for row in rows.values()], percent)),
    ]
    settings = pairs(results)
    base = {name: uniform for name, (uniform, _) in settings.items()}
    other, method = {id(uniform): selecting for uniform, selecting in settings.values()}, compared(results)
    columns += [
        ("steps to it: uniform", lambda rows: spread(to_reach(rows, rows, "step"), number)),
        (method, lambda rows: spread(to_reach(other[id(rows)], rows, "step"), number)),
        ("times fewer", lambda rows: spread(speedups(other[id(rows)], rows), times)),
        (
            f"{method}'{'' if method.endswith('S') else 's'} best, %",
            lambda rows: spread([best(row) for row in other[id(rows)].values()], percent),
        ),
    ]
    return table("setting", columns, base)


def pairs(results: Results) -> dict[str, tuple[BySeed, BySeed]]:
    """By setting, the rows of uniform and of what is compared with it."""
    method = compared(results)
    settings = [label.removeprefix("uniform, ") for label in results.rows if label.startswith("uniform, ")]
    return {
        name: (results.rows[f"uniform, {name}"], results.rows[f"{method}, {name}"])
        for name in settings
        if f"{method}, {name}" in results.rows
    }


def compared(results: Results) -> str:
    """What is compared with uniform in each of the settings."""
    return next(label.partition(", ")[0] for label in results.experiment.setups if not label.startswith("uniform, "))


def correlations(results: Results) -> str:
    """Rank correlation of approximations with the score whose irreducible-loss model is co-trained."""
    rows = next((rows for rows in results.rows.values() if any(row.get("rank_correlation") for row in rows.values())), {})
    names = next(iter(rows.values()))["rank_correlation"] if rows else []
    some = {name: {seed: {"curve": row["rank_correlation"][name]} for seed, row in rows.items()} for name in names}
    two = "{:.2f}".format
    columns: list[Column] = [
        ("after the first evaluation", of_rows(lambda row: row["curve"][0], two)),
        ("half-way", of_rows(lambda row: row["curve"][len(row["curve"]) // 2], two)),
        ("at the end", of_rows(lambda row: row["curve"][-1], two)),
    ]
    return table("approximation", columns, some)


def overview(found: Mapping[str, Results]) -> str:
    """What selection gains over the best plain training, a line for each experiment."""
    return table("data", *lines(found))


def in_seconds(results: Results) -> str:
    """Seconds to the best uniform's best, and how far each has come in its seconds."""
    note = f"The best uniform: {results.tuned()}."
    return f"{tables('method', columns_in_seconds(results), results.rows)}\n\n{note}"


def by_plan(results: Results) -> str:
    """Seconds to the best uniform's best: in a first run, which makes the plan, and in each further one."""
    note = f"The best uniform: {results.tuned()}."
    return f"{table('method', columns_of_plans(results), results.rows)}\n\n{note}"


def plans_overview(found: Mapping[str, Results]) -> str:
    """Plain training at its best, and whole plans, a line for each experiment."""
    columns: list[tuple[str, str | None, str]] = [
        ("plain training at the end, %", None, "at the end, %"),
        ("a plan at the end, %", "itself", "at the end, %"),
        ("first run, to the target", "itself", "times fewer seconds: first run"),
        ("further runs, to the target", "itself", "further runs"),
        ("further runs, to 1 point below", "itself", "further runs, to 1 point less"),
    ]
    return by_experiment(found, columns, columns_of_plans, SHOWN_PLANS[:1])


def plans_price(found: Mapping[str, Results]) -> str:
    """What plans take to make, and after how many runs they are paid back."""
    wanted = ("seconds: irreducible losses", "plan", "a plain run", "a run by the plan", "runs to break even")
    return by_experiment(found, [(name, "itself", name) for name in wanted], columns_of_making)


def by_experiment(
    found: Mapping[str, Results],
    wanted: list[tuple[str, str | None, str]],
    columns_of: Callable[[Results], list[Column]],
    plans: Sequence[str] = SHOWN_PLANS,
) -> str:
    """A line for each experiment and plan: columns of its own tables, of the plan itself or of the best uniform."""
    lines = [
        (f"{TITLES.get(name, name)}: {label}" if len(plans) > 1 else TITLES.get(name, name), results, label)
        for name, results in found.items()
        for label in plans
        if results.experiment.kind == "plans" and label in results.rows
    ]
    rows = {title: dict(results.rows[label]) for title, results, label in lines}
    whose = {id(rows[title]): (results, label) for title, results, label in lines}

    def of(whom: str | None, column: str) -> Callable[[BySeed], str]:
        def cell(mine: BySeed) -> str:
            results, label = whose[id(mine)]
            uniform = {seed: row for seed, row in results.rows[results.tuned()].items() if seed in mine}
            return dict(columns_of(results))[column](results.rows[label] if whom else uniform)

        return cell

    head = "data, network: plan" if len(plans) > 1 else "data, network"
    return table(head, [(name, of(whom, column)) for name, whom, column in wanted], rows)


def paid_back(results: Results) -> str:
    """The price of a plan, and after how many runs it is paid back."""
    planned = {label: rows for label, rows in results.rows.items() if results.experiment.setups[label].method == "plan"}
    return table("making it", columns_of_making(results), planned) if planned else ""


def irreducible(results: Results) -> str:
    """How good the irreducible-loss models are, and how long they take to fit and to score with."""
    abouts = [row["irreducible"] for rows in results.rows.values() for row in rows.values() if row["irreducible"]]
    if not abouts:
        return ""
    metric, took = spread([a["metric"] for a in abouts], percent), spread([a["seconds"] for a in abouts], seconds)
    return f"Irreducible-loss models: {metric} %, in {took} seconds."


def report(results: Results) -> str:
    """All that is said about an experiment."""
    experiment = results.experiment
    tables = {"pairs": (paired,), "paying": (in_seconds, selected), "plans": (by_plan, paid_back)}.get(
        experiment.kind, (outcome, selected, cost)
    )
    parts = [text for each in tables if (text := each(results))]
    if any(row.get("rank_correlation") for rows in results.rows.values() for row in rows.values()):
        parts.append(correlations(results))
    counts = sorted({len(rows) for rows in results.rows.values()})
    seeds = (f"{counts[0]} to " if len(counts) > 1 else "") + (f"{counts[-1]} seeds" if counts[-1] > 1 else "1 seed")
    measure = next(iter(results.baseline.values()))["metric"]
    parts.append(f"{seeds}; {measure}. {irreducible(results)}".strip())
    return "\n\n".join(parts)


def reports_of(found: Mapping[str, Results]) -> dict[str, str]:
    """Every text that there is, by the name that a page asks for it by."""
    overviews = {"overview": overview(found), "plans": plans_overview(found), "plans-cost": plans_price(found)}
    return overviews | {name: report(results) for name, results in found.items()}


def updated(page: str, reports: dict[str, str]) -> str:
    """A page with the tables between ``<!-- report NAME -->`` and ``<!-- end -->`` made again."""

    def fresh(match: re.Match[str]) -> str:
        return f"<!-- report {match[1]} -->\n\n{reports[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- report (\S+) -->.*?<!-- end -->", fresh, page, flags=re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Tables and figures of results.")
    parser.add_argument("experiments", nargs="*", help="their names; all that have results if none is given")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--figures", type=Path, help="draw the figures into this folder")
    parser.add_argument("--update", type=Path, help="put the tables into this page")
    options = parser.parse_args(arguments)
    rows = read(options.results)
    names = options.experiments or [name for name, each in EXPERIMENTS.items() if each.within is None]
    found = {name: results for name in names if (results := results_of(EXPERIMENTS[name], rows)) is not None}
    if not found:
        print(f"no results of {', '.join(names)} in {options.results}", file=sys.stderr)
        return 1
    reports = reports_of(found)
    about = {"overview": "RHO-LOSS and plain training", "plans": "plans and plain training", "plans-cost": "making a plan"} | {
        name: results.experiment.about for name, results in found.items()
    }
    if options.update:
        options.update.write_text(updated(options.update.read_text(), reports))
    else:
        print("\n\n".join(f"## {name}: {about[name]}\n\n{text}" for name, text in reports.items()))
    if options.figures:
        from experiments.figures import draw  # needs matplotlib

        for path in draw(found, options.figures):
            print(path, file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
