"""Candidate batches from the user's loader, resumable at any position."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from rholoss.arguments import function, optional, shown, whole
from rholoss.data.collate_checks import check_rows
from rholoss.data.epoch_state import EpochState, Pass
from rholoss.data.index import IndexedBatch, IndexedBatches, check_indexed, idle
from rholoss.data.loader_view import LoaderView
from rholoss.data.samplers import (
    CandidateBatchSampler,
    MemberSampler,
    RandomStates,
    ResumableSampler,
    are_same,
    check_random_states,
    sharded,
    sharded_as,
    skipped,
)
from rholoss.isolation import fork_rng
from rholoss.states import OF_THE_POSITION, taken

KEPT = "_iterator"
"""Where a ``DataLoader`` keeps its iterator if its workers live from epoch to epoch."""


@dataclass(frozen=True)
class DrawRule:
    """What a method decides before anything is loaded.

    Attributes:
        members: which examples may be drawn, by index, shape (N,), bool; None: all. Or a function that returns that. It is called
            when an epoch begins and whenever the length of an epoch is needed, so it must be a cheap look-up. Under a sampler
            with replacement, an epoch stays as long as the loader's.
        prefilter: ``(index, step) -> positions``: of the indices drawn for a candidate batch, shape (n_B,), int64, and the number
            of batches selected so far, the positions to load, distinct, int64; None for all. It must not run the model. With
            workers, it is called ahead of its step.
        n_B: examples to draw for a candidate batch; None: as ``keep`` sets; n_b where every drawn example is trained on.
    """

    members: Tensor | Callable[[], Tensor] | None = None
    prefilter: Callable[[Tensor, int], Tensor | None] | None = None
    n_B: int | None = None  # noqa: N815

    def __post_init__(self) -> None:
        optional(function, self.prefilter, "prefilter", "(index, step) -> positions")
        optional(whole, self.n_B, "n_B", "a number of examples, at least 1, or None")
        members = function(self.members, "members", "() -> one bool per example") if callable(self.members) else self.members
        is_mask = isinstance(members, Tensor) and members.dtype == torch.bool and members.ndim == 1
        if not (members is None or is_mask or callable(members)):
            what = "one bool per example, shape (N,), a function that returns that, or None"
            raise TypeError(f"members must be {what}, got {shown(members)}; make it with torch.zeros(N, dtype=torch.bool)")


class CandidateIterator:
    """One pass over the candidate batches, or the rest of one, which counts from the first batch that is asked for.

    As a loader's, it begins as it is made, and survives an error of one batch.
    """

    def __init__(self, loader: CandidateLoader, state: EpochState, n_b: int, drop_last: bool, may_be_empty: bool) -> None:
        self._loader, self._state, self._n_b, self._drop_last, self._may_be_empty = loader, state, n_b, drop_last, may_be_empty
        self._ends = max(1, loader.view.loader.num_workers) if loader.view.is_stream else 1  # of each worker of a stream
        self._last = n_b  # examples in the latest batch
        self._this: Pass | None = None
        self._is_entered = False
        self._this, self._items = loader.open()

    def __iter__(self) -> CandidateIterator:
        return self

    def __next__(self) -> IndexedBatch:
        if not self._is_entered:
            self._enter()
        while True:
            item = self._next_item()
            self._last = len(item.index)
            self._ends -= self._last < self._n_b
            if self._last >= self._n_b or not self._drop_last:
                return item

    def _enter(self) -> None:
        assert self._this is not None
        if self._state.is_stale(self._this):
            self.close()
            self._this, self._items = self._loader.open()
        self._state.enter(self._this)
        self._is_entered = True

    def _next_item(self) -> IndexedBatch:
        assert self._this is not None
        try:
            item = next(self._items)
        except StopIteration:
            spent = self._state.iteration is self._this and self._state.position == 0 and not self._may_be_empty
            self.close()
            why = "nothing to iterate: expected batches that can be iterated again, got a spent iterator"
            raise (ValueError(why) if spent else StopIteration) from None
        except Exception:
            self._state.advance(self._this)  # the batch is gone, and the next one can be read
            raise
        if not self._ends:
            self.close()
            what = f"a candidate batch has {self._last} examples, fewer than n_b = {self._n_b}, and it is not the last"
            raise ValueError(f"{what}; pass a smaller batch_size, or larger batches")
        self._state.advance(self._this)
        item = check_indexed(item, self._loader.view.loader)
        if self._loader.view.reports_index:
            check_rows(len(item.index), item.batch)
        return item

    def close(self) -> None:
        """End the pass: the next iteration begins another one."""
        self._items, self._is_entered = iter(()), True
        if self._this is not None:
            self._state.leave(self._this)

    def __del__(self) -> None:
        self.close()


class CandidateLoader:
    """Candidate batches of ``n_B`` examples drawn with a loader's sampler, as ``IndexedBatch``; None: its own batches.

    ``members`` is that of ``DrawRule``; ``prefilter`` returns the positions to load, of those drawn for a candidate batch. A last
    batch of fewer than ``least`` is dropped unread, where batches are drawn.
    """

    def __init__(
        self,
        view: LoaderView,
        n_B: int | None = None,
        members: Tensor | Callable[[], Tensor] | None = None,
        prefilter: Callable[[list[int]], list[int]] | None = None,
        state: EpochState | None = None,
        least: int = 1,
    ) -> None:
        view.require_index()
        self.view = view
        self._state = EpochState() if state is None else state
        self._n_B = n_B
        self._sampler: ResumableSampler | None = None
        self.batches: Any = view.drawing(**self._changes(n_B, members, prefilter, least))

    def _changes(self, n_B: int | None, members: Any, prefilter: Any, least: int) -> dict[str, Any]:
        """The changes that make the loader draw candidate batches, resumable at any position."""
        view, loader = self.view, self.view.loader
        decides = members is not None or prefilter is not None
        if decides and not (n_B and view.draws_by_index and view.batching is not None):
            needs = "a DataLoader over a map-style dataset with a sampler of single indices, and keep= rather than batch_size="
            raise ValueError(f"this method decides before examples are loaded: it needs {needs}")
        if n_B is None:
            if not view.is_map_style:
                return {}
            name = "sampler" if loader.batch_sampler is None else "batch_sampler"
            self._sampler = ResumableSampler(getattr(loader, name), loader.generator, self._state)
            return {name: self._sampler}
        assert view.batching is not None
        sampler = view.batching.sampler
        if members is not None:
            sampler = MemberSampler(sampler, members, view.dataset)
        is_shard = sharded(loader.batch_sampler) is not None
        batching: Any = type(view.batching)(sampler, n_B, drop_last=False)
        if prefilter is not None or (least > 1 and not is_shard):  # ranks have to agree on the end
            batching = CandidateBatchSampler(sampler, n_B, prefilter, 1 if is_shard else least)
        if is_shard:
            batching = sharded_as(loader.batch_sampler, batching, None if prefilter else n_B)
        if view.is_map_style:
            batching = self._sampler = ResumableSampler(batching, loader.generator, self._state)
        return {"batch_sampler": batching, "batch_size": n_B, "drop_last": False}

    def __iter__(self) -> Iterator[IndexedBatch]:
        return self.epoch(0, drop_last=False)

    def epoch(self, n_b: int, drop_last: bool) -> CandidateIterator:
        """An epoch's candidate batches, or the remaining ones when resuming.

        Only the last batch may have fewer than ``n_b`` examples; in a stream, the last of each worker. ``drop_last`` drops it.
        """
        return CandidateIterator(self, self._state, n_b, drop_last, self._sampler is not None)

    def open(self) -> tuple[Pass, Iterator[Any]]:
        """Begin a pass, or the rest of one; the loader draws a seed and starts its workers, and nothing is counted yet."""
        self._undo_unused()
        this = self._state.open(self._random_states())
        try:
            items = self._rest(this) if this.resumes else self._whole(this)
        finally:
            self._state.opening = None
        this.after, self._state.unused = self._random_states(), this
        return this, items

    def _undo_unused(self) -> None:
        """Put back what a pass drew that was given up unused: Lightning's check of a loader makes one, before its own."""
        this = self._state.unused
        if this is not None and this.closed and not this.resumes and are_same(this.after, self._random_states()):
            self._put_back(this.began[0] if self._has_workers and this.draws else this.before)

    def _whole(self, this: Pass) -> Iterator[Any]:
        """The loader's items."""
        if self._sampler is None:
            this.began = this.before
        else:
            self._sampler.rewind = self._sampler.states() if self._state.seed_was_drawn else None
        return iter(self.batches)

    def _rest(self, this: Pass) -> Iterator[Any]:
        """The loader's items after those that were taken before, as an uninterrupted epoch would yield them."""
        if self._sampler is None:
            return chain.from_iterable(map(self._rest_of_stream, [this]))  # nothing is read before the first is asked for
        with fork_rng():  # iterating draws a seed, which the epoch in progress has already drawn
            if not this.skip:
                self._sampler.put_back(this.before)
            return iter(self.batches)

    def _rest_of_stream(self, this: Pass) -> Iterator[Any]:
        loader = self.view.loader
        is_own = isinstance(self.batches, IndexedBatches) and self.batches.batches is loader
        is_restored = is_own and getattr(loader, "next_iter_state", None) is not None  # a StatefulDataLoader
        with fork_rng():
            torch.set_rng_state(this.began[0].cpu())
            return iter(self.batches) if is_restored else skipped(iter(self.batches), this.skip)

    def _random_states(self) -> RandomStates:
        return (torch.get_rng_state(), {}) if self._sampler is None else self._sampler.states()

    def _put_back(self, states: RandomStates) -> None:
        torch.set_rng_state(states[0]) if self._sampler is None else self._sampler.put_back(states)

    @property
    def reader(self) -> Any:
        """The loader that reads, without ``IndexedBatches`` around it."""
        return self.batches.batches if isinstance(self.batches, IndexedBatches) else self.batches

    @property
    def _has_workers(self) -> bool:
        """Whether there are workers that live from epoch to epoch."""
        return bool(getattr(self.reader, "persistent_workers", False)) and getattr(self.reader, KEPT, None) is not None

    def __len__(self) -> int:
        return len(self.batches)

    def count(self, n_b: int, drop_last: bool) -> int:
        """Selected batches in an epoch; at most one too many, where the size of the last candidate batch is unknown."""
        batching = self._sampler.sampler if self._sampler else None
        tail = 0
        if drop_last and self.view.is_stream and self._n_B and hasattr(self.view.dataset, "__len__"):
            tail = len(self.view.dataset) % self._n_B
        if drop_last and isinstance(batching, BatchSampler) and not (sharded(batching) or getattr(batching, "drop_last", True)):
            tail = len(batching.sampler) % batching.batch_size if getattr(batching, "least", 1) == 1 else 0  # type: ignore[arg-type]
        return len(self) - (0 < tail < n_b)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to the loader's sampler and dataset, where they have ``set_epoch``."""
        self._state.told = epoch
        self.view.set_epoch(epoch)

    def state(self) -> dict[str, Any]:
        """The position, the random states at the start of the epoch, and the current states of the generators."""
        if self._state.position and not self._is_in_order():
            what = "a state in mid-epoch needs batches in the order of the sampler"
            got = f"got a DataLoader with in_order=False and num_workers={self.reader.num_workers}"
            raise ValueError(f"{what}, {got}; pass in_order=True, or save at the end of an epoch")
        return {
            **self._state.state(),
            "generators": {} if self._sampler is None else self._sampler.own_states(),
            "workers": self._has_workers,
            "N": self.view.dataset_length,
            "labels": self.view.labels,
        }

    def _is_in_order(self) -> bool:
        """Whether the batches taken are the first ones of the epoch: all of them are."""
        if getattr(self.reader, "in_order", True) or not self.reader.num_workers:
            return True
        return hasattr(self._sampler, "__len__") and self._state.position == len(self)

    def checked(self, state: dict[str, Any], differ: Collection[str] = (), allow: Collection[str] = ()) -> dict[str, Any]:
        """A state, without its position if one of the settings that ``differ`` is needed for it; nothing is changed.

        Raises:
            ValueError: it is damaged, or saved in mid-epoch over other data, which ``allow`` does not name.
        """
        self._state.check(state)
        taken(state, "workers", bool)
        own = {} if self._sampler is None else self._sampler.own_states()
        its, mine = (state["N"], state["labels"]), (self.view.dataset_length, self.view.labels)
        is_other = bool(state["position"]) and its != mine
        if is_other and "data" not in allow:
            got = f"of {its[0]} examples, got {mine[0]}" if its[0] != mine[0] else "with other labels, or in another order"
            raise ValueError(f"this state was saved in mid-epoch over a dataset {got}; resume with the same data")
        if is_other or set(OF_THE_POSITION) & set(differ):
            state = {**state, "position": None, "began": None}
        if "loader" in differ:
            state = {**state, "generators": own}
        check_random_states(taken(state, "generators", dict), own)
        if state["position"]:
            at = state["began"] if self._sampler is None else [each for pair in state["began"] for each in pair]
            for each in at:
                check_random_states(each, own)
        return state

    def resume(self, state: dict[str, Any]) -> None:
        """Make the next iteration resume from a state: a sampler's entries are skipped, other iterables are read up to there."""
        if self._sampler is not None:
            self._sampler.put_back_own(state["generators"])
        # Running workers draw no seed for another epoch; new workers do.
        drawn = self._sampler is not None and state["position"] is None and state["workers"]
        self._state.resume(state, drawn)
        if state["told"] is not None:
            self.set_epoch(state["told"])

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle, without running workers."""
        return {**vars(self), "batches": idle(self.batches)}
