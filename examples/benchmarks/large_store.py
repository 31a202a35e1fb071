"""How a store of 100 million examples behaves on one machine: opening it, looking up, and the memory that takes.

Writes two memory-mapped stores of the same losses to a temporary folder, one by position and one by 64-bit ids, a piece at a
time; measures each in a fresh process; and removes them. Needs 1.2 GB of disk, and Linux for the memory figures.

    python examples/benchmarks/large_store.py
    python examples/benchmarks/large_store.py --examples 1_000_000

A look-up is of a candidate batch of 320 random examples. It is compared with NumPy's fancy indexing of the very same file, in the
same process, by turns, both with the file in the page cache. Look-ups by id are a binary search first.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from rholoss import IrreducibleLossStore, hash_ids
from rholoss.store.serialization import write_mapped

PIECE = 1 << 20
MEMORY = ("RssAnon", "RssFile")


def pieces(n: int, with_ids: bool) -> Iterator[dict[str, np.ndarray]]:
    """Losses, and ids with random gaps, a piece at a time."""
    rng, last = np.random.default_rng(0), -(2**62)
    for start in range(0, n, PIECE):
        size = min(PIECE, n - start)
        piece = {"losses": rng.exponential(0.5, size).astype(np.float32)}
        if with_ids:
            piece["ids"] = last + np.cumsum(rng.integers(1, 2**36, size))
            last = int(piece["ids"][-1])
        yield piece


def memory() -> dict[str, float]:
    """Resident memory of this process in MB, anonymous and file-backed."""
    status = Path("/proc/self/status")
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines()) if status.exists() else {}
    return {name: int(lines[name].split()[0]) / 1024 if name in lines else float("nan") for name in MEMORY}


def forget(folder: Path) -> None:
    """Drop the files from the page cache."""
    for file in folder.iterdir():
        with open(file, "rb") as raw:
            os.fsync(raw.fileno())
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def timed(function, *args) -> float:
    began = time.perf_counter()
    function(*args)
    return time.perf_counter() - began


def measure(folder: Path, batch: int, rounds: int) -> dict[str, float]:
    """Open a store that is in the page cache, and look up in it and in its file by turns."""
    before = memory()
    seconds = min(timed(IrreducibleLossStore.load, folder) for _ in range(3))
    store = IrreducibleLossStore.load(folder)
    opened = memory()
    rng = np.random.default_rng(1)
    for _ in range(rounds):
        index = torch.from_numpy(rng.integers(len(store), size=batch))
        store[index if store.ids is None else store.ids[index]]
    used = memory()
    [file] = folder.glob("losses-*.npy")
    by_numpy = np.load(file, mmap_mode="r")
    ids = None if store.ids is None else np.load(next(folder.glob("ids-*.npy")), mmap_mode="r")
    ours, numpys, searches = [], [], []
    for i in range(rounds):
        position = rng.integers(len(store), size=batch)
        key = position if ids is None else ids[position]
        index = torch.from_numpy(key)
        turns = [lambda index=index: ours.append(timed(store.__getitem__, index))]
        turns += [lambda position=position: numpys.append(timed(by_numpy.__getitem__, position))]
        if ids is not None:
            turns += [lambda key=key: searches.append(timed(lambda: by_numpy[np.searchsorted(ids, key)]))]
        for turn in turns if i % 2 else reversed(turns):
            turn()
        assert np.array_equal(store[index].numpy(), by_numpy[position])
    warm = rounds // 2
    result = {"seconds": seconds, "ours": statistics.median(ours[warm:]), "numpy": statistics.median(numpys[warm:])}
    if searches:
        result["search"] = statistics.median(searches[warm:])
    memories = zip(("before", "opened", "used"), (before, opened, used), strict=True)
    return result | {f"{name} {moment}": values[name] for moment, values in memories for name in MEMORY}


def fresh(command: str, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """What this script measures in a process of its own."""
    options = ["--batch", str(args.batch), "--rounds", str(args.rounds)]
    done = subprocess.run(
        [sys.executable, __file__, command, str(folder), *options], check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def report(name: str, result: dict[str, float], cold: float, batch: int, rounds: int) -> None:
    print(f"\n{name}")
    rows = [
        ("open, from the page cache", f"{result['seconds']:.2f} s"),
        ("open, from the disk", f"{cold:.2f} s"),
        (f"look up {batch}: the store", f"{result['ours'] * 1e6:.1f} us ({batch / result['ours'] / 1e6:.1f} million examples/s)"),
        (f"look up {batch}: NumPy's fancy indexing by position", f"{result['numpy'] * 1e6:.1f} us"),
        ("ratio", f"{result['ours'] / result['numpy']:.2f}"),
    ]
    if "search" in result:
        rows += [
            (f"look up {batch}: NumPy's searchsorted, then fancy indexing", f"{result['search'] * 1e6:.1f} us"),
            ("ratio to that", f"{result['ours'] / result['search']:.2f}"),
        ]
    for moment, words in (("before", "before opening"), ("opened", "after opening"), ("used", f"after {rounds:,} look-ups")):
        anonymous, backed = (result[f"{kind} {moment}"] for kind in MEMORY)
        rows.append((f"memory {words}", f"{anonymous:,.0f} MB anonymous, {backed:,.0f} MB of files"))
    for what, value in rows:
        print(f"  {what:<58} {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000_000)
    parser.add_argument("--batch", type=int, default=320, help="examples in one look-up")
    parser.add_argument("--rounds", type=int, default=10_000, help="look-ups; of as many again, the second half is timed")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.batch, args.rounds)))
        return
    if args.open:
        print(json.dumps({"seconds": timed(IrreducibleLossStore.load, args.open)}))
        return
    print(f"{args.examples:,} examples, torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} threads")
    for with_ids in (False, True):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "store"
            seconds = timed(write_mapped, folder, args.examples, pieces(args.examples, with_ids), {})
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
            forget(folder)
            cold = fresh("--open", folder, args)["seconds"]
            kind = "by 64-bit id, which is a search" if with_ids else "by position"
            result = fresh("--measure", folder, args)
            report(f"{kind} ({size:.2f} GB, written in {seconds:.0f} s)", result, cold, args.batch, args.rounds)
    names = [f"images/{i:09d}.jpg" for i in range(min(args.examples, 1_000_000))]
    rate = len(names) / min(timed(hash_ids, names) for _ in range(3))
    print(f"\nhash_ids{'':<52} {rate / 1e6:.1f} million names/s")


if __name__ == "__main__":
    main()
