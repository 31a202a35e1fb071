"""Uniform sampling of the examples that pass a gate: the others are never drawn."""

import math
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.arguments import number
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.options import SelectorOptions
from rholoss.selectors.store_selector import StoreSelector
from rholoss.states import Settings
from rholoss.store import IrreducibleLossStore
from rholoss.store.checks import refuse_gaps


class FilteredUniformSelector(StoreSelector):
    """Trains on the examples whose irreducible loss is at most a limit, each once an epoch, and reads no other.

    A step costs what a plain step costs. The loader, a ``DataLoader`` over a map-style dataset, draws batches of n_b, as it would
    without a selector; an epoch has as many fewer of them as examples are left out. A sampler with
    replacement draws until an epoch is as long as the loader's. Other arguments: see ``StoreSelector``.

    Args:
        max_irreducible_loss: the limit in nats, above 0; ``math.inf``: nothing is left out, and it is plain training.

    Attributes:
        kept: which examples may be drawn, by index, shape (N,), bool; None: all.

    Raises:
        ValueError: no example, or less than a batch with drop_last=True, is below the limit, or the irreducible loss of one that
            may be drawn is unknown.
    """

    needs_all = False  # without a limit; checked below
    looks_up_on_host = scores_by_index = True

    def __init__(
        self,
        loader: Any,
        model: Any = None,
        store: IrreducibleLossStore | None = None,
        *,
        max_irreducible_loss: float,
        **options: Unpack[SelectorOptions],
    ) -> None:
        refused = [name for name in ("keep", "batch_size") if options.get(name) not in (None, 1, 1.0)]
        if refused:
            cure = "for a choice among those, pass max_irreducible_loss= to RhoLossSelector"
            raise ValueError(f"{type(self).__name__} trains on every example below the limit, got {refused[0]}=; {cure}")
        options["keep"], options["batch_size"] = 1.0, None
        super().__init__(loader, model, store, **options)  # type: ignore[arg-type]
        is_loss = lambda nats: nats > 0  # noqa: E731
        finite = max_irreducible_loss != math.inf
        what = "a loss in nats above 0, or math.inf"
        self.max_irreducible_loss = number(max_irreducible_loss, "max_irreducible_loss", what, is_loss) if finite else math.inf
        if not self.view.draws_by_index:
            expected = f"{type(self).__name__} draws from a part of the data: pass a DataLoader over a map-style dataset"
            raise TypeError(f"{expected}, got {type(loader).__name__}")
        if finite:
            refuse_gaps(self.store, self.view.drawable(), self.view.dataset_length)
        self.kept: Tensor | None = self._below() if finite else None
        if finite:
            self._refuse_no_batch()

    def _refuse_no_batch(self) -> None:
        """A ValueError if the loader has a batch and this selector none, so that a loop over it would never take a step."""
        try:
            plain, batches = len(self.view.loader), len(self)
        except TypeError:  # unknown until sampled
            return
        if plain and not batches:
            left = f"{int(self.kept.sum()):,} of {len(self.kept):,} examples are left"  # type: ignore[union-attr,arg-type]
            cure = "give the loader a smaller batch_size, or drop_last=False"
            raise ValueError(f"{left}, less than a batch of {self.n_b}, and drop_last=True leaves out the last one; {cure}")

    def _below(self) -> Tensor:
        n = self.view.dataset_length or 0
        drawable = self.view.drawable()
        index = torch.arange(n) if drawable is None else drawable.long().unique()
        kept = torch.zeros(n, dtype=torch.bool)
        kept[index] = self.store[index.to(self.store.device)].cpu() <= self.max_irreducible_loss
        if not bool(kept.any()):
            raise ValueError(
                f"no example has an irreducible loss of at most {self.max_irreducible_loss:.4g}; pass a higher limit"
            )
        return kept

    def draw_rule(self) -> DrawRule:
        return DrawRule(members=self.kept, n_B=self.n_b)

    def score(self, candidates: Candidates) -> Tensor:
        return torch.ones(len(candidates), device=candidates.device)

    def settings(self) -> Settings:
        return {**super().settings(), "max_irreducible_loss": str(self.max_irreducible_loss)}
