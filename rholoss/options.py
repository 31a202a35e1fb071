"""The options that selectors, and functions that score a dataset, take by keyword."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from typing_extensions import TypedDict

from rholoss.progress import Progress
from rholoss.scoring import Forward, Loss, Task


class SelectorOptions(TypedDict, total=False):
    """Keyword arguments of ``rholoss.Selector``, for the ``**options`` of its subclasses."""

    keep: float | None
    batch_size: int | None
    task: Task | None
    forward: Forward | None
    loss: Loss | None
    mode: Literal["eval", "train"]
    dtype: torch.dtype | None
    chunk_size: int | None
    device: torch.device | str | None
    drop_last: bool | None
    seed: int


class ScoringOptions(TypedDict, total=False):
    """How a dataset is scored: keyword arguments of ``from_model``, ``score_share`` and ``cross_fit``.

    Attributes:
        task: ``forward``, ``loss`` and ``dtype`` in one, see ``rholoss.Task``; or pass them separately:
        forward: ``(model, batch) -> (outputs, targets)``, the same as the selector's.
        loss: ``(outputs, targets) -> (n,)``, the same as the selector's.
        dtype: autocast dtype; None for the model's own precision.
        batch_size: examples in one forward pass; None for the loader's own, or 256 for a dataset.
        views: passes over randomly augmented or masked data, whose losses are averaged; 1 by default.
        seed: seed of the augmentation, which is the same for the same number of workers; 0 by default.
        progress: ``True`` for a bar (needs the extra ``rholoss[progress]``), ``False`` for none, None for a bar on a terminal
            where it is installed, or a function called with (examples done, total or None).
    """

    task: Task | None
    forward: Forward | None
    loss: Loss | None
    dtype: torch.dtype | None
    batch_size: int | None
    views: int
    seed: int
    progress: Progress


_MEANT = {  # words that other libraries use
    "keep": ("ratio", "fraction", "share", "percent", "keep_ratio"),
    "batch_size": ("bs", "n_b", "size"),
    "loss": ("criterion", "loss_fn", "loss_func"),
    "forward": ("forward_fn",),
    "dtype": ("precision", "amp_dtype"),
    "seed": ("generator", "random_state"),
}


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Raise a TypeError that suggests the right name if one of the given options of ``owner`` is not a known one."""
    known = list(known)
    for name in given:
        if name not in known:
            close = [option for option, words in _MEANT.items() if name in words and option in known]
            close = close or difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}=? " if close else ""
            raise TypeError(f"{owner} got an unexpected option {name}=; {hint}The options are {', '.join(known)}")
