"""Selective-Backprop: draws by how high a loss is among the latest losses."""

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import optional, whole
from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.schedules import Schedule, checked
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.states import taken


@register("selective_backprop")
class SelectiveBackpropSelector(Selector):
    """Draws examples in proportion to CDF_R(loss)^beta, where CDF_R is the fraction of the last R losses that is no higher.

    The paper keeps each example with this probability; here exactly n_b candidates are drawn, without replacement. The score is
    CDF_R(loss). Costs a forward pass per candidate. Other arguments: see ``Selector``.

    Args:
        window: R, how many of the latest losses count, at least those of the candidates. None: the variant of Composer, by the
            rank among the candidates alone, ((rank - 1/2) / n_B)^beta.
        beta: preference for high losses, at least 0; 0 is uniform. A number, or a schedule of the step. None: n_B / n_b - 1, at
            which the paper keeps n_b of n_B on average; Composer's exponent too.

    References:
        Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
    """

    compares_candidates = True

    def __init__(
        self,
        loader: Any,
        model: Any,
        *,
        window: int | None = 1024,
        beta: float | Schedule | None = None,
        **options: Unpack[SelectorOptions],
    ) -> None:
        self.window = optional(whole, window, "window", "a number of losses, at least 1, or None for ranks")
        self.beta = beta
        super().__init__(loader, model, **options)
        self._history = torch.zeros(0)
        self._exponent(0, 1)

    def score(self, candidates: Candidates) -> Tensor:
        loss = candidates.loss
        return functional.percentile_rank(loss) if self.window is None else functional.percentile(loss, self._with(loss))

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        beta = self._exponent(candidates.step, len(candidates) / n_b)
        return functional.drawn(beta * score.log(), candidates.rand(), n_b), None

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        if self.window is not None and candidates.computed_loss is not None:
            self._history = self._with(candidates.computed_loss)

    def _with(self, loss: Tensor) -> Tensor:
        """The latest losses, with these added."""
        assert self.window is not None
        return torch.cat([to_device(self._history, loss.device), loss])[-max(self.window, len(loss)) :]

    def _exponent(self, step: int, candidates_per_kept: float) -> float:
        if self.beta is None:
            return candidates_per_kept - 1
        what = "a number, at least 0, a schedule of such, or None"
        return checked(self.beta, "beta", what, lambda beta: 0 <= beta < math.inf, step)

    def extra_state(self) -> dict[str, Any]:
        return {"history": self._history}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        history = taken(state, "history", Tensor)
        self._history = taken(state, "history", torch.zeros(history.numel())).clone()
