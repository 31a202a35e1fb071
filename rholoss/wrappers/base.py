"""The base classes of selectors that take selectors."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.arguments import shown
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.options import SelectorOptions
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.states import Settings, taken


class WrapperSelector(Selector):
    """Lets other selectors score and choose. They are built on the same loader and model, and nobody iterates them.

    The wrapper also applies the draw rules of its parts. A subclass calls ``check_parts`` once its constructor has set them.
    """

    @abstractmethod
    def parts(self) -> list[Selector]:
        """All selectors that this one consists of."""

    @abstractmethod
    def part_at(self, step: int, epoch: int) -> Selector:
        """The part that decides at a step of an epoch."""

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        """The part that decides on these candidates, and the candidates as it sees them."""
        return self.part_at(candidates.step, candidates.epoch), candidates

    def check_parts(self) -> None:
        """Refuse parts with another loader, model or way of scoring, and parts that draw batches of different sizes."""
        for part in self.parts():
            check_part(part, self)
        self._rules = [part.draw_rule() for part in self.parts()]
        for part, rule in zip(self.parts(), self._rules, strict=True):
            self._check_sizes(part, rule)
        self._epoch = 0  # the latest that began
        sizes = {rule.n_B for rule in self._rules}
        if len(sizes) > 1:
            names = " and ".join(dict.fromkeys(type(part).__name__ for part in self.parts()))
            together = f"{names} cannot be parts of one {type(self).__name__}"
            raise ValueError(f"{together}: one trains on all that it draws, the other does not")
        if sizes != {None}:
            self.n_B = self.n_b
        self.compares_candidates = any(part.compares_candidates for part in self.parts())

    def _check_sizes(self, part: Selector, rule: DrawRule) -> None:
        """Refuse what a part says about sizes and this selector does not do; a part that says nothing goes by this selector."""
        mine, names = (self.n_b, self.n_B), (type(part).__name__, type(self).__name__)
        if part.sizes_given and rule.n_B is None and (part.n_b, part.n_B) != mine:
            got = f"got a {names[0]} with n_b = {part.n_b} and n_B = {part.n_B} in a {names[1]} with {mine[0]} and {mine[1]}"
            raise ValueError(f"keep and batch_size of a part must be those of its wrapper, {got}; pass them to the wrapper only")
        if (rule.members is not None or rule.prefilter) and not (self.redraws or rule.n_B):
            why = f"{names[0]} decides before examples are loaded, and batch_size= selects from batches that are loaded"
            raise ValueError(f"{why}; pass keep= to {names[1]} instead")

    def rule_of(self, part: Selector) -> DrawRule:
        """The draw rule of a part."""
        return next(rule for own, rule in zip(self.parts(), self._rules, strict=True) if own is part)

    def draw_rule(self) -> DrawRule:
        members = self._members if any(rule.members is not None for rule in self._rules) else None
        prefilter = self.prefilter_of_part if any(rule.prefilter for rule in self._rules) else None
        return DrawRule(members=members, prefilter=prefilter, n_B=self._rules[0].n_B)

    def _members(self) -> Tensor:
        rule = self.rule_of(self.part_at(self.step, self._epoch))
        if rule.members is None:
            return torch.ones(self.view.dataset_length or 0, dtype=torch.bool)
        return rule.members() if callable(rule.members) else rule.members

    def prefilter_of_part(self, index: Tensor, step: int) -> Tensor | None:
        """The prefilter of the part that decides at a step: see ``DrawRule``."""
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

    def settings(self) -> Settings:
        return {**super().settings(), "parts": [part.settings() for part in self.parts()]}

    def extra_state(self) -> dict[str, Any]:
        return {"parts": [part.extra_state() for part in self.parts()]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        mine, saved = self.parts(), dict(enumerate(taken(state, "parts", list)))
        if len(saved) != len(mine):
            raise ValueError(f"this state cannot be loaded: expected {len(mine)} parts, got {len(saved)}; pass what was saved")
        for i, part in enumerate(mine):
            part.load_extra_state(taken(saved, i, part.extra_state()))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "parts": [type(part).__name__ for part in self.parts()]}


class MethodWrapper(WrapperSelector):
    """Base class of wrappers around one ``method``, a selector on the same loader and model, which always decides."""

    def __init__(self, loader: Any, model: Any, method: Selector, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(loader, model, **options)
        self.method = method
        self.check_parts()

    def parts(self) -> list[Selector]:
        return [self.method]

    def part_at(self, step: int, epoch: int) -> Selector:
        return self.method


def check_part(part: Selector, whole: Selector) -> None:
    """Refuse a selector whose loader, model or way of scoring differs from those of another."""
    names = type(part).__name__, type(whole).__name__
    if not isinstance(part, Selector):
        what = f"{names[1]} expects selectors that are built, such as UniformSelector(loader), as method, otherwise or stages"
        raise TypeError(f"{what}, got {shown(part)}")
    if part.loader is not whole.loader or part.model not in (None, whole.model):
        raise ValueError(f"{names[0]} must be built on the same loader and model as {names[1]}")
    if part.model is not None and part.scorer != whole.scorer:
        raise ValueError(f"{names[0]} must score as {names[1]} does: same forward, loss, mode, dtype, chunk_size")
