"""How much trusted examples are worth: ways to use them, by their number; one JSON line for each run, so that it can go on.

    python examples/battery/trusted.py --data DIR [--settings NAME ...] [--seeds 0 1 2] [--results FILE]
    python examples/battery/trusted.py [--write]                # the tables; or also put into docs/pages/will_it_help.md

All runs of a setting have the rate and schedule of the battery's best plain training, and as many steps. Irreducible losses are
either of one network of the trained one's kind, fitted on nine tenths of the trusted examples, the others choosing its weights;
or those of `rholoss.auto`, whose small networks are fitted on one half of the training data, with the trusted examples, and score
the other half.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

from experiments.results import read
from torch.utils.data import TensorDataset

import rholoss
from battery.report import spread, write_part
from battery.run import RESULTS as BATTERY, UNIFORM, Battery, ranking
from battery.settings import SETTINGS, load
from rholoss import IrreducibleLossStore, RhoLossSelector, fit_irreducible_model
from rholoss.selectors import FilteredUniformSelector

BEGIN = "<!-- battery curve -->"
RESULTS = BATTERY.with_name("trusted.jsonl")
STUDIED = ("Fashion, 30 % wrong", "CIFAR-10N worse, 40 % wrong")
COUNTS = (0, 100, 300, 1_000, 3_000, 10_000)
PLAIN, OWN, BELOW, AUTO, BOTH = "plain", "RHO-LOSS", "below the gate", "auto", "RHO-LOSS by auto's losses"


class Curve(Battery):
    """Performs the runs of one setting, seed and number of trusted examples."""

    def __init__(self, name: str, seed: int, root: Path, results: Path) -> None:
        super().__init__(name, seed, root, results)
        self.data = self.all = load(replace(self.setting, trusted=max(COUNTS)), root, seed)
        self.lr, self.schedule = UNIFORM[best_plain(name)]

    def run(self, counts: Sequence[int]) -> None:  # type: ignore[override]
        self.keep(PLAIN, lambda: self.plain(self.lr, self.schedule, self.setting.steps))
        for count in counts:
            x, y = self.all.trusted  # type: ignore[misc]
            self.data = replace(self.all, trusted=(x[:count], y[:count]) if count else None)
            self.keep(f"{AUTO} | {count}", self.auto)
            if count:
                self.keep(f"{OWN} | {count}", self.own)

    def auto(self) -> dict[str, Any]:
        """What `auto` gives, and RHO-LOSS by its losses below its gate, if it says yes."""
        trusted = None if self.data.trusted is None else TensorDataset(*self.data.trusted)
        found = rholoss.auto(self.loader(), self.model(), trusted, steps=self.setting.steps, seed=self.seed, progress=False)
        limit, helps = found.rehearsal.max_irreducible_loss, found.rehearsal.helps
        ends = {
            AUTO: self.end(lambda loader, model: FilteredUniformSelector(loader, model, found.store, max_irreducible_loss=limit))
        }
        if helps:
            options = {"max_irreducible_loss": limit, "bounded": True, "keep": 0.5, "seed": self.seed}
            ends[BOTH] = self.end(lambda loader, model: RhoLossSelector(loader, model, found.store, **options))
        return {"metric": [ends[AUTO]], "ends": ends, "right": round(found.rehearsal.accuracy, 4), "helps": helps}

    def own(self) -> dict[str, Any]:
        """RHO-LOSS by the losses of a network of trusted examples alone, and plain training below its gate."""
        trusted = TensorDataset(*self.data.trusted)  # type: ignore[misc]
        _, learned, validation = rholoss.split(trusted, holdout=0.9, validation=0.1, seed=self.seed)
        fit = fit_irreducible_model(self.model(), learned, validation, seed=self.seed, progress=False)
        store = IrreducibleLossStore.from_model(fit, self.loader(), progress=False)
        limit = math.log(self.data.classes)
        makes: dict[str, Callable[..., Any]] = {
            OWN: lambda loader, model: RhoLossSelector(loader, model, store, keep=0.1, seed=self.seed),
            BELOW: lambda loader, model: FilteredUniformSelector(loader, model, store, max_irreducible_loss=limit),
        }
        ends = {name: self.end(make) for name, make in makes.items()}
        counts = store.meta.calibration
        return {"metric": [ends[OWN]], "ends": ends, "right": None if counts is None else round(counts.accuracy, 4)}

    def end(self, make: Callable[..., Any]) -> float:
        """The metric at the end of a run over what a selector yields."""
        model = self.model()
        return self.train(make(self.loader(), model), model, self.lr, self.schedule, self.setting.steps)["metric"][-1]


def best_plain(name: str) -> str:
    """The label of the battery's best plain training of a setting's first seed."""
    return ranking([row for row in read(BATTERY) if (row["setting"], row["seed"]) == (name, 0) and row["label"] in UNIFORM])[0]


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    """A row for each number of trusted examples: what share of the given labels their network predicts, and points gained."""
    plain = {row["seed"]: row["metric"][-1] for row in rows if row["label"] == PLAIN}
    lines = [
        f"{name} (plain training ends at {100 * statistics.median(plain.values()):.1f} %):",
        "",
        "| trusted examples | their network agrees with, % | RHO-LOSS by it | below its gate | `auto` "
        "| RHO-LOSS by `auto`'s losses |",
        "|---|---|---|---|---|---|",
    ]
    for count in sorted({int(row["label"].split(" | ")[1]) for row in rows if row["label"] != PLAIN}):
        mine = [row for row in rows if row["label"].endswith(f" | {count}")]
        right = [row["right"] for row in mine if row["label"].startswith(OWN)]
        shown = [f"{count:,}", f"{100 * statistics.median(right):.0f}" if right else ""]
        for way in (OWN, BELOW, AUTO, BOTH):
            gains = [100 * (row["ends"][way] - plain[row["seed"]]) for row in mine if way in row["ends"]]
            shown.append(spread(gains) if gains else "")
        lines.append(f"| {' | '.join(shown)} |")
    return lines


def report(results: Path) -> str:
    """The tables of all settings."""
    rows = list(read(results))
    names = [name for name in SETTINGS if any(row["setting"] == name for row in rows)]
    return "\n\n".join("\n".join(table(name, [row for row in rows if row["setting"] == name])) for name in names)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the data, see README.md; without it, a report of the results")
    parser.add_argument("--settings", nargs="+", default=STUDIED, choices=list(SETTINGS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="write the page")
    asked = parser.parse_args(arguments)
    if asked.data is not None:
        for seed in asked.seeds:
            for name in asked.settings:
                Curve(name, seed, asked.data, asked.results).run(COUNTS)
    found = report(asked.results)
    print(found)
    if asked.write:
        write_part(BEGIN, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
