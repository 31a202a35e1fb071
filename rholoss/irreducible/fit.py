"""Fitting an irreducible-loss model: the weights with the lowest validation loss are kept, and a fit can be resumed."""

import copy
import math
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, default_collate

from rholoss.arguments import function, map_style, one_of, optional, options_of, path_of, refuse_unknown, seed_of, shown, whole
from rholoss.batches import each_tensor, move
from rholoss.data.fingerprint import fingerprint, same_content
from rholoss.data.index import copy_loader, is_readable
from rholoss.data.indexed_dataset import attach_index
from rholoss.data.loader_view import LoaderView
from rholoss.data.subset import dataset_of, in_common, origin
from rholoss.dataset_scoring import DatasetScorer
from rholoss.files import explained, open_regular, read_torch, write_torch
from rholoss.isolation import device_of, seeded
from rholoss.losses import LabelError, NotFiniteError, classes_of
from rholoss.progress import Progress, Reporter
from rholoss.scoring import Forward, Loss, Task, check_loss
from rholoss.states import digest

MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
MakeScheduler = Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]


LEAST, MOST = 25, 500  # optimizer steps from one validation to the next, whatever the size of the holdout


@dataclass(frozen=True)
class FitEpoch:
    """One round of a fit: a pass over the holdout, or so many steps, and a validation."""

    epoch: int  # from 1
    train_loss: float  # mean loss of the holdout during the round, in nats for a likelihood
    validation_loss: float  # mean loss of the validation examples after it, in eval mode
    seconds: float  # duration, including validation
    steps: int = 0  # optimizer steps until then
    accuracy: float | None = None  # share of the validation examples whose label is the most likely class; None if no classifier


