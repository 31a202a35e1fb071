"""A small, plain training routine that remembers the weights of the lowest validation loss, and can be gone on with."""

from __future__ import annotations

import contextlib
import copy
import math
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from rholoss.batches import move
from rholoss.fingerprint import digest, fingerprint
from rholoss.guest import device_of, seeded
from rholoss.indexing import IndexedBatches, altered, is_map_style
from rholoss.parts import dataset_of, origin
from rholoss.reading import attach_index
from rholoss.sampling import plain_sampler
from rholoss.scoring import Forward, Loss, check_loss
from rholoss.storefile import written_whole
from rholoss.sweep import Sweep

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


@dataclass(frozen=True)
class FitEpoch:
    """One epoch of a fit.

    Attributes:
        epoch: from 1.
        train_loss: mean loss of the holdout while it was trained on, in nats for a likelihood.
        validation_loss: mean loss of the validation examples after it, in eval mode.
        seconds: how long it took, validation included.
    """

    epoch: int
    train_loss: float
    validation_loss: float
    seconds: float


class Trainer:
    """The state of a fit between epochs.

    Args:
        model: see ``fit_irreducible_model``, as all others.
        holdout: trained on.
        validation: chosen by.
        optimizer: of the parameters makes the optimizer.
        scheduler: of the optimizer makes what sets its learning rate.
        batch_size: for a holdout that is no loader.
        forward: the forward hook.
        loss: the loss hook.
        seed: of all randomness.
        checkpoint: where the state is kept after each epoch; None keeps none.

    Attributes:
        done: the epochs so far.
        best_weights: the state dict of the epoch with the lowest validation loss.
        sizes: examples that are trained on in an epoch, and validated on.
    """

    def __init__(
        self,
        model: nn.Module,
        holdout: Any,
        validation: Any,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
        batch_size: int,
        forward: Forward | None,
        loss: Loss | None,
        seed: int,
        checkpoint: str | os.PathLike[str] | None,
    ) -> None:
        if optimizer is not None and not callable(optimizer):
            raise TypeError(
                f"optimizer must be a function that makes one of parameters, such as torch.optim.SGD or lambda parameters: "
                f"torch.optim.SGD(parameters, lr=0.1), got {type(optimizer).__name__}"
            )
        self.model = model
        self.seed = seed
        self.optimizer = (optimizer or _adamw)(model.parameters())
        self.scheduler = None if scheduler is None else scheduler(self.optimizer)
        self.holdout = holdout
        own = isinstance(holdout, (DataLoader, IndexedBatches))
        self.training = Sweep(holdout, forward=forward, loss=loss, batch_size=None if own else batch_size)
        self.training.scorer.refuse_causal(model)
        self.validation = Sweep(validation, forward=forward, loss=loss)
        self.done: list[FitEpoch] = []
        self.best_weights: dict[str, Any] = {}
        self.sizes = (0, 0)
        self.checkpoint = None if checkpoint is None else os.fspath(checkpoint)
        self._settings = self._what_it_is() if checkpoint is not None else {}

    def stopped(self, epochs: int, patience: int | None) -> str:
        if self.done and patience is not None:
            lowest = min(self.done, key=lambda epoch: epoch.validation_loss)
            if len(self.done) - lowest.epoch >= patience:
                return "patience"
        return "epochs" if len(self.done) >= epochs else ""

    def epoch(self) -> None:
        number, began = len(self.done) + 1, time.perf_counter()
        device = device_of(self.model)
        with seeded(self.seed, number, device=device), torch.enable_grad():
            train_loss = self._train(device)
        _, losses = self.validation.run(self.model)
        self.sizes = (self.sizes[0], len(losses))
        validation_loss = float(losses.double().mean())
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            raise ValueError(
                f"the loss is not finite in epoch {number} (training {train_loss}, validation {validation_loss}): the fit "
                "diverged; pass an optimizer with a lower learning rate, or check the data"
            )
        if not self.done or validation_loss < min(epoch.validation_loss for epoch in self.done):
            self.best_weights = copy.deepcopy(self.model.state_dict())
        self.done.append(FitEpoch(number, train_loss, validation_loss, time.perf_counter() - began))

    def _train(self, device: torch.device | None) -> float:
        scorer, total, count = self.training.scorer, torch.zeros((), device=device), 0
        for batch in _batches(self.holdout, self.training.loader):
            outputs, targets = scorer.forward(self.model, move(batch, device) if device is not None else batch)
            losses = scorer.loss(outputs, targets)
            n = len(losses) if isinstance(losses, Tensor) and losses.ndim == 1 else self.training.batch_size or 1
            losses = check_loss(losses, n)
            self.optimizer.zero_grad()
            losses.mean().backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            total += losses.detach().sum()
            count += n
        if not count:
            raise ValueError(
                "the holdout gave no batch to train on; it is empty, or smaller than the loader's batch with drop_last"
            )
        self.sizes = (count, 0)
        return float(total) / count

    def save(self) -> None:
        if self.checkpoint is None:
            return
        state = {
            "settings": self._settings,
            "sizes": list(self.sizes),
            "done": [asdict(epoch) for epoch in self.done],
            "model": self.model.state_dict(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }
        with written_whole(self.checkpoint) as file:
            torch.save(state, file)

    def resume(self) -> None:
        path = self.checkpoint
        if path is None or not os.path.exists(path):
            return
        try:
            with zipfile.ZipFile(path) as file:
                if file.testzip() is not None:
                    raise ValueError("a checksum does not fit")
            state = torch.load(path, map_location=device_of(self.model), weights_only=True)
            saved = state["settings"]
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(
                f"{path} is not the checkpoint of a fit, or is damaged ({error!r}); delete it, or name another file"
            ) from error
        mine = self._settings
        different = [name for name in mine if saved.get(name) != mine[name]]
        if different:
            raise ValueError(
                f"{path} is the checkpoint of another fit, with other {', '.join(different)}: "
                + "; ".join(f"expected {mine[name]!r}, got {saved.get(name)!r}" for name in different if name != "data")
                + ". Delete it, or name another file"
            )
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.done = [FitEpoch(**epoch) for epoch in state["done"]]
        self.best_weights, self.sizes = state["best"], tuple(state["sizes"])

    def _what_it_is(self) -> dict[str, Any]:
        return {
            "data": [fingerprint(self.training.loader), fingerprint(self.validation.loader)],
            "parts": [[sweep.total, _digest_of_part(sweep.loader)] for sweep in (self.training, self.validation)],
            "batch_size": self.training.batch_size,
            "seed": self.seed,
            "optimizer": [type(self.optimizer).__name__, repr(sorted(self.optimizer.defaults.items()))],
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "layers": [[name, list(value.shape)] for name, value in self.model.state_dict().items() if isinstance(value, Tensor)],
        }


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """A context in which a model trains; each module has its own mode back after it."""
    flags = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    try:
        yield
    finally:
        for module, was in flags:
            module.training = was


def _batches(holdout: Any, loader: Any) -> Iterable[Any]:
    """An epoch's batches.

    A loader that draws every example once does so in an order of the global generator, without a last batch of one example,
    which BatchNorm could not train on.
    """
    if isinstance(holdout, IndexedBatches):
        return (indexed.batch for indexed in holdout)
    sampler = plain_sampler(loader)
    if (
        not is_map_style(loader)
        or type(sampler) not in (SequentialSampler, RandomSampler)
        or getattr(sampler, "replacement", False)
    ):
        return loader
    if not len(loader.dataset):
        return []
    size, n = loader.batch_size or loader.batch_sampler.batch_size, len(loader.dataset)
    order = BatchSampler(RandomSampler(range(n)), size, drop_last=n % size == 1 < n)
    if loader.collate_fn is not default_collate:
        return altered(loader, batch_sampler=order, generator=None)
    return (indexed.batch for indexed in attach_index(loader, batch_sampler=order, generator=None))  # rows in memory at once


def _digest_of_part(data: Any) -> str | None:
    indices = origin(dataset_of(data))[1]
    return None if indices is None else digest(indices.numpy().tobytes())
