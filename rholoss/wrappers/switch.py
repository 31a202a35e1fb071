"""One method after another, by epoch or by step."""

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import Unpack

from rholoss.arguments import one_of, optional, shown, whole
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selector import Selector
from rholoss.selectors.rho_loss import RhoLossSelector
from rholoss.selectors.uniform import UniformSelector
from rholoss.store import IrreducibleLossStore
from rholoss.wrappers.base import WrapperSelector

Unit = Literal["epoch", "step"]


class SwitchSelector(WrapperSelector):
    """Uses one selector after another, by a schedule. Other arguments: see ``Selector``.

    Args:
        stages: the selector to use from each epoch or step on, built on the same loader and model; one of them from 0.
        unit: whether the keys of ``stages`` are epochs or steps.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.selectors import TrainLossSelector, UniformSelector
        >>> from rholoss.wrappers import SwitchSelector
        >>> data, model = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,))), torch.nn.Linear(5, 3)
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> stages = {0: UniformSelector(loader), 1: TrainLossSelector(loader, model)}
        >>> len(SwitchSelector(loader, model, stages, unit="epoch", keep=0.5))
        4
    """

    def __init__(
        self, loader: Any, model: Any, stages: Mapping[int, Selector], *, unit: Unit, **options: Unpack[SelectorOptions]
    ) -> None:
        one_of(unit, "unit", ("epoch", "step"))
        if not isinstance(stages, Mapping):
            such = f"by the first {unit} of each, such as {{0: one, 10: another}}"
            raise TypeError(f"stages must be a mapping of selectors {such}, got {shown(stages)}")
        starts = [whole(start, "a key of stages", f"the first {unit} of a selector, at least 0", 0) for start in stages]
        if 0 not in starts:
            raise ValueError(f"stages must have a selector from 0 on, got stages from {sorted(starts)}")
        super().__init__(loader, model, **options)
        self.unit, self.stages = unit, dict(sorted(zip(starts, stages.values(), strict=True), key=lambda stage: stage[0]))
        self.check_parts()
        if unit == "step" and any(self.rule_of(part).members is not None for part in self.parts()):
            raise ValueError("a method that chooses what an epoch trains on can be switched by epoch only; pass unit='epoch'")

    def part_at(self, step: int, epoch: int) -> Selector:
        now = epoch if self.unit == "epoch" else step
        return self.stages[max(start for start in self.stages if start <= now)]

    def parts(self) -> list[Selector]:
        return list(self.stages.values())

    def describe(self) -> dict[str, Any]:
        stages = {start: type(part).__name__ for start, part in self.stages.items()}
        active = type(self.part_at(self.step, self.next_epoch)).__name__
        return {**Selector.describe(self), "stages": stages, "unit": repr(self.unit), "active": active}


@register("rho_loss_then_uniform")
def rho_loss_then_uniform(
    loader: Any,
    model: Any,
    store: IrreducibleLossStore,
    *,
    from_epoch: int | None = None,
    from_step: int | None = None,
    **options: Unpack[SelectorOptions],
) -> SwitchSelector:
    """RHO-LOSS, then uniform sampling from epoch ``from_epoch`` or step ``from_step`` on, at least 1; see ``StoreSelector``."""
    if (from_epoch is None) == (from_step is None):
        got = f"from_epoch={from_epoch} and from_step={from_step}"
        raise ValueError(f"pass either from_epoch or from_step, at least 1, got {got}")
    epoch, step = (optional(whole, start, name) for name, start in (("from_epoch", from_epoch), ("from_step", from_step)))
    start = step or epoch or 1
    stages = {0: RhoLossSelector(loader, model, store, **options), start: UniformSelector(loader, **options)}
    return SwitchSelector(loader, model, stages, unit="step" if from_epoch is None else "epoch", **options)
