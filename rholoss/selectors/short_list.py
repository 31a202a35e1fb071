"""RHO-LOSS on a short list: most candidates are left out by what is remembered of them, before they are loaded."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.indexing import is_map_style
from rholoss.options import Options
from rholoss.parts import whole_length
from rholoss.registry import register
from rholoss.selection import Selection
from rholoss.selectors.needs_store import StoreSelector
from rholoss.selectors.rho_loss import RhoLossFormula
from rholoss.source import CandidateSource
from rholoss.store import IrreducibleLossStore


@register("short_list_rho_loss")
class ShortListRhoLossSelector(StoreSelector):
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
        **options: Unpack[Options],
    ) -> None:
        if not (0 < share <= 1 and 0 <= oldest <= 1):
            raise ValueError(f"share must be in (0, 1] and oldest in [0, 1], got share={share!r} and oldest={oldest!r}")
        self.share = share
        self.oldest = oldest
        self.formula = RhoLossFormula(max_irreducible_loss, bounded)
        super().__init__(loader, model, store, **options)
        n = whole_length(loader.dataset)
        self._loss = torch.zeros(n)  # when it was scored last
        self._when = torch.full((n,), -1)  # the step of that; -1: never
        self._mean = torch.tensor(0.0)  # loss of the candidates scored last

    def _make_source(self, loader: Any, n_B: int | None) -> CandidateSource:
        if not is_map_style(loader) or n_B is None:
            raise ValueError(
                "a short list is drawn by the sampler: pass a DataLoader over a map-style dataset, and keep=, not batch_size="
            )
        return CandidateSource(loader, n_B, shorten=self._short_list)

    def _short_list(self, drawn: list[int]) -> list[int]:
        """Of the positions in the dataset that the sampler drew, those to load, in its order."""
        index = self._source.index_of(drawn)
        when = self._when[index]
        loss = torch.where(when < 0, self._mean, self._loss[index])
        score = self.formula(loss, self.store[index.to(self.store.device)].to(loss.device), {})
        count = min(len(drawn), max(self.n_b, round(self.share * len(drawn))))
        old = functional.top(-when.float(), round(self.oldest * count))
        score[old] = torch.inf
        return [drawn[i] for i in functional.top(score, count).tolist()]

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
