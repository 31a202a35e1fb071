"""Losses out of predictions that were made elsewhere."""

from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rholoss.ids import tensor_of
from rholoss.tally import Tally

ROWS = 65_536  # that are read at a time


def losses_of_predictions(predictions: Any, targets: Any, kind: Literal["logits", "probabilities"]) -> tuple[Tensor, Tally]:
    """The cross-entropy of each row of predictions, shape (N,), float32, in nats, and how sure and right they are.

    Args:
        predictions: shape (N, C), floating; an array that is memory-mapped is read a part at a time.
        targets: classes, shape (N,), integer.
        kind: what the predictions are.
    """
    if kind not in ("logits", "probabilities"):
        raise ValueError(f"kind must be 'logits' or 'probabilities', got {kind!r}")
    predictions = predictions if hasattr(predictions, "shape") else np.asarray(predictions)
    classes = tensor_of(targets).cpu()
    n = len(predictions)
    if len(predictions.shape) != 2 or predictions.shape[1] < 2 or classes.shape != (n,) or classes.is_floating_point():
        raise ValueError(
            "expected predictions (N, C), C at least 2, with classes (N,), integer, got predictions "
            f"{tuple(predictions.shape)} and targets {tuple(classes.shape)}, {classes.dtype}"
        )
    C = predictions.shape[1]
    wrong = torch.nonzero((classes < 0) | (classes >= C)).flatten().tolist()
    if wrong:
        raise ValueError(f"expected classes from 0 to {C - 1}, got {int(classes[wrong[0]])} at row {wrong[0]}")
    tally, parts = Tally(C), []
    for start in range(0, n, ROWS):
        rows = predictions[start : start + ROWS]
        rows = (rows.detach().cpu() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).double()
        if kind == "probabilities":
            refuse_not_probabilities(rows, start)
            rows = rows.log()
        log_p = F.log_softmax(rows, 1) if kind == "logits" else rows
        confidence, likeliest = log_p.exp().max(1)
        label = classes[start : start + ROWS].long()
        tally.count(confidence.clamp(max=1).numpy(), (likeliest == label).numpy())
        parts.append((-log_p.gather(1, label[:, None])[:, 0]).clamp(min=0).float())
    losses = torch.cat(parts) if parts else torch.empty(0)
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        raise ValueError(
            f"the loss of {len(bad):,} of {n:,} rows is not finite, the first at row {bad[0]}: a probability of 0 for the "
            "label, or predictions that are not finite; smooth them, or leave these rows out"
        )
    return losses, tally


def refuse_not_probabilities(rows: Tensor, start: int) -> None:
    """Raise a ValueError where rows do not sum to 1, or have a negative number."""
    bad = torch.nonzero(((rows.sum(1) - 1).abs() > 1e-3) | (rows < 0).any(1)).flatten()
    if len(bad):
        raise ValueError(
            f"expected probabilities that sum to 1, got {float(rows[bad[0]].sum()):.4g} in row {start + int(bad[0])}; for "
            "logits, pass kind='logits'"
        )
