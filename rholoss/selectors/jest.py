"""JEST: a batch drawn jointly, for contrastive losses, where what one example is worth depends on the others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.selector import Selector

PairLosses = Callable[[Any, Any], Tensor]
"""``pair_losses(model, outputs) -> (n_B, n_B)``: the loss of each pair of candidates."""


class JestSelector(Selector):
    """Draws the batch chunk by chunk, without replacement, each in proportion to the exponential of how learnable an example is
    together with what was drawn before: the learner's loss less that of a reference model, over all pairs.

    For losses that are sums over pairs, such as the sigmoid loss of images and texts. Where ``forward`` has no targets to return,
    it returns None for them. The score is the example's own, that of its pair. Costs a forward pass per candidate of the model
    and of the reference model, and n_B^2 losses of pairs of each.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        reference: the reference model, on the same device.
        pair_losses: ``(model, outputs) -> (n_B, n_B)``, such as ``lambda model, outputs: functional.sigmoid_pair_losses(*outputs,
            model.scale, model.bias)`` where ``forward`` returns embeddings, two for each example, as outputs.
        chunks: in how many parts to draw, at least 1.
        **options: see ``Selector``.

    References:
        Evans et al., "Data curation via joint example selection further accelerates multimodal learning", 2024.
    """

    compares_candidates = True

    def __init__(
        self,
        loader: Any,
        model: Any,
        reference: Any,
        *,
        pair_losses: PairLosses,
        chunks: int = 16,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, **options)
        if chunks < 1:
            raise ValueError(f"chunks must be how many parts to draw a batch in, at least 1, got {chunks!r}")
        self.reference = reference
        self.pair_losses = pair_losses
        self.chunks = chunks

    def score(self, candidates: Candidates) -> Tensor:
        pairs = candidates.memory[self] = self._pair_scores(candidates)
        return pairs.diagonal()

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        uniform = candidates.rand(self.chunks * len(candidates)).reshape(self.chunks, -1)
        return functional.jest_choice(candidates.memory[self], n_b, self.chunks, uniform), None

    def _pair_scores(self, candidates: Candidates) -> Tensor:
        n, under = len(candidates), candidates.under(self.reference)
        with torch.no_grad():
            learner = self.pair_losses(self.model, candidates.outputs)
            reference = self.pair_losses(self.reference, under.outputs)
        if learner.shape != (n, n) or reference.shape != (n, n):
            got = tuple(learner.shape), tuple(reference.shape)
            raise ValueError(f"pair_losses must return one loss per pair, shape ({n}, {n}), got {got[0]} and {got[1]}")
        return learner.float() - reference.float().to(learner.device)
