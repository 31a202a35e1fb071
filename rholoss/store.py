"""Irreducible losses by index, on the device where scoring happens."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from typing import Any, Literal

import torch

from rholoss.fingerprint import fingerprint, labels_digest
from rholoss.ids import some, tensor_of
from rholoss.making import Making
from rholoss.predictions import losses_of_predictions
from rholoss.progress import Progress
from rholoss.provenance import merged, refuse_strangers
from rholoss.report import Report, report_on
from rholoss.scoring import Forward, Loss
from rholoss.shards import in_memory, on_disk, rank
from rholoss.table import LossTable


class IrreducibleLossStore(LossTable):
    """The irreducible loss of every example: its loss under a model that never trained on it.

    Args:
        losses: irreducible losses in nats, at least 0, shape (N,), floating; NaN where an example has none. A tensor, an array, a
            list, or a column of a data frame. Kept as float32.
        ids: the index of each, shape (N,), int64, distinct, in any order; or a name of each, which is hashed, see
            ``rholoss.hash_ids``. None: the indices are 0 to N-1.
        meta: what made these losses; JSON values by string. Saved with the store.

    Attributes:
        losses: shape (N,), float32, in the order of the ids.
        ids: shape (N,), int64, ascending; None for indices 0 to N-1.
        meta: what made these losses.
        is_mapped: whether the arrays lie in memory-mapped files. Such a store is pickled as where they lie, and mapped again by
            whoever unpickles it, if the files there are still the same; ``to(device)`` gives one that is in memory.

    Raises:
        ValueError: the losses are not one-dimensional, or negative, or the ids do not match them or repeat.
        TypeError: the losses are not floating.

    Examples:
        >>> import torch
        >>> store = IrreducibleLossStore([0.5, 0.25, 2.0])
        >>> store[torch.tensor([2, 0])]
        tensor([2.0000, 0.5000])
        >>> IrreducibleLossStore([0.5, 0.25], ids=[700, 40])[torch.tensor([40])]
        tensor([0.2500])
    """

    @classmethod
    def from_model(
        cls,
        model: Any,
        data: Any,
        *,
        forward: Forward | None = None,
        loss: Loss | None = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        views: int = 1,
        seed: int = 0,
        path: str | os.PathLike[str] | None = None,
        mapped: bool = False,
        distributed: bool = False,
        progress: Progress = None,
    ) -> IrreducibleLossStore:
        """Score every example with the irreducible-loss model, in eval mode, without leaving a trace in the model.

        Args:
            model: the irreducible-loss model: trained, but never on the examples of ``data``. Any callable, such as a pretrained
                or zero-shot classifier; a ``Fit``, which is checked not to have seen them; or several models, a list or
                ``Checkpoints``, whose mean loss is taken.
            data: the dataset that training will read (without augmentation, in the paper), a loader over it, or
                ``IndexedBatches``. Of a loader, the collate function, workers and sampler are used; no example is dropped at
                the end.
            forward: ``(model, batch) -> (outputs, targets)``; the one that the selector is given.
            loss: ``(outputs, targets) -> (n,)``; the one that the selector is given.
            batch_size: examples in one forward pass; None for the loader's own, or 256 for a dataset.
            dtype: autocast dtype; None for the model's own precision.
            views: passes over the data, whose mean loss is taken: for data that are augmented or masked at random.
            seed: of the augmentation, which is drawn alike with as many workers.
            path: where to save the store. The work done is kept beside it, in ``path.parts``, so that a run that was killed goes
                on from there; the file comes out the same. What is damaged there is scored anew. If the finished store is there
                already, it is read. Data that say themselves which examples they yield are not told from others.
            mapped: save it as a folder of memory-mapped arrays, for stores that are larger than memory.
            distributed: score a share on each rank of ``torch.distributed``, which all call this and all get the whole store;
                with a ``path``, it is one that all of them see.
            progress: ``True`` for a bar (needs the extra ``rholoss[progress]``), ``False`` for none, None for a bar on a terminal
                where it is installed, or a function called with (examples done, examples in all or None).

        Raises:
            ValueError: a loss is not one value per example, not finite, or negative; the model was fitted on some of the
                examples; or what is at ``path`` was made by something else.
        """
        making = Making(
            model, data, forward=forward, loss=loss, batch_size=batch_size, dtype=dtype, views=views, seed=seed, progress=progress
        )
        if path is None:
            return cls._of(*in_memory(making, distributed))
        process, processes = rank() if distributed else (0, 1)
        whole = on_disk(making, os.fsdecode(path), mapped, process, processes)
        if distributed:
            torch.distributed.barrier()
            whole = whole or on_disk(making, os.fsdecode(path), mapped, process, processes)
        assert whole
        return cls.load(path)

    @classmethod
    def score_share(
        cls,
        model: Any,
        data: Any,
        path: str | os.PathLike[str],
        *,
        process: int,
        processes: int,
        mapped: bool = False,
        **options: Any,
    ) -> IrreducibleLossStore | None:
        """Score one process's share of the data; whichever process is done last saves the store at ``path`` and returns it.

        The processes need know nothing of each other, and may run at different times, if they see the same ``path``. The file is
        the one that a single process writes.

        Args:
            model: see ``from_model``.
            data: see ``from_model``.
            path: see ``from_model``.
            mapped: see ``from_model``.
            process: which process this is, from 0 to ``processes`` - 1.
            processes: how many there are.
            **options: of ``from_model``.

        Returns:
            The store, or None while other shares are missing.
        """
        if not 0 <= process < processes:
            raise ValueError(f"process must be from 0 to processes - 1, got process={process} of processes={processes}")
        whole = on_disk(Making(model, data, **options), os.fsdecode(path), mapped, process, processes)
        return cls.load(path) if whole else None

    @classmethod
    def from_predictions(
        cls,
        predictions: Any,
        targets: Any,
        ids: Any = None,
        *,
        kind: Literal["logits", "probabilities"] = "logits",
        meta: Mapping[str, Any] | None = None,
    ) -> IrreducibleLossStore:
        """Irreducible losses from what a classifier predicted elsewhere: its cross-entropy for the label of each example.

        Args:
            predictions: shape (N, C), floating: a tensor, an array (also a memory-mapped one, read a part at a time) or lists.
            targets: classes, shape (N,), integer.
            ids: see ``IrreducibleLossStore``.
            kind: whether the predictions are logits or probabilities.
            meta: what made them.

        Raises:
            ValueError: the shapes do not fit, probabilities do not sum to 1, or a loss is not finite; the message says which row.

        Examples:
            >>> import torch
            >>> store = IrreducibleLossStore.from_predictions([[0.25, 0.75], [0.5, 0.5]], [1, 0], kind="probabilities")
            >>> store.losses
            tensor([0.2877, 0.6931])
        """
        losses, tally = losses_of_predictions(predictions, targets, kind)
        known = {"length": len(losses), "labels": labels_digest(tensor_of(targets)), "sample": {}} if ids is None else None
        return cls(losses, ids, meta={"data": known, "loss": "default_loss", "tally": tally.state(), **(meta or {})})

    def merge(self, *others: IrreducibleLossStore) -> IrreducibleLossStore:
        """The examples of several stores; each example's irreducible loss may be known to one of them only.

        Args:
            *others: stores of the same data, made with the same loss by the same model, or other folds of the same cross-fit.

        Raises:
            ValueError: two know some example, they hold different numbers of examples without ids, or their metadata say that
                they were made from other data, by another model or with another loss.
        """
        together = self
        for other in others:
            together = together._with(other.to(self.device))
        ids, n = together.ids, (together.meta.get("data") or {}).get("length")
        if others and ids is not None and 0 < len(ids) == n and int(ids[0]) == 0 and int(ids[-1]) == n - 1:
            return IrreducibleLossStore(together.losses, meta=together.meta)
        return together

    def _with(self, other: IrreducibleLossStore) -> IrreducibleLossStore:
        if (self.ids is None) != (other.ids is None) or (self.ids is None and len(self) != len(other)):
            raise ValueError(
                f"stores without ids must hold the same examples to be merged, got {self.size} and {other.size}; give both "
                "of them ids, or neither"
            )
        refuse_strangers(self.meta, other.meta)
        if self.ids is None or other.ids is None:
            ids = torch.arange(len(self), device=self.device)
        else:
            ids = torch.cat([self.ids, other.ids]).unique()
        mine, theirs = self[ids], other[ids]
        both = ~(torch.isnan(mine) | torch.isnan(theirs))
        if both.any():
            raise ValueError(
                f"{int(both.sum()):,} examples have an irreducible loss in both stores: indices {some(ids[both].tolist())}"
            )
        losses = torch.where(torch.isnan(mine), theirs, mine)
        return IrreducibleLossStore(losses, None if self.ids is None else ids, meta=merged(self.meta, other.meta))

    def belongs_to(self, data: Any) -> IrreducibleLossStore:
        """This store, for a dataset that holds the same examples in another form, such as under another transform.

        Args:
            data: the dataset, or a loader over it; what it looks like now is what the store is checked against from here on.
        """
        twin = copy.copy(self)
        twin.meta = {**self.meta, "data": fingerprint(data)}
        return twin

    def report(
        self,
        labels: Any = None,
        *,
        classes: int | None = None,
        other: IrreducibleLossStore | None = None,
        plain_accuracy: float | None = None,
        validation_loss: float | None = None,
        top: int = 5,
    ) -> Report:
        """Judge this store before it is trusted: print what comes back, ``plot`` it, or look at its numbers.

        Args:
            labels: the label of each example, by index, shape (N,), integer, negative where it has none; or a dataset that shows
                them, or a loader over it. None: nothing is said by class.
            classes: C, where the loss is a cross-entropy; None for that of the models' outputs, or else the highest label + 1.
            other: a store of the same data by a model fitted on another half: how far do they agree?
            plain_accuracy: of the model in training, without selection, on such labels that it did not train on, in [0, 1]: is
                the irreducible-loss model too weak?
            validation_loss: of the fit of the irreducible-loss model, in nats: was its holdout cleaner than these labels? None:
                that of the ``Fit`` that made the store, if one did.
            top: how many of the highest and of the lowest irreducible losses to name.
        """
        given: dict[str, Any] = {"plain_accuracy": plain_accuracy, "validation_loss": validation_loss}
        return report_on(self, labels, classes=classes, other=other, top=top, **given)
