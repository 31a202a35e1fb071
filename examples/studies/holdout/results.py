"""The study's results: a file of JSON lines, one for each run, and what is counted from them."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from studies.holdout.variants import CELLS, Cell

RESULTS = Path(__file__).parents[2] / "results" / "holdout_study.jsonl"
Line = dict[str, Any]


def read_lines(path: Path) -> list[Line]:
    """All lines of a file, in order; none if there is no file."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Results:
    """The lines of a results file, by cell and variant.

    Args:
        lines: the lines.
        bar: the variant whose best accuracy, at the same seed, is the target.
    """

    def __init__(self, lines: list[Line], bar: str = "uniform") -> None:
        self.lines = lines
        self.bar = bar
        self.cells = [cell for cell in CELLS if any((line["data"], line["noise"]) == cell for line in lines)]
        self.uniform = {self.key(line): line for line in lines if line["variant"] == bar}

    def of(self, cell: Cell, variant: str) -> list[Line]:
        """One variant's lines in a cell, of the seeds that the bar has too."""
        found = [line for line in self.lines if (line["data"], line["noise"], line["variant"]) == (*cell, variant)]
        return sorted((line for line in found if self.key(line) in self.uniform), key=lambda line: line["seed"])

    def variants(self, cell: Cell, among: Iterable[str]) -> list[str]:
        return [variant for variant in among if self.of(cell, variant)]

    @staticmethod
    def key(line: Line) -> tuple[str, str, int]:
        return line["data"], line["noise"], line["seed"]

    def steps(self, line: Line) -> float:
        """Steps to the target; infinite if the run never reaches it."""
        every, target = line["evaluate_every"], max(self.uniform[self.key(line)]["accuracy"])
        return next((every * (i + 1) for i, accuracy in enumerate(line["accuracy"]) if accuracy >= target), math.inf)

    def fewer(self, line: Line) -> float:
        """How many times fewer steps than uniform; 0 if the run never reaches the target."""
        return self.steps(self.uniform[self.key(line)]) / self.steps(line)

    def per_step(self, line: Line, what: str) -> float:
        """A count or seconds of the whole run, as far as the target."""
        return line[what] / line["steps"] * self.steps(line)

    def gain(self, line: Line) -> float:
        """Points of accuracy above uniform, each at its end."""
        return 100 * (at_end(line) - at_end(self.uniform[self.key(line)]))


def at_end(line: Line) -> float:
    """Mean accuracy over the last five evaluations of a run. One evaluation alone is noisy."""
    return statistics.fmean(line["accuracy"][-5:])
