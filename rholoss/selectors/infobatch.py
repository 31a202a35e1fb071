"""InfoBatch: skips some low-loss examples for an epoch and weights the other low-loss examples up."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import optional, whole
from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.epoch_pruning import LossPruningSelector


@register("infobatch")
class InfoBatchSelector(LossPruningSelector):
    """Skips each example with a loss below the mean for an epoch, with probability r = 1 - keep.

    The losses of the other examples below the mean are multiplied by 1 / (1 - r), which keeps the gradient unbiased. So the loop
    reports its losses, ``selector.record_losses(losses)``, and trains on the weighted ones, ``selector.mean_loss(losses)``.
    Without reported losses nothing is skipped. No forward pass is needed, and an epoch has fewer steps, ``len(selector)``. The
    score is the weight. As in the paper, r is 0.5 by default. Other arguments: see ``LossPruningSelector``.

    Args:
        full_from: the epoch from which all examples are trained on, unweighted (the paper: the last eighth); None: never.

    Attributes:
        weights: the weight of each example in this epoch, by index, shape (N,); None if all are 1.

    References:
        Qin et al., "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", ICLR 2024.
    """

    remembered = ("losses", "weights")

    def __init__(
        self, loader: Any, model: Any = None, *, full_from: int | None = None, **options: Unpack[SelectorOptions]
    ) -> None:
        self.full_from = optional(whole, full_from, "full_from", "an epoch, a whole number, at least 0, or None for never", 0)
        super().__init__(loader, model, **options)
        self.weights: Tensor | None = None

    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        n, self.weights = len(self.losses), None
        if self.full_from is not None and epoch >= self.full_from:
            return torch.ones(n, dtype=torch.bool)
        subset, weights = functional.infobatch_part(self.losses.cpu(), self.share, torch.rand(n, generator=generator))
        self.weights = weights if bool((weights != 1).any()) else None
        return subset

    def kinds_of(self, name: str) -> tuple[Any, ...]:
        return (None, self.losses) if name == "weights" else super().kinds_of(name)

    def score(self, candidates: Candidates) -> Tensor:
        if self.weights is None:
            return super().score(candidates)
        return to_device(self.weights[candidates.loader_index.cpu()], candidates.device)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        positions = functional.top(score, n_b)
        return positions, None if self.weights is None else score[positions]
