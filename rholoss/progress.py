"""Progress reports, to a bar or to the user's function: one bar at a time, and none where nobody watches."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, ClassVar, TypeVar

import torch.distributed as dist
from typing_extensions import Self

from rholoss.arguments import flag, function

Progress = bool | Callable[[int, int | None], None] | None
"""``True`` for a bar (the extra ``rholoss[progress]``), ``False`` for none, or a function called with (done, total or None).
None: as the environment variable ``RHOLOSS_PROGRESS`` says, 1 or 0; without it, a bar on a terminal where ``tqdm`` is installed,
and none in CI. With several processes, the first one draws the bar."""

VARIABLE = "RHOLOSS_PROGRESS"
Item = TypeVar("Item")


def switched(progress: Progress) -> Progress:
    """The argument, checked; where it is None, what the environment variable says, or None."""
    if progress is not None:
        return function(progress, "progress", "(done, total)") if callable(progress) else flag(progress, "progress")
    value = os.environ.get(VARIABLE, "")
    if value not in ("", "0", "1"):
        raise ValueError(f"{VARIABLE} must be 1 for progress bars or 0 for none, got {value!r}")
    return bool(int(value)) if value else None


class Reporter:
    """Called with what is done and the total, or None. A bar is closed at the end of the block, or of the work.

    Args:
        progress: see ``Progress``.
        unit: unit of the bar.
        what: label of the bar.
    """

    _drawn: ClassVar["Reporter | None"] = None  # the bar that is drawn now

    def __init__(self, progress: Progress, unit: str = "ex", what: str = "irreducible losses") -> None:
        progress = switched(progress)
        self._function = progress if callable(progress) else None
        is_first = not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0
        wanted = progress if isinstance(progress, bool) else progress is None and _is_watched()
        self._make = _tqdm() if wanted and is_first else None
        self._labels = {"unit": unit, "desc": what}
        self._bar: Any = None

    def __call__(self, done: int, total: int | None) -> None:
        if self._function is not None:
            self._function(done, total)
        if self._make is None:
            return
        if self._bar is None:
            if Reporter._drawn is not None:
                Reporter._drawn.close()
            self._bar, Reporter._drawn = self._make(total=total, **self._labels), self
        self._bar.update(done - self._bar.n)  # does nothing once it is closed
        if done == total:
            self.close()

    def close(self) -> None:
        """End the bar, where it is."""
        if self._bar is not None:
            self._bar.close()
        if Reporter._drawn is self:
            Reporter._drawn = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def watched(items: Iterable[Item], progress: Progress, unit: str, what: str) -> Iterator[Item]:
    """The items, with a report after each one is done; for the arguments see ``Reporter``."""
    with Reporter(progress, unit, what) as report:
        for done, item in enumerate(items, 1):
            yield item
            report(done, len(items) if isinstance(items, Sized) else None)


def _is_watched() -> bool:
    """Whether someone may be looking at bars, and they can be drawn."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("CI", "") in ("", "0", "false")
    return is_terminal and importlib.util.find_spec("tqdm") is not None


def _tqdm() -> Callable[..., Any]:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("a progress bar needs tqdm, which is not installed; run: pip install 'rholoss[progress]'") from None
    return tqdm
