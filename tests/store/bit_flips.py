"""Flips bits of every kind of file that is read: each flip is refused by name, or changes nothing that is returned.

python tests/store/bit_flips.py --flips 10000    # of each kind; test_bit_flips.py tries fewer
"""

import argparse
import copy
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, fit_irreducible_model
from rholoss.files import explained, open_regular, read_torch, write_torch
from rholoss.irreducible.models import Checkpoints
from rholoss.irreducible.resume import ScoringCheckpoint
from rholoss.irreducible.scoring_job import ScoringJob
from rholoss.tokens import ReferenceLossCache

N = 40
Read = Callable[[], Any]


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(N, 4, generator=generator), torch.arange(N) % 3)


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))


def store(folder: Path, ids: bool, mapped: bool) -> Read:
    which = torch.arange(300) * 7 - 100 if ids else None
    made = IrreducibleLossStore(
        torch.rand(300, generator=torch.Generator().manual_seed(0)), which, meta={"views": 1, "mine": "a"}
    )
    made.save(folder / "file", mapped=mapped)

    def read():
        loaded = IrreducibleLossStore.load(folder / "file")
        return loaded.losses, loaded.ids, loaded.meta.to_json()

    return read


def part(folder: Path) -> Read:
    """One chunk of an unfinished scoring, beside its settings."""
    examples, model = data(), net()
    job = ScoringJob(model, examples, batch_size=N, progress=False)
    job.chunks = lambda: [range(N)]
    begun = ScoringCheckpoint(str(folder / "file"), job)
    begun.work(0, 1)

    def read():
        checkpoint = ScoringCheckpoint(str(folder / "file"), job)
        return [(each.index, each.losses, each.calibration.to_json()) for each in checkpoint.scored()], checkpoint.meta

    return read


def cache(folder: Path, dtype: torch.dtype) -> Read:
    lengths = torch.arange(8)
    values = torch.rand(int(lengths.sum()), generator=torch.Generator().manual_seed(0)).to(dtype)
    ReferenceLossCache(torch.arange(8) * 3, lengths, values, meta={"mine": "a"}).save(folder / "file")

    def read():
        loaded = ReferenceLossCache.load(folder / "file")
        return loaded.index, loaded.lengths, loaded.values, loaded.meta

    return read


def fit(folder: Path) -> Read:
    examples = data()
    held, validation = (TensorDataset(*(t[rows] for t in examples.tensors)) for rows in (slice(0, 30), slice(30, N)))

    def read():
        model = net()
        done = fit_irreducible_model(model, held, validation, epochs=1, checkpoint=folder / "file", progress=False)
        return model.state_dict(), [(each.epoch, each.train_loss, each.validation_loss) for each in done.epochs], done.sizes

    read()
    return read


def checkpoints(folder: Path) -> Read:
    torch.save(net(1).state_dict(), folder / "file")

    def read():
        return [copy.deepcopy(each.state_dict()) for each in Checkpoints(net(), [folder / "file"])]

    return read


def selector_state(folder: Path) -> Read:
    """As transformers' Trainer gets it."""
    selector = RhoLossSelector(
        DataLoader(data(), batch_size=2, shuffle=True), net(), IrreducibleLossStore(torch.rand(N)), keep=0.5
    )
    next(iter(selector))
    write_torch(folder / "file", selector.state_dict())

    def read():
        with explained(folder / "file", "a state", "make it again"), open_regular(folder / "file") as file:
            return read_torch(file)

    return read


KINDS: dict[str, Callable[[Path], Read]] = {
    "store": lambda folder: store(folder, ids=False, mapped=False),
    "store with ids": lambda folder: store(folder, ids=True, mapped=False),
    "mapped store": lambda folder: store(folder, ids=False, mapped=True),
    "mapped store with ids": lambda folder: store(folder, ids=True, mapped=True),
    "part and settings of a scoring": part,
    "token cache": lambda folder: cache(folder, torch.float32),
    "token cache of float16": lambda folder: cache(folder, torch.float16),
    "fit checkpoint": fit,
    "checkpoint of a model": checkpoints,
    "state of a selector": selector_state,
}


def plain(value: Any) -> Any:
    """A value to compare, bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.numpy().tobytes()
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def outcome(folder: Path, read: Read, right: Any) -> str:
    """What comes of reading damaged files."""
    try:
        found = plain(read())
    except (ValueError, OSError) as error:
        return "refused" if "file" in str(error) else f"refused without a name: {error!r}"
    except Exception as error:
        return f"raw error: {error!r}"
    return "unchanged" if found == right else "WRONG"


def flip(kind: str, flips: int, seed: int = 0) -> Counter[str]:
    """Flip bits of the files of a kind, each another one, and count what comes of it."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        read = KINDS[kind](folder)
        right = plain(read())
        whole = {path: path.read_bytes() for path in files_of(folder)}
        bits = [(path, bit) for path, content in whole.items() for bit in range(8 * len(content))]
        for place in np.random.default_rng(seed).permutation(len(bits))[:flips]:
            path, bit = bits[place]
            content = bytearray(whole[path])
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            counts[outcome(folder, read, right)] += 1
            path.write_bytes(whole[path])
        assert plain(read()) == right
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=10_000, help="distinct bits of each kind; all of them if there are fewer")
    parser.add_argument("--kind", choices=KINDS, action="append")
    given = parser.parse_args()
    bad = 0
    for kind in given.kind or KINDS:
        counts = flip(kind, given.flips)
        bad += counts.total() - counts["refused"] - counts["unchanged"]
        print(
            f"{kind:32}{counts.total():8,} flips: " + ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items())), flush=True
        )
    print(f"{bad} wrong numbers or raw errors")
    return bad > 0


if __name__ == "__main__":
    sys.exit(main())
