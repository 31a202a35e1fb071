"""One training run of the study, and the networks, optimizer and measures that all runs share."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from rholoss import IndexedSubset, IrreducibleLossStore, build_selector
from studies.holdout.task import Task
from studies.holdout.variants import CLASSES, KEEP, N_B, Variant


@dataclass(frozen=True)
class Schedule:
    """How long a run takes, and how large its network is.

    Attributes:
        steps: of a run with irreducible losses.
        uniform_steps: of a run with uniform sampling.
        evaluate_every: steps between evaluations.
        hidden: hidden units of the network.
    """

    steps: int
    uniform_steps: int
    evaluate_every: int
    hidden: int


def network(width: int, hidden: int, dropout: float = 0.0) -> nn.Module:
    """An MLP with one hidden layer; with ``hidden=0``, a linear model."""
    if not hidden:
        return nn.Linear(width, CLASSES)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, CLASSES))


def adamw(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits in eval mode, (n, C)."""
    was = model.training
    model.eval()
    logits = torch.cat([model(part) for part in x.split(2000)])
    model.train(was)
    return logits


def accuracy_of(scores: Tensor, labels: Tensor) -> float:
    """Share of the rows of ``scores``, (n, C), that are highest at their label."""
    return (scores.argmax(1) == labels).double().mean().item()


def train(task: Task, variant: Variant, store: IrreducibleLossStore | None, schedule: Schedule) -> dict[str, Any]:
    """Train the network one way.

    Returns:
        What a line of the results says about the run. ``seconds`` are of selecting and training, without evaluation: processor
        time on one core. ``wrong`` is the share of wrong labels among the selected, between two evaluations.
    """
    torch.manual_seed(task.seed)
    model = network(task.x.shape[1], schedule.hidden)
    optimizer = adamw(model.parameters(), variant.lr)
    is_wrong = task.is_wrong
    data: Any = task.training
    if store is not None:
        index = index_of(store)
        data = IndexedSubset(data, index if variant.select else index[store.losses <= variant.gate])
    loader = DataLoader(data, batch_size=N_B, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(task.seed))
    uniform = store is None or not variant.select
    if uniform:
        selector = build_selector("uniform", loader, model, keep=1.0)
    else:
        gate = {"max_irreducible_loss": variant.gate, "bounded": variant.bounded}
        selector = build_selector("rho_loss", loader, model, store=store, keep=KEEP, **gate)
    steps, every = schedule.uniform_steps if store is None else schedule.steps, schedule.evaluate_every
    line: dict[str, Any] = {"steps": steps, "evaluate_every": every, "accuracy": [], "wrong": [], "probe": []}
    wrong, trained, seconds = 0, 0, 0.0
    began = time.process_time()
    while selector.step < steps:
        for x, y in selector:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            wrong += int(is_wrong[selector.last.index].sum())
            trained += len(x)
            if selector.step % every == 0:
                seconds += time.process_time() - began
                line["accuracy"].append(round(accuracy_of(logits_of(model, task.x_test), task.y_test), 4))
                line["wrong"].append(round(wrong / trained, 3))
                wrong, trained = 0, 0
                if store is not None and len(line["accuracy"]) % 5 == 0:
                    line["probe"].append([selector.step, *probe(task, model, store)])
                began = time.process_time()
            if selector.step == steps:
                break
    scored = 0 if uniform else steps * selector.n_B
    return line | {"seconds": round(seconds, 2), "trained": steps * N_B, "scored": scored}


def probe(task: Task, model: nn.Module, store: IrreducibleLossStore, n: int = 2000) -> list[float]:
    """Mean loss and mean reducible loss, in nats, of n examples: of those with a right label, then with a wrong label."""
    index = index_of(store)[:n]
    loss = F.cross_entropy(logits_of(model, task.x[index]), task.given[index], reduction="none")
    is_wrong = task.is_wrong[index]
    found = []
    for which in (~is_wrong, is_wrong):
        found += [part[which].mean().item() if which.any() else 0.0 for part in (loss, loss - store[index])]
    return [round(value, 3) for value in found]


def index_of(store: IrreducibleLossStore) -> Tensor:
    """The index of each example in a store."""
    return torch.arange(len(store)) if store.ids is None else store.ids
