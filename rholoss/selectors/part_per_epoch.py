"""The ground of methods that train on another part of the dataset in each epoch."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.guest import derived_seed
from rholoss.indexing import is_map_style
from rholoss.options import Options
from rholoss.parts import whole_length
from rholoss.selector import Selector
from rholoss.sizes import natural_batch_size
from rholoss.source import CandidateSource


class PartPerEpoch(Selector):
    """Trains on a part of the dataset that is chosen as an epoch begins. The others are not read; nothing is scored.

    Batches of n_b are drawn from the part with the loader's sampler, and all of them are kept. Those who draw from
    ``candidate_batches`` themselves have to call ``set_epoch``.

    Args:
        loader: a ``DataLoader`` over a map-style dataset.
        model: see ``Selector``; not needed.
        **options: see ``Selector``; ``keep`` (or n_b / n_B with ``batch_size``) is the share that a method goes by, 0.5 where
            neither is given.

    Attributes:
        share: the share.
    """

    usual_share: ClassVar[float] = 0.5

    def __init__(self, loader: Any, model: Any = None, **options: Unpack[Options]) -> None:
        if options.get("keep") is None and options.get("batch_size") is None:
            options["keep"] = self.usual_share
        self.share = options.get("keep") or 1.0
        super().__init__(loader, model, **options)
        self.n_B = self.n_b
        self._part = torch.ones(whole_length(loader.dataset), dtype=torch.bool)
        self._part_of: int | None = None  # the epoch that it is the part of

    @abstractmethod
    def part(self, generator: torch.Generator) -> Tensor:
        """Which examples to train on in the epoch that begins, ``epoch``, by index, shape (N,), bool."""

    def _make_source(self, loader: Any, n_B: int | None) -> CandidateSource:
        if not is_map_style(loader):
            raise TypeError(
                f"{type(self).__name__} draws from a part: pass a DataLoader over a map-style dataset, "
                f"got {type(loader).__name__}"
            )
        if n_B is None:
            self.share = self.n_b / (natural_batch_size(loader) or self.n_b)
        return CandidateSource(loader, self.n_b, self._members)

    def drawable(self) -> Tensor:
        """Indices of the examples that the loader may draw, each once, ascending, int64."""
        drawable = self._source.drawable()
        return torch.arange(len(self._part)) if drawable is None else drawable.long().unique()

    def _members(self) -> Tensor:
        if self._part_of != self.epoch:
            seed = derived_seed("part of an epoch", self._generator.initial_seed(), self.epoch)
            self._part, self._part_of = self.part(torch.Generator().manual_seed(seed)), self.epoch
        return self._part

    def score(self, candidates: Candidates) -> Tensor:
        return torch.ones(len(candidates), device=candidates.device)

    def extra_state(self) -> dict[str, Any]:
        return {"part": self._part, "part_of": self._part_of}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if len(state["part"]) != len(self._part):
            raise ValueError(
                f"this state cannot be loaded: it is of {len(state['part'])} examples, got a dataset of {len(self._part)}"
            )
        self._part, self._part_of = state["part"].cpu().clone(), state["part_of"]


class PartByLoss(PartPerEpoch):
    """Chooses the part by the losses that the loop trains on, as they were when each example was trained on last.

    The loop has to hand them over: train on ``selector.mean_loss(losses)``. What was never trained on has the loss NaN.

    One process alone: others would leave out other examples and have epochs of another length.
    """

    def __init__(self, loader: Any, model: Any = None, **options: Unpack[Options]) -> None:
        super().__init__(loader, model, **options)
        self._losses = torch.full((len(self._part),), torch.nan)  # by index

    def mean_loss(self, losses: Tensor) -> Tensor:
        mean = super().mean_loss(losses)
        assert self.last is not None
        self._losses = self._losses.to(losses.device)
        self._losses[self.last.index.to(losses.device)] = losses.detach().float()
        return mean

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "losses": self._losses}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._losses = state["losses"].clone()