class FitRun:
    """A fit between two epochs; the arguments are those of ``fit_irreducible_model``."""

    def __init__(
        self,
        model: nn.Module,
        holdout: Any,
        validation: Any,
        optimizer: MakeOptimizer | None,
        scheduler: MakeScheduler | None,
        batch_size: int,
        task: Task,
        seed: int,
        checkpoint: str | None,
        steps: int | None = None,
        by_epoch: bool = True,
    ) -> None:
        such = "such as torch.optim.SGD or lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
        optional(function, optimizer, "optimizer", f"(parameters) -> optimizer, {such}")
        optional(function, scheduler, "scheduler", "(optimizer) -> scheduler")
        self.model = model
        self.seed = seed
        self.optimizer = checked_optimizer((optimizer or _adamw)(model.parameters()), model)
        self.scheduler = None if scheduler is None else _checked_scheduler(scheduler, self.optimizer)
        self.holdout = DatasetScorer(holdout, task=task, batch_size=None if _is_loader(holdout) else batch_size)
        self.validation = DatasetScorer(validation, forward=task.forward, loss=task.loss)
        self.holdout.scorer.refuse_causal(model)
        self.done: list[FitEpoch] = []
        self.best_weights: dict[str, Any] = {}  # the state dict of the epoch with the lowest validation loss
        self.sizes = (0, 0)  # examples that a round trains on, and validates on
        self.steps, self.limit = 0, steps  # optimizer steps so far, and at most
        self.round = None if by_epoch else _round_of(self.holdout, steps)  # steps from one validation to the next; None: a pass
        self.checkpoint = checkpoint
        self._settings = self._what_it_is() if checkpoint is not None else {}

    def stopped(self, epochs: int | None, patience: int | None) -> str:
        """Why the fit has ended, or an empty string."""
        if self.done and patience is not None and len(self.done) - _best(self.done).epoch >= patience:
            return "patience"
        if self.limit is not None and self.steps >= self.limit:
            return "steps"
        return "epochs" if epochs is not None and len(self.done) >= epochs else ""

    def finish(self, epochs: int | None, patience: int | None, report: Callable[[int, int | None], None]) -> str:
        """Run the remaining rounds, load the best weights, and return why the fit ended."""
        if epochs is not None and len(self.done) > epochs:
            what = f"{self.checkpoint} holds {len(self.done)} epochs, more than epochs={epochs}"
            raise ValueError(f"{what}; pass at least as many, or another file")
        with _train_mode(self.model):
            while not (stopped := self.stopped(epochs, patience)):
                self.epoch()
                self.save()
                report(*((len(self.done), epochs) if self.limit is None else (self.steps, self.limit)))
        self.model.load_state_dict(self.best_weights)
        return stopped

    def epoch(self) -> None:
        """Train for one round, and validate."""
        number, began = len(self.done) + 1, time.perf_counter()
        device = device_of(self.model)
        with seeded(self.seed, number, device=device), torch.enable_grad():
            train_loss = self._train(device)
        _, found = self.validation.run(self.model, self._validate)
        validation_loss, correct = float(found.double().mean(0)[0]), float(found.double().nanmean(0)[1])
        self.sizes = (self.sizes[0], len(found))
        accuracy = None if math.isnan(correct) else correct
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            what = f"the loss is not finite in epoch {number} (training {train_loss}, validation {validation_loss})"
            raise NotFiniteError(f"{what}; pass an optimizer with a lower learning rate, or check the data")
        if not self.done or validation_loss < _best(self.done).validation_loss:
            self.best_weights = _copied(self.model.state_dict())
        self.done.append(FitEpoch(number, train_loss, validation_loss, time.perf_counter() - began, self.steps, accuracy))

    def _validate(self, outputs: Any, targets: Any, n: int) -> Tensor:
        """For each of n examples the loss, and whether its label is the most likely class: (n, 2), NaN without a label."""
        losses = self.validation.scorer.losses(outputs, targets, n)
        if not classes_of(outputs, targets):
            return torch.stack([losses, torch.full_like(losses, math.nan)], 1)
        labels = targets.to(outputs.device)
        correct = (outputs.argmax(1) == labels).to(losses).masked_fill(labels < 0, math.nan)  # such as -100, which is no label
        return torch.stack([losses, correct], 1)

    def _round(self) -> Iterator[tuple[Tensor | None, Any]]:
        """The batches of a round, each with its indices or None: a pass, or so many steps, of several passes if one has fewer."""
        most = math.inf if self.limit is None else self.limit - self.steps
        left = most if self.round is None else min(self.round, most)
        passes = _Passes(self.holdout.view)
        while left > 0:
            before = left
            for batch in passes:
                yield batch
                left -= 1
                if left <= 0:
                    return
            if self.round is None or left == before:
                return

    def _train(self, device: torch.device | None) -> float:
        task, total, count = self.holdout.scorer.task, torch.zeros((), device=device), 0
        for index, batch in self._round():
            outputs, targets = task.forward(self.model, move(batch, device) if device is not None else batch)
            try:
                self.validation.scorer.check.meet(task.loss, outputs, targets)
                losses = task.loss(outputs, targets)
            except LabelError as error:
                raise (error if index is None else error.of(index)) from error
            n = len(losses) if isinstance(losses, Tensor) and losses.ndim == 1 else self.holdout.batch_size or 1
            losses = check_loss(losses, n)
            self.optimizer.zero_grad()
            losses.mean().backward()
            self.optimizer.step()
            if self.scheduler is not None:
                self.scheduler.step()
            total += losses.detach().sum()
            count += n
            self.steps += 1
        if not count:
            raise ValueError("the holdout gave no batch to train on: it is empty, or smaller than a batch with drop_last=True")
        self.sizes = (count, 0)
        return float(total) / count

    def save(self) -> None:
        """Write the checkpoint, if there is one to write."""
        if self.checkpoint is None:
            return
        state = {
            "settings": self._settings,
            "sizes": list(self.sizes),
            "steps": self.steps,
            "done": [asdict(epoch) for epoch in self.done],
            "model": self.model.state_dict(),
            "best": self.best_weights,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
        }
        write_torch(self.checkpoint, each_tensor(state, lambda tensor: tensor.cpu()))  # for any device

    def resume(self) -> None:
        """Restore the checkpoint, if it exists."""
        path = self.checkpoint
        if path is None or not os.path.exists(path):
            return
        with explained(path, "the checkpoint of a fit", "delete it, or name another file"), open_regular(path) as file:
            state = read_torch(file)
            saved = state["settings"]
        mine = self._settings
        different = [name for name in mine if saved.get(name) != mine[name]]
        if different:
            what = f"{path} is the checkpoint of another fit, with other {', '.join(different)}"
            how = "; ".join(f"expected {mine[name]!r}, got {saved.get(name)!r}" for name in different if name != "data")
            raise ValueError(f"{what}: {how}. Delete it, or name another file")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self.done = [FitEpoch(**epoch) for epoch in state["done"]]
        self.best_weights, self.sizes, self.steps = state["best"], tuple(state["sizes"]), state["steps"]

    def _what_it_is(self) -> dict[str, Any]:
        parts = [(scorer, origin(scorer.view.dataset)[1]) for scorer in (self.holdout, self.validation)]
        return {
            "data": [fingerprint(scorer.view.loader) for scorer, _ in parts],
            "parts": [[scorer.total, None if part is None else digest(part.numpy().tobytes())] for scorer, part in parts],
            "batch_size": self.holdout.batch_size,
            "seed": self.seed,
            "round": self.round,
            "optimizer": [type(self.optimizer).__name__, repr(sorted(self.optimizer.defaults.items()))],
            "scheduler": None if self.scheduler is None else type(self.scheduler).__name__,
            "layers": [[name, list(value.shape)] for name, value in self.model.state_dict().items() if isinstance(value, Tensor)],
        }


