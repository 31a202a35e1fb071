"""The options that every selector, and everything that scores a dataset, takes by keyword: said once."""

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
        task: ``forward``, ``loss`` and ``dtype`` in one, see ``rholoss.Task``; or each by itself:
        forward: ``(model, batch) -> (outputs, targets)``; the one that the selector is given.
        loss: ``(outputs, targets) -> (n,)``; the one that the selector is given.
        dtype: autocast dtype; None for the model's own precision.
        batch_size: examples in one forward pass; None for the loader's own, or 256 for a dataset.
        views: passes over data that are augmented or masked at random, whose mean loss is taken; 1 by default.
        seed: seed of the augmentation, which is the same with as many workers; 0 by default.
        progress: ``True`` for a bar (needs the extra ``rholoss[progress]``), ``False`` for none, None for a bar on a terminal
            where it is installed, or a function called with (examples done, examples in all or None).
    """

    task: Task | None
    forward: Forward | None
    loss: Loss | None
    dtype: torch.dtype | None
    batch_size: int | None
    views: int
    seed: int
    progress: Progress


_MEANT = {  # words that people bring from elsewhere
    "ratio": "keep",
    "fraction": "keep",
    "share": "keep",
    "percent": "keep",
    "keep_ratio": "keep",
    "bs": "batch_size",
    "n_b": "batch_size",
    "size": "batch_size",
    "criterion": "loss",
    "loss_fn": "loss",
    "loss_func": "loss",
    "forward_fn": "forward",
    "precision": "dtype",
    "amp_dtype": "dtype",
    "generator": "seed",
    "random_state": "seed",
}


def refuse_unknown(given: Mapping[str, Any], known: Iterable[str], owner: str) -> None:
    """Raise a TypeError that suggests the right word where an option does not exist.

    Args:
        given: what was passed.
        known: the names that exist.
        owner: what does not take it, for the message.
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = [_MEANT[name]] if _MEANT.get(name) in known else difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {close[0]}=? " if close else ""
            raise TypeError(f"{owner} got an unexpected option {name}=; {hint}The options are {', '.join(known)}")
