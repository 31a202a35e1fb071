"""What a step with selection costs, against a plain step of the same run: options, loaders, sizes, and loops written by hand.

    python examples/benchmarks/step_costs.py [SECTION ...] [--rounds 5] [--steps 12] [--device cpu] [--json FILE]
    python examples/benchmarks/step_costs.py --report FILE [--update docs/pages/cost_measured.md]

Sections: wrapper, options, networks, picks, compiled, loaders, plan, growth, peers, memory. Everything that is compared runs in
turn, round after round, so that a machine that becomes slower does so for all; medians over the rounds, lowest and highest in
brackets. Seconds are of the processor on a CPU, on one thread, which other programs change little, and by the clock elsewhere.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import platform
import re
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, TensorDataset

from rholoss import IrreducibleLossStore, PlanRecorder, RhoLossSelector, SelectionPlan, Selector, forwards, functional
from rholoss.batches import Rows, cut
from rholoss.rehearsal.networks import SmallNetwork
from rholoss.scoring import rows_at_once
from rholoss.selectors import GatedUniformSelector, PrefilteredRhoLossSelector, ProxyRhoLossSelector, UniformSelector
from rholoss.wrappers import PayoffGatedSelector

N, SHAPE, CLASSES, N_B, KEEP = 20_000, (1, 28, 28), 10, 32, 0.1
Way = Callable[[int], float]  # steps -> seconds a step
Table = dict[str, dict[str, list[float]]]  # what is compared -> column -> a value for each round


def network(widths: tuple[int, int, int] = (48, 64, 64)) -> nn.Sequential:
    """A convolutional network for images of any size: 60 MFLOPs for 28 x 28 pixels."""
    a, b, c = widths
    first = [nn.Conv2d(SHAPE[0], a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, a, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    then = [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.Conv2d(b, c, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*first, *then, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * c, CLASSES))


class Bench:
    """Data, weights and a clock, the same for everything that is compared."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(N, *SHAPE, generator=generator), torch.randint(CLASSES, (N,), generator=generator)
        self.data: Dataset[Any] = TensorDataset(x, y)
        self.store = IrreducibleLossStore(torch.rand(N, generator=generator) * 3)
        self.device = torch.device(device)
        torch.manual_seed(0)
        self.initial = network().to(self.device)
        self.small = SmallNetwork({"0": torch.zeros(2, *SHAPE)}, CLASSES).to(self.device)
        self.validation = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 640, 64)]

    def now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def loader(self, data: Any = None, n_b: int = N_B) -> DataLoader[Any]:
        return DataLoader(data or self.data, batch_size=n_b, shuffle=True, drop_last=True)

    def training(self, select: Callable[[nn.Module, Any], Any], net: nn.Module | None = None, data: Any = None) -> Way:
        """A loop over what ``select(model, loader)`` makes of a loader."""

        def run(steps: int) -> float:
            torch.manual_seed(0)
            model = copy.deepcopy(net or self.initial).train()
            optimizer = torch.optim.AdamW(model.parameters())
            batches = endless(select(model, self.loader(data)))
            for x, y in islice(batches, 3):  # warms up
                cross_entropy(model(x.to(self.device)), y.to(self.device)).backward()
            began = self.now()
            for x, y in islice(batches, steps):
                optimizer.zero_grad()
                cross_entropy(model(x.to(self.device)), y.to(self.device)).backward()
                optimizer.step()
            return (self.now() - began) / steps

        return run

    def rho(self, model: nn.Module, loader: Any, **options: Any) -> Selector:
        options = {"keep": KEEP, "device": "model"} | options
        return RhoLossSelector(loader, model, self.store, **options)

    def by_hand(self, model: nn.Module, loader: Any) -> Iterator[Any]:
        """The same without the library: forward passes over equal chunks of candidates, a look-up, the top ones cut out."""
        losses = self.store[torch.arange(N)]
        while True:
            for index in torch.randperm(N).split(round(N_B / KEEP))[:-1]:
                x, y = (column[index] for column in loader.dataset.tensors)
                model.eval()
                with torch.no_grad():
                    parts = zip(*(part.split(rows_at_once(model, x, len(x)) or len(x)) for part in (x, y)), strict=True)
                    loss = torch.cat([cross_entropy(model(inputs), labels, reduction="none") for inputs, labels in parts])
                model.train()
                top = (loss - losses[index]).topk(N_B).indices
                yield x[top], y[top]

    def fast(self, model: nn.Module, loader: Any, keep: float = KEEP, proxy: nn.Module | None = None) -> Selector:
        small = copy.deepcopy(proxy or self.small)
        learns = small.head if isinstance(small, forwards.ShallowExit) else small
        optimizer = torch.optim.AdamW(learns.parameters())
        return ProxyRhoLossSelector(loader, model, self.store, small, proxy_optimizer=optimizer, keep=keep, device="model")

    def shallow(self, model: nn.Module, loader: Any) -> Selector:
        head = nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 48, CLASSES)).to(self.device)
        proxy = forwards.ShallowExit(model[:2], head)  # type: ignore[index]
        optimizer = torch.optim.AdamW(head.parameters())
        return ProxyRhoLossSelector(loader, model, self.store, proxy, proxy_optimizer=optimizer, keep=KEEP, device="model")


