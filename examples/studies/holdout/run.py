"""Trains the variants of the study, and appends one JSON line for each run to its results.

    python examples/studies/holdout/run.py --data DATA [--seeds 0 1 2 3 4] [--results FILE]

A run that has its line already is skipped, so a killed command resumes when it is started again. Several processes may share one
file of results if they have different seeds or data. ``experiments/README.md`` describes what ``DATA`` holds.
"""

from __future__ import annotations

import argparse
import platform
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[2])  # the folder of examples, rather than this folder

import torch
from experiments.results import append

import rholoss
from rholoss import IrreducibleLossStore
from studies.holdout.irreducible import indicators, stored_losses
from studies.holdout.results import RESULTS, Line, read_lines
from studies.holdout.task import FOLDERS, Task, load_task
from studies.holdout.training import Schedule, train
from studies.holdout.variants import CELLS, KEEP, N_B, Cell, Variant, variants_of


def run(options: argparse.Namespace) -> None:
    """Perform all runs that are asked for and have no line yet."""
    torch.set_num_threads(1)  # seconds stay comparable on a busy machine
    options.work.mkdir(parents=True, exist_ok=True)
    done = {(line["data"], line["noise"], line["seed"], line["variant"]) for line in read_lines(options.results)}
    schedule = Schedule(options.steps, options.uniform_steps, options.evaluate_every, options.hidden)
    for seed in options.seeds:
        for data, noise in CELLS:
            wanted = asked(options, (data, noise))
            missing = {name: variant for name, variant in wanted.items() if (data, noise, seed, name) not in done}
            task = load_task(options.data, options.work, data, noise, seed) if missing else None
            for name, variant in missing.items():
                line = perform(task, (data, noise), name, variant, schedule, options.work)
                append(options.results, line)
                print(f"{data} {noise} seed {seed}: {name}, best {max(line['accuracy']):.1%}", flush=True)


def asked(options: argparse.Namespace, cell: Cell) -> dict[str, Variant]:
    """The variants to run in a cell."""
    if cell[0] not in options.sets or (options.noise and cell[1] not in options.noise):
        return {}
    main, more = variants_of(cell)
    variants = (main if "main" in options.rows else {}) | (more if "more" in options.rows else {})
    return {name: variant for name, variant in variants.items() if not options.only or name in options.only}


def perform(task: Task, cell: Cell, name: str, variant: Variant, schedule: Schedule, work: Path) -> Line:
    """Perform one run; returns its line."""
    data, noise = cell
    store = stored_losses(task, variant.recipe, f"{data}-{noise}", work) if variant.recipe else None
    line = {"data": data, "noise": noise, "seed": task.seed, "variant": name, "rate": task.is_wrong.double().mean().item()}
    line |= train(task, variant, store, schedule)
    if store is not None:
        line |= {"making": variant.recipe} | about(task, store)
    line["settings"] = {"n_b": N_B, "keep": KEEP, "hidden": schedule.hidden, "lr": variant.lr, "gate": variant.gate}
    line["versions"] = {"rholoss": rholoss.__version__, "torch": torch.__version__, "python": platform.python_version()}
    return line


def about(task: Task, store: IrreducibleLossStore) -> Line:
    """What a line says about the irreducible losses. ``irreducible_loss``: mean of the right labels, then of the wrong labels."""
    is_wrong = task.is_wrong if store.ids is None else task.is_wrong[store.ids]
    by_label = [store.losses[which].mean().item() if which.any() else 0.0 for which in (~is_wrong, is_wrong)]
    return {
        "irreducible_seconds": round(store.meta.extra["seconds"], 2),
        "irreducible_accuracy": round(store.meta.extra["test_accuracy"], 4),
        "irreducible_loss": [round(value, 3) for value in by_label],
        "indicators": {key: round(float(value), 4) for key, value in indicators(store).items()},
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Irreducible losses from data as noisy as the training data: a study.")
    add = parser.add_argument
    add("--data", type=Path, help="folder with fashion-mnist/, or with cifar10/ and cifar10n/, or with all")
    add("--results", type=Path, default=RESULTS, help="the file of JSON lines (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="which seeds (default: 0 to 4)")
    add("--sets", nargs="+", choices=list(FOLDERS), help="which data sets (default: those in the folder)")
    add("--noise", nargs="+", help="which noise, such as 0.3 or worse (default: all)")
    add("--rows", nargs="+", choices=["main", "more"], default=["main", "more"], help="which tables (default: both)")
    add("--only", nargs="+", help="which variants (default: all)")
    add("--steps", type=int, default=1000, help="steps of a run with RHO-LOSS (default: 1000)")
    add("--uniform-steps", type=int, default=4000, help="steps of a run with uniform sampling (default: 4000)")
    add("--evaluate-every", type=int, default=50, help="steps between evaluations (default: 50)")
    add("--hidden", type=int, default=512, help="hidden units of the network (default: 512)")
    work = Path(tempfile.gettempdir()) / "rholoss_holdout_study"
    add("--work", type=Path, default=work, help="folder for features and irreducible losses (default: a temporary folder)")
    options = parser.parse_args(arguments)
    if options.data is None:
        parser.error("expected --data DATA, the folder of the data; see examples/experiments/README.md")
    there = [name for name, folders in FOLDERS.items() if all((options.data / folder).is_dir() for folder in folders)]
    options.sets = options.sets or there
    if not options.sets or not set(options.sets) <= set(there):
        needed = "; or ".join(" and ".join(FOLDERS[name]) for name in options.sets or FOLDERS)
        parser.error(f"expected --data DATA with the folder {needed}, got {options.data}; see examples/experiments/README.md")
    if not 1 <= options.evaluate_every <= min(options.steps, options.uniform_steps):
        parser.error("expected --evaluate-every from 1 to the number of steps")
    run(options)


if __name__ == "__main__":
    main()
