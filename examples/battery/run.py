"""Runs the battery, one JSON line for each run; a run that has its row already is skipped.

    python examples/battery/run.py --data DIR [--settings NAME ...] [--seeds 0 1 2] [--results FILE] [--plain] [--list]
    python examples/battery/report.py                           # the tables and the plot

Plain training is tuned over three learning rates, constant and with cosine decay, on the first seed; the two best of them are run
with the other seeds, too. The front door trains with the best one's rate and schedule, for as many steps; then plain training
again, for as many seconds as the front door took with all that it did beforehand. Where its answer is no, though a tenth of the
labels or more is wrong, it trains once more with `force=True`, to see whether that was right. Seconds are of the CPU, without
those of the evaluation.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

import torch
from experiments.measures import auc
from experiments.results import append, read
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rholoss
from battery.settings import SETTINGS, Data, Setting, load, make_model

RESULTS = Path(__file__).parents[1] / "results" / "battery.jsonl"
RATES, SCHEDULES = (3e-4, 1e-3, 3e-3), ("constant", "cosine")
N_B, LOOKS = 32, 15  # examples in a batch, and evaluations along a run
FRONT, AS_LONG, FORCED = "front door", "uniform, as many seconds", "front door, forced"
FEW = 0.1  # share of wrong labels below which a no is right


def uniform(lr: float, schedule: str) -> str:
    """The label of plain training."""
    return f"uniform, lr {lr:.0e}, {schedule}".replace("e-0", "e-")


UNIFORM = {uniform(lr, schedule): (lr, schedule) for lr in RATES for schedule in SCHEDULES}


class Battery:
    """Performs the runs of one setting and seed."""

    def __init__(self, name: str, seed: int, root: Path, results: Path) -> None:
        self.name, self.seed, self.results = name, seed, results
        self.setting: Setting = SETTINGS[name]
        self.data: Data = load(self.setting, root, seed)
        self.rows = {row["label"]: row for row in read(results) if (row["setting"], row["seed"]) == (name, seed)}

    def run(self, best: list[str], only_plain: bool = False) -> None:
        """Plain training by the labels of ``best``, or all of them; the front door; and plain training for as long."""
        for label in best or UNIFORM:
            self.keep(label, lambda label=label: self.plain(*UNIFORM[label], self.setting.steps))  # type: ignore[misc]
        if only_plain:
            return
        ranked = ranking([self.rows[label] for label in best or UNIFORM])
        lr, schedule = UNIFORM[ranked[0]]
        front = self.keep(FRONT, lambda: self.front_door(lr, schedule))
        found = front["rehearsal"]
        if not found["helps"] and found["truly_wrong"] >= FEW:
            self.keep(FORCED, lambda: self.front_door(lr, schedule, force=True))
        plain = self.rows[ranked[0]] if found["helps"] else front  # a no trains on the same batches: seconds of the same minute
        longer = math.ceil(self.setting.steps * (front["before"] + front["seconds"][-1]) / plain["seconds"][-1])
        self.keep(AS_LONG, lambda: self.plain(lr, schedule, max(self.setting.steps, longer)))

    def keep(self, label: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of a run, from the results or made now."""
        if label not in self.rows:
            began = time.time()
            made = make()
            row = {"id": f"{self.name} | {self.seed} | {label}", "setting": self.name, "seed": self.seed, "label": label, **made}
            append(self.results, row)
            self.rows[label] = row
            print(f"{self.name}, seed {self.seed}, {label}: {row['metric'][-1]:.4f} ({time.time() - began:.0f} s)", flush=True)
        return self.rows[label]

    def plain(self, lr: float, schedule: str, steps: int) -> dict[str, Any]:
        return {"lr": lr, "schedule": schedule, "before": 0.0, **self.train(self.loader(), self.model(), lr, schedule, steps)}

    def front_door(self, lr: float, schedule: str, force: bool = False) -> dict[str, Any]:
        trusted = None if self.data.trusted is None else TensorDataset(*self.data.trusted)
        self.plain(lr, schedule, 1)  # what PyTorch imports for the first step, plain training needs as well
        model, began = self.model(), time.process_time()
        how = {"steps": self.setting.steps, "seed": self.seed, "progress": False, "force": force, **self.setting.auto}
        selector = rholoss.auto(self.loader(), model, trusted, **how)
        before = time.process_time() - began
        found = selector.rehearsal
        about = {
            "helps": found.helps,
            "wrong": [round(value, 4) for value in found.wrong],
            "truly_wrong": round(self.data.wrong, 4),
            "left_out": round(found.left_out, 4),
            "limit": None if math.isinf(found.max_irreducible_loss) else round(found.max_irreducible_loss, 4),
            "accuracy": round(found.accuracy, 4),
            "trusted_accuracy": found.trusted_accuracy,
            "notes": list(found.notes),
        }
        run = self.train(selector, model, lr, schedule, self.setting.steps)
        return {"lr": lr, "schedule": schedule, "before": round(before, 3), **run, "rehearsal": about}

    def loader(self) -> DataLoader[Any]:
        order = torch.Generator().manual_seed(1_000 + self.seed)
        return DataLoader(TensorDataset(*self.data.train), batch_size=N_B, shuffle=True, drop_last=True, generator=order)

    def model(self) -> nn.Module:
        torch.manual_seed(self.seed)
        return make_model(self.setting, self.data)()

    def train(self, batches: Iterable[Any], model: nn.Module, lr: float, schedule: str, steps: int) -> dict[str, Any]:
        """A run: at which steps, with which metric on the test data, after how many seconds of the CPU."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
        looks = {round(steps * (look + 1) / LOOKS) for look in range(LOOKS)}
        step, seconds, began = 0, 0.0, time.process_time()
        curve: dict[str, list[float]] = {"steps": [], "metric": [], "seconds": []}
        model.train()
        while step < steps:
            for x, y in batches:
                if schedule == "cosine":
                    optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                step += 1
                if step in looks:
                    seconds += time.process_time() - began
                    found = measure(model, self.data, whole=step == steps)
                    for name, value in (("steps", step), ("metric", round(found, 5)), ("seconds", round(seconds, 3))):
                        curve[name].append(value)
                    began = time.process_time()
                if step == steps:
                    break
        return curve


def measure(model: nn.Module, data: Data, whole: bool) -> float:
    """The metric on the test data, or on up to 3,000 of them."""
    x, y = data.test if whole else (values[:3_000] for values in data.test)
    model.eval()
    with torch.inference_mode():
        logits = torch.cat([model(part) for part in x.split(512)])
    model.train()
    return auc(logits, y) if data.metric == "auc" else float((logits.argmax(1) == y).float().mean())


def ranking(rows: Iterable[dict[str, Any]]) -> list[str]:
    """The labels of runs, the best end first."""
    return [row["label"] for row in sorted(rows, key=lambda row: -row["metric"][-1])]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the data, see README.md")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plain", action="store_true", help="plain training only")
    parser.add_argument("--list", action="store_true", help="name the settings, and end")
    asked = parser.parse_args(arguments)
    unknown = set(asked.settings) - set(SETTINGS)
    if unknown or (asked.data is None and not asked.list):
        parser.error(f"no setting is called {sorted(unknown)}; see --list" if unknown else "--data is missing")
    if asked.list:
        print("\n".join(SETTINGS))
        return 0
    for name in asked.settings:
        for seed in SETTINGS[name].seeds if asked.seeds is None else asked.seeds:
            first = [row for row in read(asked.results) if (row["setting"], row["seed"]) == (name, 0) and row["label"] in UNIFORM]
            best = ranking(first)[:2] if seed and len(first) == len(UNIFORM) else []
            Battery(name, seed, asked.data, asked.results).run(best, asked.plain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
