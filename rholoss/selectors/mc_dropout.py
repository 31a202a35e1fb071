"""Methods of active learning that use several forward passes with dropout (MC dropout)."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import whole
from rholoss.candidates import Candidates
from rholoss.devices import LateErrors
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selector import Selector


class DropoutSelector(Selector):
    """Base class of methods that use K = ``passes`` passes with dropout, at least 1. For classifiers. See also ``Selector``."""

    def __init__(self, loader: Any, model: Any, *, passes: int = 10, **options: Unpack[SelectorOptions]) -> None:
        self.passes = whole(passes, "passes", "a whole number of forward passes, at least 1")
        super().__init__(loader, model, **options)
        self._checked, self._late = False, LateErrors()

    def logits(self, candidates: Candidates) -> Tensor:
        """Logits of each pass, shape (K, n_B, C)."""
        return candidates.sampled(lambda outputs, targets, n: outputs, self.passes)

    def logits_and_loss(self, candidates: Candidates) -> tuple[Tensor, Tensor]:
        """Logits of each pass, shape (K, n_B, C), and the mean loss over the same passes, shape (n_B,), in nats."""

        def both(outputs: Tensor, targets: Any, n: int) -> Tensor:
            functional.check_logits(outputs, 2)
            return torch.cat([outputs.float(), candidates.losses_of(outputs, targets, n)[:, None]], dim=1)

        drawn = candidates.sampled(both, self.passes)
        return drawn[..., :-1], drawn[..., -1].mean(0)


@register("bald")
class BaldSelector(DropoutSelector):
    """Keeps the examples on which the passes disagree most: the mutual information of prediction and weights. Uses no label.

    Raises:
        ValueError: at the first step (on an accelerator, a little later), if all passes are the same: the model has no dropout.

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", 2011.
        Gal et al., "Deep Bayesian Active Learning with Image Data", ICML 2017.
    """

    def score(self, candidates: Candidates) -> Tensor:
        logits = self.logits(candidates)
        self._checked, first = True, not self._checked
        if first and self.passes > 1:
            same = f"{self.passes} passes in train mode gave the same outputs, so every score is 0"
            error = ValueError(f"{type(self).__name__} needs a model with dropout: {same}")
            self._late.raise_if((logits == logits[0]).all(), lambda: error)
        self._late.raise_arrived()
        return functional.bald(logits)


@register("entropy")
class EntropySelector(DropoutSelector):
    """Keeps the examples with the highest entropy of the mean prediction. Uses no label."""

    def score(self, candidates: Candidates) -> Tensor:
        return functional.predictive_entropy(self.logits(candidates))


@register("conditional_entropy")
class ConditionalEntropySelector(DropoutSelector):
    """Keeps the examples with the highest mean entropy of the predictions. Uses no label."""

    def score(self, candidates: Candidates) -> Tensor:
        return functional.conditional_entropy(self.logits(candidates))


@register("loss_minus_conditional_entropy")
class LossMinusConditionalEntropySelector(DropoutSelector):
    """Keeps the examples with the highest loss minus conditional entropy."""

    def score(self, candidates: Candidates) -> Tensor:
        logits, loss = self.logits_and_loss(candidates)
        return loss - functional.conditional_entropy(logits)


@register("loss_plus_conditional_entropy")
class LossPlusConditionalEntropySelector(DropoutSelector):
    """Keeps the examples with the highest loss plus conditional entropy."""

    def score(self, candidates: Candidates) -> Tensor:
        logits, loss = self.logits_and_loss(candidates)
        return loss + functional.conditional_entropy(logits)
