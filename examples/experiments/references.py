"""Irreducible losses as a setup wants them: from a holdout, or cross-fitted."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import ConcatDataset, TensorDataset

from experiments.images import ByteImages
from experiments.measures import Evaluation
from experiments.setups import Irreducible, located
from experiments.tasks import Task, make_model, plain
from rholoss import Fit, IndexedSubset, IrreducibleLossStore, cross_fit, fit_irreducible_model, split
from rholoss.rehearsal.front_door import up_and_down


@dataclass(frozen=True)
class Reference:
    """Irreducible losses, and what they cost.

    Attributes:
        store: of the training data.
        model: what made them; of cross-fitting the first of the models.
        seconds: of fitting and scoring.
        metric: of ``model`` on the test data.
        parameters: of ``model``.
    """

    store: IrreducibleLossStore
    model: nn.Module
    seconds: float
    metric: float
    parameters: int


def make_reference(how: Irreducible, task: Task, seed: int, test: Evaluation, root: Path, device: torch.device) -> Reference:
    """Fit models and score the training data; the same every time for the same seed."""
    made: list[Fit] = []

    def fit(training: Any, validation: Any) -> list[Fit]:
        options = located(how.model_options, root)
        first = seed * 1000 + len(made)
        return [_fit(how, task, options, training, validation, first + each, device) for each in range(how.models)]

    def fit_folds(part: IndexedSubset) -> list[Fit]:
        held = max(1, len(part) // 10)
        _, training, validation = split(part, holdout=len(part) - held - 1, validation=held, seed=seed)
        made.extend(fits := fit(training, validation))
        return fits

    began = time.process_time()
    if how.kind == "cross-fit":
        store = cross_fit(plain(task.train), fit_folds, folds=how.folds, seed=seed, progress=False)
    elif how.kind == "holdout":
        if task.holdout is None:
            raise ValueError(f"{task.name} has no holdout; load it with one, or cross-fit")
        made = fit(*parts_of_one(task.holdout, task.validation))
        # Bare models: fits would be refused where examples are in both parts (Clothing-1M) or look alike (Census-Income).
        scorers = [each.model for each in made]
        store = IrreducibleLossStore.from_model(scorers, plain(task.train), progress=False)
    else:
        raise ValueError(f"kind must be 'holdout' or 'cross-fit', got {how.kind!r}")
    seconds = time.process_time() - began
    model = made[0].model
    return Reference(store, model, seconds, test(model), sum(p.numel() for p in model.parameters()))


def parts_of_one(*datasets: Any) -> list[IndexedSubset]:
    """Datasets as parts of one, so that indices distinguish the examples: in some data different ones look the same."""
    whole, ends = one_of(*datasets), [0, *accumulate(map(len, datasets))]
    return [IndexedSubset(whole, list(range(start, end))) for start, end in pairwise(ends)]


def one_of(*datasets: Any) -> Any:
    """Datasets as one, which is read a batch at once where they are in memory."""
    if all(type(data) is TensorDataset for data in datasets):
        return TensorDataset(*map(torch.cat, zip(*(data.tensors for data in datasets), strict=True)))
    if all(type(data) is ByteImages for data in datasets):
        images, targets = (torch.cat([getattr(data, name) for data in datasets]) for name in ("images", "targets"))
        return ByteImages(images, targets, datasets[0].mean, datasets[0].std)
    return ConcatDataset(datasets)


def _fit(
    how: Irreducible, task: Task, options: dict[str, Any], training: Any, validation: Any, seed: int, device: torch.device
) -> Fit:
    torch.manual_seed(seed)
    model = make_model(how.model, task, **options).to(device)
    cycle = up_and_down(how.epochs * math.ceil(len(training) / how.batch_size))
    return fit_irreducible_model(
        model,
        training,
        validation,
        epochs=how.epochs,
        patience=how.patience,
        batch_size=how.batch_size,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=how.lr, weight_decay=0.01),
        scheduler=partial(LambdaLR, lr_lambda=cycle) if how.schedule == "one-cycle" else None,
        seed=seed,
        progress=False,
    )
