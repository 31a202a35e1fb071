"""Uniform sampling: the baseline that every method has to beat."""

from torch import Tensor

from rholoss.candidates import Candidates
from rholoss.registry import register
from rholoss.selector import Selector


@register("uniform")
class UniformSelector(Selector):
    """Samples n_b candidates uniformly. Needs no model and runs no forward pass."""

    scores_by_index = True

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.rand()
