"""Fitting an irreducible-loss model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from rholoss.fingerprint import example_digests
from rholoss.indexing import is_map_style
from rholoss.parts import dataset_of, in_common, origin
from rholoss.progress import Progress, reporter
from rholoss.scoring import Forward, Loss
from rholoss.trainer import FitEpoch, MakeOptimizer, Trainer, training


@dataclass(eq=False)
class Fit:
    """A fitted irreducible-loss model, and what was done to fit it; printed, it says so.

    Attributes:
        model: with the weights of the lowest validation loss.
        epochs: what happened in each.
        stopped: why it ended: ``"patience"`` or ``"epochs"``.
        seen: the data that it trained on and that its weights were chosen by: never to be scored with it.
        sizes: examples that were trained on in an epoch, and validated on.
    """

    model: nn.Module
    epochs: list[FitEpoch]
    stopped: str
    seen: list[Any] = field(repr=False)
    sizes: tuple[int, ...] = (0, 0)

    @property
    def best(self) -> FitEpoch:
        """The epoch whose weights the model has."""
        return min(self.epochs, key=lambda epoch: epoch.validation_loss)

    def seen_among(self, dataset: Any, positions: Tensor | None) -> int:
        """How many examples of a dataset, at some positions or in all, this fit has seen; 0 where that cannot be known."""
        base, indices = origin(dataset)
        if positions is not None:
            indices = positions if indices is None else indices[positions]
        count = 0
        for data in self.seen:
            its_base, its = origin(data)
            if its_base is base:
                mine = torch.arange(len(base)) if indices is None else indices
                count += len(mine) if its is None else int(torch.isin(mine, its).sum())
        return count

    def __str__(self) -> str:
        best, last = self.best, self.epochs[-1]
        count = sum(parameter.numel() for parameter in self.model.parameters())
        why = f"no lower for {last.epoch - best.epoch} epochs" if self.stopped == "patience" else "all epochs done"
        seconds = sum(epoch.seconds for epoch in self.epochs)
        return (
            f"{type(self.model).__name__} ({count:,} parameters): {last.epoch} epochs over {self.sizes[0]:,} examples in "
            f"{seconds:.1f} s, {why}; has the weights of epoch {best.epoch}, with the lowest validation loss, "
            f"{best.validation_loss:.4f} (after epoch 1: {self.epochs[0].validation_loss:.4f}, at the end: "
            f"{last.validation_loss:.4f}; {self.sizes[1]:,} validation examples)"
        )


def fit_irreducible_model(
    model: nn.Module,
    holdout: Any,
    validation: Any,
    *,
    epochs: int = 100,
    patience: int | None = 5,
    optimizer: MakeOptimizer | None = None,
    batch_size: int | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    progress: Progress = None,
) -> Fit:
    """Train a model on the holdout, and leave it with the weights of its lowest validation loss.

    Its loss, not its accuracy, chooses the weights: an overconfident model is useless as a measure of what is learnable.
    PyTorch's, NumPy's and Python's random state are left as they were.

    Args:
        model: the model, on its device; trained in place. A model in eval mode is trained in train mode; of one in train mode
            every module keeps its own, so that what is frozen stays frozen.
        holdout: the examples to train on, or a ``DataLoader`` over them. They are shuffled in every epoch, unless the loader has
            a sampler of its own making.
        validation: the examples to choose the weights by, or a loader over them: no test data, none of the holdout, and none that
            is to be scored.
        epochs: at most this many passes over the holdout.
        patience: stop after as many epochs without a lower validation loss; None never stops early.
        optimizer: of the parameters makes the optimizer; None for AdamW with a learning rate of 1e-3 and a weight decay of 0.01,
            the authors' choice.
        batch_size: examples in a training batch; None for the loader's own, or 32 for a dataset. A last one of a single example
            is left out.
        forward: ``(model, batch) -> (outputs, targets)``; the one that the selector is given.
        loss: ``(outputs, targets) -> (n,)``; the one that the selector is given.
        seed: of the order, of dropout and of augmentation.
        checkpoint: a file that is written after every epoch; where it is there already, the fit goes on from it, with the same
            result as if it had never stopped.
        progress: see ``IrreducibleLossStore.from_model``; epochs are counted.

    Returns:
        The fitted model and what was done.

    Raises:
        ValueError: holdout and validation have examples in common, the loss is not finite, or the checkpoint is of another fit.

    Examples:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> from rholoss import fit_irreducible_model, split
        >>> data = TensorDataset(torch.randn(200, 5), torch.randint(3, (200,)))
        >>> train, holdout, validation = split(data, holdout=0.3, validation=0.1)
        >>> fit = fit_irreducible_model(torch.nn.Linear(5, 3), holdout, validation, epochs=3)
        >>> len(fit.epochs)
        3

    References:
        Mindermann et al., ICML 2022, appendix B, for the optimizer and the choice by validation loss.
    """
    if epochs < 1 or (patience is not None and patience < 1):
        raise ValueError(f"epochs and patience must be at least 1, got epochs={epochs} and patience={patience}")
    _refuse_overlap(holdout, validation)
    trainer = Trainer(model, holdout, validation, optimizer, batch_size or 32, forward, loss, seed, checkpoint)
    trainer.resume()
    report = reporter(progress, "epoch", "fitting the irreducible-loss model")
    with training(model):
        while not (stopped := trainer.stopped(epochs, patience)):
            trainer.epoch()
            trainer.save()
            report(len(trainer.done), epochs)
    model.load_state_dict(trainer.best_weights)
    return Fit(model, trainer.done, stopped, [dataset_of(holdout), dataset_of(validation)], trainer.sizes)


def _refuse_overlap(holdout: Any, validation: Any) -> None:
    """Raise a ValueError where validation examples are in the holdout: by index in one dataset, else by content."""
    one, other = dataset_of(holdout), dataset_of(validation)
    if not all(hasattr(data, "__getitem__") and hasattr(data, "__len__") for data in (one, other)):
        return
    shared, n = in_common(one, other), len(other)
    how = "indices"
    if not shared and origin(one)[0] is not origin(other)[0]:
        loaders = [data if isinstance(data, DataLoader) else DataLoader(data) for data in (holdout, validation)]
        if all(is_map_style(loader) for loader in loaders):
            ours, theirs = (
                [repr(sorted(digests.items())) for digests in example_digests(loader, loader.dataset, positions)]
                for loader, positions in zip(loaders, (torch.arange(len(one)), _some(n)), strict=True)
            )
            known = set(ours)
            shared, n, how = sum(digest in known for digest in theirs), len(theirs), "content"
            shared = shared if shared > n // 100 and theirs[0] != "[]" else 0  # data may have a few duplicates
    if shared:
        raise ValueError(
            f"{shared:,} of {n:,} validation examples are in the holdout too, by their {how}: choose the weights by examples "
            "that the model does not train on; rholoss.split makes such parts"
        )


def _some(n: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, 512)).round().long().unique()
