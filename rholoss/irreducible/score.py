"""Stores made from models or predictions, behind ``IrreducibleLossStore.from_model`` and the like."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from rholoss.data.fingerprint import labels_digest
from rholoss.data.index import tensor_of
from rholoss.distributed import rank_and_size
from rholoss.files import StrPath
from rholoss.irreducible.resume import score_in_memory, score_on_disk
from rholoss.irreducible.scoring_job import ScoringJob
from rholoss.options import ScoringOptions
from rholoss.store import CalibrationCounts, IrreducibleLossStore

ROWS = 65_536  # rows to read at a time


def score_with_model(
    model: Any, data: Any, *, path: StrPath | None, mapped: bool, distributed: bool, **options: Unpack[ScoringOptions]
) -> IrreducibleLossStore:
    """See ``IrreducibleLossStore.from_model``."""
    job = ScoringJob(model, data, **options)
    process, processes = rank_and_size() if distributed else (0, 1)
    if path is None:
        return IrreducibleLossStore.of_arrays(*score_in_memory(job, process, processes))
    whole = score_on_disk(job, os.fsdecode(path), mapped, process, processes)
    if distributed:
        dist.barrier()
        whole = whole or score_on_disk(job, os.fsdecode(path), mapped, process, processes)
    assert whole
    return IrreducibleLossStore.load(path)


def score_share(
    model: Any, data: Any, path: StrPath, *, process: int, processes: int, mapped: bool, **options: Unpack[ScoringOptions]
) -> IrreducibleLossStore | None:
    """See ``IrreducibleLossStore.score_share``."""
    if not 0 <= process < processes:
        raise ValueError(f"process must be from 0 to processes - 1, got process={process} of processes={processes}")
    whole = score_on_disk(ScoringJob(model, data, **options), os.fsdecode(path), mapped, process, processes)
    return IrreducibleLossStore.load(path) if whole else None


def score_predictions(
    predictions: Any, targets: Any, ids: Any, *, kind: Literal["logits", "probabilities"], meta: Mapping[str, Any] | None
) -> IrreducibleLossStore:
    """See ``IrreducibleLossStore.from_predictions``."""
    losses, counts = losses_of_predictions(predictions, targets, kind)
    known = {"length": len(losses), "labels": labels_digest(tensor_of(targets)), "sample": {}} if ids is None else None
    return IrreducibleLossStore(losses, ids, meta={"data": known, "loss": "default_loss", "calibration": counts, **(meta or {})})


def losses_of_predictions(
    predictions: Any, targets: Any, kind: Literal["logits", "probabilities"]
) -> tuple[Tensor, CalibrationCounts]:
    """The cross-entropy of each row of predictions (N, C), shape (N,), float32, in nats, and their confidence and correctness."""
    if kind not in ("logits", "probabilities"):
        raise ValueError(f"kind must be 'logits' or 'probabilities', got {kind!r}")
    predictions = predictions if hasattr(predictions, "shape") else np.asarray(predictions)
    classes = _classes(predictions, targets)
    n, C = predictions.shape
    counts, parts = CalibrationCounts(C), []
    for start in range(0, n, ROWS):
        rows = predictions[start : start + ROWS]
        rows = (rows.detach().cpu() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).double()
        if kind == "probabilities":
            _refuse_not_probabilities(rows, start)
            rows = rows.log()
        log_p = F.log_softmax(rows, 1) if kind == "logits" else rows
        confidence, likeliest = log_p.exp().max(1)
        label = classes[start : start + ROWS].long()
        counts.count(confidence.clamp(max=1).numpy(), (likeliest == label).numpy())
        parts.append((-log_p.gather(1, label[:, None])[:, 0]).clamp(min=0).float())
    losses = torch.cat(parts) if parts else torch.empty(0)
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        what = f"the loss of {len(bad):,} of {n:,} rows is not finite, the first at row {bad[0]}"
        why = "a probability of 0 for the label, or predictions that are not finite"
        raise ValueError(f"{what}: {why}; smooth them, or leave these rows out")
    return losses, counts


def _classes(predictions: Any, targets: Any) -> Tensor:
    """The targets as classes, shape (N,), checked against the predictions."""
    classes = tensor_of(targets).cpu()
    n = len(predictions)
    if len(predictions.shape) != 2 or predictions.shape[1] < 2 or classes.shape != (n,) or classes.is_floating_point():
        got = f"predictions {tuple(predictions.shape)} and targets {tuple(classes.shape)}, {classes.dtype}"
        raise ValueError(f"expected predictions (N, C), C at least 2, with classes (N,), integer, got {got}")
    C = predictions.shape[1]
    wrong = torch.nonzero((classes < 0) | (classes >= C)).flatten().tolist()
    if wrong:
        raise ValueError(f"expected classes from 0 to {C - 1}, got {int(classes[wrong[0]])} at row {wrong[0]}")
    return classes


def _refuse_not_probabilities(rows: Tensor, start: int) -> None:
    bad = torch.nonzero(((rows.sum(1) - 1).abs() > 1e-3) | (rows < 0).any(1)).flatten()
    if len(bad):
        got = f"{float(rows[bad[0]].sum()):.4g} in row {start + int(bad[0])}"
        raise ValueError(f"expected probabilities that sum to 1, got {got}; for logits, pass kind='logits'")
