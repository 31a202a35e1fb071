"""Progress reports, to a bar or to the user's function."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

from rholoss.arguments import flag, function

Progress = bool | Callable[[int, int | None], None] | None
"""``True`` for a bar (needs the extra ``rholoss[progress]``), ``False`` for none, None for a bar on a terminal where it is
installed, or a function called with (done, total or None)."""


def reporter(progress: Progress, unit: str = "ex", what: str = "irreducible losses") -> Callable[[int, int | None], None]:
    """A function to call with what is done and the total, or None; ``unit`` and ``what`` label its bar, see ``Progress``."""
    if callable(progress):
        return function(progress, "progress", "(done, total)")
    if progress is not None:
        flag(progress, "progress")
    else:
        progress = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    if not progress:
        return lambda done, total: None
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm, which is not installed; run: pip install 'rholoss[progress]'") from None
    bar: Any = None

    def report(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit=unit, desc=what)
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return report
