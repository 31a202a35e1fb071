"""Irreducible losses by index, on the device where scoring happens."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.arguments import device_named, flag, optional, path_of, shown
from rholoss.data.fingerprint import fingerprint
from rholoss.data.index import as_index, tensor_of
from rholoss.data.loader_view import LoaderView
from rholoss.devices import to_device
from rholoss.options import ScoringOptions
from rholoss.store.arrays import StoreArrays
from rholoss.store.metadata import StoreMetadata
from rholoss.store.predictions import Predictions, checked_predictions
from rholoss.store.serialization import read_store, write_mapped, write_store

if TYPE_CHECKING:
    from rholoss.report import Report, Suspects


class IrreducibleLossStore:
    """The irreducible loss of every example: its loss under a model that never trained on it.

    Args:
        losses: irreducible losses in nats, at least 0, shape (N,), floating; NaN where an example has none. A tensor, an array, a
            list, or a column of a data frame. Kept as float32.
        ids: the index of each, shape (N,), int64, distinct, in any order; or a name of each, which is hashed, see
            ``rholoss.hash_ids``. None: the indices are 0 to N-1.
        meta: what made these losses: a ``StoreMetadata``, or JSON values by string. Saved with the store.
        predictions: what the models predicted for each, in the same order, see ``Predictions``; None: unknown.

    Attributes:
        losses: shape (N,), float32, in the order of the ids.
        ids: shape (N,), int64, ascending; None for indices 0 to N-1.
        meta: what made these losses, a ``StoreMetadata``.
        is_mapped: whether the arrays are memory-mapped files; pickled as their paths alone. ``to(device)`` is in memory.

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

    def __init__(
        self,
        losses: Any,
        ids: Any = None,
        *,
        meta: Mapping[str, Any] | StoreMetadata | None = None,
        predictions: Predictions | None = None,
    ) -> None:
        given = tensor_of(losses, "losses").detach()
        if not given.is_floating_point():
            raise TypeError(f"irreducible losses must be floating, got {given.dtype}")
        if given.ndim != 1:
            raise ValueError(f"irreducible losses must be one per example, shape (N,), got {tuple(given.shape)}")
        own = given.to(torch.float32, copy=True)
        order = None if ids is None else as_index(ids, "ids").to(own.device)
        self._arrays = StoreArrays.sorted(own, order, checked_predictions(predictions, len(own)))
        self.meta = StoreMetadata.of(meta)
        self._arrays.refuse_negative()

    @classmethod
    def from_model(
        cls,
        model: Any,
        data: Any,
        *,
        path: str | os.PathLike[str] | None = None,
        mapped: bool = False,
        distributed: bool = False,
        **options: Unpack[ScoringOptions],
    ) -> IrreducibleLossStore:
        """Score every example with the irreducible-loss model, in eval mode, without side effects on the model.

        Args:
            model: the irreducible-loss model: trained, but never on the examples of ``data``. Any callable, such as a pretrained
                or zero-shot classifier; a ``Fit``, which is checked not to have seen them; or several models, a list or
                ``Checkpoints``, whose mean loss is taken.
            data: the dataset that training will read (without augmentation, in the paper), a loader over it, or
                ``IndexedBatches``. Of a loader, the collate function, workers and sampler are used; a short last batch is kept.
            path: where to save the store. Finished work is kept beside it, in ``path.parts``: a run that was killed resumes, and
                the file comes out the same. If the finished store of the same model and data is there already, it is read.
            mapped: save it as a folder of memory-mapped arrays, for stores that are larger than memory.
            distributed: score a share on each rank of ``torch.distributed``, which all call this and all get the whole store;
                a ``path`` is on storage that all ranks share.
            **options: how to score, see ``rholoss.options.ScoringOptions``: ``forward``, ``loss`` and ``dtype``, or ``task``, as
                the selector gets them; ``batch_size``; ``views`` and ``seed`` of augmented data; ``top_classes``; ``progress``.

        Raises:
            ValueError: a loss is not one value per example, not finite, or negative; the model was fitted on some of the
                examples; or what is at ``path`` was made by something else.
        """
        from rholoss.irreducible.score import score_with_model

        return score_with_model(model, data, path=path, mapped=mapped, distributed=distributed, **options)

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
        **options: Unpack[ScoringOptions],
    ) -> IrreducibleLossStore | None:
        """Score the share of one of several processes, which need only see the same ``path`` and may run at different times.

        The process that finishes last saves the store, the same file as that of a single process, and returns it; the others
        return None. ``process`` is from 0 to ``processes`` - 1; all other arguments are those of ``from_model``.
        """
        from rholoss.irreducible.score import score_share

        return score_share(model, data, path, process=process, processes=processes, mapped=mapped, **options)

    @classmethod
    def from_predictions(
        cls,
        predictions: Any,
        targets: Any,
        ids: Any = None,
        *,
        kind: Literal["logits", "probabilities"] = "logits",
        meta: Mapping[str, Any] | None = None,
        top_classes: int = 0,
    ) -> IrreducibleLossStore:
        """Irreducible losses from what a classifier predicted elsewhere: its cross-entropy for the label of each example.

        Args:
            predictions: shape (N, C), floating: a tensor, an array (also a memory-mapped one, read a chunk at a time) or lists.
            targets: classes, shape (N,), integer.
            ids: see ``IrreducibleLossStore``.
            kind: whether the predictions are logits or probabilities.
            meta: what made them.
            top_classes: see ``rholoss.options.ScoringOptions``.

        Raises:
            ValueError: the shapes do not fit, probabilities do not sum to 1, or a loss is not finite; the message says which row.

        Examples:
            >>> IrreducibleLossStore.from_predictions([[0.25, 0.75], [0.5, 0.5]], [1, 0], kind="probabilities").losses
            tensor([0.2877, 0.6931])
        """
        from rholoss.irreducible.score import score_predictions

        return score_predictions(predictions, targets, ids, kind=kind, meta=meta, top_classes=top_classes)

    @classmethod
    def from_table(
        cls,
        source: Any,
        *,
        ids: str | None = "id",
        losses: str = "irreducible_loss",
        data: Any = None,
        path: str | os.PathLike[str] | None = None,
        meta: Mapping[str, Any] | StoreMetadata | None = None,
    ) -> IrreducibleLossStore:
        """Irreducible losses from a table whose rows are in any order, such as one that an engine scored.

        Args:
            source: a Parquet or Arrow file, a folder of Parquet files, an Arrow table or stream, a data frame, a data set of
                ``datasets``, pyarrow or Lance, or columns by name. Needs ``pip install 'rholoss[tables]'``.
            ids: the column of integers, or of names, which are hashed; None: the rows are in the order of the indices 0 to N-1.
            losses: the column of irreducible losses in nats, floating.
            data: the map-style dataset, or a loader over it, whose examples all must be there, and no others. None: any ids.
            path: where to write a memory-mapped store, in bounded memory. None: the store is in memory.
            meta: what made the losses, such as ``IrreducibleLossScorer.metadata()``; None: as ``write_table`` wrote it.

        Raises:
            ValueError: it names the file that is half written, or the ids that repeat or lack a finite loss; nothing is written.

        Examples:
            >>> IrreducibleLossStore.from_table({"id": [2, 0, 1], "irreducible_loss": [2.0, 0.5, 0.25]}).losses
            tensor([0.5000, 0.2500, 2.0000])
        """
        from rholoss.store.tables import store_from_table

        return store_from_table(source, ids=ids, losses=losses, data=data, path=path, meta=meta)

    def to_table(self) -> Any:
        """The known irreducible losses as an Arrow table: columns ``id`` and ``irreducible_loss``, the metadata in its schema."""
        from rholoss.store.tables import table_of

        return table_of(self)

    def write_table(self, path: str | os.PathLike[str]) -> None:
        """Write what ``to_table`` returns to one Parquet file, whole or not at all, in bounded memory."""
        from rholoss.store.tables import write_table

        write_table(self, path)

    def __len__(self) -> int:
        return len(self._arrays.losses)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Irreducible losses of the examples with these indices, shape (n,), in nats; NaN where an example has none.

        They are on the store's device, wherever the index is.

        Raises:
            IndexError: an index is outside 0 to N-1, for a store without ids on the CPU; elsewhere it gets NaN.
        """
        if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"index must be a tensor of indices, shape (n,), int64, got {shown(index)}")
        return self._arrays.look_up(to_device(index, self.device))

    losses = property(
        lambda self: self._arrays.checked.losses, doc="Irreducible losses, shape (N,), float32, in the order of the ids."
    )
    ids = property(lambda self: self._arrays.checked.ids, doc="Ids, shape (N,), int64, ascending; None for indices 0 to N-1.")
    predictions = property(lambda self: self._arrays.predictions, doc="What the models predicted; None without ``top_classes``.")
    device = property(lambda self: self._arrays.losses.device, doc="Where the arrays are.")
    is_mapped = property(lambda self: bool(self._arrays.files), doc="Whether the arrays are memory-mapped files.")

    @property
    def digest(self) -> str:
        """Hexadecimal digits that identify the losses and ids, in memory or mapped; computed once."""
        return self._arrays.digest

    @property
    def size(self) -> str:
        """How many examples, in words."""
        return f"{len(self):,} examples" + ("" if self._arrays.ids is None else " with ids")

    @property
    def coverage(self) -> float:
        """Share of the store's examples whose irreducible loss is known and finite, in [0, 1]."""
        return sum(int(torch.isfinite(part).sum()) for part in self.losses.split(1 << 20)) / max(len(self), 1)

    def __repr__(self) -> str:
        known = "mapped" if self._arrays.blocks else f"coverage={self.coverage:.1%}"  # which would read all of a large store
        return f"{type(self).__name__}({self.size}, {known}, device={self.device})"

    def to(self, device: torch.device | str) -> IrreducibleLossStore:
        """This store on a device; itself if it is there."""
        if isinstance(device, torch.device) and device == self.device:  # as in every step
            return self
        device = device_named(device)
        return self if device == self.device else self._like(self._arrays.to(device), self.meta)

    def rebind(self, data: Any) -> IrreducibleLossStore:
        """This store, for a dataset that holds the same examples in another form, such as under another transform.

        Args:
            data: the dataset, or a loader over it; the store is checked against its present content from here on.
        """
        LoaderView.of_data(data)  # refuses what is neither
        return self._like(self._arrays, replace(self.meta, data=fingerprint(data)))

    def _like(self, arrays: StoreArrays, meta: StoreMetadata) -> IrreducibleLossStore:
        twin = copy.copy(self)
        twin._arrays, twin.meta = arrays, meta
        return twin

    def merge(self, *others: IrreducibleLossStore, path: str | os.PathLike[str] | None = None) -> IrreducibleLossStore:
        """The examples of several stores; each example has an irreducible loss in at most one of them.

        Args:
            *others: stores of the same data, made with the same loss by the same model, or other folds of the same cross-fit.
            path: where to write a memory-mapped store, in bounded memory. None: the store is in memory.

        Raises:
            ValueError: an example has a loss in two of them, they hold different numbers of examples without ids, or their
                metadata differ in data, model or loss.
        """
        from rholoss.store.merging import merged

        return merged([self, *others], optional(path_of, path, "path"))

    def report(self, labels: Any = None, **options: Any) -> Report:
        """Judge this store before it is trusted: print what comes back, ``plot`` it, or look at its numbers.

        Args:
            labels: the label of each example, by index, shape (N,), integer, negative where it has none; or a dataset that shows
                them, or a loader over it. None: nothing is said by class.
            **options: see ``rholoss.report.report_on``: ``classes``, ``other``, ``plain_accuracy``, ``validation_loss``, ``top``.
        """
        from rholoss.report import report_on

        return report_on(self, labels, **options)

    def suspects(self, dataset: Any = None, **options: Any) -> Suspects:
        """The examples whose label is probably wrong, the worst first: see ``rholoss.report.find_suspects``."""
        from rholoss.report import find_suspects

        return find_suspects(self, dataset, **options)

    def save(self, path: str | os.PathLike[str], *, mapped: bool = False) -> None:
        """Write the store to one ``.npz`` file; if that fails, a file that was there stays as it was.

        Args:
            path: the file.
            mapped: write a folder of arrays instead, which ``load`` maps into memory rather than reads.

        Raises:
            OSError: it cannot be written.
        """
        path, mapped = path_of(path), flag(mapped, "mapped")
        arrays = self._arrays.checked.columns()
        if mapped:
            write_mapped(path, len(self), [arrays], self.meta.to_json())
        else:
            write_store(path, arrays, self.meta.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IrreducibleLossStore:
        """Read a store that ``save`` wrote, and check it against its checksums. Nothing in the file is ever executed.

        A folder is mapped. Up to 16,777,216 rows are checked now; of more, each block before its first number is returned. What
        another program writes into its files later, rather than saving a store in its place, is not noticed.

        Raises:
            OSError: there is no such file (``FileNotFoundError``), or it cannot be read.
            ValueError: the file is not a store, is damaged, or is of a newer format; the message names it.
        """
        path = path_of(path)
        arrays, meta = read_store(path)
        try:
            store = cls.of_arrays(arrays, meta)
            if not store.is_mapped:
                return cls(arrays["losses"], arrays.get("ids"), meta=meta, predictions=store.predictions)
            store._arrays.refuse_unsaved()
            return store
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}; make the store again") from error

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> IrreducibleLossStore:
        """A store over arrays that are in order and checked already, without a copy."""
        store = cls.__new__(cls)
        store._arrays, store.meta = StoreArrays.of(arrays), StoreMetadata.of(meta)
        return store
