"""Fitting an irreducible-loss model."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from rholoss.fingerprint import example_digests
from rholoss.guest import seeded
from rholoss.indexing import IndexedBatches
from rholoss.parts import dataset_of, in_common, origin
from rholoss.progress import Progress, reporter
from rholoss.scoring import Forward, Loss
from rholoss.trainer import FitEpoch, MakeOptimizer, MakeScheduler, Trainer, training


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
        """How many examples of a dataset, at some positions or in all, this fit has seen; 0 where that cannot be known.

        Of the dataset that it was fitted on parts of, they are told by index; of another one, by the content of a sample.
        """
        base, indices = origin(dataset)
        if positions is not None:
            indices = positions if indices is None else indices[positions]
        count = 0
        for data in self.seen:
            its_base, its = origin(data)
            if its_base is base:
                mine = torch.arange(len(base)) if indices is None else indices
                count += len(mine) if its is None else int(torch.isin(mine, its).sum())
            elif not count and is_readable(data) and is_readable(dataset):
                drawn = torch.arange(len(dataset)) if positions is None else positions
                shared, looked_at = same_content(DataLoader(data), DataLoader(dataset), drawn)
                count = shared * len(drawn) // max(looked_at, 1)
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
    scheduler: MakeScheduler | None = None,
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
        scheduler: of the optimizer makes the scheduler of its learning rate, which takes a step after every batch, such as
            ``lambda optimizer: OneCycleLR(optimizer, 3e-3, total_steps=...)``; None keeps the rate.
        batch_size: examples in a training batch of a dataset, 32 if None; a loader says it itself. A last one of a single example
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
    if batch_size is not None and isinstance(holdout, (DataLoader, IndexedBatches)):
        raise ValueError(
            f"a loader says the batch size itself, got batch_size={batch_size} beside one; leave it out, or pass the dataset"
        )
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        raise TypeError(f"expected a model to train, a torch.nn.Module with parameters, got {type(model).__name__}")
    _refuse_overlap(holdout, validation)
    trainer = Trainer(model, holdout, validation, optimizer, scheduler, batch_size or 32, forward, loss, seed, checkpoint)
    trainer.resume()
    if len(trainer.done) > epochs:
        raise ValueError(
            f"{trainer.checkpoint} holds {len(trainer.done)} epochs, more than epochs={epochs}; ask for as many, or name "
            "another file"
        )
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
    if not (is_readable(one) and is_readable(other)):
        return
    shared, n, how = in_common(one, other), len(other), "indices"
    if not shared and origin(one)[0] is not origin(other)[0]:
        mine, its = (data if isinstance(data, DataLoader) else DataLoader(data) for data in (holdout, validation))
        (shared, n), how = same_content(mine, its, torch.arange(n)), "content"
    if shared:
        raise ValueError(
            f"{shared:,} of {n:,} validation examples are in the holdout too, by their {how}: choose the weights by examples "
            "that the model does not train on; rholoss.split makes such parts"
        )


def is_readable(data: Any) -> bool:
    """Whether data can be read by index."""
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not isinstance(data, IterableDataset)


def same_content(one: DataLoader[Any], other: DataLoader[Any], positions: Tensor) -> tuple[int, int]:
    """How many of some examples of one loader's dataset are in another's, by their content, and how many were looked at.

    A few are taken for duplicates, of which there may be some, and count as none.

    Args:
        one: all of its dataset is read, up to 50,000 examples.
        other: of its dataset 512 examples are read,
        positions: among these, shape (n,), int64.
    """
    if not len(positions) or not len(one.dataset):  # type: ignore[arg-type]
        return 0, 0
    looked_at = positions[_some(len(positions))]
    with seeded(0):
        known, theirs = (
            [repr(sorted(digests.items())) for digests in example_digests(loader, loader.dataset, at)]
            for loader, at in ((one, torch.arange(min(len(one.dataset), 50_000))), (other, looked_at))  # type: ignore[arg-type]
        )
    known_already = set(known)
    shared = sum(digest in known_already and digest != "[]" for digest in theirs)
    return (shared if shared > len(theirs) // 100 else 0), len(theirs)


def _some(n: int) -> Tensor:
    return torch.linspace(0, n - 1, min(n, 512)).round().long().unique()
