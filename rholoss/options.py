"""The options that every selector takes, as a type."""

from typing import Literal

import torch
from typing_extensions import TypedDict

from rholoss.scoring import Forward, Loss


class Options(TypedDict, total=False):
    """Keyword arguments of ``rholoss.Selector``, for the ``**options`` of its subclasses."""

    keep: float | None
    batch_size: int | None
    forward: Forward | None
    loss: Loss | None
    mode: Literal["eval", "train"]
    dtype: torch.dtype | None
    chunk_size: int | None
    device: torch.device | str | None
    drop_last: bool | None
    seed: int
