"""On a GPU, in under ten minutes: every test that needs one, whether a step waits for it, and what a step with selection costs.

    python examples/benchmarks/gpu.py [--seconds 4] [--limit 480] [--json FILE]
    python examples/benchmarks/gpu.py --device cpu --quick             # the same without a GPU, on tiny sizes: for a look at it

A row is a network, n_b and a way to score at keep = 0.1: milliseconds of selecting and training, and times the plain step of the
same rounds; medians over the rounds, lowest and highest in brackets. Inputs are on the device already: loading is not in the
figures. On a GPU, networks of images are in channels-last order. Rows with ``torch.compile`` come last, and those that no time is
left for are left out.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))  # for the networks of the experiments

import torch
from experiments.models import resnet
from step_costs import Table, Transformer, ratios, shown
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector, forwards
from rholoss.cost import break_even

ROOT = Path(__file__).parents[2]
CLASSES, KEEP, BATCHES = 10, 0.1, 4  # candidate batches that come again and again
STEPS, FEWEST, MOST = 5, 3, 40  # steps of a way in a round; rounds
LEFT_OUT = "Scoring on a stream of its own is left out: the library has none."

Step = Callable[[], None]
Options = Callable[[int], dict[str, Any]]  # of a selector, from n_B

EAGER: dict[str, Options] = {
    "RHO-LOSS": lambda n_B: {},
    "bfloat16": lambda n_B: {"dtype": torch.bfloat16},
}
COMPILED: dict[str, Options] = {
    "compiled": lambda n_B: {"chunk_size": n_B, "forward": forwards.compiled()},
    "compiled, bfloat16": lambda n_B: {"chunk_size": n_B, "dtype": torch.bfloat16, "forward": forwards.compiled()},
    "CUDA graphs, bfloat16": lambda n_B: {
        "chunk_size": n_B,
        "dtype": torch.bfloat16,
        "forward": forwards.compiled(mode="reduce-overhead"),
    },
}


class Case:
    """A network, candidates and irreducible losses on a device.

    Args:
        network: takes the candidates' inputs.
        x: inputs of all examples.
        n_b: examples in a selected batch.
        device: where it all is.
    """

    def __init__(self, network: nn.Module, x: Tensor, n_b: int, device: torch.device) -> None:
        self.n_b, self.n_B, self.device = n_b, round(n_b / KEEP), device
        self.network = network.to(device)
        y = torch.randint(CLASSES, (len(x),))
        self.store = IrreducibleLossStore(torch.rand(len(x)) * 3)
        indices = torch.randperm(len(x))[: BATCHES * self.n_B].split(self.n_B)
        self.candidates = [(index, (x[index].to(device), y[index].to(device))) for index in indices]

    def plain(self) -> Step:
        """A step of training on n_b examples."""
        model, optimizer = self._training()
        batches = cycle([(x[: self.n_b], y[: self.n_b]) for _, (x, y) in self.candidates])
        return lambda: learn(model, optimizer, *next(batches))

    def selecting(self, **options: Any) -> Step:
        """A step of selecting n_b of n_B candidates by RHO-LOSS, and of training on them."""
        model, optimizer = self._training()
        loader: Any = DataLoader(range(len(self.store.losses)), batch_size=self.n_B)  # type: ignore[arg-type]
        selector: Selector = RhoLossSelector(loader, model, self.store, batch_size=self.n_b, device="model", **options)
        batches = cycle(self.candidates)
        return lambda: learn(model, optimizer, *selector.select(next(batches)))

    def _training(self) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = copy.deepcopy(self.network).train()
        return model, torch.optim.AdamW(model.parameters())


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


def cases(device: torch.device, quick: bool) -> Iterator[tuple[str, Case]]:
    """ResNet-18 on images of 32 x 32, and a transformer of two layers on 128 tokens; with ``quick`` tiny ones."""
    side, length, width = (8, 8, 4) if quick else (32, 128, 256)
    order = torch.channels_last if device.type == "cuda" else torch.preserve_format
    for n_b in (2, 4) if quick else (32, 256):
        n = BATCHES * round(n_b / KEEP)
        torch.manual_seed(0)
        network = resnet((3, side, side), CLASSES, width=width // 4).to(memory_format=order)  # type: ignore[call-overload]
        yield f"ResNet-18, n_b {n_b}", Case(network, torch.randn(n, 3, side, side), n_b, device)
        yield f"transformer, n_b {n_b}", Case(Transformer(1000, width, CLASSES), torch.randint(1000, (n, length)), n_b, device)


# --- measuring ------------------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@contextmanager
def refused_waits(device: torch.device) -> Iterator[None]:
    """Make it an error if the host waits for the GPU."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def waits(step: Step, device: torch.device) -> str | None:
    """Why a step, once warm, waits for the GPU; None if it does not."""
    try:
        with refused_waits(device):
            step()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def timed(step: Step, device: torch.device, steps: int) -> float:
    """Seconds a step; on a CPU those of the processor."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    wait(device)
    began = clock()
    for _ in range(steps):
        step()
    wait(device)
    return (clock() - began) / steps


def measure(ways: dict[str, Step], device: torch.device, budget: float, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each way, for each round, in which all run in turn."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    until = time.perf_counter() + budget * len(ways)
    while (done := len(found["plain"])) < FEWEST or (time.perf_counter() < until and done < MOST):
        for name, step in ways.items():
            found[name].append(timed(step, device, steps))
    return found


class Measured:
    """The rows so far, and what could not be had.

    Args:
        device: where it is measured.
        budget: seconds a row.
        deadline: after which nothing more is begun, by ``time.perf_counter()``.
        steps: of a way in a round.
    """

    def __init__(self, device: torch.device, budget: float, deadline: float, steps: int = STEPS) -> None:
        self.device, self.budget, self.deadline, self.steps = device, budget, deadline, steps
        self.tables: dict[str, Table] = {}
        self.notes: list[str] = []

    def add(self, name: str, case: Case, options: dict[str, Options]) -> None:
        """Measure ways to score with a case, against the plain step of the same rounds; a way that fails is noted."""
        ways: dict[str, Step] = {}
        for way, make in [
            ("plain", case.plain),
            *((way, partial(case.selecting, **of(case.n_B))) for way, of in options.items()),
        ]:
            if (step := self._ready(f"{name}, {way}", make)) is not None:
                ways[way] = step
        if len(ways) > 1 and "plain" in ways:
            found = measure(ways, self.device, self.budget, self.steps)
            table = self.tables.setdefault(name, {})
            for way, mine in found.items():
                table.setdefault(way, {"ms a step": [1000 * s for s in mine], "times plain": ratios(mine, found["plain"])})

    def _ready(self, name: str, make: Callable[[], Step]) -> Step | None:
        """A step that has run some times; None where it fails, or no time is left."""
        if time.perf_counter() > self.deadline:
            self.notes.append(f"{name}: left out, the time is up.")
            return None
        try:
            step = make()
            for _ in range(3):
                step()
            why = waits(step, self.device)
        except Exception as error:  # one way that fails hides no other
            self.notes.append(f"{name}: failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
            return None
        if why is not None:
            self.notes.append(f"{name}: the host waits for the GPU: {why}")
        return step


# --- the run --------------------------------------------------------------------------------------------------------------------


def gpu_tests(limit: float) -> str:
    """Run every test that needs a GPU, and return pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "gpu", str(ROOT / "tests")]
    try:
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done after {limit:.0f} seconds"
    if ran.returncode:
        print(ran.stdout[-8000:], ran.stderr[-2000:], file=sys.stderr)
    return (ran.stdout.strip().splitlines() or [f"pytest ended with {ran.returncode}"])[-1].strip("= ")


