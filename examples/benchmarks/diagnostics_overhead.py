"""What watching costs: the time of a training loop with diagnostics against the time without, in one run.

    python examples/benchmarks/diagnostics_overhead.py [--steps 256] [--rounds 7] [--width 512] [--device cpu]

Each round runs the same loop, RHO-LOSS on random data with 32 of 320 candidates selected, with each kind of watching in turn,
so that a machine that becomes slower does so for all of them. Prints the median over the rounds of each ratio, lowest and
highest in brackets: of seconds of the processor on a CPU, which other programs change little, of seconds by the clock elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IrreducibleLossStore, RhoLossSelector, Selector, build_selector
from rholoss.diagnostics import ComparisonLog, SelectionLog

N, FEATURES, CLASSES = 50_000, 64, 10


def watchers(flags: dict[str, torch.Tensor]) -> dict[str, Callable[[Selector], None]]:
    """Ways of watching a selector, by what they are called."""

    def compare_every(steps: int) -> Callable[[Selector], None]:
        def watch(selector: Selector) -> None:
            names = ("train_loss", "gradient_norm", "uniform")
            others = {name: build_selector(name, selector.loader, selector.model) for name in names}
            ComparisonLog(others, lambda: SelectionLog(N, flags), every=steps).attach(selector)

        return watch

    return {
        "nothing": lambda selector: None,
        "SelectionLog, 2 flags": lambda selector: SelectionLog(N, flags).attach(selector) and None,
        "SelectionLog, 2 flags, a tracker every 50 steps": lambda selector: (
            SelectionLog(N, flags).attach(selector).every(50, lambda metrics, step: None) and None
        ),
        "ComparisonLog, 3 methods, every 10 steps": compare_every(10),
        "ComparisonLog, 3 methods, every step": compare_every(1),
    }


def seconds(watch: Callable[[Selector], None], data: TensorDataset, steps: int, width: int, device: str) -> float:
    """Seconds that the loop takes; of the processor, if the model is on one."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters())
    loader = DataLoader(data, batch_size=32, shuffle=True, drop_last=True)
    selector = RhoLossSelector(loader, model, IrreducibleLossStore(torch.rand(N)), device="model")
    watch(selector)
    began = clock()
    while selector.step < steps:
        for x, y in selector:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            if selector.step == steps:
                break
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return clock() - began


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What watching costs.")
    parser.add_argument("--steps", type=int, default=256, help="steps of each loop (default: 256)")
    parser.add_argument("--rounds", type=int, default=7, help="how often each loop runs (default: 7)")
    parser.add_argument("--width", type=int, default=512, help="of the network's two hidden layers (default: 512)")
    parser.add_argument("--device", default="cpu", help="where the model is (default: cpu)")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    data = TensorDataset(torch.randn(N, FEATURES, generator=generator), torch.randint(CLASSES, (N,), generator=generator))
    flags = {"wrong": torch.rand(N, generator=generator) < 0.3, "rare": torch.rand(N, generator=generator) < 0.05}
    ways = watchers(flags)
    how = (data, options.steps, options.width, options.device)
    seconds(ways["nothing"], data, min(50, options.steps), options.width, options.device)  # warms up
    rounds = [{name: seconds(watch, *how) for name, watch in ways.items()} for _ in range(options.rounds)]
    plain = statistics.median(one["nothing"] for one in rounds)
    print(f"watching nothing: {1000 * plain / options.steps:.2f} ms a step")
    for name in list(ways)[1:]:
        ratios = [one[name] / one["nothing"] for one in rounds]
        print(f"{name}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) times as long")


if __name__ == "__main__":
    main()