def endless(batches: Any) -> Iterator[Any]:
    while True:
        yield from batches


def compare(ways: dict[str, Way], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each way, for each round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way(steps))
    return found


def against(found: dict[str, list[float]], base: str) -> Table:
    """Milliseconds, and the ratio to one of them in the same round."""
    return {
        name: {"ms": [1000 * s for s in mine], f"times {base}": [a / b for a, b in zip(mine, found[base], strict=True)]}
        for name, mine in found.items()
    }


# --- sections -------------------------------------------------------------------------------------------------------------------


def wrapper(bench: Bench, rounds: int, steps: int) -> Table:
    """Microseconds of what is not the model: the loader wrapped, and look-up, rank and cut of 320 candidates."""
    x, y = (column[:12_800] for column in bench.data.tensors)  # type: ignore[attr-defined]
    x = x.flatten(1)
    loader = DataLoader(TensorDataset(x, y), batch_size=N_B)
    batch, index, loss = (x[:320], y[:320]), torch.randperm(12_800)[:320], torch.rand(320)

    def per_step(batches: Any) -> Way:
        def run(steps: int) -> float:
            began = time.process_time()
            for _ in batches:
                pass
            return (time.process_time() - began) / len(loader)

        return run

    def pieces(steps: int) -> float:
        began = time.process_time()
        for _ in range(400):
            positions = functional.top(loss - bench.store[index], N_B)
            cut(batch, Rows(positions), 320)
        return (time.process_time() - began) / 400

    one_by_one = DataLoader(list(zip(x, y, strict=True)), batch_size=N_B)  # type: ignore[arg-type]
    ways = {
        "bare": per_step(loader),
        "wrapped": per_step(UniformSelector(loader, keep=1.0)),
        "bare, one by one": per_step(one_by_one),
        "wrapped, one by one": per_step(UniformSelector(one_by_one, keep=1.0)),
        "pieces": pieces,
    }
    found = compare(ways, 3 * rounds, 1)

    def extra(kind: str) -> dict[str, list[float]]:
        more = [a - b for a, b in zip(found[f"wrapped{kind}"], found[f"bare{kind}"], strict=True)]
        return {"us": [1e6 * s for s in more], "% of a step of 1 ms": [1e5 * s for s in more]}

    return {
        "the loader alone, a batch of 32 of a TensorDataset": {"us": [1e6 * s for s in found["bare"]]},
        "more with UniformSelector(keep=1)": extra(""),
        "the loader alone, examples read one by one": {"us": [1e6 * s for s in found["bare, one by one"]]},
        "more with UniformSelector(keep=1), likewise": extra(", one by one"),
        "look-up, rank and cut, 320 candidates": {"us": [1e6 * s for s in found["pieces"]]},
    }


