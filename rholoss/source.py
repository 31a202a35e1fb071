"""Where candidate batches come from: the user's loader, drawn in candidate batches of n_B, from any position on."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from rholoss.guest import forked_rng
from rholoss.indexing import (
    IndexedBatch,
    IndexedBatches,
    altered,
    check_indexed,
    idle,
    is_map_style,
    refuse_unindexed,
)
from rholoss.parts import Part, whole_length
from rholoss.reading import attach_index
from rholoss.sampling import (
    Members,
    MembersOnly,
    PositionedSampler,
    Shorten,
    Shortened,
    chain,
    drawable,
    plain_batching,
    sharded,
    sharded_as,
    skipped,
)
from rholoss.sizes import describe


class CandidateSource:
    """Candidate batches of a loader, as ``IndexedBatch``.

    Args:
        loader: a map-style ``DataLoader``, or ``IndexedBatches`` around anything else.
        n_B: draw candidate batches of this many examples with the loader's sampler; None: the loader's own batches are the
            candidates.
        members: draw only these examples, shape (N,), bool, or a function that says which as an epoch begins; None: all.
        shorten: called with the positions of a candidate batch in the dataset before it is read; returns those to read.

    Attributes:
        loader: the user's loader; what is behind the door, for ``IndexedBatches``.
        batches: the iterable of candidate batches; a ``DataLoader`` where the loader is one.
        drop_last: whether the loader's own rule is to drop a last batch that is short.
        dataset_length: N, or None where it cannot be known.
        position: candidate batches taken in the epoch in progress; None between epochs.
    """

    def __init__(
        self, loader: Any, n_B: int | None = None, members: Members | None = None, shorten: Shorten | None = None
    ) -> None:
        door = loader if isinstance(loader, IndexedBatches) else None
        inner: Any = loader.batches if door is not None else loader
        map_style = is_map_style(inner)
        if door is None and not map_style:
            refuse_unindexed(loader)
        self.loader = inner
        batching = getattr(inner, "batch_sampler", None)
        self.drop_last = bool(getattr(inner, "drop_last", False) or getattr(batching, "drop_last", False))
        self.dataset_length = _length(inner.dataset) if map_style else None
        self._is_stream = isinstance(inner, DataLoader) and not map_style
        self.position: int | None = None
        self._running: object = None  # the iteration in progress; None with a position: the next one goes on from there
        self._told: int | None = None
        self._seed_was_drawn = False
        self._began: Any = None
        self._sampler: PositionedSampler | None = None
        changes = self._changes(n_B, members, shorten, map_style)
        if map_style and door is None:
            inner = attach_index(inner, **changes)
        elif changes:
            inner = altered(inner, **changes)
        self.batches: Iterable[Any] = door.over(inner) if door is not None else inner

    def _changes(self, n_B: int | None, members: Members | None, shorten: Shorten | None, map_style: bool) -> dict[str, Any]:
        """The changes to the loader that make it draw candidate batches, from any position on."""
        loader = self.loader
        if n_B is None and not map_style:
            return {}
        if n_B is None:
            name = "sampler" if loader.batch_sampler is None else "batch_sampler"
            self._sampler = PositionedSampler(getattr(loader, name), loader.generator)
            return {name: self._sampler}
        plain = plain_batching(loader)
        if plain is None:
            raise ValueError(
                f"keep= draws larger candidate batches with the loader's sampler, but {describe(loader)}; "
                "pass batch_size= to select from the batches that come"
            )
        sampler = plain.sampler
        if members is not None:
            part = loader.dataset
            sampler = MembersOnly(sampler, members, part.indices if isinstance(part, Part) else None)
        batching: Any = Shortened(sampler, n_B, shorten) if shorten else type(plain)(sampler, n_B, drop_last=False)
        if sharded(loader.batch_sampler):
            batching = sharded_as(loader.batch_sampler, batching, None if shorten else n_B)
        if map_style:
            batching = self._sampler = PositionedSampler(batching, loader.generator)
        return {"batch_sampler": batching, "batch_size": n_B, "drop_last": False}

    @property
    def resuming(self) -> bool:
        """Whether the next iteration goes on with an epoch."""
        return self.position is not None and self._running is None

    def __iter__(self) -> Iterator[IndexedBatch]:
        return self.epoch(0, drop_last=False)

    def epoch(self, n_b: int, drop_last: bool) -> Iterator[IndexedBatch]:
        """An epoch's candidate batches, or after ``resume`` the rest of them.

        Args:
            n_b: only the last may have fewer examples; of a stream, the last of each worker.
            drop_last: whether to drop it then.
        """
        skip = (self.position or 0) if self.resuming else 0
        self._running = this = object()
        self.position, n = skip, n_b
        ends = max(1, self.loader.num_workers) if self._is_stream else 1  # each worker of a stream has an end of its own
        try:
            for item in self._items(skip):  # none is read before it is used: what is read may be told that it ends
                if not ends:
                    raise ValueError(
                        f"a candidate batch has {n} examples, fewer than n_b = {n_b}, and it is not the last; "
                        "pass a smaller batch_size, or larger batches"
                    )
                if self._running is this:
                    self.position += 1
                n = len(check_indexed(item, self.loader).index)
                ends -= n < n_b
                if n >= n_b or not drop_last:
                    yield item
            if self.position == 0 and self._sampler is None:
                raise ValueError("nothing to iterate: pass batches that can be iterated anew, not a spent iterator")
        finally:
            if self._running is this:
                self.position = self._running = None

    def _items(self, skip: int) -> Iterator[Any]:
        """What the loader yields after the first ``skip`` items, drawn as they would have been."""
        if self._sampler is None:
            if not skip:
                self._began = [torch.get_rng_state()]
                return iter(self.batches)
            there = self._is_put_back()
            with forked_rng():
                torch.set_rng_state(self._began[0].cpu())
                return iter(self.batches) if there else skipped(iter(self.batches), skip)
        self._sampler.skip = skip
        self._sampler.rewind, self._seed_was_drawn = self._sampler.states() if self._seed_was_drawn else None, False
        if not skip:
            return iter(self.batches)
        with forked_rng():  # beginning to iterate draws a seed, which the epoch in progress has drawn before
            return iter(self.batches)

    def _is_put_back(self) -> bool:
        """Whether the loader is one that keeps its own position, and the user put it back there: a StatefulDataLoader."""
        own = isinstance(self.batches, IndexedBatches) and self.batches.batches is self.loader
        return own and getattr(self.loader, "next_iter_state", None) is not None

    def state(self) -> dict[str, Any]:
        """The position in the epoch in progress, the random states in which it began, and those of the generators now."""
        inner = self.batches.batches if isinstance(self.batches, IndexedBatches) else self.batches
        return {
            "position": self.position,
            "began": None if self.position is None else self._began if self._sampler is None else self._sampler.began,
            "generators": {} if self._sampler is None else self._sampler.own_states(),
            "workers": getattr(inner, "persistent_workers", False) and getattr(inner, "_iterator", None) is not None,
            "told": self._told,
            "N": self.dataset_length,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on from a state, or begin an epoch if it is of between epochs.

        A sampler is put back to its random state and its entries are skipped without being read; other iterables are read up to
        the position. The global random state stays as it is.
        """
        if state["position"] is not None and state["N"] != self.dataset_length:
            raise ValueError(
                f"this state was saved in mid-epoch over a dataset of {state['N']} examples, got {self.dataset_length}; "
                "resume with the data as they were"
            )
        if self._sampler is not None:
            self._sampler.put_back(state["generators"])
            self._sampler.began = state["began"]
            # Workers that were running draw no seed for another epoch, but new ones do.
            self._seed_was_drawn = state["position"] is None and state["workers"]
        else:
            self._began = state["began"]
        self.position, self._running = state["position"], None
        if state["told"] is not None:
            self.set_epoch(state["told"])

    def abandon(self) -> None:
        """Let the next iteration begin an epoch."""
        self.position = self._running = None

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __getstate__(self) -> dict[str, Any]:
        """Without the running workers of a loader that keeps them."""
        return {**vars(self), "_running": None, "batches": idle(self.batches)}  # a copy goes on where this is

    def count(self, n_b: int, drop_last: bool) -> int:
        """How many selected batches an epoch yields; one too many at most, where the last candidate batch cannot be known."""
        batching = self._sampler.sampler if self._sampler else None
        tail = 0
        if drop_last and isinstance(batching, BatchSampler) and not (sharded(batching) or getattr(batching, "drop_last", True)):
            tail = len(batching.sampler) % batching.batch_size  # type: ignore[arg-type]
        return len(self) - (0 < tail < n_b)

    def drawable(self) -> Tensor | None:
        """Indices that may be drawn, int64; None where only drawing tells."""
        if self.dataset_length is None or isinstance(self.batches, IndexedBatches):  # behind a door, indices are what it says
            return None
        dataset = self.loader.dataset
        positions = drawable(self.loader, len(dataset))
        return dataset.indices[positions] if positions is not None and isinstance(dataset, Part) else positions

    def index_of(self, drawn: list[int]) -> Tensor:
        """The indices of positions that the sampler drew, int64."""
        dataset = self.loader.dataset
        return dataset.indices[torch.tensor(drawn)] if isinstance(dataset, Part) else torch.tensor(drawn)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler, the batch sampler and the dataset which epoch it is, where they want to know."""
        self._told = epoch
        loader = self.loader
        parts = [*chain(getattr(loader, "sampler", None)), *chain(getattr(loader, "batch_sampler", None))]
        for part in {id(part): part for part in [*parts, getattr(loader, "dataset", None)]}.values():
            tell: Callable[[int], Any] | None = getattr(part, "set_epoch", None)
            if tell is not None:
                tell(epoch)


def _length(dataset: Any) -> int | None:
    try:
        return whole_length(dataset)
    except (TypeError, NotImplementedError):
        return None
