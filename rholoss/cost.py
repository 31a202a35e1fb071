"""What selection costs: seconds and forward passes of a run, measured without synchronizing a device."""

import math
import statistics
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

from rholoss.arguments import fraction, number
from rholoss.devices import recorded

Phase = Literal["waiting", "selecting", "training"]
_SECONDS = "seconds, at least 0"
_RECENT = 256  # steps of the medians


def break_even(keep: float, *, scoring: float = 1.0, forward: float = 1 / 3) -> float:
    """The estimated duration of a step with selection, divided by that of a plain step: M = 1 + scoring * forward / keep.

    Selection saves time if it needs at least M times fewer steps, without the time to compute the irreducible losses.

    Args:
        keep: n_b / n_B, in (0, 1].
        scoring: the cost of scoring an example relative to a forward pass of the model in training; 0 without scoring.
        forward: the forward pass's fraction of a training step, in (0, 1).

    Examples:
        >>> round(break_even(0.1), 2), round(break_even(0.1, scoring=0.02), 2)
        (4.33, 1.07)
    """
    keep = fraction(keep, "keep", "n_b / n_B, in (0, 1]")
    scoring = number(scoring, "scoring", "the cost relative to a forward pass, at least 0", lambda cost: 0 <= cost < math.inf)
    forward = number(forward, "forward", "the fraction of a training step, in (0, 1)", lambda share: 0 < share < 1)
    return 1 + scoring * forward / keep


def runs_to_pay_back(making: float, *, plain: float, replayed: float) -> float:
    """After how many runs a plan breaks even; infinity if a run saves nothing.

    Args:
        making: seconds to make what the runs share: the irreducible losses and the plan.
        plain: seconds of a run without it, until it is as good as wanted.
        replayed: seconds of a run that replays the plan, until it is as good.

    Examples:
        >>> runs_to_pay_back(20, plain=117, replayed=38), runs_to_pay_back(200, plain=117, replayed=38)
        (1, 3)
    """
    values = {"making": making, "plain": plain, "replayed": replayed}
    making, plain, replayed = (number(value, name, _SECONDS, lambda s: 0 <= s < math.inf) for name, value in values.items())
    saved = plain - replayed
    return max(math.ceil(making / saved), 1) if saved > 0 else math.inf


@dataclass(frozen=True)
class Cost:
    """What a step costs.

    Seconds are medians over the latest 256 steps, on the scoring device. They are NaN before the first measurement, and on
    accelerators without timed events. A selector without a model measures on the host.

    Attributes:
        steps: batches selected by this object.
        n_b: examples in a selected batch.
        n_B: examples in a candidate batch, or None if unknown.
        scored: examples per step that the model in training scored.
        scored_by_others: examples per step that other models scored, such as a proxy.
        loaded: examples per step that were loaded.
        waiting: seconds per step for the loader; NaN if the selector is not iterated: they are then part of ``training``.
        selecting: seconds per step for scoring, ranking and cutting, and for training a co-trained model.
        training: seconds per step for everything that the loop does with a batch.
    """

    steps: int
    n_b: int
    n_B: int | None  # noqa: N815
    scored: float
    scored_by_others: float
    loaded: float
    waiting: float
    selecting: float
    training: float

    @property
    def ratio(self) -> float:
        """The duration of a step divided by that of a plain step, which waits for n_b examples only."""
        waiting = 0.0 if math.isnan(self.waiting) else self.waiting
        plain = self.training + waiting * min(self.n_b / max(self.loaded, 1), 1.0)
        return (waiting + self.selecting + self.training) / plain if plain else float("nan")

    def __str__(self) -> str:
        if math.isnan(self.ratio):
            return "nothing measured yet: two steps are needed"
        parts = [("waiting for data", self.waiting), ("selecting", self.selecting), ("training", self.training)]
        phases = ", ".join(f"{1000 * seconds:.3g} ms {name}" for name, seconds in parts if not math.isnan(seconds))
        others = f" and {self.scored_by_others:,.0f} by another model" if self.scored_by_others else ""
        details = f"{phases}; a step scores {self.scored:,.0f} examples{others} to train on {self.n_b:,}"
        ratio = f"{self.ratio:.2f}x"
        return f"selection costs {ratio} a step; it pays if it needs at least {ratio} fewer steps ({details})"


@dataclass
class ScoredCounts:
    """How many examples were scored: by the model in training, and by other models such as a proxy."""

    by_model: int = 0
    by_others: int = 0

    def add(self, n: int, by_model: bool) -> None:
        """Count n more examples."""
        self.by_model += n * by_model
        self.by_others += n * (not by_model)


class StepTimer:
    """Measures the phases of each step, on an accelerator with events in the queue of the device, without synchronization."""

    def __init__(self) -> None:
        self.steps = 0
        self.scored = ScoredCounts()
        self.loaded = 0  # examples
        self._seconds: dict[Phase, deque[float]] = {phase: deque(maxlen=_RECENT) for phase in get_args(Phase)}
        self._pending: deque[tuple[Phase, Any, Any]] = deque()
        self._phase: Phase | None = None  # the one in progress
        self._since: Any = None  # when it began

    def enter(self, phase: Phase, device: torch.device) -> None:
        """Begin a phase, and end the one before it."""
        on_host = device.type == "cpu"
        now = time.perf_counter() if on_host else recorded(device, timing=True)
        if self._phase is not None and now is not None:
            if on_host and type(self._since) is float:
                self._seconds[self._phase].append(now - self._since)
            elif not on_host and self._since is not None and type(self._since) is not float:
                self._pending.append((self._phase, self._since, now))
                self._settle()
        self._phase, self._since = phase, now

    def count(self, scored: ScoredCounts, loaded: int, steps: int = 1) -> None:
        """Count the scored and the loaded examples of a step, or of none."""
        self.steps += steps
        self.scored.by_model += scored.by_model
        self.scored.by_others += scored.by_others
        self.loaded += loaded

    def stop(self) -> None:
        """End the phase in progress without counting it."""
        self._phase = None

    def cost(self, n_b: int, n_B: int | None) -> Cost:
        self._settle()
        per_step = [count / max(self.steps, 1) for count in (self.scored.by_model, self.scored.by_others, self.loaded)]
        medians = [statistics.median(seconds or [math.nan]) for seconds in self._seconds.values()]
        return Cost(self.steps, n_b, n_B, *per_step, *medians)

    def _settle(self) -> None:
        """Read the events that have passed."""
        while self._pending and self._pending[0][2].query():
            phase, began, ended = self._pending.popleft()
            with suppress(RuntimeError, NotImplementedError):  # of a device whose events have no times
                self._seconds[phase].append(began.elapsed_time(ended) / 1000)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pending": deque(), "_phase": None, "_since": None}
