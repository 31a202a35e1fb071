"""Candidate batches out of the user's loader, from any position on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler

from rholoss.data.epoch_state import EpochState
from rholoss.data.index import IndexedBatch, IndexedBatches, check_indexed, idle
from rholoss.data.loader_view import LoaderView
from rholoss.data.samplers import (
    MemberSampler,
    PrefilteredBatchSampler,
    ResumableSampler,
    sharded,
    sharded_as,
    skipped,
)
from rholoss.isolation import fork_rng


@dataclass(frozen=True)
class DrawRule:
    """What a method decides before anything is loaded.

    Attributes:
        members: which examples may be drawn, by index, shape (N,), bool; or a function that returns that, called as an epoch
            begins and wherever the length of an epoch is asked for, so it only looks up what was decided before. None: all.
        prefilter: ``(index, step) -> positions``, called with the indices drawn for a candidate batch, shape (n_B,), int64, and
            the number of batches selected so far; returns which of them to load, as positions, distinct, int64, or None for all.
            It must not run the model. With workers it is called ahead of the step that it is for.
        n_B: examples to draw for a candidate batch; None: as many as ``keep`` says. n_b, where all that is drawn is trained on.
    """

    members: Tensor | Callable[[], Tensor] | None = None
    prefilter: Callable[[Tensor, int], Tensor | None] | None = None
    n_B: int | None = None  # noqa: N815


class CandidateLoader:
    """Candidate batches of a loader, as ``IndexedBatch``.

    Args:
        view: the user's loader.
        n_B: draw candidate batches of this many examples with the loader's sampler; None: its own batches are the candidates.
        members: see ``DrawRule``.
        prefilter: called with the positions that the sampler drew for a candidate batch; returns those to load.
        state: where the pass over the data stands; None begins with the first.

    Attributes:
        view: the user's loader.
        batches: the iterable of candidate batches; a ``DataLoader`` where the loader is one.
    """

    def __init__(
        self,
        view: LoaderView,
        n_B: int | None = None,
        members: Tensor | Callable[[], Tensor] | None = None,
        prefilter: Callable[[list[int]], list[int]] | None = None,
        state: EpochState | None = None,
    ) -> None:
        view.require_index()
        self.view = view
        self._state = EpochState() if state is None else state
        self._sampler: ResumableSampler | None = None
        self.batches: Any = view.drawing(**self._changes(n_B, members, prefilter))

    def _changes(self, n_B: int | None, members: Any, prefilter: Any) -> dict[str, Any]:
        """The changes to the loader that make it draw candidate batches, from any position on."""
        view, loader = self.view, self.view.loader
        decides = members is not None or prefilter is not None
        if decides and not (n_B and view.draws_by_index and view.batching is not None):
            raise ValueError(
                "this method decides before examples are loaded: it needs a DataLoader over a map-style dataset with a sampler "
                "of single indices, and keep= rather than batch_size="
            )
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
        batching: Any = type(view.batching)(sampler, n_B, drop_last=False)
        if prefilter is not None:
            batching = PrefilteredBatchSampler(sampler, n_B, prefilter)
        if sharded(loader.batch_sampler):
            batching = sharded_as(loader.batch_sampler, batching, None if prefilter else n_B)
        if view.is_map_style:
            batching = self._sampler = ResumableSampler(batching, loader.generator, self._state)
        return {"batch_sampler": batching, "batch_size": n_B, "drop_last": False}

    def __iter__(self) -> Iterator[IndexedBatch]:
        return self.epoch(0, drop_last=False)

    def epoch(self, n_b: int, drop_last: bool) -> Iterator[IndexedBatch]:
        """An epoch's candidate batches, or the rest of them where one is to be resumed.

        Args:
            n_b: only the last may have fewer examples; of a stream, the last of each worker.
            drop_last: whether to drop it then.
        """
        state, n = self._state, n_b
        this = state.enter()
        ends = max(1, self.view.loader.num_workers) if self.view.is_stream else 1  # each worker of a stream has an end of its own
        try:
            for item in self._items(state.skip):  # none is read before it is used: the one that is read may learn that it ends
                if not ends:
                    raise ValueError(
                        f"a candidate batch has {n} examples, fewer than n_b = {n_b}, and it is not the last; "
                        "pass a smaller batch_size, or larger batches"
                    )
                state.advance(this)
                n = len(check_indexed(item, self.view.loader).index)
                ends -= n < n_b
                if n >= n_b or not drop_last:
                    yield item
            if state.position == 0 and self._sampler is None:
                raise ValueError("nothing to iterate: pass batches that can be iterated again, not a spent iterator")
        finally:
            state.leave(this)

    def _items(self, skip: int) -> Iterator[Any]:
        """What the loader yields after the first ``skip`` items, drawn as they would have been."""
        state = self._state
        if self._sampler is None:
            if not skip:
                state.began = [torch.get_rng_state()]
                return iter(self.batches)
            there = self._is_put_back()
            with fork_rng():
                torch.set_rng_state(state.began[0].cpu())
                return iter(self.batches) if there else skipped(iter(self.batches), skip)
        self._sampler.rewind, state.seed_was_drawn = self._sampler.states() if state.seed_was_drawn else None, False
        if not skip:
            return iter(self.batches)
        with fork_rng():  # beginning to iterate draws a seed, which the epoch in progress has drawn before
            return iter(self.batches)

    def _is_put_back(self) -> bool:
        """Whether the loader keeps its own position, and the user put it back there: a StatefulDataLoader."""
        own = isinstance(self.batches, IndexedBatches) and self.batches.batches is self.view.loader
        return own and getattr(self.view.loader, "next_iter_state", None) is not None

    def __len__(self) -> int:
        return len(self.batches)

    def count(self, n_b: int, drop_last: bool) -> int:
        """How many selected batches an epoch yields; one too many at most, where the last candidate batch cannot be known."""
        batching = self._sampler.sampler if self._sampler else None
        tail = 0
        if drop_last and isinstance(batching, BatchSampler) and not (sharded(batching) or getattr(batching, "drop_last", True)):
            tail = len(batching.sampler) % batching.batch_size  # type: ignore[arg-type]
        return len(self) - (0 < tail < n_b)

    def set_epoch(self, epoch: int) -> None:
        """Tell the loader's sampler and dataset which epoch it is, where they want to know."""
        self._state.told = epoch
        self.view.set_epoch(epoch)

    def state(self) -> dict[str, Any]:
        """Where the pass in progress is, the random states in which it began, and those of the generators now."""
        reader = self.batches.batches if isinstance(self.batches, IndexedBatches) else self.batches
        return {
            **self._state.state(),
            "generators": {} if self._sampler is None else self._sampler.own_states(),
            "workers": getattr(reader, "persistent_workers", False) and getattr(reader, "_iterator", None) is not None,
            "N": self.view.dataset_length,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from a state, or begin an epoch if it was saved between epochs.

        A sampler is put back to its random state and its entries are skipped without being read; other iterables are read up to
        the position. The global random state stays as it is.
        """
        if state["position"] is not None and state["N"] != self.view.dataset_length:
            raise ValueError(
                f"this state was saved in mid-epoch over a dataset of {state['N']} examples, got {self.view.dataset_length}; "
                "resume with the data as they were"
            )
        if self._sampler is not None:
            self._sampler.put_back(state["generators"])
        # Workers that were running draw no seed for another epoch, but new ones do.
        drawn = self._sampler is not None and state["position"] is None and state["workers"]
        self._state.resume(state, drawn)
        if state["told"] is not None:
            self.set_epoch(state["told"])

    def __getstate__(self) -> dict[str, Any]:
        """Without the running workers of a loader that keeps them."""
        return {**vars(self), "batches": idle(self.batches)}
