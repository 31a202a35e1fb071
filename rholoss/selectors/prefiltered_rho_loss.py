"""RHO-LOSS with a prefilter: remembered losses rule most candidates out before they are loaded."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import fraction, number
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selection import Selection
from rholoss.selectors.rho_loss import RhoLossFormula
from rholoss.selectors.store_selector import StoreSelector
from rholoss.states import taken
from rholoss.store import IrreducibleLossStore


@register("prefiltered_rho_loss")
class PrefilteredRhoLossSelector(StoreSelector):
    """Keeps the highest reducible losses of a short list: of n_B drawn indices, only the list is loaded and scored.

    The list holds the indices with the highest score when last scored, and those scored the longest ago. An index that was never
    scored counts with the mean loss of the last step. For data that are more expensive to load or augment than to score.
    ``selector.last.notes["age"]`` is the mean number of steps since the listed examples were scored; NaN if none was.

    Workers read ahead, so the remembered losses are as old as that; resuming is exact with ``num_workers=0``. The host waits
    for an accelerator once per step, as the losses decide what is loaded next; the store stays on the CPU. The loader is a
    ``DataLoader`` over a map-style dataset, with ``keep``. Other arguments: see ``RhoLossSelector``.

    Args:
        share: fraction of the n_B indices to load and score, in (0, 1]; at least n_b.
        oldest: fraction of the list chosen by age alone, in [0, 1].
    """

    looks_up_on_host = True  # for the prefilter

    def __init__(
        self,
        loader: Any,
        model: Any,
        store: IrreducibleLossStore,
        *,
        share: float = 0.25,
        oldest: float = 0.25,
        max_irreducible_loss: float | None = None,
        bounded: bool = False,
        **options: Unpack[SelectorOptions],
    ) -> None:
        self.share = fraction(share, "share")
        self.oldest = number(oldest, "oldest", "a fraction in [0, 1]", lambda oldest: 0 <= oldest <= 1)
        super().__init__(loader, model, store, **options)
        self.formula = RhoLossFormula(max_irreducible_loss, bounded)
        if not self.view.draws_by_index or options.get("batch_size") is not None:
            raise ValueError("the sampler draws what to prefilter: pass a DataLoader over a map-style dataset, and keep=")
        n = self.view.dataset_length or 0
        self._loss = torch.zeros(n)  # of each example, when it was last scored
        self._when = torch.full((n,), -1)  # the step of that; -1: never
        self._mean = torch.tensor(0.0)  # mean loss of the last step

    def draw_rule(self) -> DrawRule:
        return DrawRule(prefilter=self.prefilter)

    def prefilter(self, index: Tensor, step: int) -> Tensor:
        """Positions to load: those with the highest remembered scores, and the oldest."""
        when = self._when[index]
        loss = torch.where(when < 0, self._mean, self._loss[index])
        score = self.formula(loss, self.store[index.to(self.store.device)].cpu(), {})
        count = min(len(index), max(self.n_b, round(self.share * len(index))))
        old = functional.top(-when.float(), round(self.oldest * count))
        score[old] = torch.inf
        return functional.top(score, count)

    def score(self, candidates: Candidates) -> Tensor:
        when = self._when[candidates.loader_index.cpu()]
        candidates.notes["age"] = (candidates.step - when[when >= 0]).float().mean()
        return self.formula(candidates.loss, self.irreducible_loss(candidates), candidates.notes)

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        index, loss = candidates.loader_index.cpu(), candidates.loss.cpu()
        self._loss[index], self._when[index], self._mean = loss, candidates.step, loss.mean()

    def extra_state(self) -> dict[str, Any]:
        return {"loss": self._loss, "when": self._when, "mean": self._mean}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        mine = self.extra_state()
        self._loss, self._when, self._mean = (taken(state, name, mine[name]).cpu().clone() for name in ("loss", "when", "mean"))
