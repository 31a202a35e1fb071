"""The numbers of an experiment, from its rows: medians over the seeds, with the lowest and the highest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from experiments.experiments import Experiment
from experiments.setups import row_id

Row = Mapping[str, Any]
BySeed = dict[int, Row]
NEVER = math.inf


@dataclass(frozen=True)
class Results:
    """The rows of an experiment that are there, by label and seed, in the order of the experiment."""

    experiment: Experiment
    rows: dict[str, BySeed]

    @property
    def baseline(self) -> BySeed:
        return self.rows[next(iter(self.experiment.setups))]

    def tuned(self) -> str:
        """The plain training that gets highest in as many steps: the label with the highest median of the best metric.

        Where some have more seeds than others, by the seeds that all have.
        """
        setups, steps = self.experiment.setups, next(iter(self.experiment.setups.values())).steps
        plain = [label for label in self.rows if setups[label].method == "uniform" and setups[label].steps == steps]
        shared = set.intersection(*(set(self.rows[label]) for label in plain))
        return max(plain, key=lambda label: statistics.median(best(self.rows[label][seed]) for seed in shared))


def results_of(experiment: Experiment, rows: Iterable[Row]) -> Results | None:
    """An experiment's results; None if there are none of its baseline."""
    by_id = {row["id"]: row for row in rows}
    found: dict[str, BySeed] = {}
    for label, setup in experiment.setups.items():
        mine = {seed: by_id[row_id(setup, seed)] for seed in experiment.seeds if row_id(setup, seed) in by_id}
        if mine:
            found[label] = mine
    return Results(experiment, found) if next(iter(experiment.setups)) in found else None


def best(row: Row) -> float:
    return max(row["evaluations"]["metric"])


def best_at(row: Row) -> int:
    """Position of the evaluation with the best metric, the first of equals."""
    return row["evaluations"]["metric"].index(best(row))


def reached_at(row: Row, target: float) -> int | None:
    """Position of the first evaluation at or above a target; None where there is none."""
    return next((place for place, metric in enumerate(row["evaluations"]["metric"]) if metric >= target), None)


def metric_at(row: Row, step: int) -> float:
    """The metric of the last evaluation up to a step."""
    curve = row["evaluations"]
    return [metric for at, metric in zip(curve["step"], curve["metric"], strict=True) if at <= step][-1]


def to_reach(rows: BySeed, baseline: BySeed, what: str, less: float = 0.0) -> list[float]:
    """Steps, seconds or examples scored until the baseline's best metric of the same seed, less something; NEVER where not."""
    found = []
    for seed in sorted(set(rows) & set(baseline)):
        place = reached_at(rows[seed], best(baseline[seed]) - less)
        found.append(NEVER if place is None else rows[seed]["evaluations"][what][place])
    return found


def speedups(rows: BySeed, baseline: BySeed, less: float = 0.0) -> list[float]:
    """How many times fewer steps than the baseline itself needs for the same; 0 where it is never reached."""
    theirs = to_reach({seed: baseline[seed] for seed in rows if seed in baseline}, baseline, "step", less)
    return [their / mine for their, mine in zip(theirs, to_reach(rows, baseline, "step", less), strict=True)]


def seconds_to_reach(rows: BySeed, baseline: BySeed) -> list[float]:
    """Seconds until the baseline's best, with those that went into irreducible losses and proxies before the first step."""
    both = sorted(set(rows) & set(baseline))
    took = to_reach(rows, baseline, "seconds")
    return [rows[seed]["seconds_before"] + seconds for seed, seconds in zip(both, took, strict=True)]


def spread(values: list[float], form: Callable[[float], str]) -> str:
    """Median, and lowest to highest in brackets where they differ; "never" for what is not reached."""
    if not values:
        return ""
    never_last, never_first = NEVER in values, form is times and 0 in values
    middle = statistics.median_high if never_last else statistics.median_low if never_first else statistics.median
    low, mid, high = (form(of(values)) for of in (min, middle, max))
    return mid if low == mid == high else f"{mid} ({low} to {high})"


def number(value: float) -> str:
    return "never" if value == NEVER else f"{value:,.0f}"


def seconds(value: float) -> str:
    return "never" if value == NEVER else f"{value:.1f}"


def times(value: float) -> str:
    return "never" if value == 0 else f"{value:.1f}"


def percent(value: float) -> str:
    return f"{100 * value:.1f}"
