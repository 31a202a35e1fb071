"""Keeping more, or less, as training goes on."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.guest import derived_seed
from rholoss.indexing import is_map_style
from rholoss.options import Options
from rholoss.schedules import Schedule
from rholoss.selection import check_score
from rholoss.selector import Selector
from rholoss.selectors.composite import CompositeSelector
from rholoss.source import CandidateSource


class KeepScheduleSelector(CompositeSelector):
    """Any method, choosing from fewer candidates as ``keep`` rises: what a step costs falls with them.

    Of the n_B candidates that are drawn, n_b / keep take part, chosen at random, and the others are neither scored nor, with
    ``keep`` given and ``num_workers=0``, loaded. n_b stays what it is, and so does the number of steps in an epoch.

    Args:
        loader: see ``Selector``.
        model: see ``Selector``.
        method: the selector that decides, built on the same loader and model.
        schedule: the share to keep by step, in (0, 1]: one of ``rholoss.schedules``, or any function of the step, such as one
            that looks at the accuracy reached. Below n_b / n_B it counts as n_b / n_B, so ``keep`` says the least.
        **options: see ``Selector``.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.schedules import Linear
        >>> from rholoss.selectors import KeepScheduleSelector, TrainLossSelector
        >>> data, model = TensorDataset(torch.randn(96, 5), torch.randint(3, (96,))), torch.nn.Linear(5, 3)
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> method = TrainLossSelector(loader, model, keep=0.25)
        >>> selector = KeepScheduleSelector(loader, model, method, Linear(0.25, 1.0, steps=2), keep=0.25)
        >>> [len(y) for x, y in selector]
        [8, 8, 8]
    """

    def __init__(self, loader: Any, model: Any, method: Selector, schedule: Schedule, **options: Unpack[Options]) -> None:
        super().__init__(loader, model, **options)
        self.method = method
        self.schedule = schedule
        self.check_parts()
        self._seen: tuple[Candidates, Tensor, Candidates] | None = None  # all, the positions that take part, and these alone

    def parts(self) -> list[Selector]:
        return [self.method]

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        if self._seen is None or self._seen[0] is not candidates:
            rows = self._taking_part(candidates.step, len(candidates)).to(candidates.device, non_blocking=True)
            fewer = candidates if len(rows) == len(candidates) else candidates.at(rows)
            self._seen = candidates, rows, fewer
        return self.method, self._seen[2]

    def score(self, candidates: Candidates) -> Tensor:
        score = super().score(candidates)
        check_score(score, len(self._rows), score.device)
        return score.new_full((len(candidates),), -torch.inf).index_copy(0, self._rows, score)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        positions, weights = super().choose(candidates, score[self._rows], n_b)
        return self._rows[positions], weights

    @property
    def _rows(self) -> Tensor:
        assert self._seen is not None
        return self._seen[1]

    def _make_source(self, loader: Any, n_B: int | None) -> CandidateSource:
        exact = n_B is not None and is_map_style(loader) and loader.num_workers == 0  # workers draw before the step
        return CandidateSource(loader, n_B, shorten=self._shorten if exact else None)

    def _shorten(self, drawn: list[int]) -> list[int]:
        return [drawn[i] for i in self._taking_part(self.step, len(drawn)).tolist()]

    def _taking_part(self, step: int, n: int) -> Tensor:
        """Which of n candidates take part, ascending: all, once the others were left out before loading."""
        keep = self.schedule(step)
        if not 0 < keep <= 1:
            raise ValueError(f"the schedule must give a share to keep in (0, 1], got {keep!r} at step {step}")
        count = round(self.n_b / keep)
        if count >= n:
            return torch.arange(n)
        generator = torch.Generator().manual_seed(derived_seed("keep", self._generator.initial_seed(), step))
        return torch.randperm(n, generator=generator)[:count].sort().values
