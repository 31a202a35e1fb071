"""Selection by irreducible loss alone: the easiest examples for a model that did not see them."""

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

    scores_by_index = True

    def __init__(
        self, loader: Any, model: Any = None, store: IrreducibleLossStore | None = None, **options: Unpack[SelectorOptions]
    ) -> None:
        super().__init__(loader, model, store, **options)  # type: ignore[arg-type]

    def score(self, candidates: Candidates) -> Tensor:
        return -self.irreducible_loss(candidates)


class GatedUniformSelector(StoreSelector):
    """Keeps n_b at random of the candidates whose irreducible loss is no higher than a limit. Runs no forward pass.

    It leaves out what the irreducible-loss model finds improbable, such as wrong labels, and does not care what is learnt
    already. Where fewer than n_b candidates are below the limit, others make up the number, at random.

    Args:
        loader: see ``Selector``.
        model: see ``Selector``; not needed.
        store: irreducible losses of the loader's dataset.
        max_irreducible_loss: the limit, in nats, such as ``math.log(number of classes)``, what a guess would lose.
        **options: see ``Selector``.
    """

    scores_by_index = True

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
        self.max_irreducible_loss = checked_limit(max_irreducible_loss)

    def score(self, candidates: Candidates) -> Tensor:
        irreducible_loss = self.irreducible_loss(candidates)
        below = (irreducible_loss <= self.max_irreducible_loss).float()
        candidates.notes["gated"] = 1 - below.mean()
        return candidates.rand() + below
