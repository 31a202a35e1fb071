"""Stores made from models or predictions, behind ``IrreducibleLossStore.from_model`` and the like."""

from collections.abc import Mapping
from contextlib import nullcontext
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Unpack

from rholoss import arguments
from rholoss.data.fingerprint import labels_digest
from rholoss.data.index import tensor_of
from rholoss.data.subset import checked_labels
from rholoss.distributed import Ranks
from rholoss.files import StrPath
from rholoss.irreducible.resume import score_by_ranks, score_in_memory, score_on_disk
from rholoss.irreducible.scoring_job import ScoringJob, made_today, top_classes_of
from rholoss.losses import probability_scale, refuse_other_classes
from rholoss.options import ScoringOptions
from rholoss.states import shared
from rholoss.store import CalibrationCounts, IrreducibleLossStore, Predictions, StoreMetadata

ROWS = 65_536  # rows to read at a time
ROW_EACH = "predictions must be one row of numbers per example, shape (N, C), C at least 2"
SAME = "give every rank the same weights, the same data in the same order, and the same options"


def score_with_model(
    model: Any, data: Any, *, path: StrPath | None, mapped: bool, distributed: bool, **options: Unpack[ScoringOptions]
) -> IrreducibleLossStore:
    """See ``IrreducibleLossStore.from_model``."""
    path = arguments.optional(arguments.path_of, path, "path")
    mapped, distributed = arguments.flag(mapped, "mapped"), arguments.flag(distributed, "distributed")
    ranks = Ranks(what="distributed=True", instead="leave it out") if distributed else None
    with ranks.sharing_errors() if ranks else nullcontext():
        job = ScoringJob(model, data, **options)
        if ranks and ranks.size > 1 and job.scorer.positions is None:
            raise TypeError("only a map-style dataset can be scored in shares; let every rank score data of its own, and merge")
    if ranks:
        how = {"path": path is not None, "mapped": mapped, "versions": made_today()["versions"]}
        ranks.agree(shared({**job.settings, **how}, {"code"}), SAME)  # code may close over the rank
        job.settings = ranks.all_gather_objects(job.settings)[0]
    if path is None:
        return IrreducibleLossStore.of_arrays(*score_in_memory(job, ranks))
    if ranks is None:
        score_on_disk(job, path, mapped)
        return IrreducibleLossStore.load(path)
    score_by_ranks(job, path, mapped, ranks)
    with ranks.sharing_errors():
        store = IrreducibleLossStore.load(path)
    ranks.all_gather_numbers()
    return store


def score_share(
    model: Any, data: Any, path: StrPath, *, process: int, processes: int, mapped: bool, **options: Unpack[ScoringOptions]
) -> IrreducibleLossStore | None:
    """See ``IrreducibleLossStore.score_share``."""
    path, mapped = arguments.path_of(path), arguments.flag(mapped, "mapped")
    processes = arguments.whole(processes, "processes")
    process = arguments.whole(process, "process", f"from 0 to processes - 1 = {processes - 1}", 0, processes - 1)
    whole = score_on_disk(ScoringJob(model, data, **options), path, mapped, process, processes)
    return IrreducibleLossStore.load(path) if whole else None


def score_predictions(
    predictions: Any,
    targets: Any,
    ids: Any,
    *,
    kind: Literal["logits", "probabilities"],
    meta: Mapping[str, Any] | None,
    top_classes: int,
) -> IrreducibleLossStore:
    """See ``IrreducibleLossStore.from_predictions``."""
    losses, counts, kept = losses_of_predictions(predictions, targets, kind, top_classes)
    labels = labels_digest(checked_labels(targets, len(losses), "targets"))
    known = {"length": len(losses), "labels": labels, "sample": {}} if ids is None else None
    given = {"data": known, "loss": "default_loss", "calibration": counts, **StoreMetadata.of(meta).to_json()}
    return IrreducibleLossStore(losses, ids, meta=given, predictions=kept)


