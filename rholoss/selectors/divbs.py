"""DivBS: the candidates whose gradients represent the mean gradient best together."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selector import Selector

Features = Callable[[Any, Any], tuple[Tensor, Tensor, Tensor]]
"""``features(model, batch) -> (logits, targets, features)``: a forward pass that hands the last layer's inputs out, (n, d)."""


@register("divbs")
class DivBSSelector(Selector):
    """Picks one candidate after the other, each time the one that adds the most to the part of the mean gradient of all
    candidates that lies in the span of the picked ones' gradients. For classifiers.

    The gradients are those with respect to the last layer's weights if ``features`` tells its inputs, and otherwise those with
    respect to the logits: these span C - 1 directions at most, for C classes. Where the picked ones represent all of the mean
    gradient, the others are drawn at random. Costs a forward pass per candidate, n_B^2 inner products and n_b steps one after the
    other, each of about n_B n_b operations.

    The score is n_b for the first that is picked, n_b - 1 for the second and so on, and below 1 for those that are not.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        features: ``(model, batch) -> (logits, targets, features)``, such as ``lambda model, batch: (model.head(h :=
            model.body(batch[0])), batch[1], h)``; it takes the place of ``forward`` here.
        **options: see ``Selector``.

    References:
        Hong et al., "Diversified Batch Selection for Training Acceleration", ICML 2024.
    """

    compares_candidates = True

    def __init__(self, loader: Any, model: Any, *, features: Features | None = None, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(loader, model, **options)
        self.features = features

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
