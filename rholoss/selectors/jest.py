"""JEST: joint selection of a batch, for contrastive losses, where the value of an example depends on the others."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import function, model_of, whole
from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.selector import Selector

PairLosses = Callable[[Any, Any], Tensor]
"""``pair_losses(model, outputs) -> (n_B, n_B)``: the loss of each pair of candidates."""


class JestSelector(Selector):
    """Draws the batch chunk by chunk, without replacement, by the loss of the model minus that of a reference model.

    Each chunk is drawn in proportion to exp(s), where s sums that difference over an example's own pair and its pairs with the
    examples drawn before. For losses that are sums over pairs, such as the sigmoid loss of images and texts. The score is that
    of the own pair. A step costs n_B forward passes and n_B^2 pair losses of each of the two models. Other arguments: see
    ``Selector``; a ``forward`` without targets returns None for them.

    Args:
        reference: the reference model, on the same device.
        pair_losses: ``(model, outputs) -> (n_B, n_B)``, such as ``lambda model, outputs: functional.sigmoid_pair_losses(*outputs,
            model.scale, model.bias)`` if ``forward`` returns two embeddings per example as outputs.
        chunks: how many chunks to draw a batch in, at least 1.

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
        self.reference = model_of(reference, "reference")
        self.pair_losses = function(pair_losses, "pair_losses", "(model, outputs) -> (n_B, n_B)")
        self.chunks = whole(chunks, "chunks", "how many parts to draw a batch in, at least 1")
        super().__init__(loader, model, **options)

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
        return learner.float() - to_device(reference.float(), learner.device)