def options(bench: Bench, rounds: int, steps: int) -> Table:
    """Each way to score for less, alone, at keep = 0.1 unless it says otherwise."""
    limit = {"max_irreducible_loss": 2.3}
    last = copy.deepcopy(bench.initial).to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pays(model: nn.Module, loader: Any) -> Selector:
        otherwise = GatedUniformSelector(loader, None, bench.store, keep=KEEP, device="model", **limit)
        method = bench.fast(model, loader)
        own = {"otherwise": otherwise, "keep": KEEP, "every": 10**9, "device": "model"}
        selector = PayoffGatedSelector(loader, model, method, bench.validation, **own)
        selector.decides = otherwise
        return selector

    ways = {
        "plain": bench.training(lambda model, loader: loader),
        "RHO-LOSS": bench.training(bench.rho),
        "chunk_size=None, all in one pass": bench.training(lambda m, d: bench.rho(m, d, chunk_size=None)),
        "chunk_size=64": bench.training(lambda m, d: bench.rho(m, d, chunk_size=64)),
        "keep=0.25": bench.training(lambda m, d: bench.rho(m, d, keep=0.25)),
        "keep=0.5": bench.training(lambda m, d: bench.rho(m, d, keep=0.5)),
        "dtype=torch.bfloat16": bench.training(lambda m, d: bench.rho(m, d, dtype=torch.bfloat16)),
        "forwards.lower_resolution(0.5)": bench.training(lambda m, d: bench.rho(m, d, forward=forwards.lower_resolution(0.5))),
        "plain, model in channels-last order": bench.training(lambda m, d: d, net=last),
        "the same, forwards.channels_last(), chunk_size=64": bench.training(
            lambda m, d: bench.rho(m, d, forward=forwards.channels_last(), chunk_size=64), net=last
        ),
        "forwards.ShallowExit, first convolution": bench.training(bench.shallow),
        "prefiltered to a quarter": bench.training(
            lambda m, d: PrefilteredRhoLossSelector(d, m, bench.store, share=0.25, keep=KEEP, device="model")
        ),
        "payoff-gated, a small network scores": bench.training(bench.fast),
        "payoff-gated while it does not pay": bench.training(pays),
        "uniform below the gate": bench.training(
            lambda m, d: GatedUniformSelector(d, None, bench.store, keep=KEEP, device=bench.device, **limit)
        ),
    }
    return against(compare(ways, rounds, steps), "plain")


class Transformer(nn.Module):
    """A small transformer for tokens (n, T)."""

    def __init__(self, tokens: int, width: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.embedding(x)).mean(1))  # type: ignore[no-any-return]


def networks(bench: Bench, rounds: int, steps: int) -> Table:
    """RHO-LOSS as it is by default, all candidates in one pass, and written by hand, each times a plain step of its network."""
    tokens, (a, b) = torch.randint(5000, (N, 64)), bench.data.tensors  # type: ignore[attr-defined]
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES))
    cases = {
        "convolutions, 28 x 28": (bench.initial, a),
        "MLP, 784 numbers": (wide, a.flatten(1)),
        "MLP, 64 numbers": (nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, CLASSES)), a.flatten(1)[:, :64].clone()),
        "transformer, 64 tokens": (Transformer(5000, 128, CLASSES), tokens),
        "transformer, 16 tokens": (Transformer(5000, 128, CLASSES), tokens[:, :16].clone()),
    }
    table: Table = {}
    for name, (net, x) in cases.items():
        data, net = TensorDataset(x, b), net.to(bench.device)
        ways = {"plain": bench.training(lambda m, d: d, net, data)}
        ways |= {"by default": bench.training(bench.rho, net, data)}
        ways |= {"in one pass": bench.training(lambda m, d: bench.rho(m, d, chunk_size=None), net, data)}
        ways |= {"by hand": bench.training(bench.by_hand, net, data)}
        many = steps if x.ndim > 2 or not x.is_floating_point() else 20 * steps  # short steps
        found = compare(ways, rounds, many)
        table[name] = {way: ratios(found[way], found["plain"]) for way in ways if way != "plain"}
        table[name]["default / one pass"] = ratios(found["by default"], found["in one pass"])
        table[name]["default / by hand"] = ratios(found["by default"], found["by hand"])
    return table


