"""Selectors as a setup wants them, and the models that learn along with the one in training."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from experiments.planned import Plans, replayed
from experiments.references import Reference
from experiments.setups import Setup, located
from experiments.tasks import Task, make_model, plain
from rholoss import IrreducibleLossStore, RhoLossSelector, Selector, build_selector
from rholoss.batches import move
from rholoss.isolation import derived_seed, device_of, fork_rng
from rholoss.schedules import Geometric, Linear
from rholoss.scoring import default_forward, default_loss
from rholoss.selectors import FilteredUniformSelector, GatedUniformSelector, ProxyRhoLossSelector
from rholoss.wrappers import PayoffGatedSelector

UNNAMED = {"filtered_uniform": FilteredUniformSelector, "gated_uniform": GatedUniformSelector}  # in no registry
SCHEDULES = {"geometric": Geometric, "linear": Linear}


class CountingForward:
    """The default forward pass, which counts the examples that go through it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, model: Any, batch: Any) -> tuple[Any, Any]:
        outputs, targets = default_forward(model, batch)
        self.count += len(targets)
        return outputs, targets


class LastLayer:
    """A forward pass that hands the last layer's inputs out, of a model that is a sequence of layers."""

    def __init__(self, counting: CountingForward) -> None:
        self.counting = counting

    def __call__(self, model: Any, batch: Any) -> tuple[Any, Any, Any]:
        features, targets = self.counting(model[:-1], batch)
        return model[-1](features), targets, features


@dataclass(frozen=True)
class Method:
    """A selector, and all that belongs to it.

    Attributes:
        selector: the selector.
        along: called with each selected batch, once the model was trained on it.
        forward: counts the examples that were scored.
        irreducible_model: the irreducible-loss model that is co-trained on the selected batches, if there is one.
        seconds: that went into a proxy before the first step.
    """

    selector: Selector
    along: Callable[[Any], None]
    forward: CountingForward
    irreducible_model: nn.Module | None
    seconds: float


def build_method(
    setup: Setup, task: Task, model: nn.Module, reference: Reference | None, seed: int, root: Path, plans: Plans
) -> Method:
    """The selector of a setup, around a loader that draws the same order for every method."""
    order = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    loader = DataLoader(task.train, batch_size=setup.n_b, shuffle=True, drop_last=True, generator=order)
    forward, device = CountingForward(), device_of(model) or torch.device("cpu")
    options = {name: _read(value, setup, task, forward) for name, value in setup.method_options.items()}
    irreducible_model = None
    if setup.method == "online_rho_loss" and reference is not None:
        irreducible_model = copy.deepcopy(reference.model)
        if setup.irreducible_lr:
            options["irreducible_optimizer"] = _adamw(irreducible_model, setup.irreducible_lr, setup)
    began = time.process_time()
    store = None if reference is None else reference.store
    shared: dict[str, Any] = {"keep": setup.keep, "forward": forward, "device": "model", "seed": seed}
    if setup.method == "payoff_gated":
        selector = _payoff_gated(setup, task, loader, model, store, root, shared, **options)
        return Method(selector, lambda batch: None, forward, None, time.process_time() - began)
    if setup.method == "plan":
        assert store is not None
        selector, recorded = replayed(setup, task, loader, model, store, seed, root, plans, **options)
        forward.count = recorded.scored
        return Method(selector, lambda batch: None, forward, None, recorded.seconds)
    proxy, along = _proxy(setup, task, seed, root, device)
    ingredients = {"store": store, "proxy": proxy, "irreducible_model": irreducible_model}
    selector = build_selector(UNNAMED.get(setup.method, setup.method), loader, model, **ingredients, **shared, **options)
    return Method(selector, along, forward, irreducible_model, time.process_time() - began)


def _payoff_gated(
    setup: Setup,
    task: Task,
    loader: DataLoader[Any],
    model: nn.Module,
    store: IrreducibleLossStore | None,
    root: Path,
    shared: dict[str, Any],
    chunk_size: int | None = None,
    cost: float | None = None,
) -> Selector:
    """Payoff-gated RHO-LOSS; a small network that is co-trained scores, if there is a proxy."""
    shared = shared | {"chunk_size": chunk_size}
    assert store is not None
    limit = math.log(task.classes)
    method: Selector
    if setup.proxy is None:
        method = RhoLossSelector(loader, model, store, max_irreducible_loss=limit, **shared)
    else:
        device = device_of(model) or torch.device("cpu")
        with fork_rng(device, derived_seed("fast", shared["seed"], "proxy")):
            network = make_model(setup.proxy, task, **located(setup.proxy_options, root)).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        method = ProxyRhoLossSelector(
            loader, model, store, network, proxy_optimizer=optimizer, max_irreducible_loss=limit, **shared
        )
    otherwise = GatedUniformSelector(loader, None, store, max_irreducible_loss=limit, **shared)
    return PayoffGatedSelector(loader, model, method, plain(task.validation), otherwise=otherwise, cost=cost, **shared)


def _read(value: Any, setup: Setup, task: Task, forward: CountingForward) -> Any:
    """An option of a method, from how a setup writes it."""
    if value == "guess":
        return math.log(task.classes)
    if value == "bfloat16":
        return torch.bfloat16
    if value == "penultimate":
        return LastLayer(forward)
    if isinstance(value, Mapping) and "schedule" in value:
        return SCHEDULES[value["schedule"]](value["start"], value["end"], setup.steps)
    return value


def _proxy(
    setup: Setup, task: Task, seed: int, root: Path, device: torch.device
) -> tuple[nn.Module | None, Callable[[Any], None]]:
    """A small model: trained beforehand where it ranks the dataset once, else along with the model, on the same batches."""
    if setup.proxy is None:
        return None, lambda batch: None
    torch.manual_seed(seed + 500)
    proxy = make_model(setup.proxy, task, **located(setup.proxy_options, root)).to(device)
    optimizer = _adamw(proxy, setup.lr, setup)

    def learn(batch: Any) -> None:
        optimizer.zero_grad()
        default_loss(*default_forward(proxy, batch)).mean().backward()
        optimizer.step()

    if setup.method != "selection_via_proxy":
        return proxy, learn
    order = torch.Generator().manual_seed(1_000_003 * (seed + 1))
    for batch in DataLoader(task.train, batch_size=setup.n_b, shuffle=True, drop_last=True, generator=order):
        learn(move(batch, device))  # one pass over the data
    return proxy, lambda batch: None


def _adamw(model: nn.Module, lr: float, setup: Setup) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=setup.weight_decay)
