"""Samplers for candidate batches: resumable, filtered, or one rank's share."""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rholoss.arguments import shown
from rholoss.data.epoch_state import EpochState, Pass
from rholoss.data.subset import by_position, whole_of
from rholoss.isolation import fork_rng
from rholoss.states import described

MOST_PASSES = 100  # over a sampler that replaces what it drew, without a hundredth of an epoch found
RandomStates = tuple[Tensor, dict[str, Any]]
"""The states of the global generator and of the generators and epochs that a sampler holds."""


class ResumableSampler:
    """A sampler or batch sampler whose epoch in progress can be restarted and resumed.

    It sets ``began`` of the pass that is being opened to two random states: when it was iterated, and when it was then first
    asked for an entry.
    """

    def __init__(self, sampler: Any, generator: torch.Generator | None, state: EpochState) -> None:
        self.sampler = sampler
        self.generator = generator
        self.state = state
        self.rewind: RandomStates | None = None  # the random states to start the next iteration from; None: the current ones

    def __iter__(self) -> Iterator[Any]:
        this = self.state.opening
        if this is not None and this.skip:
            return self._rest(this)
        if self.rewind is not None:
            self.put_back(self.rewind)
        iterated = self.states()
        return self._entries(this, iterated, iter(self.sampler))  # iterating alone may draw from the generators

    def _entries(self, this: Pass | None, iterated: RandomStates, entries: Iterator[Any]) -> Iterator[Any]:
        self.rewind = self.state.opening = None
        if this is not None:
            this.began, this.draws = (iterated, self.states()), True
        yield from entries

    def _rest(self, this: Pass) -> Iterator[Any]:
        self.state.opening, this.draws = None, True
        iterated, asked = this.began
        with fork_rng():
            self.put_back(iterated)
            entries = iter(self.sampler)
            self.put_back(asked)
            entries = skipped(entries, this.skip)
        yield from entries

    def own_states(self) -> dict[str, Any]:
        """The states of all generators but the global one, and the epochs that samplers count, by place."""
        return {
            place: value.get_state() if isinstance(value, torch.Generator) else value
            for place, (_, _, value) in self._held().items()
        }

    def put_back_own(self, states: dict[str, Any]) -> None:
        """Restore the generators other than the global one and the epochs of the samplers."""
        held = self._held()
        for place, state in states.items():
            holder, name, value = held[place]
            if isinstance(state, Tensor):
                value = value or torch.Generator()
                value.set_state(state.cpu())
            setattr(holder, name, value if isinstance(state, Tensor) else state)

    def states(self) -> RandomStates:
        """The current random states."""
        return torch.get_rng_state(), self.own_states()

    def put_back(self, states: RandomStates) -> None:
        """Restore random states."""
        self.put_back_own(states[1])
        torch.set_rng_state(states[0].cpu())

    def __len__(self) -> int:
        return len(self.sampler)

    def _held(self) -> dict[str, tuple[Any, str, Any]]:
        """By place: the holder of a generator or of an epoch number, the attribute's name, and the value.

        A sampler that counts epochs may create its generator when first iterated, as accelerate's does; until then it is None.
        """
        return {
            f"{depth}.{name}": (holder, name, value)
            for depth, holder in enumerate([self, *chain(self.sampler)])
            for name, value in getattr(holder, "__dict__", {}).items()
            if isinstance(value, torch.Generator)
            or (isinstance(vars(holder).get("epoch"), int) and name in ("epoch", "generator"))
        }


def are_same(states: RandomStates, others: RandomStates) -> bool:
    """Whether nothing was drawn between two random states."""
    (rng, own), (other_rng, other_own) = states, others
    return torch.equal(rng, other_rng) and own.keys() == other_own.keys() and all(map(_is_same, own.values(), other_own.values()))


def _is_same(value: Any, other: Any) -> bool:
    both = isinstance(value, Tensor) and isinstance(other, Tensor)
    return torch.equal(value, other) if both else type(value) is type(other) and value == other


