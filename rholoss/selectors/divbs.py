"""DivBS: the candidates whose gradients together represent the mean gradient best."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import function, optional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selector import Selector

Features = Callable[[Any, Any], tuple[Tensor, Tensor, Tensor]]
"""``features(model, batch) -> (logits, targets, features)``: a forward pass that also returns the last layer's inputs, (n, d)."""


@register("divbs")
class DivBSSelector(Selector):
    """Picks candidates one by one so that the span of their gradients holds as much of the mean gradient as possible.

    For classifiers. Once the picked candidates represent all of the mean gradient, the rest are drawn uniformly. The score is
    n_b for the first pick, n_b - 1 for the second and so on, and below 1 for candidates that were not picked. A step costs
    n_B forward passes, n_B^2 inner products, and n_b picks of about n_B n_b operations. Other arguments: see ``Selector``.

    Args:
        features: ``(model, batch) -> (logits, targets, features)``, such as ``lambda model, batch: (model.head(h :=
            model.body(batch[0])), batch[1], h)``, in place of ``forward``: gradients are then those with respect to the last
            layer's weights. None: those with respect to the logits, which span at most C - 1 directions for C classes.

    References:
        Hong et al., "Diversified Batch Selection for Training Acceleration", ICML 2024.
    """

    compares_candidates = True

    def __init__(self, loader: Any, model: Any, *, features: Features | None = None, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(loader, model, **options)
        self.features = optional(function, features, "features", "(model, batch) -> (logits, targets, features)")

    def score(self, candidates: Candidates) -> Tensor:
        features = None
        if self.features is None:
            logits, targets = candidates.outputs, candidates.targets
        else:
            seen = candidates.read_with(self._forward)
            (logits, features), targets = seen.outputs, seen.targets
        gram = functional.gram(logits, targets, features)
        order = functional.divbs_order(gram, min(self.n_b, len(candidates)))
        return torch.where(gram.diagonal().isfinite(), torch.where(order > 0, order, candidates.rand()), torch.nan)

    def _forward(self, model: Any, batch: Any) -> tuple[Any, Any]:
        assert self.features is not None
        made = self.features(model, batch)
        if not (isinstance(made, tuple) and len(made) == 3):
            raise TypeError(f"features(model, batch) must return (logits, targets, features), got {type(made).__name__}")
        logits, targets, features = made
        return (logits, features), targets