def losses_of_predictions(
    predictions: Any, targets: Any, kind: Literal["logits", "probabilities"], top_classes: int = 0
) -> tuple[Tensor, CalibrationCounts, Predictions | None]:
    """The cross-entropy of each row of predictions (N, C), shape (N,), float32, in nats, their confidence and correctness, and
    the ``top_classes`` most likely classes; None if these are not kept.
    """
    k, kept = top_classes_of(top_classes), []
    arguments.one_of(kind, "kind", ("logits", "probabilities"))
    predictions = _table(predictions)
    classes = _classes(predictions, targets)
    n, C = predictions.shape
    counts, parts = CalibrationCounts(C, formula="cross_entropy"), []
    for start in range(0, n, ROWS):
        rows = predictions[start : start + ROWS]
        rows = (rows.detach().cpu() if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))).double()
        if kind == "probabilities":
            _refuse_not_probabilities(rows, start)
            rows = rows.log()
        elif start == 0:
            _refuse_probabilities(rows)
        log_p = F.log_softmax(rows, 1) if kind == "logits" else rows
        confidence, likeliest = log_p.exp().max(1)
        label = classes[start : start + ROWS]
        counts.count(confidence.clamp(max=1).numpy(), (likeliest == label).numpy())
        if k:
            kept.append(Predictions.of(log_p.exp(), label, k))
        parts.append((-log_p.gather(1, label[:, None])[:, 0]).clamp(min=0).float())
    losses = torch.cat(parts) if parts else torch.empty(0)
    bad = torch.nonzero(~torch.isfinite(losses)).flatten().tolist()
    if bad:
        what = f"the loss of {len(bad):,} of {n:,} rows is not finite, the first at row {bad[0]}"
        why = "a probability of 0 for the label, or predictions that are not finite"
        raise ValueError(f"{what}: {why}; smooth them, or leave these rows out")
    return losses, counts, Predictions.joined(kept) if kept else None


def _classes(predictions: Any, targets: Any) -> Tensor:
    """The targets as classes, shape (N,), int64, checked against the predictions."""
    shape = tuple(predictions.shape)
    if len(shape) != 2 or shape[1] < 2:
        binary = "for a probability p of class 1, pass torch.stack([1 - p, p], 1); for its logit z, torch.stack([0 * z, z], 1)"
        raise ValueError(f"{ROW_EACH}, got shape {shape}; {binary}")
    n = shape[0]
    expected = f"targets must be one class per example, shape ({n},), integer, from 0 to {shape[1] - 1}"
    try:
        classes = tensor_of(targets).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        values = list(targets) if isinstance(targets, (list, tuple)) or np.ndim(targets) else []
        words = [f"{value!r} at row {row}" for row, value in enumerate(values) if not isinstance(value, Integral)]
        got = words[0] if words else repr(targets)[:80]
        cure = "number them: names = sorted(set(targets)), then [names.index(name) for name in targets]"
        raise ValueError(f"{expected}, got {got}; {cure}") from error
    if classes.shape != (n,) or classes.is_floating_point() or classes.is_complex():
        cure = "pass targets.argmax(1) of one-hot rows" if classes.shape == shape else "pass one whole number per example"
        cure = "convert them to int64 if they are whole numbers" if classes.shape == (n,) else cure
        raise ValueError(f"{expected}, got {tuple(classes.shape)}, {classes.dtype}; {cure}")
    refuse_other_classes(classes.long(), shape[1], ignored=False)
    return classes.long()


def _refuse_probabilities(rows: Tensor) -> None:
    scale = probability_scale(rows)
    if scale:
        cure = "pass kind='probabilities'" if scale == 1 else f"divide them by {scale}, and pass kind='probabilities'"
        what = f"expected logits, got rows without a negative value that sum to {scale}, like probabilities"
        raise ValueError(f"{what}: {cure} (if they are logits, subtract 1 from all: their losses stay the same)")


def _table(predictions: Any) -> Any:
    """Predictions as a tensor or an array of numbers."""
    try:
        table = predictions if hasattr(predictions, "dtype") else np.asarray(predictions)
    except ValueError:  # rows of different lengths
        table = np.empty(0, object)
    is_number = table.dtype.is_floating_point if isinstance(table, Tensor) else getattr(table.dtype, "kind", "O") in "fiu"
    if not is_number:
        raise ValueError(f"{ROW_EACH}, got {arguments.shown(predictions)}")
    return table


def _refuse_not_probabilities(rows: Tensor, start: int) -> None:
    bad = torch.nonzero(((rows.sum(1) - 1).abs() > 1e-3) | (rows < 0).any(1)).flatten()
    if len(bad):
        row, is_percent = rows[bad[0]], probability_scale(rows) == 100
        got = f"{float(row.sum()):.4g} in row {start + int(bad[0])}" + (", with negative values" if bool((row < 0).any()) else "")
        cure = "divide them by 100" if is_percent else "for logits or log-probabilities, pass kind='logits'"
        raise ValueError(f"expected probabilities that sum to 1, got {got}; {cure}")
