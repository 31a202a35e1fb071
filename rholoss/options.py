"""The options that selectors, and functions that score a dataset, take by keyword."""

from typing import Literal

import torch
from typing_extensions import TypedDict

from rholoss.progress import Progress
from rholoss.scoring import ChunkSize, Forward, Loss, Task


class SelectorOptions(TypedDict, total=False):
    """Keyword arguments of ``rholoss.Selector``, for the ``**options`` of its subclasses."""

    keep: float | None
    batch_size: int | None
    task: Task | None
    forward: Forward | None
    loss: Loss | None
    mode: Literal["eval", "train"]
    dtype: torch.dtype | None
    chunk_size: ChunkSize
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
        top_classes: how many of a classifier's most likely classes to keep beside each loss, with their probabilities, for
            ``suspects``: 0, which keeps none, or at least 2. Each takes 8 bytes an example. 0 by default.
        progress: ``True`` for a bar, ``False`` for none, None for a bar on a terminal, or a function called with (examples done,
            total or None); see ``rholoss.progress.Progress``.
    """

    task: Task | None
    forward: Forward | None
    loss: Loss | None
    dtype: torch.dtype | None
    batch_size: int | None
    views: int
    seed: int
    top_classes: int
    progress: Progress
