"""The base classes of epoch pruning: methods that choose a new subset of the dataset for each epoch."""

import copy
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.arguments import fraction, optional
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.devices import to_device
from rholoss.isolation import derived_seed
from rholoss.options import SelectorOptions
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.states import Settings, taken


class EpochPruningSelector(Selector):
    """Base class of methods that choose a subset of the dataset when an epoch begins, and read no other example.

    The loader, a ``DataLoader`` over a map-style dataset, draws batches of n_b from the subset, all of them kept. Nothing is
    scored. Iterating the selector chooses the subset, or ``set_epoch`` before, after which ``len(selector)`` is of that epoch.

    Attributes:
        share: the fraction of the dataset that a method keeps, in (0, 1]: ``keep``, or n_b / n_B with ``batch_size``, or
            ``usual_share`` if neither is given.
        subset: which examples the epoch trains on, by index, shape (N,), bool.
    """

    usual_share: ClassVar[float] = 0.5
    remembered: ClassVar[tuple[str, ...]] = ()  # names of further attributes that the state holds: tensors (N,), or numbers

    def __init__(self, loader: Any, model: Any = None, **options: Unpack[SelectorOptions]) -> None:
        if options.get("batch_size") is None:
            keep = optional(fraction, options.get("keep"), "keep", "the fraction of the dataset to keep, in (0, 1]")
            self.share = keep or self.usual_share
            options["keep"] = 1.0  # every drawn example is trained on
        super().__init__(loader, model, **options)
        if not self.view.draws_by_index:
            expected = f"{type(self).__name__} draws from a subset: pass a DataLoader over a map-style dataset"
            raise TypeError(f"{expected}, got {type(loader).__name__}")
        if options.get("batch_size") is not None:
            self.share = self.n_b / (self.n_B or self.n_b)
        self.n_B = self.n_b
        self.subset = torch.ones(self.view.dataset_length or 0, dtype=torch.bool)
        self._subset_of: int | None = None  # the epoch of the subset

    @abstractmethod
    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Which examples to train on in the epoch that begins, by index, shape (N,), bool."""

    def draw_rule(self) -> DrawRule:
        return DrawRule(members=self._members, n_B=self.n_b)

    def _members(self) -> Tensor:
        if self._subset_of is None:  # the first epoch: no loss is known, so no model runs
            self.begin_epoch(self.epoch)
        return self.subset

    def begin_epoch(self, epoch: int) -> None:
        if self._subset_of != epoch:
            seed = derived_seed("part of an epoch", self.generator.initial_seed(), epoch)
            self.subset, self._subset_of = self.choose_subset(epoch, torch.Generator().manual_seed(seed)), epoch

    def drawable(self) -> Tensor:
        """Indices of the examples that the loader may draw, each once, ascending, int64."""
        drawable = self.view.drawable()
        return torch.arange(len(self.subset)) if drawable is None else drawable.long().unique()

    def score(self, candidates: Candidates) -> Tensor:
        return torch.ones(len(candidates), device=candidates.device)

    def settings(self) -> Settings:
        return {**super().settings(), "share": self.share}

    def extra_state(self) -> dict[str, Any]:
        return {"subset": self.subset, "subset_of": self._subset_of, **{name: getattr(self, name) for name in self.remembered}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.subset = taken(state, "subset", self.subset).cpu().clone()
        self._subset_of = taken(state, "subset_of", None, int, least=0)
        for name in self.remembered:
            setattr(self, name, copy.deepcopy(taken(state, name, *self.kinds_of(name))))

    def kinds_of(self, name: str) -> tuple[Any, ...]:
        """What a remembered attribute may be, as for ``rholoss.states.taken``."""
        value = getattr(self, name)
        return (value,) if isinstance(value, Tensor) else (type(value),)


class LossPruningSelector(EpochPruningSelector):
    """Base class of methods that choose the subset by the loss of each example when it was last trained on.

    The loop has to report its losses in each step: ``selector.record_losses(losses)``. For a single process only: several
    processes would skip different examples, and their epochs would differ in length.

    Attributes:
        losses: the last loss of each example, by index, shape (N,), float32; NaN if it was never trained on.
    """

    remembered: ClassVar[tuple[str, ...]] = ("losses",)

    def __init__(self, loader: Any, model: Any = None, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(loader, model, **options)
        self.losses = torch.full((len(self.subset),), torch.nan)

    def after_loss(self, selection: Selection, losses: Tensor) -> None:
        self.losses = to_device(self.losses, losses.device)
        self.losses[to_device(selection.index, losses.device)] = losses.float()
