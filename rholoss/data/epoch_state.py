"""Where a pass over the data stands, and what it takes to resume it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class EpochState:
    """One record for the selector, its candidate loader and its sampler; it changes by the transitions below alone.

    Attributes:
        epoch: which pass over the data this is, from 0.
        is_next: whether ``epoch`` is the pass that the next iteration makes, rather than the one before it.
        position: candidate batches taken in the pass in progress; None between passes.
        iteration: a token of the iteration that makes the pass; None with a position: the next iteration resumes it.
        skip: batches that the sampler has to pass over as it is iterated next, since they were taken before.
        began: the random states in which the pass began, as the sampler keeps them.
        told: the epoch that the loader was told last, or None.
        seed_was_drawn: whether workers that were running had drawn the seed of the next pass already, which new ones draw again.
    """

    epoch: int = 0
    is_next: bool = True
    position: int | None = None
    iteration: object = None
    skip: int = 0
    began: Any = None
    told: int | None = None
    seed_was_drawn: bool = False

    @property
    def is_resuming(self) -> bool:
        """Whether the next iteration resumes a pass."""
        return self.position is not None and self.iteration is None

    @property
    def next_epoch(self) -> int:
        """Which pass the next iteration makes, or makes the rest of."""
        return self.epoch + (not (self.is_next or self.is_resuming))

    def count(self) -> None:
        """An iteration begins: it is the next pass, or the rest of one."""
        self.epoch, self.is_next = self.next_epoch, False

    def enter(self) -> object:
        """An iteration reads from the loader, from its position on; returns its token."""
        self.skip = (self.position or 0) if self.is_resuming else 0
        self.position, self.iteration = self.skip, object()
        return self.iteration

    def advance(self, iteration: object) -> None:
        """An iteration takes a batch; one that another has replaced moves nothing."""
        if self.iteration is iteration:
            self.position = (self.position or 0) + 1

    def leave(self, iteration: object) -> None:
        """An iteration ends."""
        if self.iteration is iteration:
            self.abandon()

    def abandon(self) -> None:
        """No pass is in progress."""
        self.position = self.iteration = None

    def announce(self, epoch: int) -> None:
        """The user says which pass comes next: the one in progress goes on only if it is that."""
        if epoch != self.epoch:
            self.abandon()
        self.epoch, self.is_next = epoch, True

    def state(self) -> dict[str, Any]:
        """What to save: numbers, and the random states."""
        began = None if self.position is None else self.began
        return {"epoch": self.epoch, "is_next": self.is_next, "position": self.position, "began": began, "told": self.told}

    def resume(self, state: dict[str, Any], seed_was_drawn: bool) -> None:
        """Let the next iteration go on from a saved state."""
        self.epoch, self.is_next, self.position = state["epoch"], state["is_next"], state["position"]
        self.began, self.told, self.iteration = state["began"], state["told"], None
        self.seed_was_drawn = seed_was_drawn

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "iteration": None}  # a copy resumes where this is
