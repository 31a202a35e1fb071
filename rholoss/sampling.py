"""Samplers behind the candidate batches: resumable, and restricted to members."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler

from rholoss.guest import forked_rng


class PositionedSampler:
    """A sampler whose epoch in progress can be begun anew and gone on with.

    Args:
        sampler: a sampler or a batch sampler.
        generator: the loader's generator, if it has one.

    Attributes:
        began: the random states in which the latest iteration began: where the sampler was iterated, and where it was first
            asked for an entry.
    """

    def __init__(self, sampler: Any, generator: torch.Generator | None) -> None:
        self.sampler = sampler
        self.generator = generator
        self.began: list[list[Tensor]] | None = None
        self.skip = 0  # if above 0, the next iteration is the one that began there, after this many entries
        self.rewind: list[Tensor] | None = None  # the random states in which the next iteration begins, or None for the current

    def __iter__(self) -> Iterator[Any]:
        if self.skip:
            return self._rest()
        if self.rewind is not None:
            self._put_back(self.rewind)
        iterated = self.states()
        return self._entries(iterated, iter(self.sampler))  # a sampler may draw as soon as it is iterated

    def _entries(self, iterated: list[Tensor], entries: Iterator[Any]) -> Iterator[Any]:
        self.rewind = None
        self.began = [iterated, self.states()]
        yield from entries

    def _rest(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        iterated, asked = self.began or [[], []]
        with forked_rng():
            self._put_back(iterated)
            entries = iter(self.sampler)
            self._put_back(asked)
            entries = skipped(entries, skip)
        yield from entries

    def generator_states(self) -> list[Tensor]:
        """The states of the generators other than the global one."""
        return [generator.get_state() for generator in self._generators()]

    def put_back(self, states: list[Tensor]) -> None:
        """Put the generators other than the global one into these states."""
        own = self._generators()
        if len(states) != len(own):
            raise ValueError(
                "this state was saved with a loader that has another set of generators; resume with the loader as it was"
            )
        for generator, state in zip(own, states, strict=True):
            generator.set_state(state.cpu())

    def states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *self.generator_states()]

    def _put_back(self, states: list[Tensor]) -> None:
        self.put_back(states[1:])
        torch.set_rng_state(states[0].cpu())

    def __len__(self) -> int:
        return len(self.sampler)

    def _generators(self) -> list[torch.Generator]:
        """The generators behind the sampling other than the global one, each once."""
        held, inner = [self.generator], self.sampler
        while inner is not None:
            held += getattr(inner, "__dict__", {}).values()
            inner = getattr(inner, "sampler", getattr(inner, "batch_sampler", None))
        return list({id(generator): generator for generator in held if isinstance(generator, torch.Generator)}.values())


def skipped(entries: Iterator[Any], skip: int) -> Iterator[Any]:
    """What is left of some entries after as many as were taken before."""
    taken = sum(1 for _ in islice(entries, skip))
    if taken < skip:
        raise ValueError(
            f"this state was saved after {skip} candidate batches, but the loader has {taken}; resume with the data and "
            "batch size as they were"
        )
    return entries


Members = Tensor | Callable[[], Tensor]
"""Which examples may be drawn, shape (N,), bool; or a function that says so as an epoch begins."""


class MembersOnly:
    """The positions of a sampler, in its order, less those that are not members.

    Args:
        sampler: yields positions in the dataset.
        members: shape (N,), bool, by index; or a function that says so as an epoch begins.
        index: the index of each position; None where they are the same.
    """

    def __init__(self, sampler: Iterable[int], members: Members, index: Tensor | None = None) -> None:
        self.sampler = sampler
        self.members = members
        self.index = index

    def __iter__(self) -> Iterator[int]:
        members = self._members()
        return (position for position in self.sampler if members[position])

    def _members(self) -> list[bool]:
        members = self.members() if callable(self.members) else self.members
        return (members if self.index is None else members[self.index]).tolist()

    def __len__(self) -> int:
        members = self._members()
        drawn = _each_draw(self.sampler, len(members))
        if drawn is None:
            raise TypeError(
                f"the number of members that a {type(self.sampler).__name__} draws cannot be known before it is drawn"
            )
        return sum(members[position] for position in drawn)


Shorten = Callable[[list[int]], list[int]]
"""``shorten(drawn) -> some of them``"""


class Shortened(BatchSampler):
    """Batches of indices, each cut down before it is read.

    Args:
        sampler: yields indices.
        batch_size: how many to draw.
        shorten: what leaves some of them out.
    """

    def __init__(self, sampler: Any, batch_size: int, shorten: Shorten) -> None:
        super().__init__(sampler, batch_size, drop_last=False)
        self.shorten = shorten

    def __iter__(self) -> Iterator[list[int]]:
        return map(self.shorten, super().__iter__())


def plain_sampler(loader: Any) -> Any | None:
    """The sampler of single indices that a ``DataLoader`` batches up, or None if it forms its batches in another way."""
    if not isinstance(loader, DataLoader):
        return None
    if loader.batch_size is not None:
        return loader.sampler
    return loader.batch_sampler.sampler if type(loader.batch_sampler) is BatchSampler else None


def drawable(loader: Any, n: int) -> Tensor | None:
    """The indices that a loader over n examples may draw, int64; None where only drawing tells."""
    sampler = plain_sampler(loader)
    if isinstance(sampler, (RandomSampler, DistributedSampler)):
        return torch.arange(n)
    draws = _each_draw(sampler, n)
    if isinstance(draws, range):
        return torch.arange(draws.start, draws.stop, draws.step)
    return None if draws is None else torch.as_tensor(draws)


def _each_draw(sampler: Any, n: int) -> Sequence[int] | None:
    """What a sampler over n examples draws in an epoch, in any order; None where only drawing tells."""
    if type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and not sampler.replacement and len(sampler) == n):
        return range(n)
    if isinstance(sampler, DistributedSampler):  # drawing it moves no generator
        return list(sampler)
    return sampler.indices if type(sampler) is SubsetRandomSampler else sampler if isinstance(sampler, Sequence) else None
