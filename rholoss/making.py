"""Irreducible losses out of models, a stretch of the data at a time, and what is worth knowing about how they were made."""

from __future__ import annotations

import datetime
import json
import os
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rholoss.fingerprint import digest, fingerprint
from rholoss.fitting import Fit
from rholoss.ids import some
from rholoss.models import as_models, code_digest, describe, named
from rholoss.parts import origin
from rholoss.progress import Progress, reporter
from rholoss.scoring import Forward, Loss
from rholoss.sweep import Sweep
from rholoss.tally import Tally

STRETCH = 65_536  # most examples that are scored, and written, at a time
PIECES = 16  # or as many stretches, of fewer examples


class Scored(NamedTuple):
    """A stretch of the data with its irreducible losses.

    Attributes:
        index: shape (m,), int64.
        losses: shape (m,), float32, in nats.
        tally: how sure and right the models were.
    """

    index: Tensor  # type: ignore[assignment]  # shadows tuple.index, on purpose
    losses: Tensor
    tally: Tally


class Making:
    """All that decides what irreducible losses come out, and their computing, a stretch of the data at a time.

    Args:
        model: a model, or several.
        data: see ``Sweep``.
        views: passes over the data, each another draw of its random augmentation.
        seed: see ``Sweep``.
        progress: see ``rholoss.progress.Progress``.
        **options: of ``Sweep``.
    """

    def __init__(
        self,
        model: Any,
        data: Any,
        *,
        forward: Forward | None = None,
        loss: Loss | None = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        views: int = 1,
        seed: int = 0,
        progress: Progress = None,
    ) -> None:
        if isinstance(views, bool) or not isinstance(views, int) or views < 1:
            raise ValueError(f"views must be a number of passes over the data, at least 1, got {views!r}")
        self.sweep = Sweep(data, forward=forward, loss=loss, batch_size=batch_size, dtype=dtype, seed=seed)
        self.models = as_models(model)
        self.views = views
        refuse_seen(model, self.sweep)
        self._done = 0
        self._report = reporter(progress)
        settings = {
            "data": fingerprint(data),
            "models": [describe(each) for each in self.models],
            "loss": "default_loss" if loss is None else named(loss),
            "forward": "default_forward" if forward is None else named(forward),
            "code": [None if hook is None else code_digest(hook) for hook in (forward, loss)],
            "views": views,
            "scoring": {"batch_size": self.sweep.batch_size, "dtype": str(dtype) if dtype else None, "seed": seed},
            "examples": self._examples(),
            "validation_loss": _validation_loss(model),
        }
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as they come back from a file

    @property
    def is_dense(self) -> bool:
        """Whether the stretches, one after the other, hold the examples 0 to N-1 in order."""
        sweep = self.sweep
        return self.settings["data"] is not None and self.settings["examples"] == [sweep.dataset_length, None]

    def stretches(self) -> list[range | None]:
        """The rows to score at a time, each beginning at a multiple of the batch size; one None where they cannot be told."""
        entries = self.sweep.entries
        if entries is None:
            return [None]
        if not len(entries):
            raise ValueError("expected at least one example to score, got none")
        size = self.sweep.batch_size or 1
        step = -(-min(STRETCH, -(-len(entries) // PIECES)) // size) * size
        return [range(start, min(start + step, len(entries))) for start in range(0, len(entries), step)]

    def score(self, rows: range | None) -> Scored:
        """Score a stretch.

        Raises:
            ValueError: a loss is not one value per example, not finite, or negative.
        """
        tally = Tally()

        def measure(outputs: Any, targets: Any, n: int) -> Tensor:
            loss = self.sweep.scorer.losses(outputs, targets, n)
            sure, right = _classified(outputs, targets, n)
            if sure is None or right is None:
                return loss[:, None]
            tally.classes = outputs.shape[1]
            return torch.stack([loss, sure.to(loss.device), right.to(loss.device).float()], 1)

        halves: list[np.ndarray | float] = [0.0, 0.0]
        count = [(len(self.models) + 1) // 2, len(self.models) // 2]
        index = torch.empty(0, dtype=torch.int64)
        for i, model in enumerate(self.models):
            for view in range(self.views):
                index, values = self.sweep.run(model, measure, rows=rows, view=view, seen=self._seen)
                table = values.numpy().astype(float)
                refuse_not_losses(index, values[:, 0])
                halves[i % 2] = halves[i % 2] + table[:, 0]
                if table.shape[1] == 3:
                    tally.count(table[:, 1], table[:, 2])
        means = [half / (n * self.views) for half, n in zip(halves, count, strict=True) if n]
        if len(means) == 2:
            tally.compare(np.asarray(means[0]), np.asarray(means[1]))
        losses = (halves[0] + halves[1]) / (sum(count) * self.views)
        return Scored(index, torch.from_numpy(np.asarray(losses, np.float32)), tally)

    def _examples(self) -> list[Any]:
        """How many examples, and which if that is a part of the data."""
        entries, n = self.sweep.entries, self.sweep.total
        data = origin(self.sweep.loader.dataset)[1] if self.sweep.dataset_length is not None else None
        which = [part.numpy().tobytes() for part in (data, entries) if part is not None]
        whole = data is None and entries is not None and len(entries) == self.sweep.dataset_length
        return [n, None if whole or not which else digest(b"".join(which))]

    def passed(self, rows: range | None) -> None:
        """Count a stretch as done that was scored before."""
        self._seen(len(rows) * len(self.models) * self.views if rows is not None else 0)

    def _seen(self, n: int) -> None:
        self._done += n
        total = self.sweep.total
        self._report(self._done, None if total is None else total * len(self.models) * self.views)


def made_today() -> dict[str, Any]:
    """When and with what: the date, UTC (that of ``SOURCE_DATE_EPOCH`` where it is set), and versions."""
    import rholoss

    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc) if epoch else None
    day = (moment or datetime.datetime.now(datetime.timezone.utc)).date().isoformat()
    return {"made": day, "versions": {"rholoss": rholoss.__version__, "torch": torch.__version__, "numpy": np.__version__}}


def refuse_seen(model: Any, sweep: Sweep) -> None:
    """Raise a ValueError if a ``Fit`` trained on, or was chosen by, examples that are to be scored."""
    for fit in model if isinstance(model, (list, tuple)) else [model]:
        seen = fit.seen_among(sweep.loader.dataset, sweep.entries) if isinstance(fit, Fit) and sweep.dataset_length else 0
        if seen:
            raise ValueError(
                f"the irreducible-loss model was fitted on {seen:,} of the {sweep.total:,} examples to score, so that their "
                "irreducible losses would be too low: score other parts of the dataset, or use cross_fit (or pass fit.model, "
                "if different examples of this data look the same)"
            )


def _validation_loss(model: Any) -> float | None:
    """The mean of the validation losses of the fits, if all models come out of one."""
    fits = model if isinstance(model, (list, tuple)) else [model]
    if not all(isinstance(fit, Fit) for fit in fits):
        return None
    return sum(fit.best.validation_loss for fit in fits) / len(fits)


def refuse_not_losses(index: Tensor, losses: Tensor) -> None:
    """Raise a ValueError that names the examples whose loss is not finite or is negative, if there are any."""
    for bad, what, cure in (
        (~torch.isfinite(losses), "not finite", "check its weights and these examples"),
        (
            losses < 0,
            "negative",
            "pass a loss= that is at least 0; a constant added to it, here and in the selector, changes nothing",
        ),
    ):
        which = index[bad].sort().values.tolist()
        if which:
            raise ValueError(
                f"the loss of {len(which):,} of {len(index):,} examples under the irreducible-loss model is {what}: indices "
                f"{some(which)}; {cure}"
            )


def _classified(outputs: Any, targets: Any, n: int) -> tuple[Tensor | None, Tensor | None]:
    """The probability of the likeliest class, and whether it is the label, shape (n,) each; None for other tasks."""
    is_logits = isinstance(outputs, Tensor) and outputs.ndim == 2 and outputs.shape[1] > 1
    if not is_logits or not isinstance(targets, Tensor) or targets.shape != (n,) or targets.is_floating_point():
        return None, None
    probability, likeliest = outputs.float().softmax(1).max(1)
    return probability, likeliest == targets.to(likeliest.device)
