"""The base class of selectors that take selectors."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.selection import Selection
from rholoss.selector import Selector


class WrapperSelector(Selector):
    """Lets other selectors score and choose; they are built on the same loader and model, and are never iterated themselves.

    What a selector decides before loading is decided for the wrapper too. A subclass calls ``check_parts`` when its constructor
    has set its parts.
    """

    @abstractmethod
    def parts(self) -> list[Selector]:
        """All selectors that this one is made of."""

    @abstractmethod
    def part_at(self, step: int, epoch: int) -> Selector:
        """Which of them decides at a step of an epoch."""

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        """Which selector decides on these candidates, and what it is to see of them."""
        return self.part_at(candidates.step, candidates.epoch), candidates

    def check_parts(self) -> None:
        """Refuse parts whose own loader, model or way of scoring would go unused, or that draw batches of different sizes."""
        for part in self.parts():
            check_part(part, self)
        self._rules = [part.draw_rule() for part in self.parts()]
        self._epoch = 0  # the one that began last
        sizes = {rule.n_B for rule in self._rules}
        if len(sizes) > 1:
            names = " and ".join(dict.fromkeys(type(part).__name__ for part in self.parts()))
            raise ValueError(
                f"{names} cannot be parts of one {type(self).__name__}: one trains on all that it draws, the other does not"
            )
        if sizes != {None}:
            self.n_B = self.n_b
        self.compares_candidates = any(part.compares_candidates for part in self.parts())

    def rule_of(self, part: Selector) -> DrawRule:
        """What a part decides before anything is loaded."""
        return next(rule for own, rule in zip(self.parts(), self._rules, strict=True) if own is part)

    def draw_rule(self) -> DrawRule:
        rules = self._rules
        return DrawRule(
            members=self._members if any(rule.members is not None for rule in rules) else None,
            prefilter=self.prefilter_of_part if any(rule.prefilter for rule in rules) else None,
            n_B=rules[0].n_B,
        )

    def _members(self) -> Tensor:
        rule = self.rule_of(self.part_at(self.step, self._epoch))
        if rule.members is None:
            return torch.ones(self.view.dataset_length or 0, dtype=torch.bool)
        return rule.members() if callable(rule.members) else rule.members

    def prefilter_of_part(self, index: Tensor, step: int) -> Tensor | None:
        rule = self.rule_of(self.part_at(step, self._epoch))
        return None if rule.prefilter is None else rule.prefilter(index, step)

    def begin_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        for part in self.parts():
            part.begin_epoch(epoch)

    def score(self, candidates: Candidates) -> Tensor:
        part, seen = self.part_for(candidates)
        return part.score(seen)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        part, seen = self.part_for(candidates)
        return part.choose(seen, score, n_b)

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        part, seen = self.part_for(candidates)
        part.after_select(seen, selection, batch)

    def after_loss(self, selection: Selection, losses: Tensor) -> None:
        self.part_at(selection.step, selection.epoch).after_loss(selection, losses)

    def extra_state(self) -> dict[str, Any]:
        return {"parts": [[type(part).__name__, part.extra_state()] for part in self.parts()]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        saved, mine = [name for name, _ in state["parts"]], [type(part).__name__ for part in self.parts()]
        if saved != mine:
            raise ValueError(f"this state cannot be loaded: expected parts {mine}, got {saved}; build the selector as it was")
        for part, (_, its) in zip(self.parts(), state["parts"], strict=True):
            part.load_extra_state(its)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "parts": [type(part).__name__ for part in self.parts()]}


def check_part(part: Selector, whole: Selector) -> None:
    """Refuse a selector that would see another selector's candidates as its own loader, model or way of scoring would not."""
    names = type(part).__name__, type(whole).__name__
    if part.loader is not whole.loader or part.model not in (None, whole.model):
        raise ValueError(f"{names[0]} must be built on the same loader and model as {names[1]}")
    if part.model is not None and part.scorer != whole.scorer:
        raise ValueError(f"{names[0]} must score as {names[1]} does: same forward, loss, mode, dtype, chunk_size")
