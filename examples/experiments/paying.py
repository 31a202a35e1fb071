"""Seconds to the accuracy of the best plain training, with and without the time to compute the irreducible losses."""

from __future__ import annotations

from collections.abc import Callable

from experiments.summary import NEVER, BySeed, Results, Row, best, number, percent, seconds, spread, times, to_reach
from rholoss.cost import runs_to_pay_back

Cell = Callable[[BySeed], str]


def per_step(row: Row) -> float:
    """Seconds a step."""
    return row["evaluations"]["seconds"][-1] / row["evaluations"]["step"][-1]


def metric_by(row: Row, limit: float, before: float) -> float:
    """The metric of the last evaluation by so many seconds, of which some have gone before the first step; 0 before any."""
    curve = row["evaluations"]
    return next((m for m, s in zip(curve["metric"][::-1], curve["seconds"][::-1], strict=True) if s + before <= limit), 0.0)


def columns_of_plans(results: Results) -> list[tuple[str, Cell]]:
    """The same in five columns: a first run, which makes all that it needs, and each further one."""
    target = results.rows[results.tuned()]

    def fewer(first: bool, less: float = 0.0) -> Cell:
        return lambda rows: spread([t / (m + b * first) for t, m, b in seconds_of(rows, target, less)], times)

    return [
        ("times fewer seconds: first run", fewer(True)),
        ("further runs", fewer(False)),
        ("to 1 point less: first run", fewer(True, 0.01)),
        ("further runs, to 1 point less", fewer(False, 0.01)),
        ("at the end, %", lambda rows: spread([row["final"] for row in rows.values()], percent)),
    ]


def columns_of_making(results: Results) -> list[tuple[str, Cell]]:
    """What making a plan takes, and after how many runs that are as good as the best uniform it is paid back."""
    target = results.rows[results.tuned()]

    def runs(rows: BySeed) -> list[float]:
        each = seconds_of(rows, target)
        return [NEVER if m == NEVER else runs_to_pay_back(b, plain=t, replayed=m) for t, m, b in each]

    def of_reference(row: Row) -> float:
        return row["irreducible"]["seconds"]

    return [
        ("seconds: irreducible losses", lambda rows: spread([of_reference(row) for row in rows.values()], seconds)),
        ("plan", lambda rows: spread([row["seconds_before"] - of_reference(row) for row in rows.values()], seconds)),
        ("a plain run", lambda rows: spread([theirs for theirs, *_ in seconds_of(rows, target)], seconds)),
        ("a run by the plan", lambda rows: spread([mine for _, mine, _ in seconds_of(rows, target)], seconds)),
        ("runs to break even", lambda rows: spread(runs(rows), number)),
    ]


def seconds_of(rows: BySeed, target: BySeed, less: float = 0.0) -> list[tuple[float, float, float]]:
    """By seed, seconds until the target's best metric, less something: its own, the rows', and those before their first step."""
    seeds = sorted(set(rows) & set(target))
    theirs, mine = (to_reach({seed: each[seed] for seed in seeds}, target, "seconds", less) for each in (target, rows))
    return list(zip(theirs, mine, [rows[seed]["seconds_before"] for seed in seeds], strict=True))


def columns(results: Results) -> list[list[tuple[str, Cell]]]:
    """What a row shows, by the name of its column: seconds to the target, times fewer seconds, and how far each got."""
    target = results.rows[results.tuned()]

    def with_target(value: Callable[[Row, Row], float], form: Callable[[float], str]) -> Cell:
        return lambda rows: spread([value(row, target[seed]) for seed, row in sorted(rows.items()) if seed in target], form)

    def took(rows: BySeed, included: bool, less: float = 0.0) -> list[float]:
        before = [rows[seed]["seconds_before"] * included for seed in sorted(set(rows) & set(target))]
        return [b + s for b, s in zip(before, to_reach(rows, target, "seconds", less), strict=True)]

    def fewer(included: bool, less: float = 0.0) -> Cell:
        def cell(rows: BySeed) -> str:
            theirs = to_reach({seed: target[seed] for seed in rows if seed in target}, target, "seconds", less)
            return spread([0.0 if s == NEVER else t / s for t, s in zip(theirs, took(rows, included, less), strict=True)], times)

        return cell

    def by_then(included: bool) -> Cell:
        def value(row: Row, uniform: Row) -> float:
            limit = uniform["evaluations"]["seconds"][-1] + uniform["seconds_before"] * included
            return metric_by(row, limit, row["seconds_before"] * included)

        return with_target(value, percent)

    return [
        [
            ("a step, times uniform's", with_target(lambda row, uniform: per_step(row) / per_step(uniform), "{:.2f}".format)),
            ("steps to the best uniform's best", lambda rows: spread(to_reach(rows, target, "step"), number)),
            ("seconds to it", lambda rows: spread(took(rows, False), seconds)),
            ("seconds, included", lambda rows: spread(took(rows, True), seconds)),
        ],
        [
            ("times fewer seconds", fewer(False)),
            ("times fewer, included", fewer(True)),
            ("to 1 point less", fewer(False, 0.01)),
            ("to 1 point less, included", fewer(True, 0.01)),
        ],
        [
            ("at uniform's seconds, %", by_then(False)),
            ("at uniform's seconds, included, %", by_then(True)),
            ("best, %", lambda rows: spread([best(row) for row in rows.values()], percent)),
            ("at the end, %", lambda rows: spread([row["final"] for row in rows.values()], percent)),
            ("steps in all", lambda rows: spread([row["evaluations"]["step"][-1] for row in rows.values()], number)),
        ],
    ]
