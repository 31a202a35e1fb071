"""Samplers behind the candidate batches: resumable, and restricted to members."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
        began: the random state in which the latest iteration began.
    """

    def __init__(self, sampler: Any, generator: torch.Generator | None) -> None:
        self.sampler = sampler
        self.generator = generator
        self.began: list[Tensor] | None = None
        self.skip = 0  # if above 0, the next iteration is the one that began there, after this many entries

    def __iter__(self) -> Iterator[Any]:
        skip, self.skip = self.skip, 0
        if skip == 0:
            self.began = [torch.get_rng_state(), *(generator.get_state() for generator in self._generators())]
            yield from self.sampler
            return
        with forked_rng():
            entries = self._restarted(skip)
        yield from entries

    def __len__(self) -> int:
        return len(self.sampler)

    def _restarted(self, skip: int) -> Iterator[Any]:
        own = self._generators()
        began = self.began or []
        if len(began) != 1 + len(own):
            raise ValueError(
                "this state was saved with a loader that has another set of generators; resume with the loader as it was"
            )
        torch.set_rng_state(began[0].cpu())
        for generator, state in zip(own, began[1:], strict=True):
            generator.set_state(state.cpu())
        entries = iter(self.sampler)
        taken = sum(1 for _ in islice(entries, skip))
        if taken < skip:
            raise ValueError(
                f"this state was saved after {skip} candidate batches, but the loader has {taken}; resume with the data and "
                "batch size as they were"
            )
        return entries

    def _generators(self) -> list[torch.Generator]:
        """The generators behind the sampling other than the global one, each once."""
        found = {id(self.generator): self.generator}
        inner: Any = self.sampler
        while inner is not None:
            found.setdefault(id(getattr(inner, "generator", None)), getattr(inner, "generator", None))
            inner = getattr(inner, "sampler", None)
        return [generator for generator in found.values() if isinstance(generator, torch.Generator)]


class MembersOnly:
    """The indices of a sampler, in its order, less those that are not members.

    Args:
        sampler: yields indices.
        members: shape (N,), bool.
    """

    def __init__(self, sampler: Iterable[int], members: Tensor) -> None:
        self.sampler = sampler
        self.members = members.tolist()

    def __iter__(self) -> Iterator[int]:
        return (index for index in self.sampler if self.members[index])

    def __len__(self) -> int:
        indices = getattr(self.sampler, "indices", None)
        return sum(self.members) if indices is None else sum(self.members[index] for index in indices)


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
    if isinstance(sampler, SubsetRandomSampler):
        return torch.as_tensor(sampler.indices)
    return torch.arange(n) if isinstance(sampler, (SequentialSampler, RandomSampler, DistributedSampler)) else None
