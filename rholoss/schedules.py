"""Numbers that change with the step; any other function of the step works too."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


def at(value: float | Schedule, step: int) -> float:
    """A number, or a schedule's number at a step."""
    return value(step) if callable(value) else value


@dataclass(frozen=True)
class _Gradual:
    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")

    def _done(self, step: int) -> float:
        """The fraction of the steps that is done, in [0, 1]."""
        return min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Linear(_Gradual):
    """From ``start`` to ``end`` in equal differences over ``steps`` steps, then ``end``.

    Examples:
        >>> [Linear(1.0, 0.0, steps=4)(step) for step in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * self._done(step)


@dataclass(frozen=True)
class Geometric(_Gradual):
    """From ``start`` to ``end``, both above 0, in equal ratios over ``steps`` steps, then ``end``.

    Examples:
        >>> [round(Geometric(8.0, 0.5, steps=4)(step), 6) for step in (0, 1, 4, 9)]
        [8.0, 4.0, 0.5, 0.5]
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.start > 0 and self.end > 0):
            raise ValueError(f"a geometric schedule needs numbers above 0, got {self.start} and {self.end}")

    def __call__(self, step: int) -> float:
        return float(self.start * (self.end / self.start) ** self._done(step))


@dataclass(frozen=True)
class Cosine(_Gradual):
    """From ``start`` to ``end`` along half a cosine over ``steps`` steps, slow at both ends, then ``end``.

    Examples:
        >>> [round(Cosine(1.0, 0.0, steps=4)(step), 3) for step in (0, 1, 2, 4, 9)]
        [1.0, 0.854, 0.5, 0.0, 0.0]
    """

    def __call__(self, step: int) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * self._done(step))) / 2


@dataclass(frozen=True)
class Switch:
    """``start`` before step ``at``, ``end`` from it on.

    Examples:
        >>> [Switch(0.1, 1.0, at=3)(step) for step in (0, 2, 3)]
        [0.1, 0.1, 1.0]
    """

    start: float
    end: float
    at: int

    def __call__(self, step: int) -> float:
        return self.start if step < self.at else self.end
