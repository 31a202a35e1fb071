"""Selection by irreducible loss alone: the easiest examples for a model that did not see them."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.options import Options
from rholoss.registry import register
from rholoss.selectors.needs_store import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("irreducible_loss")
class IrreducibleLossSelector(StoreSelector):
    """Keeps the examples with the lowest irreducible loss. Needs no model and runs no forward pass.

    References:
        Mindermann et al., ICML 2022: a baseline there, "negative IL".
    """

    def __init__(
        self, loader: Any, model: Any = None, store: IrreducibleLossStore | None = None, **options: Unpack[Options]
    ) -> None:
        super().__init__(loader, model, store, **options)  # type: ignore[arg-type]

    def score(self, candidates: Candidates) -> Tensor:
        return -self.irreducible_loss(candidates)
