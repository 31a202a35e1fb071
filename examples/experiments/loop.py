"""The loop: plain, and the same for every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from experiments.measures import Tally
from experiments.methods import Method
from experiments.setups import Setup
from rholoss.scoring import default_forward, default_loss

Look = Callable[[int, float], Any]  # step, metric


@dataclass
class Curve:
    """The evaluations of a run, column by column. Seconds are of selecting and training; scored counts examples."""

    step: list[int] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    scored: list[int] = field(default_factory=list)


def evaluated_at(steps: int, every: int) -> set[int]:
    """The steps after which a run is evaluated: often at first, an eighth as often after twenty times, and at the end."""
    first = range(every, min(20 * every, steps) + 1, every)
    return {*first, *range(28 * every, steps + 1, 8 * every), steps}


def endless(selector: Any) -> Iterator[Any]:
    """Selected batches, epoch after epoch."""
    while True:
        yield from selector


def train(
    setup: Setup,
    model: nn.Module,
    method: Method,
    tally: Tally,
    measure: Callable[[nn.Module], float],
    look: Look,
    clock: Any,
) -> Curve:
    """Train a model on selected batches.

    Args:
        setup: the run.
        model: in train mode, with its initial weights.
        method: the selector.
        tally: receives every selected batch.
        measure: the metric of the model.
        look: called after every evaluation.
        clock: of the time that is measured.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=setup.lr, weight_decay=setup.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setup.steps) if setup.schedule == "cosine" else None
    curve, when, seconds = Curve(), evaluated_at(setup.steps, setup.every), 0.0
    selector = method.selector
    began = clock()
    for batch in endless(selector):
        outputs, targets = default_forward(model, batch)
        if schedule is None:  # KAKURENBO's epochs are shorter, and their learning rate higher
            optimizer.param_groups[0]["lr"] = setup.lr * getattr(selector, "learning_rate_scale", 1.0)
        optimizer.zero_grad()
        losses = default_loss(outputs, targets)
        selector.mean_loss(losses).backward()
        selector.record_losses(losses)
        optimizer.step()
        if schedule is not None:
            schedule.step()
        method.along(batch)
        seconds += clock() - began
        tally.add(selector.last, (outputs.detach().argmax(1) == targets).cpu())
        if selector.step in when:
            curve.step.append(selector.step)
            curve.metric.append(round(measure(model), 6))
            curve.seconds.append(round(seconds, 3))
            curve.scored.append(method.forward.count)
            look(selector.step, curve.metric[-1])
        if selector.step == setup.steps:
            return curve
        began = clock()
    raise AssertionError("an endless iterator ended")


def clock_for(device: torch.device) -> Callable[[], float]:
    """CPU seconds of this process, whatever else the machine does; on an accelerator wall-clock seconds, once it is done."""
    if device.type == "cpu":
        return time.process_time

    def wait_and_look() -> float:
        torch.accelerator.synchronize()
        return time.perf_counter()

    return wait_and_look
