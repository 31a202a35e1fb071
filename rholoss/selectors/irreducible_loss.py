"""Selection by irreducible loss alone: the examples that are easiest for a model that never trained on them."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.rho_loss import checked_limit
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("irreducible_loss")
class IrreducibleLossSelector(StoreSelector):
    """Keeps the examples with the lowest irreducible loss. Needs no model and runs no forward pass.

    References:
        Mindermann et al., ICML 2022: a baseline there, "negative IL".
    """

    scores_by_index = looks_up_on_host = True

    def __init__(
        self, loader: Any, model: Any = None, store: IrreducibleLossStore | None = None, **options: Unpack[SelectorOptions]
    ) -> None:
        super().__init__(loader, model, store, **options)  # type: ignore[arg-type]

    def score(self, candidates: Candidates) -> Tensor:
        return -self.irreducible_loss(candidates)


class GatedUniformSelector(StoreSelector):
    """Samples uniformly from the candidates whose irreducible loss is at most a limit. Runs no forward pass.

    It skips examples that the irreducible-loss model finds improbable, such as wrong labels. It does not skip examples that are
    already learned. If fewer than n_b candidates are within the limit, others fill the batch, sampled uniformly. Other arguments:
    see ``StoreSelector``; no model is needed.

    Args:
        max_irreducible_loss: the limit in nats, above 0, such as the chance level ``math.log(number of classes)``.
    """

    scores_by_index = looks_up_on_host = True

    def __init__(
        self,
        loader: Any,
        model: Any = None,
        store: IrreducibleLossStore | None = None,
        *,
        max_irreducible_loss: float,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, store, **options)  # type: ignore[arg-type]
        self.max_irreducible_loss = checked_limit(max_irreducible_loss, "max_irreducible_loss")

    def score(self, candidates: Candidates) -> Tensor:
        below = (self.irreducible_loss(candidates) <= self.max_irreducible_loss).float()
        candidates.notes["gated"] = 1 - below.mean()
        return candidates.rand() + below
