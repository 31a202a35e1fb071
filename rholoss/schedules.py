"""Numbers that change with the step; any other function of the step works too."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rholoss.arguments import function, number, whole

Schedule = Callable[[int], float]


def checked(value: float | Schedule, name: str, what: str, fits: Callable[[float], bool], step: int = 0) -> float:
    """The number at a step, refused unless it ``fits``; at step 0 a schedule must also be a function of the step."""
    if not callable(value):
        return number(value, name, what, fits)
    if not step:
        function(value, name, "(step) -> a number")
    return number(value(step), f"{name} at step {step}", what, fits)


@dataclass(frozen=True)
class _Gradual:
    start: float
    end: float
    steps: int
    above: ClassVar[float] = -math.inf  # what start and end are above

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", whole(self.steps, "steps"))
        for name in ("start", "end"):
            what = "a number above 0" if self.above == 0 else "a number"
            value = number(getattr(self, name), name, what, lambda value: self.above < value < math.inf)
            object.__setattr__(self, name, value)

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

    above = 0.0

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "at", whole(self.at, "at", "a step, a whole number, at least 0", 0))
        for name in ("start", "end"):
            object.__setattr__(self, name, number(getattr(self, name), name, "a number"))

    def __call__(self, step: int) -> float:
        return self.start if step < self.at else self.end
