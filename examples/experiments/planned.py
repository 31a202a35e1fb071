"""Plans: what a small network selected beforehand, replayed."""

from __future__ import annotations

import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler

from experiments.setups import Setup, located
from experiments.tasks import Task, make_model
from rholoss import IrreducibleLossStore, SelectionPlan, Selector, build_selector, record_plan
from rholoss.isolation import device_of
from rholoss.scoring import default_forward
from rholoss.selectors import GatedUniformSelector

Order = Literal["in order", "shuffled", "subset"]


@dataclass(frozen=True)
class Recorded:
    """A plan, and what it cost.

    Attributes:
        plan: the plan.
        seconds: of recording it.
        scored: examples that the small network scored.
    """

    plan: SelectionPlan
    seconds: float
    scored: int


class Plans:
    """Records the plans of a task, and keeps them for the runs that share one."""

    def __init__(self) -> None:
        self._made: dict[str, Recorded] = {}

    def clear(self) -> None:
        self._made.clear()

    def get(
        self,
        setup: Setup,
        task: Task,
        store: IrreducibleLossStore,
        seed: int,
        root: Path,
        device: torch.device | None,
        *,
        steps: int,
        n_b: int,
        proxy_lr: float,
        **options: Any,
    ) -> Recorded:
        """The plan that the setup's small network records; made if no run asked for it before."""
        how = {"steps": steps, "keep": setup.keep, "n_b": n_b, "lr": proxy_lr, **options}
        made_of = [setup.proxy, dict(setup.proxy_options), setup.irreducible and asdict(setup.irreducible), how, seed]
        key = json.dumps(made_of, sort_keys=True)
        if key not in self._made:
            order = torch.Generator().manual_seed(1_000_003 * (seed + 1))
            loader = DataLoader(task.train, batch_size=n_b, shuffle=True, drop_last=True, generator=order)
            torch.manual_seed(seed + 500)
            proxy = make_model(setup.proxy or "small", task, **located(setup.proxy_options, root)).to(device)
            self._made[key] = _recorded(loader, proxy, store, seed, how, options)
        return self._made[key]


def _recorded(
    loader: DataLoader[Any],
    proxy: nn.Module,
    store: IrreducibleLossStore,
    seed: int,
    how: dict[str, Any],
    options: dict[str, Any],
) -> Recorded:
    scored = 0

    def forward(model: Any, batch: Any) -> tuple[Any, Any]:
        nonlocal scored
        outputs, targets = default_forward(model, batch)
        scored += len(targets)
        return outputs, targets

    optimizer = partial(torch.optim.AdamW, lr=how["lr"])
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        shared: dict[str, Any] = {"keep": how["keep"], "seed": seed, "progress": False, **options}
        path = f"{folder}/run.plan"
        plan = record_plan(loader, proxy, store, steps=how["steps"], path=path, optimizer=optimizer, forward=forward, **shared)
        seconds = time.process_time() - began
        plan.indices(0, plan.selections)  # its blocks are read while the file is there
    return Recorded(plan, seconds, scored)


def replayed(
    setup: Setup,
    task: Task,
    loader: DataLoader[Any],
    model: nn.Module,
    store: IrreducibleLossStore,
    seed: int,
    root: Path,
    plans: Plans,
    *,
    steps: int | None = None,
    n_b: int | None = None,
    proxy_lr: float = 1e-3,
    then: str = "repeat",
    order: Order = "in order",
    **options: Any,
) -> tuple[Selector, Recorded]:
    """All batches of a plan, and what follows it.

    Args:
        setup: the run, with a small network as the proxy.
        task: the data.
        loader: draws the order of all methods.
        model: the model in training.
        store: irreducible losses.
        seed: of the run and of the recording.
        root: the folder of the data.
        plans: those that were recorded already.
        steps: to record; None for those of the run.
        n_b: examples in a recorded step; None for those of the run.
        proxy_lr: the small network's learning rate.
        then: what follows: ``"repeat"``, or ``"below the gate"``.
        order: ``"shuffled"``: the same selections at random times; ``"subset"``: the examples of the plan, drawn uniformly.
        **options: of ``record_plan``.
    """
    how: dict[str, Any] = {"steps": steps or setup.steps, "n_b": n_b or setup.n_b, "proxy_lr": proxy_lr, **options}
    recorded = plans.get(setup, task, store, seed, root, device_of(model), **how)
    after: Any = then
    if then == "below the gate":
        after = GatedUniformSelector(loader, None, store, max_irreducible_loss=math.log(task.classes), keep=setup.keep)
    replay = _arranged(recorded.plan, loader, order, seed) if order != "in order" else recorded.plan.loader(loader, then=after)
    return build_selector("uniform", replay, model, batch_size=setup.n_b, device="model", seed=seed), recorded


def _arranged(plan: SelectionPlan, loader: DataLoader[Any], order: Order, seed: int) -> DataLoader[Any]:
    """A loader over what a plan selected, without its order: every selection once an epoch, or every example."""
    random = torch.Generator().manual_seed(seed)
    indices = torch.from_numpy(plan.indices(0, plan.selections)) if order == "shuffled" else plan.subset()[0]
    sampler = SubsetRandomSampler(indices.tolist(), random)
    return DataLoader(loader.dataset, batch_size=loader.batch_size, sampler=sampler, drop_last=True)