def device_of(name: str) -> torch.device:
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise SystemExit(f"--device must be cuda or cpu, got {name}")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "There is no GPU here (torch.cuda.is_available() is False); for a look on tiny sizes: --device cpu --quick"
        )
    return device


def about(device: torch.device) -> str:
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    counted = f"by count of operations, keep = {KEEP} costs {break_even(KEEP):.2f} plain steps"
    return f"torch {torch.__version__}, {where}, weights in float32; {counted}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="What can only be tested and measured on a GPU.")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a look without a GPU")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, without the tests and without torch.compile")
    parser.add_argument("--seconds", type=float, default=4.0, help="to measure a row for (default: 4)")
    parser.add_argument("--limit", type=float, default=480.0, help="seconds after which no further row is begun (default: 480)")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    given = parser.parse_args(arguments)
    device, began = device_of(given.device), time.perf_counter()
    say = partial(print, flush=True)
    say(about(device))
    tests = "left out" if given.quick else gpu_tests(given.limit / 2)
    say(f"\nTests that need a GPU: {tests}\n")
    measured = Measured(device, 0.0 if given.quick else given.seconds, began + given.limit, 1 if given.quick else STEPS)
    for options in (EAGER,) if given.quick else (EAGER, COMPILED):
        for name, case in cases(device, given.quick):
            measured.add(name, case, options)
    for name, table in measured.tables.items():
        say(f"{name}\n\n{shown(table)}\n")
    checked = "no GPU, not checked" if device.type == "cpu" else "never, but for rows that say so below"
    say("\n".join([f"A step with selection makes the host wait: {checked}.", LEFT_OUT, *measured.notes]))
    if given.json:
        given.json.write_text(
            json.dumps({"about": about(device), "tests": tests, "tables": measured.tables, "notes": measured.notes})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