def _round_of(holdout: DatasetScorer, steps: int | None) -> int | None:
    """Steps from one validation to the next: about a pass, but not too few or too many, and at least 15 times until ``steps``."""
    if holdout.total is None or holdout.batch_size is None or not _is_reshuffled(holdout.view):
        return None  # a pass: its length is unknown, or a part of it would be the same part every time
    size = max(LEAST, min(MOST, math.ceil(holdout.total / holdout.batch_size)))
    return size if steps is None else max(1, min(size, math.ceil(steps / 15)))


def _copied(state: dict[str, Any]) -> dict[str, Any]:
    """The same state dict, with values of its own. It keeps the modules' versions."""
    state.update({name: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value) for name, value in state.items()})
    return state


def _adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)


def trainable(model: Any, name: str) -> nn.Module:
    """A module with parameters to train."""
    if not isinstance(model, nn.Module) or next(model.parameters(), None) is None:
        raise TypeError(f"{name} must be a model to train, a torch.nn.Module with parameters, got {shown(model)}")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"{name} must be a model to train, but all its parameters are frozen; call {name}.requires_grad_(True)")
    return model


def checked_optimizer(optimizer: Any, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer, if it is one of this model's parameters, with learning rates that are numbers."""
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer, got {type(optimizer).__name__}")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise ValueError("the optimizer trains none of the model's parameters; make it of the parameters that it is given")
    rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
    if not all(0 <= rate < math.inf for rate in rates):
        raise ValueError(f"the optimizer's learning rates must be finite and at least 0, got {rates}")
    return optimizer


def _checked_scheduler(scheduler: Any, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    """The scheduler that a function makes, if it takes a step by itself."""
    made: Any = scheduler(optimizer) if callable(scheduler) else None
    if not callable(getattr(made, "step", None)) or isinstance(made, torch.optim.lr_scheduler.ReduceLROnPlateau):
        expected = "scheduler must be a function that makes one from the optimizer, whose step() takes no metric"
        raise TypeError(f"{expected}, such as lambda optimizer: StepLR(optimizer, 100), got {type(made or scheduler).__name__}")
    return made


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in train mode, and restore the mode of each module at the end."""
    flags = [(module, module.training) for module in model.modules()]
    if not model.training:
        model.train()
    try:
        yield
    finally:
        for module, was in flags:
            module.training = was


class _Passes:
    """The batches of a pass, each with its indices or None, whenever it is iterated; workers stay from one pass to the next.

    If a pass draws each example once, it is shuffled, without a last batch of one, which BatchNorm cannot take.
    """

    def __init__(self, view: LoaderView) -> None:
        self.loader: Any = view.given if view.reports_index else view.loader
        self.is_indexed = view.reports_index
        self.keeps, self.begun = False, False
        if not _is_reshuffled(view):
            return
        loader, n = view.loader, len(view.dataset)
        size = loader.batch_size or loader.batch_sampler.batch_size
        order: Any = BatchSampler(RandomSampler(range(n)), size, drop_last=n % size == 1 < n) if n else []
        self.is_indexed = loader.collate_fn is default_collate  # then tensor rows are read at once
        self.keeps = loader.num_workers > 0 and (type(loader) is DataLoader or loader.persistent_workers)
        copied = attach_index if self.is_indexed else copy_loader
        self.loader = copied(loader, batch_sampler=order, generator=None, persistent_workers=self.keeps)

    def __iter__(self) -> Iterator[tuple[Tensor | None, Any]]:
        if self.keeps and self.begun:
            torch.empty((), dtype=torch.int64).random_()  # as new workers would, for their seed
        self.begun = True
        return iter(self.loader) if self.is_indexed else ((None, batch) for batch in self.loader)


def _is_reshuffled(view: LoaderView) -> bool:
    """Whether a pass draws each example once, in an order of its own."""
    sampler = None if view.batching is None else view.batching.sampler
    plain = type(sampler) in (SequentialSampler, RandomSampler) and not getattr(sampler, "replacement", False)
    return view.is_map_style and not view.reports_index and plain


def _is_loader(data: Any) -> bool:
    return LoaderView(data).reports_index or isinstance(data, DataLoader)


def _best(epochs: list[FitEpoch]) -> FitEpoch:
    return min(epochs, key=lambda epoch: epoch.validation_loss)


@dataclass(eq=False)
class Fit:
    """A fitted irreducible-loss model and its history; ``print`` shows a summary.

    Attributes:
        model: the model, with the weights of the lowest validation loss.
        epochs: the rounds, each with a validation.
        stopped: why the fit ended: ``"patience"``, ``"epochs"`` or ``"steps"``.
        seen: the holdout and the validation examples, which this model must not score.
        sizes: number of examples that the last round trained on, and validated on.
    """

    model: nn.Module
    epochs: list[FitEpoch]
    stopped: str
    seen: list[Any] = field(repr=False)
    sizes: tuple[int, ...] = (0, 0)

    @property
    def best(self) -> FitEpoch:
        """The round whose weights the model has."""
        return _best(self.epochs)

    def seen_among(self, dataset: Any, positions: Tensor | None) -> tuple[int, int]:
        """How many examples of a dataset this fit has seen: by index in its own, and by content, of a sample, in another."""
        base, indices = origin(dataset)
        if positions is not None:
            indices = positions if indices is None else indices[positions]
        by_index = by_content = 0
        for data in self.seen:
            its_base, its = origin(data)
            if its_base is base:
                mine = torch.arange(len(base)) if indices is None else indices
                by_index += len(mine) if its is None else int(torch.isin(mine, its).sum())
            elif is_readable(data) and is_readable(dataset):
                drawn = torch.arange(len(dataset)) if positions is None else positions
                shared, compared = same_content(DataLoader(data), DataLoader(dataset), drawn)
                by_content += shared * len(drawn) // max(compared, 1)
        return by_index, by_content

    def __str__(self) -> str:
        best, last = self.best, self.epochs[-1]
        count = sum(parameter.numel() for parameter in self.model.parameters())
        why = f"stopped early, no lower for {last.steps - best.steps:,} steps" if self.stopped == "patience" else "to the end"
        accuracy = "" if best.accuracy is None else f" and an accuracy of {best.accuracy:.1%}"
        return (
            f"{type(self.model).__name__} ({count:,} parameters): {last.steps:,} steps in "
            f"{sum(epoch.seconds for epoch in self.epochs):.1f} s, {why}; has the weights of step {best.steps:,}, with the "
            f"lowest validation loss, {best.validation_loss:.4f}{accuracy} (after {self.epochs[0].steps:,} steps: "
            f"{self.epochs[0].validation_loss:.4f}, at the end: {last.validation_loss:.4f}; "
            f"{self.sizes[1]:,} validation examples)"
        )


def fit_irreducible_model(
    model: nn.Module,
    holdout: Any,
    validation: Any,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    patience: int | None = 5,
    optimizer: MakeOptimizer | None = None,
    scheduler: MakeScheduler | None = None,
    batch_size: int | None = None,
    task: Task | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
    on_duplicates: Literal["warn", "error", "ignore"] | None = None,
    progress: Progress = None,
    **unknown: Any,
) -> Fit:
    """Train a model on the holdout; it ends with the weights of its lowest validation loss.

    PyTorch's, NumPy's and Python's global random states do not change.

    Args:
        model: the model, on its device; trained in place. If it is in eval mode, it is put in train mode; otherwise every module
            keeps its mode, so that frozen modules stay frozen.
        holdout: the examples to train on, or a ``DataLoader`` over them. Shuffled every epoch, except by a custom sampler.
        validation: the examples to choose the weights by, or a loader over them. Use neither test data, nor the holdout, nor
            examples to be scored.
        epochs: at most so many passes over the holdout, each followed by a validation. By default the fit goes by steps instead:
            it validates after about a pass, but at least 25 and at most 500 optimizer steps, at most 100 times.
        steps: at most so many optimizer steps, with at least 15 validations; not together with ``epochs``.
        patience: stop after this many validations without a lower validation loss; None never stops early.
        optimizer: ``(parameters) -> optimizer``; None for AdamW with a learning rate of 1e-3 and a weight decay of 0.01.
        scheduler: ``(optimizer) -> scheduler`` of the learning rate, which takes a step after every batch, such as
            ``lambda optimizer: OneCycleLR(optimizer, 3e-3, total_steps=...)``; None for a constant rate.
        batch_size: examples in a training batch of a dataset, 32 if None; a loader has its own. A last one of 1 is dropped.
        task: ``forward`` and ``loss`` in one, see ``rholoss.Task``; or pass them separately:
        forward: ``(model, batch) -> (outputs, targets)``, the same as the selector's.
        loss: ``(outputs, targets) -> (n,)``, the same as the selector's.
        seed: seed of the order, of dropout and of augmentation.
        checkpoint: a file that is written after every validation. If it exists, the fit resumes from it, with the same result as
            without interruption.
        on_duplicates: what to do about validation examples whose content is in the holdout too, such as natural duplicates:
            ``"warn"``, ``"error"`` or ``"ignore"``. None ignores up to 1 % of them, and warns of up to 10 %; more are an error.
        progress: see ``rholoss.progress.Progress``; counts epochs, rounds or steps.
        **unknown: refused, with the option that is meant.

    Returns:
        The fitted model and its history.

    Raises:
        ValueError: holdout and validation share examples by index, or many by content, the loss is not finite, or the checkpoint
            is of another fit.

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
    refuse_unknown(unknown, options_of(fit_irreducible_model), "fit_irreducible_model")
    if epochs is not None and steps is not None:
        raise ValueError(f"pass epochs= or steps=, not both, got epochs={epochs!r} and steps={steps!r}")
    by_epoch = epochs is not None
    steps = optional(whole, steps, "steps", "a number of optimizer steps, at least 1, or None")
    epochs = optional(whole, epochs, "epochs", "a number of passes, at least 1, or None") or (100 if steps is None else None)
    patience = optional(whole, patience, "patience", "a whole number, at least 1, or None")
    size = optional(whole, batch_size, "batch_size", "a number of examples, at least 1, or None for 32")
    path = optional(path_of, checkpoint, "checkpoint")
    if batch_size is not None and _is_loader(holdout):
        raise ValueError(f"a loader has its own batch size, got batch_size={batch_size} too; omit it, or pass the dataset")
    trainable(model, "model")
    for data, name in ((holdout, "holdout"), (validation, "validation")):
        if not _is_loader(data):
            map_style(data, name, 1)
    _refuse_overlap(holdout, validation, on_duplicates)
    task = Task.of(task, forward, loss)
    run = FitRun(model, holdout, validation, optimizer, scheduler, size or 32, task, seed_of(seed), path, steps, by_epoch)
    run.resume()
    unit = "epoch" if by_epoch else "round" if steps is None else "step"
    with Reporter(progress, unit, "fitting the irreducible-loss model") as report:
        stopped = run.finish(epochs, patience, report)
    return Fit(model, run.done, stopped, [dataset_of(holdout), dataset_of(validation)], run.sizes)


def _refuse_overlap(holdout: Any, validation: Any, on_duplicates: str | None) -> None:
    """Raise a ValueError if validation examples are in the holdout: by index in one dataset, else by content."""
    optional(one_of, on_duplicates, "on_duplicates", ("warn", "error", "ignore"))
    one, other = dataset_of(holdout), dataset_of(validation)
    if not (is_readable(one) and is_readable(other)):
        return
    shared, cure = in_common(one, other), "validate on other examples, such as a part that rholoss.split makes"
    if shared:
        raise ValueError(f"{shared:,} of {len(other):,} validation examples are in the holdout too, by their indices; {cure}")
    if on_duplicates != "ignore" and origin(one)[0] is not origin(other)[0]:
        mine, its = (data if isinstance(data, DataLoader) else DataLoader(data) for data in (holdout, validation))
        cure = f"{cure}; for data with natural duplicates, pass on_duplicates='warn', or 'ignore'"
        what = "validation examples are in the holdout too, by their content"
        judge_duplicates(*same_content(mine, its, torch.arange(len(other))), what, cure, on_duplicates)


def judge_duplicates(shared: int, n: int, what: str, cure: str, on_duplicates: str | None = None) -> None:
    """Warn, or raise a ValueError, that so many of n examples look like others: see ``fit_irreducible_model``."""
    share = shared / max(n, 1)
    usual = "ignore" if share <= 0.01 else "warn" if share <= 0.1 else "error"
    reaction = on_duplicates or usual
    message = f"{shared:,} of {n:,} {what} ({share:.1%}); {cure}"
    if shared and reaction == "error":
        raise ValueError(message)
    if shared and reaction == "warn":
        warnings.warn(message, stacklevel=4)
