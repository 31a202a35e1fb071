"""RHO-LOSS over data that grow: what the table of irreducible losses lacks is scored as it comes."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("lazy_rho_loss")
class LazyRhoLossSelector(StoreSelector):
    """As ``RhoLossSelector``, with the irreducible losses that the store lacks computed as they are needed, in eval mode.

    Costs a forward pass of the irreducible-loss model per candidate that the store does not know. Nothing is remembered: score
    new data with ``IrreducibleLossStore.from_model`` now and then, and ``merge`` the stores. What is unknown is read back from an
    accelerator, which waits for it. Its share is left in ``selector.last.notes["unknown"]``.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        store: irreducible losses of the examples that were there when it was made; with ids, where their number grows.
        irreducible_model: the irreducible-loss model that made the store.
        **options: see ``Selector``.

    References:
        Mindermann et al., ICML 2022, equation 3.
    """

    needs_all = False

    def __init__(
        self, loader: Any, model: Any, store: IrreducibleLossStore, irreducible_model: Any, **options: Unpack[SelectorOptions]
    ) -> None:
        super().__init__(loader, model, store, **options)
        self.irreducible_model = irreducible_model

    def score(self, candidates: Candidates) -> Tensor:
        return functional.reducible_loss(candidates.loss, self.irreducible_loss(candidates))

    def irreducible_loss(self, candidates: Candidates) -> Tensor:
        losses = self.look_up(candidates).to(candidates.device)
        lacks = ~torch.isfinite(losses)
        candidates.notes["unknown"] = lacks.float().mean()
        unknown = torch.nonzero(lacks).flatten()
        if not len(unknown):
            return losses
        scored = candidates.at(unknown).under(self.irreducible_model, mode="eval").loss
        return losses.index_copy(0, unknown, scored.to(losses.device))
