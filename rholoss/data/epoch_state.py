"""The position in an epoch, and what is needed to resume it."""

from dataclasses import dataclass
from typing import Any

from rholoss.states import taken


@dataclass(eq=False)
class Pass:
    """One iteration over the candidate batches, from its beginning on; it counts from the first batch that is asked for."""

    skip: int  # batches that it skips, as they were taken before
    loads: int  # states loaded before it
    resumes: bool  # an epoch that has begun
    before: Any  # the random states before it drew its seed
    began: Any  # those at the start of the epoch, as the sampler stores them
    after: Any = None  # those after it drew its seed, and its workers were started
    draws: bool = False  # whether the sampler was asked for an entry
    closed: bool = False  # whether its iterator is gone


@dataclass
class EpochState:
    """One record shared by the selector, its candidate loader and its sampler; only the methods below change it."""

    epoch: int = 0
    is_next: bool = True  # whether ``epoch`` is the next iteration's epoch, not the previous one's
    position: int | None = None  # candidate batches taken in the epoch in progress; None between epochs
    iteration: Pass | None = None  # the iteration in progress; None with a position: the next one resumes the epoch
    opening: Pass | None = None  # the iteration for which the sampler is iterated next
    unused: Pass | None = None  # the latest iteration, while nothing was asked of it
    loaded: Any = None  # the random states at the start of an epoch that is to be resumed
    told: int | None = None  # the epoch last passed to the loader's ``set_epoch``
    seed_was_drawn: bool = False  # by running workers, for the next epoch; new workers draw it again
    loads: int = 0  # states loaded

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

    def open(self, random_states: Any) -> Pass:
        """A new iteration, at the position: nothing counts before it is entered."""
        before = self.loaded if self.is_resuming and not self.position else random_states
        self.opening = Pass(self._due, self.loads, self.is_resuming, before, self.loaded)
        return self.opening

    def is_stale(self, this: Pass) -> bool:
        """Whether a state was loaded, or the epoch to be resumed was given up, since an iteration was opened."""
        return (this.skip, this.loads) != (self._due, self.loads)

    def enter(self, this: Pass) -> None:
        """Start reading from the loader."""
        self.position, self.iteration, self.unused = this.skip, this, None
        self.opening, self.seed_was_drawn = None if this.draws else this, False

    @property
    def _due(self) -> int:
        return (self.position or 0) if self.is_resuming else 0

    def advance(self, this: Pass) -> None:
        """Count a batch, unless another iteration has replaced this one."""
        if self.iteration is this:
            self.position = (self.position or 0) + 1

    def leave(self, this: Pass) -> None:
        """End an iteration."""
        this.closed = True
        if self.iteration is this:
            self.abandon()

    def abandon(self) -> None:
        """Give up the epoch in progress."""
        self.position = self.iteration = None

    def announce(self, epoch: int) -> None:
        """Set the next epoch; the one in progress is resumed only if it is the same."""
        if epoch != self.epoch:
            self.abandon()
        self.epoch, self.is_next = epoch, True

    def pending(self) -> Pass | None:
        """The iteration that comes next, where it is open and nothing was asked of it."""
        this = self.unused
        return None if this is None or self.iteration is not None or self.is_stale(this) else this

    def state(self) -> dict[str, Any]:
        """The state to save: numbers and random states."""
        this, began = self.iteration or self.pending(), self.loaded if self.is_resuming else None
        state = {"epoch": self.epoch, "is_next": self.is_next, "position": self.position, "began": began, "told": self.told}
        if self.iteration is not None and self.position:
            state["began"] = self.iteration.began
        elif this is not None and not self.position:  # its seed is drawn, and will be drawn again
            epoch = self.next_epoch if self.iteration is None else self.epoch
            state |= {"epoch": epoch, "is_next": False, "position": 0, "began": this.before}
        return state

    def check(self, state: dict[str, Any]) -> None:
        """Refuse what ``state`` cannot have returned."""
        position = taken(state, "position", None, int, least=0)
        taken(state, "epoch", int, least=0)
        taken(state, "is_next", bool)
        taken(state, "told", None, int, least=0)
        taken(state, "began", *((list, tuple) if position else (None, list, tuple)))

    def resume(self, state: dict[str, Any], seed_was_drawn: bool) -> None:
        """Make the next iteration resume from a saved state."""
        self.epoch, self.is_next, self.position = state["epoch"], state["is_next"], state["position"]
        self.loaded, self.told, self.iteration = state["began"], state["told"], None
        self.seed_was_drawn = seed_was_drawn
        self.loads += 1

    def __getstate__(self) -> dict[str, Any]:
        """A copy resumes where this is."""
        state = self.state()
        return {**vars(self), "loaded": state.pop("began"), **state, "iteration": None, "opening": None, "unused": None}
