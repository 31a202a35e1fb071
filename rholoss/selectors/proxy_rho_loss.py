"""RHO-LOSS with a small model that scores for a large one."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import model_of, optional, whole
from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.co_training import CoTrainingSelector, optimizer_of
from rholoss.selectors.rho_loss import RhoLossFormula
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("proxy_rho_loss")
class ProxyRhoLossSelector(CoTrainingSelector, StoreSelector):
    """Keeps the examples with the highest reducible loss under a proxy, a cheap model that scores in place of the model.

    Co-train the proxy from fresh weights, and make the store with a model of the proxy's size, trained on the holdout. Other
    arguments: see ``RhoLossSelector``; the model in training scores only to compare.

    Args:
        proxy: the model that scores.
        proxy_optimizer: an optimizer that co-trains the proxy on the selected batches; None leaves the proxy as it is.
        compare_every: steps between comparisons with the model's own choice, at least 1; None never compares. A comparison
            leaves the fraction of the selected examples that both choose in ``selector.last.notes["overlap"]``.

    References:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020, for the idea of a proxy.
    """

    def __init__(
        self,
        loader: Any,
        model: Any,
        store: IrreducibleLossStore,
        proxy: Any,
        *,
        proxy_optimizer: torch.optim.Optimizer | None = None,
        max_irreducible_loss: float | None = None,
        bounded: bool = False,
        compare_every: int | None = None,
        **options: Unpack[SelectorOptions],
    ) -> None:
        self.compare_every = optional(whole, compare_every, "compare_every", "a number of steps, at least 1, or None")
        super().__init__(loader, model, store, **options)
        self.formula = RhoLossFormula(max_irreducible_loss, bounded)
        self.proxy = self.co_trained = model_of(proxy, "proxy")
        self.co_optimizer = optional(optimizer_of, proxy_optimizer, "proxy_optimizer")

    def score(self, candidates: Candidates) -> Tensor:
        loss = to_device(candidates.under(self.proxy).loss, candidates.device)
        return self.formula(loss, self.irreducible_loss(candidates), candidates.notes)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        positions = functional.top(score, n_b)
        if self.compare_every is not None and candidates.step % self.compare_every == 0:
            own = self.formula(candidates.loss, self.irreducible_loss(candidates), {})
            candidates.notes["overlap"] = functional.overlap(positions, functional.top(own, n_b))
        return positions, None
