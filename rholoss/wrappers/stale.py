"""Selection with the weights of one step before."""

import copy
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.selectors.rho_loss import RhoLossSelector
from rholoss.states import taken
from rholoss.store import IrreducibleLossStore
from rholoss.wrappers.base import MethodWrapper


class StaleSelector(MethodWrapper):
    """Any method, with the weights of one step before: what selection in parallel with training would choose.

    Keeps a copy of the model. Arguments: see ``MethodWrapper``.

    References:
        Mindermann et al., ICML 2022; Alain et al., "Variance Reduction in SGD by Distributed Importance Sampling", 2015.
    """

    def __init__(self, loader: Any, model: nn.Module, method: Selector, **options: Unpack[SelectorOptions]) -> None:
        super().__init__(loader, model, method, **options)
        self.stale_model = copy.deepcopy(model)
        self._copied = -2  # the step whose weights the copy holds

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        if self._copied not in (candidates.step - 1, candidates.step):
            self._copy_weights(candidates.step)  # the first step has no older weights
        return self.method, candidates.under(self.stale_model)

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        super().after_select(candidates, selection, batch)
        self._copy_weights(candidates.step)

    def _copy_weights(self, step: int) -> None:
        with torch.no_grad():
            fresh = [*self.model.parameters(), *self.model.buffers()]
            for old, new in zip([*self.stale_model.parameters(), *self.stale_model.buffers()], fresh, strict=True):
                old.copy_(new)
        for old_module, module in zip(self.stale_model.modules(), self.model.modules(), strict=True):
            old_module.training = module.training
        self._copied = step

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "stale_model": self.stale_model.state_dict(), "copied": self._copied}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self._copied = taken(state, "copied", int, least=-2)
        self.stale_model.load_state_dict(taken(state, "stale_model", self.stale_model.state_dict()))


@register("stale_rho_loss")
def stale_rho_loss(
    loader: Any, model: nn.Module, store: IrreducibleLossStore, **options: Unpack[SelectorOptions]
) -> StaleSelector:
    """RHO-LOSS with the weights of one step before; for the arguments see ``StoreSelector``."""
    return StaleSelector(loader, model, RhoLossSelector(loader, model, store, **options), **options)
