"""One line for each experiment: what selection gains there over the best plain training, and what it takes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping

from experiments.paying import Cell, seconds_of
from experiments.setups import Setup
from experiments.summary import NEVER, BySeed, Results, number, speedups, spread, times

LABELS = {"plans": ("a plan",), "methods": ("RHO-LOSS", "RHO-LOSS, keep 0.25")}


def lines(found: Mapping[str, Results]) -> tuple[list[tuple[str, Cell]], dict[str, BySeed]]:
    """Columns, and the rows of a method of each experiment by what the line is called."""
    chosen = {f"`{name}`: {each.experiment.about}": (each, label) for name, each in found.items() for label in shown(each)}
    rows = {title: dict(each.rows[label]) for title, (each, label) in chosen.items()}
    whose = {id(rows[title]): (each, label) for title, (each, label) in chosen.items()}

    def against(rows: BySeed) -> BySeed:
        each = whose[id(rows)][0]
        return each.rows[each.tuned()]

    def network(rows: BySeed) -> str:
        each, label = whose[id(rows)]
        return f"{network_of(each.experiment.setups[label])}: {label}"

    def fewer_seconds(rows: BySeed) -> str:
        return spread([theirs / (mine + before) for theirs, mine, before in seconds_of(rows, against(rows))], times)

    def points(rows: BySeed) -> str:
        target = against(rows)
        return spread([100 * (rows[seed]["final"] - target[seed]["final"]) for seed in rows if seed in target], "{:+.1f}".format)

    columns: list[tuple[str, Cell]] = [
        ("network: method", network),
        ("times fewer steps", lambda rows: spread(speedups(rows, against(rows)), times)),
        ("times fewer seconds", fewer_seconds),
        ("points at the end", points),
        ("trusted", lambda rows: spread([trusted(rows[seed]["examples"]) for seed in rows], number)),
    ]
    return columns, rows


def shown(results: Results) -> Iterator[str]:
    """The label that stands for an experiment: RHO-LOSS, a plan, or where seconds count, the one that takes the fewest."""
    kind, setups = results.experiment.kind, results.experiment.setups
    if kind == "paying":
        selecting = [label for label in results.rows if setups[label].method != "uniform"]
        seeds = max((len(results.rows[label]) for label in selecting), default=0)
        tried = [label for label in selecting if len(results.rows[label]) == seeds]  # rather than a single lucky run
        target = results.rows[results.tuned()]
        yield from sorted(tried, key=lambda label: _seconds(results.rows[label], target))[:1]
    else:
        yield from [label for label in LABELS.get(kind, ()) if label in results.rows][:1]


def _seconds(rows: BySeed, target: BySeed) -> float:
    return statistics.median_high([mine + before for _, mine, before in seconds_of(rows, target)] or [NEVER])


def trusted(examples: list[int]) -> int:
    """Examples with right labels that irreducible-loss models were fitted on, and their weights chosen by; 0: cross-fitted."""
    _, holdout, validation, _ = examples
    return holdout + validation if holdout else 0


def network_of(setup: Setup) -> str:
    """What a setup's model is called, by its size."""
    options = dict(setup.model_options)
    name = options.get("of", setup.model)
    if name == "mlp":
        depth, width = options.get("depth", 3), options.get("width", 512)
        return f"MLP {f'{depth} x ' * (depth > 1)}{width:,}"
    return {"vgg": "convolutions", "resnet8": "ResNet-8"}.get(name, name)
