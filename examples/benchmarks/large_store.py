"""How a store of 100 million examples behaves on one machine: opening it, looking up, and the memory that takes.

Writes two memory-mapped stores of the same losses to a temporary folder, one by position and one by 64-bit ids, a piece at a
time; measures each in a fresh process; and removes them. Needs 1.2 GB of disk, and Linux for the memory figures.

    python examples/benchmarks/large_store.py
    python examples/benchmarks/large_store.py --examples 1_000_000

A look-up is of a candidate batch of 320 random examples. It is compared with NumPy's fancy indexing of the very same file, in the
same process, by turns, both with the file in the page cache; and look-ups by id with a binary search first.

    python examples/benchmarks/large_store.py --life --examples 1_000_000_000

takes a store with 64-bit ids through its life instead: opened, checked, looked up, reported, merged from two halves, written as
Parquet and read back, each in a fresh process. Needs 45 bytes of disk per example, and removes what it wrote.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
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
    rng, last, most = np.random.default_rng(0), -(2**61), min(2**36, 2**62 // n)
    for start in range(0, n, PIECE):
        size = min(PIECE, n - start)
        piece = {"losses": rng.exponential(0.5, size).astype(np.float32)}
        if with_ids:
            piece["ids"] = last + np.cumsum(rng.integers(1, most, size))
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


# --- the life of a store --------------------------------------------------------------------------------------------------------


def opened(folder: Path, rounds: int, batch: int) -> str:
    return str(IrreducibleLossStore.load(folder / "whole"))


def looked_up(folder: Path, rounds: int, batch: int) -> str:
    """Look-ups of ids, each block checked when it is first read, and then with all of them checked."""
    store, rng = IrreducibleLossStore.load(folder / "whole"), np.random.default_rng(1)
    ids = np.load(next((folder / "whole").glob("ids-*.npy")), mmap_mode="r")
    rows = rng.integers(len(ids), size=rounds * batch)
    order = rows.argsort()  # so that the file is read once, from its beginning to its end
    rows[order] = ids[rows[order]]
    keys = torch.from_numpy(rows).split(batch)
    seconds = [timed(store.__getitem__, key) for key in keys]
    first, last = sum(seconds[: rounds // 10]), statistics.median(seconds[rounds // 2 :])
    return f"the first tenth {first:.1f} s in all, later ones {last * 1e6:.0f} us each"


def checked(folder: Path, rounds: int, batch: int) -> str:
    return f"{len(IrreducibleLossStore.load(folder / 'whole').losses):,} rows"


def reported(folder: Path, rounds: int, batch: int) -> str:
    found = IrreducibleLossStore.load(folder / "whole").report()
    return f"mean {found.mean:.4f} nats"


def merged(folder: Path, rounds: int, batch: int) -> str:
    one, other = (IrreducibleLossStore.load(folder / name) for name in ("even", "odd"))
    return one.merge(other, path=folder / "whole").size


def to_parquet(folder: Path, rounds: int, batch: int) -> str:
    IrreducibleLossStore.load(folder / "whole").write_table(folder / "whole.parquet")
    return f"{(folder / 'whole.parquet').stat().st_size / 1e9:.1f} GB"


def from_parquet(folder: Path, rounds: int, batch: int) -> str:
    IrreducibleLossStore.from_table(folder / "whole.parquet", path=folder / "again")
    names = sorted(file.name for file in (folder / "again").glob("*.npy"))
    assert names == json.loads((folder / "names.json").read_text()), "another store came back"  # named by their checksums
    return "the same files, bit for bit"


def halves(folder: Path, rounds: int, batch: int, n: int) -> str:
    for part, name in enumerate(("even", "odd")):
        chosen = ({field: rows[part::2] for field, rows in piece.items()} for piece in pieces(n, True))
        write_mapped(folder / name, None, chosen, {})
    return f"{sum(file.stat().st_size for file in folder.glob('*/*')) / 1e9:.1f} GB"


STAGES = [halves, merged, opened, looked_up, checked, reported, to_parquet, from_parquet]


def stage(name: str, folder: Path, args: argparse.Namespace) -> dict[str, object]:
    """A stage in this process: its seconds, the most memory that it held, in MB, and what came of it."""
    peak, done = dict.fromkeys(MEMORY, 0.0), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.update({kind: max(peak[kind], value) for kind, value in memory().items()})

    watcher = threading.Thread(target=watch)
    watcher.start()
    function = next(each for each in STAGES if each.__name__ == name)
    began = time.perf_counter()
    said = function(folder, args.rounds, args.batch, *([args.examples] if function is halves else []))
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return {"seconds": seconds, "said": said, **peak}


def life(args: argparse.Namespace) -> None:
    print(f"\n{'':<14}{'seconds':>9}{'anonymous MB':>14}{'mapped files MB':>17}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for function in STAGES:
            options = ["--batch", str(args.batch), "--rounds", str(args.rounds), "--examples", str(args.examples)]
            call = [sys.executable, __file__, "--stage", function.__name__, str(folder), *options]
            got = json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True).stdout)
            name = function.__name__.replace("_", " ")
            print(f"{name:<14}{got['seconds']:>9.1f}{got['RssAnon']:>14,.0f}{got['RssFile']:>17,.0f}   {got['said']}", flush=True)
            if function is merged:
                (folder / "names.json").write_text(json.dumps(sorted(file.name for file in (folder / "whole").glob("*.npy"))))
            for used in {merged: ("even", "odd"), to_parquet: ("whole",)}.get(function, ()):
                shutil.rmtree(folder / used)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100_000_000)
    parser.add_argument("--batch", type=int, default=320, help="examples in one look-up")
    parser.add_argument("--rounds", type=int, default=10_000, help="look-ups; of as many again, the second half is timed")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--life", action="store_true", help="take a store with ids through its life")
    parser.add_argument("--stage", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps(stage(args.stage[0], Path(args.stage[1]), args)))
        return
    if args.measure:
        print(json.dumps(measure(args.measure, args.batch, args.rounds)))
        return
    if args.open:
        print(json.dumps({"seconds": timed(IrreducibleLossStore.load, args.open)}))
        return
    print(f"{args.examples:,} examples, torch {torch.__version__}, numpy {np.__version__}, {torch.get_num_threads()} threads")
    if args.life:
        life(args)
        return
    for with_ids in (False, True):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "store"
            seconds = timed(write_mapped, folder, args.examples, pieces(args.examples, with_ids), {})
            size = sum(file.stat().st_size for file in folder.iterdir()) / 1e9
            forget(folder)
            cold = fresh("--open", folder, args)["seconds"]
            kind = "by 64-bit id" if with_ids else "by position"
            result = fresh("--measure", folder, args)
            report(f"{kind} ({size:.2f} GB, written in {seconds:.0f} s)", result, cold, args.batch, args.rounds)
    names = [f"images/{i:09d}.jpg" for i in range(min(args.examples, 1_000_000))]
    rate = len(names) / min(timed(hash_ids, names) for _ in range(3))
    print(f"\nhash_ids{'':<52} {rate / 1e6:.1f} million names/s")


if __name__ == "__main__":
    main()