def check_random_states(states: Any, own: Mapping[str, Any]) -> None:
    """Refuse what is neither a generator's state nor a mapping of such states, and epochs, with the places of ``own``."""
    if isinstance(states, Mapping) and set(states) != set(own):
        raise ValueError("this state was saved with a loader that has another set of generators; resume with the same loader")
    for state in states.values() if isinstance(states, Mapping) else [states]:
        if isinstance(state, Tensor):
            torch.Generator().set_state(state.cpu())  # an error if it is damaged
        elif states is state or not isinstance(state, (int, type(None))):
            what = f"expected the state of a generator, got {type(state).__name__}"
            raise ValueError(f"this state cannot be loaded: {what}; pass what state_dict() returned")


def kinds(sampler: Any) -> list[dict[str, Any]]:
    """What decides the order of a sampler's entries besides its random state, as JSON values, and of those that it draws from."""
    options = {
        RandomSampler: ("replacement",),
        DistributedSampler: ("num_replicas", "shuffle", "seed"),  # a rank may load the state of rank 0
        SubsetRandomSampler: ("indices",),
    }
    found = []
    for each in chain(sampler):
        own = {name: getattr(each, name) for kind, names in options.items() if isinstance(each, kind) for name in names}
        if "indices" in own:
            own = {"indices": np.asarray(own["indices"])}
        which = {"entries": list(each)} if isinstance(each, Sequence) else {}
        found.append({"class": type(each).__name__, **described({**own, **which})})
    return found


def chain(sampler: Any) -> Iterator[Any]:
    """A sampler, the one that it draws from, and so on; one that names itself once."""
    seen: set[int] = set()
    while sampler is not None and id(sampler) not in seen:
        seen.add(id(sampler))
        yield sampler
        sampler = getattr(sampler, "sampler", getattr(sampler, "batch_sampler", None))


def skipped(entries: Iterator[Any], skip: int) -> Iterator[Any]:
    """The remaining entries after ``skip`` of them."""
    taken = sum(1 for _ in islice(entries, skip))
    if taken < skip:
        what = f"this state was saved after {skip} candidate batches, but the loader has {taken}"
        raise ValueError(f"{what}; resume with the same data and batch size")
    return entries


class InOrder(SequentialSampler):
    """What a framework sees of a sampler that draws in order; ``set_epoch`` is passed on."""

    def __init__(self, dataset: Any, set_epoch: Callable[[int], None]) -> None:
        super().__init__(dataset)
        self.set_epoch = set_epoch


def is_called_by(name: str) -> bool:
    """Whether the caller of the calling function, or of the generator that calls it, has this name."""
    frame = sys._getframe(2)
    return any(each is not None and each.f_code.co_name == name for each in (frame, frame.f_back))


class MemberSampler:
    """The positions that a sampler draws, in its order, without examples that are not members; see ``DrawRule``.

    A sampler that replaces what it drew goes on until it has drawn as many members as it has entries.
    """

    def __init__(self, sampler: Iterable[int], members: Tensor | Callable[[], Tensor], dataset: Any) -> None:
        self.sampler = sampler
        self.members = members
        self.dataset = dataset

    def __iter__(self) -> Iterator[int]:
        members = self._members()
        if _replaces(self.sampler):
            return self._filled(members)
        return (position for position in self.sampler if members[position])

    def _filled(self, members: list[bool]) -> Iterator[int]:
        """As many members as the sampler has entries, all drawn when the first is asked for, so that a state can be resumed."""
        wanted, found, passes = len(self.sampler), list[int](), 0  # type: ignore[arg-type]
        while len(found) < wanted:
            found += [position for position in self.sampler if members[position]]
            passes += 1
            if passes == MOST_PASSES and len(found) * MOST_PASSES < wanted:
                what = f"{type(self.sampler).__name__} draws hardly any example that the selector trains on"
                raise ValueError(f"{what}, {len(found):,} in {passes} passes; give these examples higher weights")
        yield from found[:wanted]

    def _members(self) -> list[bool]:
        members = self.members() if callable(self.members) else self.members
        n = len(whole_of(self.dataset))
        if not isinstance(members, Tensor) or members.dtype != torch.bool or members.shape != (n,):
            got = f"{members.dtype} of shape {tuple(members.shape)}" if isinstance(members, Tensor) else shown(members)
            raise ValueError(f"members must be one bool per example, a tensor of shape ({n},), got {got}")
        return by_position(self.dataset, members).tolist()

    def __len__(self) -> int:
        if _replaces(self.sampler):
            return len(self.sampler)  # type: ignore[arg-type]
        members = self._members()
        drawn = _each_draw(self.sampler, len(members))
        if drawn is None:
            raise TypeError(f"the number of members drawn by a {type(self.sampler).__name__} is unknown until sampled")
        return sum(members[position] for position in drawn)


