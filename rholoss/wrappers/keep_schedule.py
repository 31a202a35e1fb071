"""A fraction to keep that changes during training."""

import warnings
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.arguments import FRACTION, fraction, function
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.devices import to_device
from rholoss.isolation import derived_seed
from rholoss.options import SelectorOptions
from rholoss.schedules import Schedule
from rholoss.selection import check_score
from rholoss.selector import Selector
from rholoss.wrappers.base import MethodWrapper


class KeepScheduleSelector(MethodWrapper):
    """Any method, with fewer candidates as the schedule rises, so that a step costs less.

    Of the n_B drawn candidates, a uniform sample of n_b / schedule(step) takes part. The others are not scored, and not loaded
    either with ``keep=`` and ``num_workers=0``. Nothing else changes, n_b included. Other arguments: see ``MethodWrapper``.

    Args:
        schedule: the fraction to keep by step, in (0, 1]: one of ``rholoss.schedules``, or any function of the step. A fraction
            below n_b / n_B counts as n_b / n_B, with a warning.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.schedules import Linear
        >>> from rholoss.selectors import TrainLossSelector
        >>> from rholoss.wrappers import KeepScheduleSelector
        >>> data, model = TensorDataset(torch.randn(96, 5), torch.randint(3, (96,))), torch.nn.Linear(5, 3)
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> method = TrainLossSelector(loader, model, keep=0.25)
        >>> selector = KeepScheduleSelector(loader, model, method, Linear(0.25, 1.0, steps=2), keep=0.25)
        >>> [len(y) for x, y in selector]
        [8, 8, 8]
    """

    def __init__(self, loader: Any, model: Any, method: Selector, schedule: Schedule, **options: Unpack[SelectorOptions]) -> None:
        self.schedule = function(schedule, "schedule", f"(step) -> {FRACTION}")
        fraction(schedule(0), "schedule(0)")
        super().__init__(loader, model, method, **options)
        self._warned = False

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        return self.method, self._taking_part_of(candidates)[1]

    def score(self, candidates: Candidates) -> Tensor:
        rows, fewer = self._taking_part_of(candidates)
        score = check_score(self.method.score(fewer), len(rows), rows.device)
        return score.new_full((len(candidates),), -torch.inf).index_copy(0, rows, score)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        if self not in candidates.memory:  # the candidates of all ranks, of which only the scores are known
            return self.method.choose(candidates, score, n_b)
        rows, fewer = self._taking_part_of(candidates)
        positions, weights = self.method.choose(fewer, score[rows], n_b)
        return rows[positions], weights

    def draw_rule(self) -> DrawRule:
        rule = super().draw_rule()
        exact = self.redraws and self.view.draws_by_index and self.view.loader.num_workers == 0  # workers draw before the step
        return replace(rule, prefilter=self._prefilter) if exact else rule

    def _prefilter(self, index: Tensor, step: int) -> Tensor:
        loaded = self.prefilter_of_part(index, step)
        loaded = torch.arange(len(index)) if loaded is None else loaded
        return loaded[self._taking_part(step, len(loaded))]

    def _taking_part_of(self, candidates: Candidates) -> tuple[Tensor, Candidates]:
        """The positions of the candidates that take part, and these candidates."""
        if self not in candidates.memory:
            rows = self._taking_part(candidates.step, len(candidates))
            fewer = candidates if len(rows) == len(candidates) else candidates.at(rows)
            candidates.memory[self] = to_device(rows, candidates.device), fewer
        found: tuple[Tensor, Candidates] = candidates.memory[self]
        return found

    def _taking_part(self, step: int, n: int) -> Tensor:
        """Positions of those of n candidates that take part, ascending: all, if the others were not loaded."""
        keep = fraction(self.schedule(step), f"schedule({step})")
        count = round(self.n_b / keep)
        if not self._warned and self.n_b < (self.n_B or 0) < count:
            self._warned = True
            what = f"the schedule is {keep:.3g} at step {step}, below n_b / n_B = {self.n_b} / {self.n_B}, and counts as that"
            warnings.warn(f"{what}; pass a keep= as low as the schedule's lowest", stacklevel=2)
        if count >= n:
            return torch.arange(n)
        generator = torch.Generator().manual_seed(derived_seed("keep", self.generator.initial_seed(), step))
        return torch.randperm(n, generator=generator)[:count].sort().values
