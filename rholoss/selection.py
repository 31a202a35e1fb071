"""What was chosen and why, and the checks on what a method returns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from rholoss.arguments import shown
from rholoss.candidates import Candidates
from rholoss.cost import StepTimer
from rholoss.data.index import IndexedBatch
from rholoss.devices import LateErrors, to_device


@dataclass(frozen=True, eq=False)
class Selection:
    """One selected batch: what was chosen, from what, and why.

    Attributes:
        index: indices of the selected examples in the dataset, shape (n_b,), int64.
        positions: their rows in the candidate batch, shape (n_b,), int64, ascending; with several ranks the rows that any rank
            trains on, shape (m,).
        weights: factors of the selected examples' losses, shape (n_b,), or None for a plain mean.
        scores: the score of every candidate, shape (n_B,).
        candidate_index: indices of all candidates, shape (n_B,), int64.
        step: how many batches were selected before.
        epoch: which pass over the data, from 0.
        notes: scalar tensors from the method, such as ``overlap``.
    """

    index: Tensor
    positions: Tensor
    weights: Tensor | None
    scores: Tensor
    candidate_index: Tensor
    step: int
    epoch: int
    notes: Mapping[str, Tensor] = field(default_factory=dict)

    def mean_loss(self, losses: Tensor) -> Tensor:
        """The mean of the selected examples' losses (n_b,), each times its weight if there are weights: a scalar."""
        self.check_losses(losses)
        return losses.mean() if self.weights is None else (losses * to_device(self.weights, losses.device)).mean()

    def check_losses(self, losses: Tensor) -> None:
        """Raise a ValueError unless the losses are one per selected example."""
        if not isinstance(losses, Tensor) or losses.shape != self.index.shape:
            expected = tuple(self.index.shape)
            got = tuple(losses.shape) if isinstance(losses, Tensor) else shown(losses)
            raise ValueError(f"losses must be one per selected example, shape {expected}, got {got}; pass reduction='none'")


def check_score(score: Any, n_B: int, device: torch.device) -> Tensor:
    """The score without a gradient; refused unless it is one number per candidate, on the scoring device."""
    if not isinstance(score, Tensor):
        raise TypeError(f"score must return one value per candidate, a tensor of shape ({n_B},), got {type(score).__name__}")
    if score.shape != (n_B,):
        raise ValueError(f"score must be one value per candidate, shape ({n_B},), got {tuple(score.shape)}")
    if score.device != device:
        cure = f"compute it from the candidates, or pass device='{score.device}' if the model has no parameters"
        raise ValueError(f"score must be on the scoring device, {device}, got {score.device}; {cure}")
    if score.dtype == torch.bool or score.is_complex():
        raise TypeError(f"score must be a number that can be ranked, got dtype {score.dtype}; convert it with .float()")
    return score.detach() if score.is_floating_point() else score.detach().double()


def checked_choice(choice: Any, n_b: int, n_B: int) -> tuple[Tensor, Tensor | None]:
    """A choice with ascending positions; refused unless it is n_b of them, distinct where there are no weights."""
    if not isinstance(choice, tuple) or len(choice) != 2:
        raise TypeError(f"choose must return (positions, weights), where weights may be None, got {_describe(choice)}")
    positions, weights = choice
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64 or positions.shape != (n_b,):
        raise ValueError(f"choose must return {n_b} positions, int64 of shape ({n_b},), got {_describe(positions)}")
    if weights is not None and (not isinstance(weights, Tensor) or weights.shape != (n_b,)):
        raise ValueError(f"choose must return one weight per position, shape ({n_b},), or None, got {_describe(weights)}")
    positions, order = positions.sort(stable=True)
    if positions.device.type == "cpu":
        low, high = int(positions[0]), int(positions[-1])
        if low < 0 or high >= n_B:
            raise ValueError(f"choose must return positions from 0 to {n_B - 1}, got {low} to {high}")
        if weights is None and bool((positions[1:] == positions[:-1]).any()):
            got = f"{positions.tolist()}; only weighted draws may repeat"
            raise ValueError(f"choose must return {n_b} distinct positions, got {got}")
    return positions, None if weights is None else weights[order]


def checked_prefilter(positions: Any, n_b: int, n: int) -> list[int]:
    """Which of n drawn candidates to load, ascending; refused unless at least n_b distinct positions."""
    n_b = min(n_b, n)
    if not isinstance(positions, Tensor) or positions.dtype != torch.int64 or positions.ndim != 1 or len(positions) < n_b:
        raise ValueError(f"prefilter must return at least n_b = {n_b} positions, int64 of shape (m,), got {_describe(positions)}")
    found: list[int] = positions.sort().values.tolist()
    if found and (found[0] < 0 or found[-1] >= n or len(set(found)) < len(found)):
        raise ValueError(f"prefilter must return distinct positions from 0 to {n - 1}, got {found}")
    return found


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


class FiniteCheck:
    """Refuses scores that cannot be ranked: NaN or positive infinity.

    On the CPU it raises at once. On an accelerator it raises when a flag, copied asynchronously, has arrived at the host, usually
    one step later; until then such a candidate ranks last.
    """

    def __init__(self) -> None:
        self._late = LateErrors()

    def __call__(self, name: str, score: Tensor, candidates: Candidates) -> Tensor:
        """The score (n_B,) of candidates, with -inf for what cannot be ranked; ``name`` is the method's, for the message."""
        if score.device.type == "cpu":
            if math.isnan(highest := float(score.max())) or highest == math.inf:  # NaN is the maximum wherever there is one
                bad = score.isnan() | score.isposinf()
                raise _not_rankable(name, bad, candidates.index, candidates.computed_loss, candidates.step)
            return score
        bad = score.isnan() | score.isposinf()
        explain = partial(_not_rankable, name, bad, candidates.index, candidates.computed_loss, candidates.step)
        self._late.raise_if(bad.any(), explain)
        return score.masked_fill(bad, -torch.inf)

    def wait(self) -> None:
        """Wait for all flags, and raise if one is set; for the end of an epoch."""
        self._late.wait()


def _not_rankable(name: str, bad: Tensor, index: Tensor, loss: Tensor | None, step: int) -> ValueError:
    if loss is not None and not bool(torch.isfinite(loss[bad]).all()):
        why = "the model's loss is not finite for them: has training diverged?"
    else:
        why = "check what score() computes, and that each has a finite irreducible loss where one is used"
    what = f"{name}: the score of {int(bad.sum())} of {len(bad)} candidates is NaN or infinite at step {step}"
    return ValueError(f"{what}: indices {index[bad].cpu().tolist()[:5]}; {why}")


@dataclass(eq=False)
class SelectedPass:
    """One pass over the selected batches. As a loader's, it begins as it is made, and survives an error of one batch."""

    candidates: Any
    enter: Callable[[Any], Any]  # returns the candidates, as the first batch is asked for
    select: Callable[[IndexedBatch], Any]
    timer: StepTimer
    device: torch.device
    finite_check: FiniteCheck
    is_entered: bool = False

    def __iter__(self) -> SelectedPass:
        return self

    def __next__(self) -> Any:
        if not self.is_entered:
            self.is_entered, self.candidates = True, self.enter(self.candidates)
        self.timer.enter("waiting", self.device)
        try:
            indexed = next(self.candidates)
        except StopIteration:
            self.timer.stop()
            self.finite_check.wait()  # an accelerator reports a score that is not finite a step later
            raise
        return self.select(indexed)

    def close(self) -> None:
        """End the pass, as a ``break`` out of a loop does: the next iteration begins another one."""
        self.is_entered = True
        self.candidates.close()
