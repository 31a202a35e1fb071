"""Attaching the index where an example is read, and removing it before the user's collate function."""

import copy
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset, default_collate, get_worker_info

from rholoss.batches import Rows
from rholoss.data.collate_checks import check_examples, check_order, check_rows
from rholoss.data.index import CARRY_THE_INDEX, IndexedBatch, as_index, copy_loader
from rholoss.data.subset import index_of, whole_of


def attach_index(loader: DataLoader[Any], **changes: Any) -> DataLoader[Any]:
    """A copy of a map-style loader that yields ``IndexedBatch``; the index is attached as the dataset is read, in the worker."""
    return copy_loader(
        loader,
        dataset=_IndexedDataset(loader.dataset, stacks=loader.collate_fn is default_collate),
        collate_fn=_IndexedCollate(loader.collate_fn),
        worker_init_fn=_WorkerInit(loader.worker_init_fn),
        **changes,
    )


class _Read(NamedTuple):
    """What was read from a dataset: examples for the collate function, or a whole batch whose columns were read at once."""

    index: Any
    examples: Any
    is_batch: bool = False


class _IndexedDataset:
    """Reads from a dataset and reports the indices; ``stacks``: examples are only stacked, so tensor rows are read at once."""

    def __init__(self, dataset: Any, stacks: bool = False) -> None:
        self.dataset = dataset
        base = whole_of(dataset)
        self.columns: Any = base.tensors if stacks and type(base) is TensorDataset and all(map(_is_plain, base.tensors)) else None

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> _Read:
        return _Read(index_of(self.dataset, index), self.dataset[index])

    def __getitems__(self, indices: Any) -> _Read:
        dataset = self.dataset
        if self.columns is not None and indices:
            rows = index_of(dataset, as_index(list(indices)))
            return _Read(rows, [Rows(rows).tensor(column) for column in self.columns], is_batch=True)
        read_many = getattr(dataset, "__getitems__", None)
        if read_many is None:
            return _Read(index_of(dataset, indices), [self._example(i) for i in indices])
        asked = copy.copy(indices)  # the dataset may sort the list in place
        return _Read(index_of(dataset, asked), read_many(indices))

    def _example(self, position: Any) -> Any:
        try:
            return self.dataset[position]
        except IndexError as error:
            what = f"{type(self.dataset).__name__} has {len(self.dataset):,} examples by its __len__, and fails at {position}"
            why = f" ({error})" if str(error) else ""
            raise IndexError(f"{what}{why}; let __getitem__ return an example for every index below its __len__") from error


def _is_plain(column: Tensor) -> bool:
    return type(column) is Tensor and column.layout == torch.strided and not column.requires_grad


class _IndexedCollate:
    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn
        self.calls = 0

    def __call__(self, read: _Read) -> IndexedBatch:
        examples, collate = read.examples, self.collate_fn
        if read.is_batch:
            return IndexedBatch(read.index, examples)
        index = as_index(read.index)
        if collate is default_collate:  # it keeps the order of its examples
            try:
                return IndexedBatch(index, default_collate(examples))
            except Exception:
                check_examples(read.index, examples, collate)
                raise
        before = list(examples) if isinstance(examples, list) else []
        check_examples(read.index, examples, collate)
        batch = collate(examples)
        moved = any(map(operator.is_not, before, examples))
        if moved and set(map(id, before)) == set(map(id, examples)):
            raise ValueError(f"the collate_fn sorted its examples, so that their indices are lost; {CARRY_THE_INDEX}")
        check_rows(len(index), batch, collate)
        self.calls += 1
        if before and self.calls & (self.calls - 1) == 0:  # now and then, as it compares contents
            check_order(before, batch, collate)
        return IndexedBatch(index, batch)


class _WorkerInit:
    """Shows code in a worker the user's own dataset, then runs the user's ``worker_init_fn``."""

    def __init__(self, worker_init_fn: Callable[[int], None] | None) -> None:
        self.worker_init_fn = worker_init_fn

    def __call__(self, worker_id: int) -> None:
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, _IndexedDataset):
            object.__setattr__(info, "dataset", info.dataset.dataset)  # WorkerInfo refuses a plain assignment
        if self.worker_init_fn is not None:
            self.worker_init_fn(worker_id)
