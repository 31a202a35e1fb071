"""Selection by the norm of the gradient with respect to the logits: the highest norms, or a weighted draw."""

from typing import Any

from torch import Tensor

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.registry import register
from rholoss.selector import Selector


def _score(outputs: Any, targets: Any, n: int) -> Tensor:
    return functional.gradient_norm(outputs, targets)


@register("gradient_norm")
class GradientNormSelector(Selector):
    """Keeps the examples with the highest gradient norm. For classifiers.

    References:
        Katharopoulos and Fleuret, "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", ICML 2018.
    """

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.per_example(_score)


@register("gradient_norm_importance_sampling")
class GradientNormImportanceSampler(Selector):
    """Draws examples with replacement in proportion to their gradient norm, and weights them for an unbiased gradient.

    Train on ``selector.mean_loss(losses)``, which applies the weights. For the paper, see ``GradientNormSelector``.
    """

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.per_example(_score)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        return functional.importance_sample(score, candidates.rand(n_b))
