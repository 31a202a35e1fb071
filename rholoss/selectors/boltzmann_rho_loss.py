"""RHO-LOSS drawn at a temperature instead of ranked."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.schedules import Schedule, checked
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("boltzmann_rho_loss")
class BoltzmannRhoLossSelector(StoreSelector):
    """Draws examples without replacement in proportion to exp(reducible loss / T), by the Gumbel top-k trick.

    T towards 0 is RHO-LOSS; T towards infinity is uniform sampling. Other arguments: see ``StoreSelector``.

    Args:
        temperature: T in nats, above 0: a number, or a schedule of the step.

    References:
        Kool et al., "Stochastic Beams and Where to Find Them: The Gumbel-Top-k Trick", ICML 2019.
    """

    def __init__(
        self,
        loader: Any,
        model: Any,
        store: IrreducibleLossStore,
        *,
        temperature: float | Schedule = 1.0,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, store, **options)
        self.temperature = temperature
        self._temperature(0)

    def score(self, candidates: Candidates) -> Tensor:
        return functional.reducible_loss(candidates.loss, self.irreducible_loss(candidates))

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        return functional.drawn(score / self._temperature(candidates.step), candidates.rand(), n_b), None

    def _temperature(self, step: int) -> float:
        what = "a number above 0 nats, or a schedule of such; RhoLossSelector is for 0"
        return checked(self.temperature, "temperature", what, lambda nats: nats > 0, step)
