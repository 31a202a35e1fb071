"""Irreducible losses by the recipes of the study, computed once and kept in the working folder."""

from __future__ import annotations

import hashlib
import itertools
import math
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from rholoss import IndexedSubset, IrreducibleLossStore, cross_fit, fit_irreducible_model, split
from studies.holdout.task import Task
from studies.holdout.training import accuracy_of, adamw, logits_of, network
from studies.holdout.variants import CHANCE_LEVEL, RECIPES, Recipe


def stored_losses(task: Task, name: str, cell: str, work: Path) -> IrreducibleLossStore:
    """The irreducible losses of a recipe in a cell. All variants share them."""
    kept = f"{work / cell}-{task.seed}"
    path = Path(f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.npz")
    if not path.exists():
        compute_losses(task, RECIPES[name], kept).save(path)
    return IrreducibleLossStore.load(path)


def compute_losses(task: Task, recipe: Recipe, kept: str) -> IrreducibleLossStore:
    """Irreducible losses of all training examples, or with a holdout, of all but the holdout.

    Args:
        task: the data.
        recipe: how they are computed.
        kept: how the names of the files of fitted models begin.
    """
    numbers, notes, accuracy = itertools.count(10 * task.seed), [], []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch[0]) / recipe.temperature, batch[1]

    def models_for(part: IndexedSubset) -> list[nn.Module]:
        models, about = fit(part, recipe, next(numbers), kept)
        notes.extend(about)
        probabilities = torch.stack([logits_of(model, task.x_test).softmax(1) for model in models]).mean(0)
        accuracy.append(accuracy_of(probabilities, task.y_test))
        return models

    options = {"forward": forward, "batch_size": 1000, "progress": False}
    if recipe.folds:
        store = cross_fit(task.training, models_for, folds=recipe.folds, seed=task.seed, **options)
    else:
        rest, held, _ = split(task.training, holdout=recipe.holdout, validation=0, seed=task.seed)
        labels = task.true if recipe.labels == "true" else task.given
        models = models_for(IndexedSubset(TensorDataset(task.x, labels), held.indices))
        store = IrreducibleLossStore.from_model(models, rest, **options)
    own = {"seconds": sum(note["seconds"] for note in notes), "test_accuracy": statistics.fmean(accuracy)}
    validation_loss = statistics.fmean(note["validation_loss"] for note in notes)
    store.meta = replace(store.meta, validation_loss=validation_loss, extra=own)
    return store


def fit(part: IndexedSubset, recipe: Recipe, seed: int, kept: str) -> tuple[list[nn.Module], list[dict[str, float]]]:
    """Fit the models of a recipe on a part of the data. A tenth of it is the validation data, as noisy as the rest.

    A model that another recipe has too is read from its file.

    Returns:
        The models, and for each its seconds of fitting and its loss on the validation data.
    """
    training, validation, _ = split(part, holdout=0.1, validation=0, seed=seed)
    models, notes = [], []
    for number in range(recipe.models):
        torch.manual_seed(1000 * seed + number)
        model = network(part.dataset.tensors[0].shape[1], recipe.hidden, recipe.dropout)
        same_model = replace(recipe, models=1, temperature=1.0)
        path = Path(f"{kept}-{seed}-{number}-{hashlib.sha256(repr(same_model).encode()).hexdigest()[:12]}.pt")
        if not path.exists():
            began = time.process_time()
            fit_one(model, training, validation, recipe, seed=1000 * seed + number)
            took = time.process_time() - began
            x, y = (tensor[validation.indices] for tensor in part.dataset.tensors)
            loss = F.cross_entropy(logits_of(model, x), y).item()
            torch.save({"weights": model.state_dict(), "notes": {"seconds": took, "validation_loss": loss}}, path)
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["weights"])
        models.append(model)
        notes.append(state["notes"])
    return models, notes


def fit_one(model: nn.Module, training: IndexedSubset, validation: IndexedSubset, recipe: Recipe, seed: int) -> None:
    """Fit one model in place."""
    if recipe.last_weights:
        train_to_the_end(model, training, recipe.epochs)
        return
    smoothed = nn.CrossEntropyLoss(reduction="none", label_smoothing=recipe.smoothing)
    settings = {"epochs": recipe.epochs, "patience": recipe.patience, "batch_size": 256, "seed": seed}
    fit_irreducible_model(model, training, validation, loss=smoothed, progress=False, **settings)


def train_to_the_end(model: nn.Module, data: IndexedSubset, epochs: int) -> None:
    """What not to do: train for many epochs and keep the last weights."""
    optimizer = adamw(model.parameters())
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=128, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def indicators(store: IrreducibleLossStore) -> dict[str, float]:
    """What irreducible losses show without knowing which labels are wrong. ``mean`` is over the data that they score."""
    losses = store.losses.double()
    found = {
        "mean": losses.mean().item(),
        "validation_loss": store.meta.validation_loss,
        "worse_than_a_guess": (losses > CHANCE_LEVEL).double().mean().item(),
    }
    tally = store.meta.calibration
    if tally:
        n, right, confidence = tally.bins.sum(0)
        found |= {"accuracy": right / n, "confidence_minus_accuracy": (confidence / 1e6 - right) / n}
        n, a, b, aa, bb, ab = tally.halves
        found["agreement"] = (n * ab - a * b) / math.sqrt((n * aa - a * a) * (n * bb - b * b)) if n else math.nan
    return found
