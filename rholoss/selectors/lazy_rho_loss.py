"""RHO-LOSS over growing data: irreducible losses that the store lacks are computed when needed."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import model_of
from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("lazy_rho_loss")
class LazyRhoLossSelector(StoreSelector):
    """As ``RhoLossSelector``; irreducible losses that the store lacks are computed when needed, in eval mode.

    Costs a forward pass of the irreducible-loss model per candidate that the store lacks. Results are not kept: score new data
    with ``IrreducibleLossStore.from_model`` from time to time, and ``merge`` the stores. The store stays where the loader's
    indices are, on the CPU. ``selector.last.notes["unknown"]`` is the fraction that the store lacked. Other arguments: see
    ``Selector``.

    Args:
        store: irreducible losses of the examples known when it was made; with ids if their number grows.
        irreducible_model: the irreducible-loss model that made the store.

    References:
        Mindermann et al., ICML 2022, equation 3.
    """

    needs_all = False
    looks_up_on_host = True  # how many are scored depends on it

    def __init__(
        self, loader: Any, model: Any, store: IrreducibleLossStore, irreducible_model: Any, **options: Unpack[SelectorOptions]
    ) -> None:
        super().__init__(loader, model, store, **options)
        self.irreducible_model = model_of(irreducible_model, "irreducible_model")

    def score(self, candidates: Candidates) -> Tensor:
        return functional.reducible_loss(candidates.loss, self.irreducible_loss(candidates))

    def irreducible_loss(self, candidates: Candidates) -> Tensor:
        losses = self.look_up(candidates)
        is_unknown = ~torch.isfinite(losses)
        candidates.notes["unknown"] = is_unknown.float().mean()
        unknown, losses = torch.nonzero(is_unknown).flatten(), to_device(losses, candidates.device)
        if not len(unknown):
            return losses
        scored = candidates.at(unknown).under(self.irreducible_model, mode="eval").loss
        return losses.index_copy(0, to_device(unknown, losses.device), to_device(scored, losses.device))
