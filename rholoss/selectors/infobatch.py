"""InfoBatch: leaves out some of what has a low loss, for an epoch, and weights the rest of it up."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.epoch_pruning import LossPruningSelector


@register("infobatch")
class InfoBatchSelector(LossPruningSelector):
    """Leaves out, for an epoch, each example of a loss below the mean with probability r = 1 - keep, and multiplies the losses of
    the others below the mean by 1 / (1 - r), so that the gradient stays unbiased.

    The losses are those that the loop trains on, as they were when each example was trained on last, so the loop has to report
    them, ``selector.record_losses(losses)``, and to use the weights: train on ``selector.mean_loss(losses)``. Without losses,
    nothing is left out. Costs no forward pass; an epoch has fewer steps, ``len(selector)``. The score is the weight.

    One process alone: others would leave out other examples and have epochs of another length.

    Args:
        loader: a ``DataLoader`` over a map-style dataset.
        model: see ``Selector``; not needed.
        full_from: the first of the last epochs, which train on all examples, unweighted: in the paper after 0.875 of them. None
            for no such epochs.
        **options: see ``Selector``; ``keep`` (or n_b / n_B with ``batch_size``) is 1 - r, 0.5 where neither is given, as in the
            paper. n_b is what the loop trains on, as ever.

    References:
        Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024.
    """

    def __init__(
        self, loader: Any, model: Any = None, *, full_from: int | None = None, **options: Unpack[SelectorOptions]
    ) -> None:
        super().__init__(loader, model, **options)
        self.full_from = full_from
        self._weights: Tensor | None = None  # of all examples, in this epoch; None: 1 for each

    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        n, self._weights = len(self.losses), None
        if self.full_from is not None and epoch >= self.full_from:
            return torch.ones(n, dtype=torch.bool)
        subset, weights = functional.infobatch_part(self.losses.cpu(), self.share, torch.rand(n, generator=generator))
        if bool((weights != 1).any()):
            self._weights = weights
        return subset

    def score(self, candidates: Candidates) -> Tensor:
        if self._weights is None:
            return super().score(candidates)
        return self._weights[candidates.loader_index.cpu()].to(candidates.device)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        positions = functional.top(score, n_b)
        return positions, None if self._weights is None else score[positions]

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "weights": self._weights}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._weights = state["weights"]
