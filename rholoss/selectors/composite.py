"""Selectors made of other selectors: a schedule of methods, and selection with weights one step old."""

import copy
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.options import Options
from rholoss.registry import register
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.selectors.rho_loss import RhoLossSelector
from rholoss.selectors.uniform import UniformSelector
from rholoss.store import IrreducibleLossStore


class CompositeSelector(Selector):
    """The ground of selectors that let other selectors score and choose."""

    @abstractmethod
    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        """Which selector decides on these candidates, and as whom it is to see them."""

    @abstractmethod
    def parts(self) -> list[Selector]:
        """All selectors that this one is made of."""

    def check_parts(self) -> None:
        """Refuse a part whose own loader, model, way of scoring or way of drawing would go unused."""
        for part in self.parts():
            check_part(part, self)
        self.by_comparison = any(getattr(part, "by_comparison", False) for part in self.parts())

    def score(self, candidates: Candidates) -> Tensor:
        part, seen = self.part_for(candidates)
        return part.score(seen)

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        part, seen = self.part_for(candidates)
        return part.choose(seen, score, n_b)

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        part, seen = self.part_for(candidates)
        part.after_select(seen, selection, batch)

    def extra_state(self) -> dict[str, Any]:
        return {"parts": [[type(part).__name__, part.extra_state()] for part in self.parts()]}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        saved, mine = [name for name, _ in state["parts"]], [type(part).__name__ for part in self.parts()]
        if saved != mine:
            raise ValueError(f"this state cannot be loaded: expected parts {mine}, got {saved}; build the selector as it was")
        for part, (_, its) in zip(self.parts(), state["parts"], strict=True):
            part.load_extra_state(its)


def check_part(part: Selector, whole: Selector) -> None:
    """Refuse a selector that would see another selector's candidates as its own loader, model or way of scoring would not."""
    names = type(part).__name__, type(whole).__name__
    if part.loader is not whole.loader or part.model not in (None, whole.model):
        raise ValueError(f"{names[0]} must be built on the same loader and model as {names[1]}")
    if part.model is not None and vars(part._scorer) != vars(whole._scorer):
        raise ValueError(f"{names[0]} must score as {names[1]} does: same forward, loss, mode, dtype, chunk_size")
    if type(part)._make_source is not Selector._make_source:
        raise ValueError(f"{names[0]} draws its own candidates and cannot be a part of {names[1]}")


class SwitchSelector(CompositeSelector):
    """One method after another: a schedule that works for every selector.

    Args:
        loader: see ``Selector``.
        model: see ``Selector``.
        stages: the selector to use from each epoch or step on; one of them from 0. They are built on the same loader and model,
            and are never iterated themselves.
        unit: whether the keys of ``stages`` are epochs or steps.
        **options: see ``Selector``.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.selectors import SwitchSelector, TrainLossSelector, UniformSelector
        >>> data, model = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,))), torch.nn.Linear(5, 3)
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> stages = {0: UniformSelector(loader), 1: TrainLossSelector(loader, model)}
        >>> len(SwitchSelector(loader, model, stages, unit="epoch", keep=0.5))
        4
    """

    def __init__(
        self,
        loader: Any,
        model: Any,
        stages: Mapping[int, Selector],
        *,
        unit: Literal["epoch", "step"],
        **options: Unpack[Options],
    ) -> None:
        super().__init__(loader, model, **options)
        if unit not in ("epoch", "step"):
            raise ValueError(f"unit must be 'epoch' or 'step', got {unit!r}")
        if 0 not in stages or min(stages) < 0:
            raise ValueError(
                f"stages must say which selector to use from 0 on, and nothing before it, got stages from {sorted(stages)}"
            )
        self.stages = dict(sorted(stages.items()))
        self.unit = unit
        self.check_parts()

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        now = candidates.epoch if self.unit == "epoch" else candidates.step
        return self.stages[max(start for start in self.stages if start <= now)], candidates

    def parts(self) -> list[Selector]:
        return list(self.stages.values())


class StaleSelector(CompositeSelector):
    """Any method, deciding with the weights of one step before: what selecting in parallel with training would have chosen.

    Keeps a copy of the model.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        method: the selector that decides, built on the same loader and model.
        **options: see ``Selector``.

    References:
        Mindermann et al., ICML 2022, on parallel selection; Alain et al., "Variance Reduction in SGD by Distributed Importance
        Sampling", 2015.
    """

    def __init__(self, loader: Any, model: nn.Module, method: Selector, **options: Unpack[Options]) -> None:
        super().__init__(loader, model, **options)
        self.method = method
        self.stale_model = copy.deepcopy(model)
        self._copied = -2  # the step whose weights the copy holds
        self.check_parts()

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        if self._copied not in (candidates.step - 1, candidates.step):
            self._copy_weights(candidates.step)  # at the first step nothing older is known
        return self.method, candidates.under(self.stale_model)

    def parts(self) -> list[Selector]:
        return [self.method]

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
        self.stale_model.load_state_dict(state["stale_model"])
        self._copied = state["copied"]


@register("rho_loss_then_uniform")
def rho_loss_then_uniform(
    loader: Any,
    model: Any,
    store: IrreducibleLossStore,
    *,
    from_epoch: int | None = None,
    from_step: int | None = None,
    **options: Unpack[Options],
) -> SwitchSelector:
    """RHO-LOSS at first, uniform from an epoch or from a step on.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        store: irreducible losses of the loader's dataset.
        from_epoch: the first epoch of uniform selection, at least 1; or
        from_step: its first step, at least 1.
        **options: see ``Selector``.
    """
    start = from_step if from_epoch is None else from_epoch
    if start is None or start < 1 or (from_step is not None and from_epoch is not None):
        raise ValueError(
            f"pass either from_epoch or from_step, at least 1, got from_epoch={from_epoch} and from_step={from_step}"
        )
    stages = {0: RhoLossSelector(loader, model, store, **options), start: UniformSelector(loader, **options)}
    return SwitchSelector(loader, model, stages, unit="step" if from_epoch is None else "epoch", **options)


@register("stale_rho_loss")
def stale_rho_loss(loader: Any, model: nn.Module, store: IrreducibleLossStore, **options: Unpack[Options]) -> StaleSelector:
    """RHO-LOSS with weights one step old.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        store: irreducible losses of the loader's dataset.
        **options: see ``Selector``.
    """
    return StaleSelector(loader, model, RhoLossSelector(loader, model, store, **options), **options)
