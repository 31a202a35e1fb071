"""The same store from every engine, how fast each is beside from_model, and what a billion examples would cost.

    python examples/engines/compare_engines.py
    python examples/engines/compare_engines.py --examples 20_000 --engines ranks datasets
    python examples/engines/compare_engines.py --plan 1_000_000_000 --rate 20_000     # only the arithmetic, for your own figures

Writes 16 x 16 images as Parquet to a temporary folder, scores them with `IrreducibleLossStore.from_model` in two processes, a
half each, and with two processes of each engine, and compares the losses bit for bit; with Ray Data once more, where a worker is
killed in between. Speeds are from the first batch of a process to the end of its last one; the seconds of the whole job include
the start of the processes. Each process computes with one thread.

Needs: pip install 'rholoss[engines]', and Java 17 for Spark. An engine that is missing is left out.
"""

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scoring_task import columns, forward, make_model, make_scorer, write_parts
from torch.utils.data import Dataset, Subset

from rholoss import IrreducibleLossStore

HERE = Path(__file__).parent
WORKERS = 2
LIMITS = {  # of the processes that Ray starts, on a machine with few cores
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_worker_maximum_startup_concurrency": "1",
    "RAY_num_workers_soft_limit": "4",
    "RAY_worker_register_timeout_seconds": "300",
    "RAY_raylet_start_wait_time_s": "300",
    "RAY_worker_niceness": "0",  # as low as usual, workers starve on a busy machine, and Ray starts more and more of them
}
NEEDS = {"ranks": "pyarrow", "datasets": "datasets", "ray": "ray", "killed": "ray", "spark": "pyspark"}


class Images(Dataset):
    """The same examples, read by index."""

    def __init__(self, n: int) -> None:
        self.columns = columns(0, n)

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, index: int):
        return {name: self.columns[name][index] for name in ("x", "y")}


def command(engine: str, source: Path, target: Path) -> list[str]:
    script, workers = str(HERE / f"{engine}.py"), ["--workers", str(WORKERS)]
    if engine == "ranks":
        start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORKERS)]
        return [sys.executable, *start, script, str(source), str(target)]
    names = {"datasets": "datasets_map", "ray": "ray_data", "killed": "ray_data", "spark": "spark"}
    kill = ["--kill", str(target.parent / "mark")] if engine == "killed" else []
    return [sys.executable, str(HERE / f"{names[engine]}.py"), str(source), str(target), *workers, *kill]


def run_engine(engine: str, folder: Path, target: Path) -> tuple[float, float]:
    """Examples per second and process while these score, and the seconds of the whole job."""
    clocks = folder / f"clocks of {engine}"
    clocks.mkdir()
    paths = os.pathsep.join([str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, **LIMITS, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CLOCKS": str(clocks)}
    done = subprocess.run(command(engine, folder / "examples", target), env=env, stdout=subprocess.PIPE, text=True, check=True)
    seconds = max(json.loads(line)["seconds"] for line in done.stdout.splitlines() if line.startswith('{"seconds"'))
    batches = [np.loadtxt(file, ndmin=2) for file in clocks.iterdir()]  # of each process: began, ended, examples
    busy = sum(of[-1, 1] - of[0, 0] for of in batches)
    return sum(of[:, 2].sum() for of in batches) / busy, seconds


def run_direct(start: int, stop: int, path: Path) -> float:
    """Score a share of the examples with from_model, in this process; the seconds that it takes."""
    data, model = Subset(Images(stop), range(start, stop)), make_model()
    began = time.perf_counter()
    IrreducibleLossStore.from_model(model, data, forward=forward, progress=False).save(path)
    return time.perf_counter() - began


def compare(n: int, engines: list[str], folder: Path) -> float:
    write_parts(folder / "examples", n)
    shares = [(n * part // WORKERS, n * (part + 1) // WORKERS, folder / f"share-{part}.npz") for part in range(WORKERS)]
    calls = [[sys.executable, __file__, "--share", *map(str, share)] for share in shares]
    processes = [subprocess.Popen(call, stdout=subprocess.PIPE, text=True) for call in calls]
    seconds = max(float(process.communicate()[0]) for process in processes)
    losses = torch.cat([IrreducibleLossStore.load(path).losses for *_, path in shares]).numpy()
    direct = n / WORKERS / seconds
    print(f"{n:,} examples, torch {torch.__version__}, {WORKERS} processes at once, one thread each\n")
    print("| | examples/s per process | to from_model | whole job, s | units in the last place |\n|---|---|---|---|---|")
    print(f"| from_model | {direct:,.0f} | 1.00 | {seconds:.0f} | |", flush=True)
    for engine in engines:
        target = folder / (f"{engine}.parquet" if engine == "datasets" else engine)
        rate, seconds = run_engine(engine, folder, target)
        store = IrreducibleLossStore.from_table(target, data=Images(n), meta=make_scorer().metadata())
        apart = np.abs(store.losses.numpy().view(np.int32).astype(int) - losses.view(np.int32)).max()
        name = "ray, one worker killed" if engine == "killed" and (folder / "mark").exists() else engine
        print(f"| {name} | {rate:,.0f} | {rate / direct:.2f} | {seconds:.0f} | {apart} |", flush=True)
        assert np.allclose(store.losses, losses, rtol=1e-5, atol=1e-6), "not the same store"
    return direct


def plan(n: int, rate: float, cost: float) -> None:
    """What n examples would take, by arithmetic."""
    print(f"\n{n:,} examples at {rate:,.0f} per second and worker, at {cost:.2f} per worker and hour, in any currency\n")
    print("| workers | hours | cost |\n|---|---|---|")
    for workers in (1, 8, 64, 512):
        hours = n / rate / workers / 3600
        print(f"| {workers} | {hours:.1f} | {hours * workers * cost:,.0f} |")
    print(f"\nscores in Parquet {n * 12 / 1e9:.1f} GB; a mapped store {n * 4 / 1e9:.1f} GB, with ids up to {n * 16 / 1e9:.1f} GB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=200_000)
    parser.add_argument("--engines", nargs="*", choices=list(NEEDS), default=list(NEEDS))
    parser.add_argument("--plan", type=int, default=1_000_000_000, help="examples to plan for")
    parser.add_argument("--rate", type=float, help="examples per second and worker; None: as measured here")
    parser.add_argument("--cost", type=float, default=0.05, help="of a worker for an hour: here one core of a cloud machine")
    parser.add_argument("--share", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.share:
        print(run_direct(int(args.share[0]), int(args.share[1]), Path(args.share[2])))
        return
    there = [name for name in args.engines if importlib.util.find_spec(NEEDS[name])]
    if "spark" in there and shutil.which("java") is None:
        there.remove("spark")
    for name in sorted(set(args.engines) - set(there)):
        print(f"{name} is left out: it is not installed")
    rate = args.rate
    if rate is None:
        with tempfile.TemporaryDirectory() as folder:
            rate = compare(args.examples, there, Path(folder))
    plan(args.plan, rate, args.cost)


if __name__ == "__main__":
    main()