class CandidateBatchSampler(BatchSampler):
    """Batches of ``batch_size`` drawn positions, ``least`` at least, of which ``prefilter`` returns those to read."""

    def __init__(
        self, sampler: Any, batch_size: int, prefilter: Callable[[list[int]], list[int]] | None = None, least: int = 1
    ) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.prefilter = prefilter
        self.least = least

    def __iter__(self) -> Iterator[list[int]]:
        for drawn in super().__iter__():
            if len(drawn) >= self.least:
                yield drawn if self.prefilter is None else self.prefilter(drawn)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.sampler), self.batch_size)  # type: ignore[arg-type]
        return whole + (rest >= self.least)


def plain_batching(loader: Any) -> BatchSampler | None:
    """The ``BatchSampler`` that groups single indices in their order, also inside accelerate's share of a rank; else None."""
    if not isinstance(loader, DataLoader):
        return None
    batching = sharded(loader.batch_sampler) or loader.batch_sampler
    return batching if _is_plain(batching) else None


def sharded(batching: Any) -> BatchSampler | None:
    """The plain batch sampler whose batches accelerate's ``BatchSamplerShard`` divides among ranks; None for anything else."""
    whole = getattr(batching, "batch_sampler", None)
    is_shard = _is_plain(whole) and hasattr(batching, "num_processes") and not getattr(batching, "split_batches", True)
    return whole if is_shard else None


def _is_plain(batching: Any) -> TypeGuard[BatchSampler]:
    return type(batching) is BatchSampler or type(batching).__module__ == "torchdata.stateful_dataloader.sampler"


def sharded_as(shard: Any, batching: BatchSampler, batch_size: int | None) -> Any:
    """The same rank's share of other batches, of ``batch_size`` examples each; None: of any number."""
    twin = copy.copy(shard)
    twin.batch_sampler, twin.batch_size = batching, batch_size
    return twin


def drawable(loader: Any, n: int) -> Tensor | None:
    """The indices that a loader over n examples may draw, int64; None if unknown until sampled."""
    batching = plain_batching(loader)
    sampler = None if batching is None else batching.sampler
    if isinstance(sampler, (RandomSampler, DistributedSampler)):
        return torch.arange(n)
    draws = _each_draw(sampler, n)
    if isinstance(draws, range):
        return torch.arange(draws.start, draws.stop, draws.step)
    return None if draws is None else torch.as_tensor(draws, dtype=torch.int64)


def _replaces(sampler: Any) -> bool:
    """Whether each entry is drawn among all examples, whatever was drawn before it."""
    return type(sampler) in (RandomSampler, WeightedRandomSampler) and sampler.replacement


def _each_draw(sampler: Any, n: int) -> Sequence[int] | None:
    """What a sampler over n examples draws in an epoch, in any order; None if unknown until sampled."""
    is_permutation = type(sampler) in (RandomSampler, WeightedRandomSampler) and not sampler.replacement and len(sampler) == n
    if type(sampler) is SequentialSampler or is_permutation:
        return range(n)
    if isinstance(sampler, DistributedSampler):  # drawing it moves no generator
        return list(sampler)
    return sampler.indices if type(sampler) is SubsetRandomSampler else sampler if isinstance(sampler, Sequence) else None
