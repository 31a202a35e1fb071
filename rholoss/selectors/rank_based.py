"""Draws by the rank of the loss, with a selection pressure that may fall during training."""

import math
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.schedules import Schedule, checked
from rholoss.selector import Selector


@register("rank_based")
class RankBasedSelector(Selector):
    """Draws examples by the rank of their loss, without replacement: P(rank j) in proportion to 1 / exp(log(s_e) / n_B)^j.

    The paper ranks the last known losses of the whole dataset; here the candidates are ranked by their current loss. Costs a
    forward pass per candidate. Other arguments: see ``Selector``.

    Args:
        pressure: s_e, at least 1: about how many times as probable the highest loss is as the lowest; 1 is uniform. A number, or
            a schedule of the step such as ``Geometric(100.0, 1.0, steps=1000)``.

    References:
        Loshchilov and Hutter, "Online Batch Selection for Faster Training of Neural Networks", 2015.
    """

    def __init__(
        self, loader: Any, model: Any, *, pressure: float | Schedule = 100.0, **options: Unpack[SelectorOptions]
    ) -> None:
        super().__init__(loader, model, **options)
        self.pressure = pressure
        self._pressure(0)

    def score(self, candidates: Candidates) -> Tensor:
        return candidates.loss

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        log_probability = functional.log_rank_probability(score, self._pressure(candidates.step))
        return functional.drawn(log_probability, candidates.rand(), n_b), None

    def _pressure(self, step: int) -> float:
        what = "a number, at least 1, or a schedule of such"
        return checked(self.pressure, "pressure", what, lambda pressure: 1 <= pressure < math.inf, step)
