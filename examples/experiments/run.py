"""Runs named experiments, one JSON line for each run.

    python examples/experiments/run.py --list
    python examples/experiments/run.py noise-30 boltzmann --data DIR [--seeds 0 1 2] [--results FILE] [--tensorboard DIR]
    python examples/experiments/run.py --row ID --data DIR      # repeats a row of the results, and compares
    python examples/experiments/run.py --smoke                  # every experiment, a few steps on tiny files that it writes

A run that has its row already is skipped, so a killed command resumes when it is started again. Experiments share runs: the same
setup is performed once. Several processes may write to one file if they are given different seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of this package, rather than this folder

import torch

from experiments.bench import Bench
from experiments.experiments import EXPERIMENTS, Experiment
from experiments.loop import Look
from experiments.results import RESULTS, append, read
from experiments.setups import Setup, rebuilt, row_id
from experiments.smoke import can_run, shrunk, without_an_encoder, write_tiny_files
from rholoss import scoring

Run = tuple[Experiment, str, Setup, int]
SAME = ("evaluations", "selected", "already_right", "repeated", "weights")


def planned(experiments: Iterable[Experiment], seeds: Iterable[int] | None, only: Collection[str] = ()) -> list[Run]:
    """Every run once, those on the same data one after the other; of the setups with some labels only, if there are any."""
    once: dict[str, Run] = {}
    for experiment in experiments:
        for seed in experiment.seeds if seeds is None else seeds:
            for label, setup in experiment.setups.items():
                if not only or label in only:
                    once.setdefault(row_id(setup, seed), (experiment, label, setup, seed))
    on_same_data: dict[tuple[int, str], list[Run]] = {}
    for run in once.values():
        on_same_data.setdefault((run[3], str((run[2].task, run[2].task_options))), []).append(run)
    return [run for runs in on_same_data.values() for run in runs]


def perform(runs: list[Run], bench: Bench, results: Path, tensorboard: Path | None) -> int:
    """Perform the runs that have no row yet; returns how many."""
    there = {row["id"] for row in read(results)}
    todo = [run for run in runs if row_id(run[2], run[3]) not in there]
    say(f"{len(todo)} of {len(runs)} runs to do; results: {results}")
    for number, (experiment, label, setup, seed) in enumerate(todo, 1):
        began = time.time()
        name = f"{experiment.name}, {label}, seed {seed}"
        with watching(tensorboard, f"{experiment.name}/{label}/{seed}", setup, f"[{number}/{len(todo)}] {name}") as look:
            row = bench.run(setup, seed, look)
        command = f"python examples/experiments/run.py --row {row['id']}"
        append(results, {"experiment": experiment.name, "label": label, "command": command, **row})
        say(f"[{number}/{len(todo)}] {name}: {row['metric']} {row['final']:.4f}, {time.time() - began:.0f} s")
    return len(todo)


@contextmanager
def watching(tensorboard: Path | None, name: str, setup: Setup, title: str) -> Iterator[Look]:
    """What is called after every evaluation: shows progress, and writes for TensorBoard where that is asked for."""
    writer = summary_writer(tensorboard / name) if tensorboard is not None else None

    def look(step: int, metric: float) -> None:
        if sys.stderr.isatty():
            print(f"\r{title}: step {step} of {setup.steps}, {metric:.4f} ", end="\r", file=sys.stderr, flush=True)
        if writer is not None:
            writer.add_scalar("test", metric, step)

    try:
        yield look
    finally:
        if writer is not None:
            writer.close()


def summary_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise SystemExit("--tensorboard needs the package tensorboard: pip install tensorboard") from error
    return SummaryWriter(str(folder))


def repeat(name: str, bench: Bench, results: Path) -> bool:
    """Repeat a row, by its id or its number from 1, and say whether all came out the same."""
    rows = read(results)
    found = [row for number, row in enumerate(rows, 1) if name in (row["id"], str(number))]
    if not found:
        raise SystemExit(f"no row {name} among the {len(rows)} of {results}")
    row = found[0]
    scoring.IMAGES_AT_ONCE = int(row["versions"].get("images_at_once", 40))  # 40 before rows had this
    again = bench.run(rebuilt(row["setup"]), row["seed"])
    differ = [key for key in SAME if without_seconds(again[key]) != without_seconds(row[key])]
    about = f"{row['experiment']}, {row['label']}, seed {row['seed']}"
    print(f"{about}: {'differs in ' + ', '.join(differ) if differ else 'the same, to the last bit'}")
    if differ:
        print(f"  then: {row['metric']} {row['final']}, with {row['versions']}")
        print(f"  now:  {again['metric']} {again['final']}, with {again['versions']}")
    return not differ


def without_seconds(value: Any) -> Any:
    return {key: part for key, part in value.items() if key != "seconds"} if isinstance(value, dict) else value


def smoke(experiments: list[Experiment], device: str, results: Path | None) -> None:
    """Every experiment for a few steps, on tiny files in the official formats."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_tiny_files(root)
        for name in (experiment.name for experiment in experiments if not can_run(experiment)):
            say(f"{name} is left out: it needs transformers, which is not installed")
        small = [shrunk(experiment) for experiment in experiments if can_run(experiment)]
        with without_an_encoder():
            perform(planned(small, [0]), Bench(root, device), results or root / "smoke.jsonl", None)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def chosen(names: list[str], everything: bool) -> list[Experiment]:
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown:
        raise SystemExit(f"no experiment is named {', '.join(unknown)}; the names are {', '.join(EXPERIMENTS)}")
    return [EXPERIMENTS[name] for name in (EXPERIMENTS if everything else names)]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Run named experiments.")
    parser.add_argument("experiments", nargs="*", help="their names")
    parser.add_argument("--list", action="store_true", help="list the experiments")
    parser.add_argument("--data", type=Path, default=Path("data"), help="the folder that holds a folder for each data set")
    parser.add_argument("--results", type=Path, help=f"the file of JSON lines (default: {RESULTS.name} in examples/results)")
    parser.add_argument("--seeds", type=int, nargs="+", help="these seeds rather than each experiment's own")
    parser.add_argument("--only", nargs="+", default=(), metavar="LABEL", help="only the setups with these labels")
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1, so that seconds can be compared)")
    parser.add_argument("--tensorboard", type=Path, help="write the evaluations for TensorBoard into this folder")
    parser.add_argument("--row", "--repeat", dest="row", help="repeat a row of the results, by its id or its number from 1")
    parser.add_argument("--smoke", action="store_true", help="every experiment, or those named, for a few steps on tiny files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    experiments = chosen(options.experiments, options.smoke and not options.experiments)
    results = options.results or RESULTS
    if options.row:
        return 0 if repeat(options.row, Bench(options.data, options.device), results) else 1
    if options.smoke:
        smoke(experiments, options.device, options.results)
        return 0
    if options.list or not experiments:
        for experiment in EXPERIMENTS.values():
            print(f"{experiment.name:<26} {len(experiment.setups):>3} runs a seed: {experiment.about}")
        return 0
    perform(planned(experiments, options.seeds, options.only), Bench(options.data, options.device), results, options.tensorboard)
    return 0


if __name__ == "__main__":
    sys.exit(main())
