"""Scoring on an engine: one callable that turns batches of columns into ids and irreducible losses, in any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rholoss.arguments import device_named, flag, function, optional, shown, whole
from rholoss.irreducible.models import as_models, describe
from rholoss.irreducible.scoring_job import hook_settings, made_today, refuse_not_losses
from rholoss.isolation import device_of
from rholoss.losses import LabelError
from rholoss.scoring import Forward, Loss, Scorer, Task
from rholoss.store.metadata import StoreMetadata

LOSS, CLASS, PROBABILITY = "irreducible_loss", "suggested_class", "probability"
_COLUMNS = "columns by name, an Arrow table or record batch, a pandas frame, or an iterator of these"


class IrreducibleLossScorer:
    """Scores batches of columns with the irreducible-loss model: ids in, ids and losses out, in whatever process runs it.

    It can be pickled, and makes its model where it is first called: it serves as a function for ``datasets.map`` and Spark's
    ``mapInPandas``, and as a class for the actors of Ray Data. ``IrreducibleLossStore.from_table`` reads the results, in any
    order. The losses are those of ``from_model``, up to rounding.

    Args:
        model_factory: ``() -> model``: makes the irreducible-loss model, such as from a checkpoint that every worker can read. It
            may return several models, whose mean loss is taken, as for ``from_model``.
        task: ``forward``, ``loss`` and ``dtype`` in one, see ``rholoss.Task``; or pass them separately:
        forward: ``(model, batch) -> (outputs, targets)``; the batch is a dict of the columns without the ids: tensors of numbers,
            lists of anything else.
        loss: ``(outputs, targets) -> (n,)``, the same as the selector's.
        dtype: autocast dtype; None for the model's own precision.
        ids: the column of ids, which is returned as it is.
        batch_size: most examples in one forward pass, at least 1.
        suggest: also return the most likely class and its probability, of a classifier.
        device: where to score; None: on the worker's accelerator if it has one, else on the CPU.

    Examples:
        >>> import numpy as np, torch
        >>> from rholoss import IrreducibleLossScorer, IrreducibleLossStore
        >>> forward = lambda model, batch: (model(batch["x"]), batch["y"])
        >>> scorer = IrreducibleLossScorer(lambda: torch.nn.Linear(5, 3), forward=forward)
        >>> batch = {"id": np.array([7, 3]), "x": np.zeros((2, 5), np.float32), "y": np.array([0, 2])}
        >>> sorted(scorer(batch))
        ['id', 'irreducible_loss']
        >>> IrreducibleLossStore.from_table(scorer(batch)).ids
        tensor([3, 7])
    """

    def __init__(
        self,
        model_factory: Callable[[], Any],
        *,
        task: Task | None = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        dtype: torch.dtype | None = None,
        ids: str = "id",
        batch_size: int = 256,
        suggest: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(model_factory, nn.Module):
            what = f"a function () -> model, which every worker calls once, got the model {type(model_factory).__name__}"
            raise TypeError(f"model_factory must be {what}; pass a function that loads it")
        self.model_factory = function(model_factory, "model_factory", "() -> model")
        self.task = Task.of(task, forward, loss, dtype)
        if not isinstance(ids, str):
            raise TypeError(f"ids must be the name of a column, got {shown(ids)}")
        self.ids = ids
        self.batch_size = whole(batch_size, "batch_size", "a number of examples, at least 1")
        self.suggest = flag(suggest, "suggest")
        self.device = optional(device_named, device, "device")

    def __call__(self, batch: Any) -> Any:
        """Score a batch.

        Args:
            batch: columns by name, an Arrow table or record batch, a pandas frame, or an iterator of these.

        Returns:
            The same kind, with the column of ids and ``irreducible_loss``, float32, in nats; if asked for also
            ``suggested_class``, int64, and ``probability``, float32, in [0, 1].

        Raises:
            ValueError: a loss is not one value per example, not finite, or negative; the message lists the ids.
        """
        if isinstance(batch, Iterator):
            return map(self, batch)
        is_arrow, is_frame = hasattr(batch, "schema") and hasattr(batch, "num_rows"), hasattr(batch, "iloc")
        if not (is_arrow or is_frame or isinstance(batch, Mapping)):
            raise TypeError(f"batch must be {_COLUMNS}, got {shown(batch)}")
        names = batch.column_names if is_arrow else list(batch)
        if self.ids not in names:
            raise ValueError(f"expected a column of ids, {self.ids!r}, got the columns {names}; pass ids=, the name of yours")
        read = {name: _from_arrow(batch[name]) if is_arrow else batch[name] for name in names if name != self.ids}
        ids = batch[self.ids]
        found = self._scored(ids, {name: _tensor(column) for name, column in read.items()})
        if is_frame:
            return batch[[self.ids]].assign(**found)
        if is_arrow:
            return type(batch).from_pydict({self.ids: ids, **found})
        return {self.ids: ids, **found}

    def metadata(self) -> StoreMetadata:
        """What makes these losses, for ``IrreducibleLossStore.from_table(..., meta=)``; makes the model, to describe it."""
        models = [describe(model) for model in as_models(self.model_factory())]
        return StoreMetadata.of({"models": models, **hook_settings(self.task), "views": 1, **made_today()})

    @cached_property
    def _models(self) -> Any:
        models = as_models(self.model_factory())
        for model in models:
            self._scorer.refuse_causal(model)
            if isinstance(model, nn.Module) and (self.device or getattr(device_of(model), "type", "") == "cpu"):
                device = self.device or torch.accelerator.current_accelerator(check_available=True)
                model.to(device or "cpu")
        return models

    @cached_property
    def _scorer(self) -> Scorer:
        return Scorer(self.task, chunk_size=self.batch_size)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_models", "_scorer")}

    def _scored(self, ids: Any, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """The columns beside the ids."""
        n = len(ids)
        total: Any = 0.0
        for model in self._models if n else ():
            try:
                values = self._scorer.run(model, batch, n, self._measure).cpu().numpy().astype(float)
            except LabelError as error:
                raise ValueError(f"{error} (the example with id {_listed(ids)[error.row]})") from error
            refuse_not_losses(torch.arange(n), torch.from_numpy(values[:, 0]), lambda: _listed(ids))
            total = total + values
        mean = total / len(self._models) if n else np.zeros((0, 2))
        found = {LOSS: mean[:, 0].astype(np.float32)}
        if self.suggest:
            found |= {CLASS: mean[:, 1:].argmax(1), PROBABILITY: mean[:, 1:].max(1).astype(np.float32)}
        return found

    def _measure(self, outputs: Any, targets: Any, n: int) -> Tensor:
        """The loss of each of n examples, and then, for a suggestion, the probability of each class."""
        loss = self._scorer.losses(outputs, targets, n)[:, None]
        if not self.suggest:
            return loss
        if not isinstance(outputs, Tensor) or outputs.ndim != 2 or outputs.shape[1] < 2:
            got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise ValueError(f"suggest=True needs class logits, shape (n, C), got {got}; leave it out")
        return torch.cat([loss, outputs.float().softmax(1).to(loss.device)], 1)


def _listed(ids: Any) -> list[Any]:
    return ids.to_pylist() if hasattr(ids, "to_pylist") else list(ids)


def _from_arrow(column: Any) -> Any:
    """An Arrow column as an array, shape (n, ...), or a list of what are no numbers, or of rows of different lengths."""
    array = column.combine_chunks() if hasattr(column, "combine_chunks") else column
    if hasattr(array, "to_numpy_ndarray"):
        return array.to_numpy_ndarray()
    kind = str(array.type)
    if "list<" in kind and not array.null_count:
        inner = array.flatten()
        if not len(array) or array.value_lengths().unique().to_pylist() == [len(inner) // len(array)]:
            rows = _from_arrow(inner)
            return rows.reshape(len(array), -1, *rows.shape[1:]) if isinstance(rows, np.ndarray) and len(array) else rows
        return array.to_pylist()
    values = array.to_numpy(zero_copy_only=False)
    return values if values.dtype != object else array.to_pylist()


def _tensor(column: Any) -> Any:
    """A column as a tensor of its numbers; a list of what are no numbers, or have different shapes."""
    if isinstance(column, Tensor):
        return column
    if hasattr(column, "to_numpy"):  # of a frame
        column = column.to_numpy()
    if isinstance(column, np.ndarray) and column.dtype != object:
        array = column if column.flags.writeable else column.copy()
        return torch.from_numpy(array) if column.dtype.kind in "biufc" else column.tolist()
    rows = list(column)
    try:
        if rows and isinstance(rows[0], (np.ndarray, Tensor)):
            return torch.as_tensor(np.stack([np.asarray(row) for row in rows]))
        return torch.tensor(rows)
    except (TypeError, ValueError, RuntimeError):
        return rows