def picks(bench: Bench, rounds: int, steps: int) -> Table:
    """Of 200 candidate batches a round, while the model trains: those of which default and one pass select the same examples."""
    torch.manual_seed(0)
    model = copy.deepcopy(bench.initial).train()
    optimizer = torch.optim.AdamW(model.parameters())
    default, whole = (bench.rho(model, bench.loader(), **options) for options in ({}, {"chunk_size": None}))
    same = 0
    for candidates in islice(endless(default.candidate_batches), 200 * rounds):
        x, y = default.select(candidates)
        whole.select(candidates)
        same += set(default.last.index.tolist()) == set(whole.last.index.tolist())  # type: ignore[union-attr]
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
    return {f"convolutions, 28 x 28, {200 * rounds:,} candidate batches": {"% the same examples": [same / (2 * rounds)]}}


def compiled(bench: Bench, rounds: int, steps: int) -> Table:
    """A compiled forward pass; its compilation, half a minute, is not in the times."""
    forward = forwards.compiled()
    ways = {
        "plain": bench.training(lambda model, loader: loader),
        "RHO-LOSS, chunk_size=64": bench.training(lambda m, d: bench.rho(m, d, chunk_size=64)),
        "the same, forwards.compiled()": bench.training(lambda m, d: bench.rho(m, d, chunk_size=64, forward=forward)),
    }
    return against(compare(ways, rounds, steps), "plain")


class SlowToRead(Dataset[Any]):
    """Examples that take a millisecond of the processor each, such as images that have to be decoded."""

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        until = time.process_time() + 0.001
        while time.process_time() < until:
            pass
        return self.data[i]


