"""One method after another, by epoch or by step."""

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import Unpack

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
        super().__init__(loader, model, **options)
        if unit not in ("epoch", "step"):
            raise ValueError(f"unit must be 'epoch' or 'step', got {unit!r}")
        if 0 not in stages or min(stages) < 0:
            raise ValueError(f"stages must have a selector from 0 on, and none before it, got stages from {sorted(stages)}")
        self.stages, self.unit = dict(sorted(stages.items())), unit
        self.check_parts()
        if unit == "step" and any(self.rule_of(part).members is not None for part in self.parts()):
            raise ValueError("a method that chooses what an epoch trains on can be switched by epoch only; pass unit='epoch'")

    def part_at(self, step: int, epoch: int) -> Selector:
        now = epoch if self.unit == "epoch" else step
        return self.stages[max(start for start in self.stages if start <= now)]

    def parts(self) -> list[Selector]:
        return list(self.stages.values())


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
    start = from_step if from_epoch is None else from_epoch
    if start is None or start < 1 or (from_step is not None and from_epoch is not None):
        got = f"from_epoch={from_epoch} and from_step={from_step}"
        raise ValueError(f"pass either from_epoch or from_step, at least 1, got {got}")
    stages = {0: RhoLossSelector(loader, model, store, **options), start: UniformSelector(loader, **options)}
    return SwitchSelector(loader, model, stages, unit="step" if from_epoch is None else "epoch", **options)
