"""The ground of methods that train on another part of the dataset in each epoch."""

from abc import abstractmethod
from typing import Any

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

    def __init__(self, loader: Any, model: Any = None, **options: Unpack[Options]) -> None:
        if options.get("keep") is None and options.get("batch_size") is None:
            options["keep"] = 0.5
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
