"""KAKURENBO: hides, for an epoch, what has a low loss and is predicted with confidence."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.data.subset import by_position
from rholoss.dataset_scoring import DatasetScorer
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.epoch_pruning import LossPruningSelector

DECAY = (1.0, 0.8, 0.6, 0.4)  # what the share to hide is multiplied by, stage by stage


@register("kakurenbo")
class KakurenboSelector(LossPruningSelector):
    """Hides, for an epoch, the share F = 1 - keep of the examples that has the lowest losses; of these, what has a loss above
    ``bound`` is trained on after all.

    The losses are those that the loop trains on, as they were when each example was trained on last, so the loop has to report
    them: ``selector.record_losses(losses)``. Without that, nothing is hidden. What was hidden gets a forward pass as the next
    epoch begins, or as ``set_epoch`` announces it, so that its loss stays current and it may come back: in eval mode, read as
    the loader reads, ``chunk_size`` examples at a time or as many as are in the loader's batches. Nothing else is scored. An
    epoch has fewer steps, at least one: ``len(selector)``.

    The paper multiplies the learning rate of an epoch by ``selector.learning_rate_scale``; the loop has to do so.

    One process alone: others would hide other examples and have epochs of another length.

    Args:
        loader: a ``DataLoader`` over a map-style dataset.
        model: the model in training.
        bound: the highest loss of what is hidden. The default is -ln(0.7), in nats: with the cross-entropy it hides only what is
            predicted rightly with a confidence of at least 0.7, as in the paper. Other losses, such as a squared error or one
            with label smoothing, need another bound.
        stages: the first epochs of up to three later stages, ascending: F is multiplied by 1 before the first of them, and by
            0.8, 0.6 and 0.4 from each on, as the paper does over training; (25, 50, 75) are four equal stages of 100 epochs. None
            are given by default.
        **options: see ``Selector``; ``keep`` (or n_b / n_B with ``batch_size``) is 1 - F, 0.7 where neither is given, as in the
            paper. n_b is what the loop trains on, as ever. ``mode`` changes nothing.

    Raises:
        ValueError: there is no model, ``bound`` is NaN, or ``stages`` are not ascending or more than three.

    References:
        Nguyen et al., "KAKURENBO: Adaptively Hiding Samples in Deep Neural Network Training", NeurIPS 2023.
    """

    usual_share: ClassVar[float] = 0.7

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
        if math.isnan(bound):
            raise ValueError("bound must be the highest loss of what is hidden, such as -ln(0.7) for a cross-entropy, got nan")
        if list(stages) != sorted(set(stages)) or len(stages) >= len(DECAY):
            raise ValueError(
                f"stages must be the first epochs of up to {len(DECAY[1:])} later stages, ascending, such as (25, 50, 75), "
                f"got {stages!r}"
            )
        super().__init__(loader, model, **options)
        self.bound = bound
        self.stages = stages
        self._scale = 1.0

    @property
    def learning_rate_scale(self) -> float:
        """What to multiply the learning rate of an epoch by, at least 1: 1 / (1 - F*), where F* is the share that is hidden.

        Of the epoch in progress, or of the one that ``set_epoch`` announced.
        """
        return self._scale

    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        self._score_hidden(epoch)
        drawable, subset = self.drawable(), torch.ones_like(self.subset)
        n = max(len(drawable), 1)
        hide = (1 - self.share) * DECAY[sum(epoch >= first for first in self.stages)]
        hide = min(hide, max(1 - self.n_b / n, 0))  # a batch is left
        subset[drawable] = functional.kakurenbo_part(self.losses.cpu()[drawable], hide, self.bound)
        self._scale = n / max(int(subset[drawable].sum()), 1)
        return subset

    def _score_hidden(self, epoch: int) -> None:
        """Bring the losses of what was hidden in the epoch before up to date."""
        hidden = ~self.subset
        if not bool(hidden.any()):
            return
        scorer = DatasetScorer(
            self.loader,
            task=self.scorer.task,
            batch_size=self.scorer.chunk_size,
            seed=self.generator.initial_seed(),
            positions=by_position(self.dataset, hidden).nonzero()[:, 0],
        )
        index, losses = scorer.run(self.model, view=epoch)
        self.losses[index.to(self.losses.device)] = losses.to(self.losses.device)
        self.timer.count_between(len(index))

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "scale": self._scale}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._scale = state["scale"]
