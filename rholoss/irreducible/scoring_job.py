"""The computation of irreducible losses with models, one chunk of the data at a time."""

import datetime
import json
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss._version import __version__
from rholoss.arguments import whole
from rholoss.data.fingerprint import fingerprint
from rholoss.data.index import some
from rholoss.data.subset import origin
from rholoss.dataset_scoring import DatasetScorer
from rholoss.irreducible.fit import Fit, judge_duplicates
from rholoss.irreducible.models import as_models, code_digest, describe
from rholoss.losses import callable_name, classes_of, default_loss
from rholoss.options import ScoringOptions
from rholoss.progress import Reporter
from rholoss.scoring import Task, default_forward
from rholoss.states import digest
from rholoss.store.metadata import CalibrationCounts
from rholoss.store.predictions import Predictions

CHUNK = 65_536  # maximum number of examples to score, and write, at a time
PIECES = 16  # chunks of smaller data


class Scored(NamedTuple):
    """A chunk of the data with its irreducible losses, in nats, and the calibration of the models on it."""

    index: Tensor  # type: ignore[assignment]  # (m,) int64; shadows tuple.index, on purpose
    losses: Tensor  # (m,) float32
    calibration: CalibrationCounts
    predictions: Predictions | None = None  # of m rows


class ScoringJob:
    """Computes the mean loss under one model or several; ``settings`` determines it: fields of ``StoreMetadata``, as JSON."""

    def __init__(self, model: Any, data: Any, **options: Unpack[ScoringOptions]) -> None:
        self.views = views = whole(options.get("views", 1), "views", "a number of passes over the data, at least 1")
        self.top_classes = k = top_classes_of(options.get("top_classes", 0))
        self.scorer = DatasetScorer(data, **options)
        self.models = as_models(model)
        refuse_seen(model, self.scorer)
        self._done = self._classes = 0
        self._report = Reporter(options.get("progress"))
        task = self.scorer.scorer.task
        dtype = str(task.dtype) if task.dtype else None
        settings = {
            "data": fingerprint(data),
            "models": [describe(each) for each in self.models],
            **hook_settings(task),
            "views": views,
            "scoring": {"batch_size": self.scorer.batch_size, "dtype": dtype, "seed": self.scorer.seed}
            | ({"top_classes": k} if k else {}),
            "examples": self._examples(),
            "validation_loss": _validation_loss(model),
        }
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as read back from a file

    @property
    def is_dense(self) -> bool:
        """Whether the chunks hold the examples 0 to N-1 in order."""
        return self.settings["data"] is not None and self.settings["examples"] == [self.scorer.view.dataset_length, None]

    def chunks(self) -> list[range | None]:
        """The rows of each chunk, starting at a multiple of the batch size; one None if unknown until sampled."""
        positions = self.scorer.positions
        if positions is None:
            return [None]
        if not len(positions):
            raise ValueError("expected at least one example to score, got none")
        size = self.scorer.batch_size or 1
        step = -(-min(CHUNK, -(-len(positions) // PIECES)) // size) * size
        return [range(start, min(start + step, len(positions))) for start in range(0, len(positions), step)]

    def score(self, rows: range | None) -> Scored:
        """Score a chunk; a ValueError if a loss is not one value per example, not finite, or negative."""
        try:
            return self._score(rows)
        except BaseException:
            self._report.close()  # so that the error has a line of its own
            raise

    def _score(self, rows: range | None) -> Scored:
        counts = CalibrationCounts()
        predicted: Tensor | None = None  # over all passes: the labels, and the sums of the probabilities of all classes
        halves: list[np.ndarray | float] = [0.0, 0.0]  # sums of losses under every other model
        of_each = [(len(self.models) + 1) // 2, len(self.models) // 2]
        index = torch.empty(0, dtype=torch.int64)
        for i, model in enumerate(self.models):
            for view in range(self.views):
                index, values = self.scorer.run(model, self._measure, rows=rows, view=view, seen=self._seen)
                table = values.numpy().astype(float)
                refuse_not_losses(index, values[:, 0])
                halves[i % 2] = halves[i % 2] + table[:, 0]
                if self.top_classes:
                    predicted = self._predicted(values[:, 3:], predicted)
                if table.shape[1] >= 3:
                    counts.classes = self._classes
                    counts.count(table[:, 1], table[:, 2])
        counts.formula = self.scorer.scorer.check.formula
        means = [half / (n * self.views) for half, n in zip(halves, of_each, strict=True) if n]
        if len(means) == 2:
            counts.compare(np.asarray(means[0]), np.asarray(means[1]))
        losses = (halves[0] + halves[1]) / (sum(of_each) * self.views)
        return Scored(index, torch.from_numpy(np.asarray(losses, np.float32)), counts, self._kept(predicted))

    @property
    def _passes(self) -> int:
        return len(self.models) * self.views

    def _predicted(self, values: Tensor, before: Tensor | None) -> Tensor:
        """What ``_measure`` says of the predictions, with the probabilities of the passes before added."""
        if not values.shape[1]:
            raise ValueError(
                "top_classes keeps the predictions of a classifier: expected outputs of shape (n, C), C at least 2, and labels "
                "of shape (n,), integer, got others; leave top_classes out"
            )
        return values if before is None else torch.cat([values[:, :1], before[:, 1:] + values[:, 1:]], 1)

    def _kept(self, predicted: Tensor | None) -> Predictions | None:
        """The predictions to keep, averaged over the passes."""
        if predicted is None:
            return None
        if self._passes > 1:
            return Predictions.of(predicted[:, 1:] / self._passes, predicted[:, 0].long(), self.top_classes)
        classes, probabilities = predicted.chunk(2, 1)
        return Predictions(classes.int().contiguous(), probabilities.contiguous())

    def _measure(self, outputs: Any, targets: Any, n: int) -> Tensor:
        """For each of n examples the loss; for a classifier also its confidence, and whether it is correct.

        With ``top_classes``, then the predictions: all that is kept of them where one pass decides; where several do, the label,
        and the probabilities of all classes, to add up.
        """
        loss = self.scorer.scorer.losses(outputs, targets, n)
        classes = classes_of(outputs, targets)
        if not classes:
            return loss[:, None]
        self._classes = classes
        probabilities, labels = outputs.float().softmax(1), targets.to(outputs.device).long()
        confidence, likeliest = probabilities.max(1)
        confidence = confidence.masked_fill(
            (labels < 0) | (labels >= classes), math.nan
        )  # such as -100: there is no label to meet
        columns = [loss[:, None], confidence[:, None], (likeliest == labels)[:, None]]
        if self.top_classes and self._passes > 1:
            columns += [labels[:, None], probabilities]
        elif self.top_classes:
            columns += Predictions.of(probabilities, labels, self.top_classes)
        return torch.cat([column.to(loss.device).float() for column in columns], 1)

    def _examples(self) -> list[Any]:
        """How many examples, and a digest of which if they are a part of the data."""
        positions, view = self.scorer.positions, self.scorer.view
        data = origin(view.dataset)[1] if view.dataset_length is not None else None
        which = [part.numpy().tobytes() for part in (data, positions) if part is not None]
        whole = data is None and positions is not None and len(positions) == view.dataset_length
        return [self.scorer.total, None if whole or not which else digest(b"".join(which))]

    def passed(self, rows: range | None) -> None:
        """Count a chunk that was scored before as done."""
        self._seen(len(rows) * len(self.models) * self.views if rows is not None else 0)

    def _seen(self, n: int) -> None:
        self._done += n
        total = self.scorer.total
        self._report(self._done, None if total is None else total * len(self.models) * self.views)


def top_classes_of(value: Any) -> int:
    """How many of the most likely classes to keep: 0, or at least 2, of which one is not the label."""
    expected = "how many of the most likely classes to keep: 0, or at least 2"
    k = whole(value, "top_classes", expected, 0)
    return whole(k, "top_classes", expected, 2) if k else 0


def hook_settings(task: Task) -> dict[str, Any]:
    """The names and the code of the functions of a task."""
    hooks = ((task.forward, default_forward), (task.loss, default_loss))
    code = [None if hook is default else code_digest(hook) for hook, default in hooks]
    return {"loss": callable_name(task.loss), "forward": callable_name(task.forward), "code": code}


def made_today() -> dict[str, Any]:
    """The date, UTC (that of ``SOURCE_DATE_EPOCH`` if set), and the versions."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    moment = datetime.datetime.fromtimestamp(int(epoch), datetime.timezone.utc) if epoch else None
    day = (moment or datetime.datetime.now(datetime.timezone.utc)).date().isoformat()
    return {"made": day, "versions": {"rholoss": __version__, "torch": torch.__version__, "numpy": np.__version__}}


def refuse_seen(model: Any, scorer: DatasetScorer) -> None:
    """Raise a ValueError if a ``Fit`` trained or was validated on examples that are to be scored; warn of a few duplicates."""
    view = scorer.view
    for fit in model if isinstance(model, (list, tuple)) else [model]:
        if not (isinstance(fit, Fit) and view.dataset_length):
            continue
        by_index, by_content = fit.seen_among(view.dataset, scorer.positions)
        what = f"the irreducible-loss model was fitted on {by_index:,} of the {scorer.total:,} examples to score"
        cure = "so that their irreducible losses are too low: score other parts of the dataset, or use cross_fit"
        if by_index:
            raise ValueError(f"{what}, {cure}")
        known = "examples to score have the content of examples that the irreducible-loss model was fitted on"
        judge_duplicates(by_content, scorer.total or 0, known, f"{cure} (or pass fit.model if different examples look the same)")


def _validation_loss(model: Any) -> float | None:
    """The mean validation loss of the fits, if all models come from a fit."""
    fits = model if isinstance(model, (list, tuple)) else [model]
    if not all(isinstance(fit, Fit) for fit in fits):
        return None
    return sum(fit.best.validation_loss for fit in fits) / len(fits)


def refuse_not_losses(index: Tensor, losses: Tensor, names: Callable[[], list[Any]] | None = None) -> None:
    """Raise a ValueError with the indices, or the names by index, of losses that are not finite or are negative."""
    shift = "pass a loss= that is at least 0; a constant added to it, here and in the selector, changes nothing"
    not_finite = (~torch.isfinite(losses), "not finite", "check its weights and these examples")
    for bad, what, cure in (not_finite, (losses < 0, "negative", shift)):
        which = index[bad].sort().values.tolist()
        if which:
            loss = f"the loss of {len(which):,} of {len(index):,} examples under the irreducible-loss model"
            named = f"ids {some([names()[i] for i in which])}" if names else f"indices {some(which)}"
            raise ValueError(f"{loss} is {what}: {named}; {cure}")
