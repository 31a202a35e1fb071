"""RHO-LOSS with a prefilter: most candidates are left out by what is remembered of them, before they are loaded."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selection import Selection
from rholoss.selectors.rho_loss import RhoLossFormula
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


@register("prefiltered_rho_loss")
class PrefilteredRhoLossSelector(StoreSelector):
    """Keeps the highest reducible losses of a short list: of each n_B indices drawn, only some are loaded, augmented and scored.

    The list is made of those with the highest score when they were scored last, where an example that never was is taken to have
    the mean loss of those scored last; and of those that were scored the longest ago. For data whose loading or augmentation
    costs more than the model.

    What is remembered is as old as the loader reads ahead, and resuming is exact where it does not: with ``num_workers=0``. An
    accelerator is waited for in every step.

    Args:
        loader: see ``Selector``; a ``DataLoader`` over a map-style dataset, with ``keep``.
        model: the model in training.
        store: irreducible losses of the loader's dataset.
        share: of each n_B to load and score, in (0, 1]; never fewer than n_b.
        oldest: share of the list that is chosen by age alone, in [0, 1].
        max_irreducible_loss: see ``RhoLossSelector``.
        bounded: see ``RhoLossSelector``.
        **options: see ``Selector``.

    Each step leaves in ``selector.last.notes["age"]`` the mean number of steps since the listed examples were scored, of those
    that ever were; NaN where none was.
    """

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
        if not (0 < share <= 1 and 0 <= oldest <= 1):
            raise ValueError(f"share must be in (0, 1] and oldest in [0, 1], got share={share!r} and oldest={oldest!r}")
        super().__init__(loader, model, store, **options)
        self.share = share
        self.oldest = oldest
        self.formula = RhoLossFormula(max_irreducible_loss, bounded)
        if not self.view.draws_by_index or options.get("batch_size") is not None:
            raise ValueError(
                "prefiltered candidates are drawn by the sampler: pass a DataLoader over a map-style dataset, and keep=, not "
                "batch_size="
            )
        n = self.view.dataset_length or 0
        self._loss = torch.zeros(n)  # when it was scored last
        self._when = torch.full((n,), -1)  # the step of that; -1: never
        self._mean = torch.tensor(0.0)  # loss of the candidates scored last

    def draw_rule(self) -> DrawRule:
        return DrawRule(prefilter=self.prefilter)

    def prefilter(self, index: Tensor, step: int) -> Tensor:
        """Positions of those to load: the highest scores by what is remembered, and the oldest."""
        when = self._when[index]
        loss = torch.where(when < 0, self._mean, self._loss[index])
        score = self.formula(loss, self.store[index.to(self.store.device)].to(loss.device), {})
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
        if len(state["loss"]) != len(self._loss):
            raise ValueError(
                f"this state cannot be loaded: it remembers {len(state['loss'])} examples, got a dataset of {len(self._loss)}"
            )
        self._loss, self._when, self._mean = (state[name].cpu().clone() for name in ("loss", "when", "mean"))
