"""How a plan of 100 million selections behaves on one machine: opening it, the first batch, random batches, and the memory.

Writes a plan to a temporary file, measures it in a fresh process with the file out of the page cache, and removes it. Needs
0.5 GB of disk, and Linux for the memory.

    python examples/benchmarks/large_plan.py
    python examples/benchmarks/large_plan.py --selections 1_000_000
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rholoss import SelectionPlan
from rholoss.plans.plan_file import write_plan

N_B, EXAMPLES, RANDOM = 32, 50_000_000, 1_000


def write(path: Path, selections: int) -> None:
    steps = selections // N_B
    index = np.random.default_rng(0).integers(EXAMPLES, size=steps * N_B, dtype=np.uint32)
    meta = {"n_b": N_B, "data": {"length": EXAMPLES, "labels": None, "sample": {}}}
    write_plan(path, {"index": index, "ends": np.arange(1, steps + 1) * N_B}, meta)
    with open(path, "rb") as raw:
        os.fsync(raw.fileno())
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory() -> str:
    """Resident memory of this process: its own, and pages of files, which the system takes back when it needs them."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))
    return f"{own:.0f} MB of its own, {mapped:.0f} MB of mapped files"


def measure(path: Path) -> None:
    print(f"memory before: {memory()}")
    times = [time.perf_counter()]
    plan = SelectionPlan.load(path)
    times.append(time.perf_counter())
    assert len(plan[0]) == N_B
    times.append(time.perf_counter())
    for step in np.random.default_rng(1).integers(plan.steps, size=RANDOM):
        plan[int(step)]
    times.append(time.perf_counter())
    for step in range(RANDOM):
        plan[step]
    opening, first, random, in_order = np.diff([*times, time.perf_counter()])
    print(f"{plan}, {path.stat().st_size / 1e9:.2f} GB")
    print(f"opening: {1000 * opening:.1f} ms; the first batch, its block checked: {1000 * first:.1f} ms")
    print(f"{RANDOM:,} random batches, each block checked once: {random:.2f} s")
    print(f"{RANDOM:,} batches in order: {1e6 * in_order / RANDOM:.1f} us each; memory: {memory()}")


def main() -> None:
    parser = argparse.ArgumentParser(description="How a large plan behaves.")
    parser.add_argument("--selections", type=int, default=100_000_000)
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        measure(given.measure)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.plan"
        write(path, given.selections)
        subprocess.run([sys.executable, __file__, "--measure", str(path)], check=True)


if __name__ == "__main__":
    main()
