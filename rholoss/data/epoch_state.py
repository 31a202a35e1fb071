"""The position in an epoch, and what is needed to resume it."""

from dataclasses import dataclass
from typing import Any


@dataclass
class EpochState:
    """One record shared by the selector, its candidate loader and its sampler; only the methods below change it."""

    epoch: int = 0
    is_next: bool = True  # whether ``epoch`` is the next iteration's epoch, not the previous one's
    position: int | None = None  # candidate batches taken in the epoch in progress; None between epochs
    iteration: object = None  # a token of the iteration in progress; None with a position: the next one resumes the epoch
    skip: int = 0  # batches that the sampler skips when it is next iterated, as they were taken before
    began: Any = None  # the random states at the start of the epoch, as the sampler stores them
    told: int | None = None  # the epoch last passed to the loader's ``set_epoch``
    seed_was_drawn: bool = False  # by running workers, for the next epoch; new workers draw it again

    @property
    def is_resuming(self) -> bool:
        """Whether the next iteration resumes an epoch."""
        return self.position is not None and self.iteration is None

    @property
    def next_epoch(self) -> int:
        """The epoch that the next iteration starts or resumes."""
        return self.epoch + (not (self.is_next or self.is_resuming))

    def count(self) -> None:
        """Count the epoch as an iteration starts or resumes it."""
        self.epoch, self.is_next = self.next_epoch, False

    def enter(self) -> object:
        """Start reading from the loader, at the position; returns the token of this iteration."""
        self.skip = (self.position or 0) if self.is_resuming else 0
        self.position, self.iteration = self.skip, object()
        return self.iteration

    def advance(self, iteration: object) -> None:
        """Count a batch, unless another iteration has replaced this one."""
        if self.iteration is iteration:
            self.position = (self.position or 0) + 1

    def leave(self, iteration: object) -> None:
        """End an iteration."""
        if self.iteration is iteration:
            self.abandon()

    def abandon(self) -> None:
        """Give up the epoch in progress."""
        self.position = self.iteration = None

    def announce(self, epoch: int) -> None:
        """Set the next epoch; the one in progress is resumed only if it is the same."""
        if epoch != self.epoch:
            self.abandon()
        self.epoch, self.is_next = epoch, True

    def state(self) -> dict[str, Any]:
        """The state to save: numbers and random states."""
        began = None if self.position is None else self.began
        return {"epoch": self.epoch, "is_next": self.is_next, "position": self.position, "began": began, "told": self.told}

    def resume(self, state: dict[str, Any], seed_was_drawn: bool) -> None:
        """Make the next iteration resume from a saved state."""
        self.epoch, self.is_next, self.position = state["epoch"], state["is_next"], state["position"]
        self.began, self.told, self.iteration = state["began"], state["told"], None
        self.seed_was_drawn = seed_was_drawn

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "iteration": None}  # a copy resumes where this is