def loaders(bench: Bench, rounds: int, steps: int) -> Table:
    """Where reading an example takes a millisecond: what reads less costs less."""
    slow = SlowToRead(bench.data)
    limit = {"max_irreducible_loss": 2.3}
    ways = {
        "plain": bench.training(lambda model, loader: loader, data=slow),
        "RHO-LOSS": bench.training(lambda m, d: bench.rho(m, d, chunk_size=64), data=slow),
        "payoff-gated": bench.training(bench.fast, data=slow),
        "prefiltered to a quarter": bench.training(
            lambda m, d: PrefilteredRhoLossSelector(d, m, bench.store, share=0.25, keep=KEEP), data=slow
        ),
        "uniform below the gate": bench.training(
            lambda m, d: GatedUniformSelector(d, None, bench.store, keep=KEEP, **limit), data=slow
        ),
    }
    return against(compare(ways, rounds, max(2, steps // 3)), "plain")


def plan(bench: Bench, rounds: int, steps: int) -> Table:
    """A replayed step, with its loader, against a plain step; also where reading an example takes a millisecond."""
    selector = UniformSelector(bench.loader(), keep=KEEP)
    with tempfile.TemporaryDirectory() as folder:
        with PlanRecorder(f"{folder}/run.plan").attach(selector) as recorder:
            for _ in selector:
                pass
        recorded = recorder.plan
        assert isinstance(recorded, SelectionPlan)
        slow = SlowToRead(bench.data)

        def replay(model: nn.Module, loader: Any) -> Any:
            return recorded.loader(loader, check=False)

        found = compare(
            {
                "plain": bench.training(lambda model, loader: loader),
                "a plan": bench.training(replay),
                "plain, slow to read": bench.training(lambda model, loader: loader, data=slow),
                "a plan, slow to read": bench.training(replay, data=slow),
            },
            rounds,
            steps,
        )
    return {
        "a replayed step": {"ms": [1e3 * s for s in found["a plan"]], "times plain": ratios(found["a plan"], found["plain"])},
        "the same, a millisecond to read each example": {
            "ms": [1e3 * s for s in found["a plan, slow to read"]],
            "times plain": ratios(found["a plan, slow to read"], found["plain, slow to read"]),
        },
    }


def ratios(one: list[float], other: list[float]) -> list[float]:
    return [a / b for a, b in zip(one, other, strict=True)]


def growth(bench: Bench, rounds: int, steps: int) -> Table:
    """Microseconds of selecting beyond the forward pass, as the sizes grow."""
    table: Table = {}
    for n_B, n in ((320, 10_000), (3_200, 10_000), (32_000, 100_000), (320, 10_000_000)):
        store, generator = IrreducibleLossStore(torch.rand(n)), torch.Generator().manual_seed(0)
        batch = torch.randn(n_B, 64), torch.randint(CLASSES, (n_B,))
        loss, indices = torch.rand(n_B), [torch.randint(n, (n_B,), generator=generator) for _ in range(20)]
        loader: Any = DataLoader(range(n), batch_size=n_B)  # type: ignore[arg-type]

        def forward(model: Any, batch: Any) -> Any:
            return batch

        def known(outputs: Any, targets: Any, loss: Tensor = loss) -> Tensor:
            return loss

        selector = RhoLossSelector(loader, nn.Linear(1, 1), store, batch_size=n_B // 10, forward=forward, loss=known)

        def run(selector: Any = selector, indices: Any = indices, batch: Any = batch) -> float:
            began = time.process_time()
            for index in indices * 10:
                selector.select((index, batch))
            return (time.process_time() - began) / (10 * len(indices))

        table[f"n_B = {n_B:,}, N = {n:,}"] = {"us": [1e6 * run() for _ in range(rounds)]}
    return table


def peers(bench: Bench, rounds: int, steps: int) -> Table:
    """Loops written by hand: the least that RHO-LOSS takes, and the rules of Selective-Backprop and InfoBatch."""

    def by_hand(model: nn.Module, loader: Any) -> Iterator[Any]:
        data = TensorDataset(*bench.data.tensors, torch.arange(N))  # type: ignore[attr-defined]
        for x, y, index in endless(DataLoader(data, batch_size=round(N_B / KEEP), shuffle=True)):
            x, y = x.to(bench.device), y.to(bench.device)
            model.eval()
            with torch.no_grad():
                score = cross_entropy(model(x), y, reduction="none") - bench.store[index].to(bench.device)
            model.train()
            best = score.topk(N_B).indices
            yield x[best], y[best]

    def selective_backprop(model: nn.Module, loader: Any) -> Iterator[Any]:
        history = torch.rand(1024)
        kept: list[tuple[Tensor, Tensor]] = []
        for x, y in endless(loader):
            with torch.no_grad():
                loss = cross_entropy(model(x), y, reduction="none")
            history = torch.cat([history[len(loss) :], loss])
            chance = (loss[:, None] > history).float().mean(1) ** 3  # about a quarter is kept
            take = torch.rand(len(x)) < chance
            kept += zip(x[take], y[take], strict=True)
            if len(kept) >= N_B:
                yield torch.stack([a for a, _ in kept[:N_B]]), torch.stack([b for _, b in kept[:N_B]])
                kept = kept[N_B:]

    def infobatch(steps: int) -> float:
        """Half of what was below the mean loss is left out of an epoch, and the rest of it counts twice."""
        model = copy.deepcopy(bench.initial).train()
        optimizer = torch.optim.AdamW(model.parameters())
        losses = torch.rand(N)
        low = losses < losses.mean()
        order = (~low | (torch.rand(N) < 0.5)).nonzero().flatten()
        data = TensorDataset(*bench.data.tensors, torch.arange(N), 1.0 + low)  # type: ignore[attr-defined]
        batches = endless(DataLoader(data, batch_size=N_B, sampler=order[torch.randperm(len(order))].tolist()))
        for x, y, _, _ in islice(batches, 3):
            cross_entropy(model(x.to(bench.device)), y.to(bench.device)).backward()
        began = bench.now()
        for x, y, index, weight in islice(batches, steps):
            optimizer.zero_grad()
            loss = cross_entropy(model(x.to(bench.device)), y.to(bench.device), reduction="none")
            losses[index] = loss.detach().to(losses.device)
            (loss * weight.to(bench.device)).mean().backward()
            optimizer.step()
        return (bench.now() - began) / steps

    ways = {
        "plain": bench.training(lambda model, loader: loader),
        "RHO-LOSS": bench.training(bench.rho),
        "RHO-LOSS by hand": bench.training(by_hand),
        "Selective-Backprop by hand, a quarter kept": bench.training(selective_backprop),
        "InfoBatch by hand": infobatch,
    }
    return against(compare(ways, rounds, steps), "plain")


def memory(bench: Bench, rounds: int, steps: int) -> Table:
    """Peak memory of a process that scores 3,200 candidates, less that of one that scores none, by chunk size."""
    sizes = {"none": 0, "all at once": 3200, "chunk_size=640": 640, "chunk_size=64": 64}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        peak = {name: pool.apply(_peak, (size,)) for name, size in sizes.items()}
    return {name: {"MB": [value - peak["none"]]} for name, value in peak.items() if name != "none"}


def _peak(chunk_size: int) -> float:
    torch.set_num_threads(1)
    data = TensorDataset(torch.randn(3200, *SHAPE), torch.zeros(3200, dtype=torch.int64))
    store = IrreducibleLossStore(torch.zeros(3200))
    if chunk_size:
        next(iter(RhoLossSelector(DataLoader(data, batch_size=320), network(), store, chunk_size=chunk_size)))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


SECTIONS = {f.__name__: f for f in (wrapper, options, networks, picks, compiled, loaders, plan, growth, peers, memory)}


def spread(values: list[float]) -> str:
    low, mid, high = (f"{of(values):,.{'0f' if abs(of(values)) >= 1000 else '3g'}}" for of in (min, statistics.median, max))
    return mid if low == high else f"{mid} ({low} to {high})"


def shown(table: Table) -> str:
    """A table in Markdown."""
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = [["what", *columns], *([name, *(spread(row[c]) if c in row else "" for c in columns)] for name, row in table.items())]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |" for line in lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What a step with selection costs.")
    parser.add_argument("sections", nargs="*", help=f"of {', '.join(SECTIONS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="of each loop in a round")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file too; other sections in it stay")
    parser.add_argument("--report", type=Path, help="print the figures of this file, and run nothing")
    parser.add_argument("--update", type=Path, help="put the tables into this page")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.sections if name not in SECTIONS]:
        raise SystemExit(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if given.report:
        results = json.loads(given.report.read_text())
    else:
        torch.set_num_threads(1)
        bench = Bench(given.device)
        about = f"torch {torch.__version__}, {platform.system()} {platform.machine()}, {given.device}, one thread"
        results = {"about": about, "tables": {}}
        for name in given.sections or SECTIONS:
            results["tables"][name] = SECTIONS[name](bench, given.rounds, given.steps)
            print(f"{name} is measured", file=sys.stderr)
        if given.json:
            known = json.loads(given.json.read_text())["tables"] if given.json.exists() else {}
            given.json.write_text(json.dumps({"about": about, "tables": known | results["tables"]}))
    texts = {name: shown(table) for name, table in results["tables"].items()}
    if given.update:
        page = given.update.read_text()
        for name, text in texts.items():
            page = re.sub(rf"<!-- {name} -->.*?<!-- end -->", f"<!-- {name} -->\n\n{text}\n\n<!-- end -->", page, flags=re.DOTALL)
        given.update.write_text(page)
        return
    print(results["about"])
    for name, text in texts.items():
        print(f"\n{name}: {(SECTIONS[name].__doc__ or '').splitlines()[0]}\n\n{text}")


if __name__ == "__main__":
    main()
