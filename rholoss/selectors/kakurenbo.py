"""KAKURENBO: hides examples with a low loss and a confident prediction for an epoch."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import number, shown, whole
from rholoss.cost import ScoredCounts
from rholoss.data.subset import by_position
from rholoss.dataset_scoring import DatasetScorer
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.epoch_pruning import LossPruningSelector

DECAY = (1.0, 0.8, 0.6, 0.4)  # factors of the fraction to hide, by stage


@register("kakurenbo")
class KakurenboSelector(LossPruningSelector):
    """Hides the fraction F = 1 - keep of examples with the lowest losses for an epoch, except losses above ``bound``.

    The loop reports its losses, ``selector.record_losses(losses)``; without them nothing is hidden. It also multiplies the
    learning rate of each epoch by ``selector.learning_rate_scale``, as the paper does. When the next epoch begins, or
    ``set_epoch`` announces it, a forward pass in eval mode updates the losses of the hidden examples, ``chunk_size`` at a time.
    Nothing else is scored. An epoch has fewer steps, at least one: ``len(selector)``. As in the paper, F is 0.3 by default. Other
    arguments: see ``LossPruningSelector``; the model is needed, and ``mode`` has no effect.

    Args:
        bound: the highest loss of a hidden example. The default, -ln(0.7) nats, hides only correct predictions with a confidence
            of at least 0.7 under the cross-entropy, as in the paper. Other losses need another bound.
        stages: the first epochs of up to three later stages, ascending. F is multiplied by 0.8, 0.6 and 0.4 from each on; the
            paper's are four equal stages, such as (25, 50, 75) for 100 epochs. None by default.

    Attributes:
        learning_rate_scale: factor of the learning rate in the latest epoch begun or announced: 1 / (1 - fraction hidden).

    References:
        Nguyen et al., "KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training", NeurIPS 2023.
    """

    usual_share = 0.7
    remembered = ("losses", "learning_rate_scale")

    def __init__(
        self,
        loader: Any,
        model: Any = None,
        *,
        bound: float = -math.log(0.7),
        stages: Sequence[int] = (),
        **options: Unpack[SelectorOptions],
    ) -> None:
        if model is None:
            raise ValueError("KAKURENBO scores what it hides; pass the model in training as the second argument, got None")
        what = "the highest loss of a hidden example, such as -ln(0.7) for a cross-entropy"
        self.bound = number(bound, "bound", what, lambda loss: True)
        what = f"the first epochs of up to {len(DECAY[1:])} later stages, ascending, such as (25, 50, 75)"
        if isinstance(stages, (str, bytes)) or not isinstance(stages, Sequence):
            raise TypeError(f"stages must be {what}, got {shown(stages)}")
        self.stages = [whole(stage, "each of stages", "an epoch, a whole number, at least 0", 0) for stage in stages]
        if self.stages != sorted(set(self.stages)) or len(stages) >= len(DECAY):
            raise ValueError(f"stages must be {what}, got {stages!r}")
        super().__init__(loader, model, **options)
        self.learning_rate_scale = 1.0

    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        self._score_hidden(epoch)
        drawable, subset = self.drawable(), torch.ones_like(self.subset)
        n = max(len(drawable), 1)
        hide = (1 - self.share) * DECAY[sum(epoch >= first for first in self.stages)]
        hide = min(hide, max(1 - self.n_b / n, 0))  # leaves one batch
        subset[drawable] = functional.kakurenbo_part(self.losses.cpu()[drawable], hide, self.bound)
        self.learning_rate_scale = n / max(int(subset[drawable].sum()), 1)
        return subset

    def _score_hidden(self, epoch: int) -> None:
        """Update the losses of the examples that the previous epoch hid."""
        hidden = ~self.subset
        if not bool(hidden.any()):
            return
        size = None if self.scorer.chunk_size == "auto" else self.scorer.chunk_size
        how: Any = {"task": self.scorer.task, "batch_size": size, "seed": self.generator.initial_seed()}
        scorer = DatasetScorer(self.loader, positions=by_position(self.dataset, hidden).nonzero()[:, 0], **how)
        index, losses = scorer.run(self.model, view=epoch)
        self.losses[index.to(self.losses.device)] = losses.to(self.losses.device)
        self.timer.count(ScoredCounts(by_model=len(index)), len(index), steps=0)
