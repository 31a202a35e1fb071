"""``auto``: looks at the data with small networks first, and trains on what is worth it, or on everything."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset, default_collate
from typing_extensions import Unpack

from rholoss.arguments import flag, function, optional, options_of, path_of, refuse_unknown, shown, whole
from rholoss.batches import move
from rholoss.data import LoaderView
from rholoss.data.fingerprint import fingerprint, spread
from rholoss.data.subset import IndexedSubset, index_of, joined, split, whole_of
from rholoss.files import StrPath
from rholoss.irreducible import cross_fit, fit_irreducible_model
from rholoss.isolation import derived_seed, device_of, fork_rng, preserve_state, seeded
from rholoss.losses import LossCheck, NotFiniteError, classes_of, cross_entropy, default_loss
from rholoss.options import SelectorOptions
from rholoss.progress import Progress, switched
from rholoss.rehearsal.networks import CallRecorder, SmallNetwork, check_classifier
from rholoss.rehearsal.reader import Reader, check_loader, classes_that_occur, refuse_not_finite_call, refuse_wrong_labels
from rholoss.rehearsal.rehearsal import STRONG, STRONG_COUNTS, WORTH, Rehearsal, Round, WrongShare, gate, strength, wrong_share
from rholoss.rehearsal.saved import Asked, RehearsalFile
from rholoss.rehearsal.trusted import Verdict, judge, trusted_of
from rholoss.scoring import Task
from rholoss.selectors.filtered_uniform import FilteredUniformSelector
from rholoss.states import digest
from rholoss.store import CalibrationCounts, IrreducibleLossStore

_BATCH, _LR = 128, 3e-3  # of the fits
_STEPS = (60, 400)  # of a fit: of a short run, and of a longer one; of large data, a pass
_REPEATS = 5  # of the trusted examples in each fold, at most
_SCREENED = 4_000  # examples of the first look
_VALIDATED = 1_000  # examples that the weights are chosen by, at most
_LOOK = 2_000  # examples whose labels are compared with the trusted ones'
FEWEST, FEWEST_OF_A_CLASS = 500, 5  # examples that a rehearsal needs, in all and of a class on average


class RehearsedSelector(FilteredUniformSelector):
    """What ``rholoss.auto`` returns: the plain loader, or without the examples above a gate. See ``FilteredUniformSelector``.

    Attributes:
        rehearsal: what was found out about the data beforehand.
    """

    not_recorded = (*FilteredUniformSelector.not_recorded, "rehearsal")

    def __init__(
        self,
        loader: Any,
        model: Any,
        store: IrreducibleLossStore,
        rehearsal: Rehearsal,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, store, max_irreducible_loss=rehearsal.max_irreducible_loss, **options)
        self.rehearsal = rehearsal


def auto(
    loader: DataLoader[Any],
    model: nn.Module,
    trusted: Any = None,
    *,
    steps: int | None = None,
    path: StrPath | None = None,
    only_trusted_classes: bool = False,
    proxy: Callable[[], nn.Module] | None = None,
    force: bool = False,
    progress: Progress = None,
    **options: Unpack[SelectorOptions],
) -> RehearsedSelector:
    """Find out with small networks whether selection helps; if so, train on what is worth it, else on everything.

    For classifiers. Each half of the training data, or each fifth of texts, is scored by a small network that was fitted on the
    others. The most confident predictions give an estimate of the share of wrong labels. If that is too small to matter, or too
    uncertain, the selector is the plain loader. Otherwise it leaves out the examples whose label is wrong with probability 1/3 or
    more. A step costs what a plain one costs. It prints what it found, unless ``progress`` is False.

    Args:
        loader: a ``DataLoader`` over the training data, a map-style dataset.
        model: the model in training, a classifier with logits (n, C) as outputs. It is called once, on two examples.
        trusted: examples with right labels that the model is not trained on: a dataset of such examples as the loader's, or a
            loader over it. A few hundred help; most are fitted on with each half, the others choose the weights.
        steps: how many steps the run will take; the fits read at most as many examples. None: not bounded by it.
        path: a file for the irreducible losses, written after each fit. If it holds those of the same data and arguments, the run
            starts at once, or where a killed one was.
        only_trusted_classes: whether classes without a trusted example are irrelevant to the task, so that their examples are
            left out.
        proxy: returns a new small network that takes what the model takes; None for a default that suits images, vectors, token
            ids and columns of a table.
        force: whether to leave examples out even if the answer is that it does not help.
        progress: see ``rholoss.progress.Progress``.
        **options: see ``Selector``, except ``keep`` and ``batch_size``.

    Returns:
        A selector to iterate in place of the loader. ``rehearsal`` is what was found, ``store`` the irreducible losses.

    Raises:
        TypeError: the model is not a classifier, or no small network can be made for its inputs (pass ``proxy``).
        ValueError: ``path`` holds the irreducible losses of other data or arguments.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> import rholoss
        >>> data = TensorDataset(torch.randn(600, 8), torch.randint(3, (600,)))
        >>> model = torch.nn.Linear(8, 3)
        >>> selector = rholoss.auto(DataLoader(data, batch_size=10, shuffle=True), model, progress=False)
        >>> len([y for x, y in selector]), selector.rehearsal.recipe
        (60, 'plain training')
    """
    refused = [name for name in ("keep", "batch_size") if options.pop(name, None) is not None]  # type: ignore[misc]
    if refused:
        cure = "to select among those that are left, pass selector.store and max_irreducible_loss= to RhoLossSelector"
        raise ValueError(f"auto trains on every example that it does not leave out, got {refused[0]}=; {cure}")
    known = [*options_of(auto), *SelectorOptions.__annotations__]
    refuse_unknown(options, ["trusted", *(name for name in known if name not in ("keep", "batch_size"))], "auto")
    steps = optional(whole, steps, "steps", "the number of steps of the run, at least 1, or None")
    if isinstance(proxy, nn.Module):
        name = type(proxy).__name__
        raise TypeError(
            f"proxy must be a function that returns a new small network, got one network, {name}; pass lambda: {name}(...)"
        )
    optional(function, proxy, "proxy", "() -> a new small network")
    progress = switched(progress)
    flag(only_trusted_classes, "only_trusted_classes")
    flag(force, "force")
    if only_trusted_classes and trusted is None:
        raise ValueError("only_trusted_classes=True needs trusted examples, got trusted=None; pass trusted=")
    path = optional(path_of, path, "path")
    check_loader(loader, model)
    if path is not None and os.path.isdir(path):
        raise ValueError(f"path must be a file, got the folder {path}; pass a file in it, such as {os.path.join(path, 'il.npz')}")
    if path is not None:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    run = _Run(loader, model, trusted, steps, proxy, progress, only_trusted_classes, force, options)
    file = RehearsalFile(path, run.asked)
    saved = file.finished()
    store, rehearsal = saved or run.rehearse(file)
    selector = RehearsedSelector(loader, model, store, rehearsal, **options)
    if progress is not False:
        print(f"Read from {path}, with nothing fitted again:\n{rehearsal}" if saved else rehearsal)  # noqa: T201
    return selector


class _Run:
    """One rehearsal; the arguments are those of ``auto``."""

    def __init__(
        self,
        loader: DataLoader[Any],
        model: nn.Module,
        trusted: Any,
        steps: int | None,
        proxy: Any,
        progress: Progress,
        only_trusted_classes: bool,
        force: bool,
        options: SelectorOptions,
    ) -> None:
        self.began = time.perf_counter()
        self.task = Task.of(options.get("task"), options.get("forward"), options.get("loss"))
        self.seed, self.steps, self.progress = options.get("seed", 0), steps, progress
        self.device = device_of(model) or torch.device("cpu")
        own = {name: getattr(loader, name) for name in ("collate_fn", "num_workers", "worker_init_fn")}
        if type(whole_of(loader.dataset)) is TensorDataset and loader.collate_fn is default_collate:
            own["num_workers"] = 0  # rows of tensors are read faster than workers send them
        self.loader_of: Callable[..., DataLoader[Any]] = partial(DataLoader, **own)
        self.data = self._drawable(loader)
        self.total = LoaderView(loader).dataset_length or 0
        self.batch_size = loader.batch_size or 1
        self.reader = Reader(self.loader_of, self.task.forward, self.device, self.seed)
        self.classes = self._classes(model)
        self.make: Callable[[bool], nn.Module] = self._default_network() if proxy is None else self._checked(proxy)
        if loader.num_workers and loader.worker_init_fn is None and self.reader.is_fast(self.data):
            self.loader_of = self.reader.loader_of = partial(self.loader_of, num_workers=0)
        made = self._network("counts?")
        counts = isinstance(made, SmallNetwork) and made.head is None
        self.folds, self.strong = (5, STRONG_COUNTS) if counts else (2, STRONG)  # counting is fast
        self.judged_early = proxy is None and not counts  # the first look at counts, or at an unknown network, says less
        self.notes: list[str] = []
        labels = self.reader.most_labels(self.data, _LOOK, lambda found: bool(self._is_no_class(found).any()))
        self.unlabelled = self._unlabelled(labels)
        if len(self.unlabelled):
            is_class = ~self._is_no_class(labels)
            self.data, labels = IndexedSubset(self.data, is_class.nonzero().flatten()), labels[is_class]
        self.n = len(self.data)
        self.occurring = classes_that_occur(labels, self.n, self.classes)
        self.labels = labels[spread(len(labels), _LOOK)]  # of a sample
        self.frequent = float(self.labels.bincount(minlength=1).max()) / max(len(self.labels), 1)
        self.validation: Any = None
        self.learned: Any = None
        self.force, self.only = force, only_trusted_classes
        self.verdict = Verdict(False)
        trusted = None if trusted is None else trusted_of(trusted)
        self.trusted_digest = None if trusted is None else fingerprint(trusted)
        if trusted is not None and self.n:
            self.verdict = judge(trusted, self.data, self.reader, self.labels, self.classes, only_trusted_classes)
            self.notes += [self.verdict.note] if self.verdict.note else []
        if self.verdict.usable:
            size = min(_VALIDATED, 3 * len(trusted) // 10)
            self.learned, self.validation, _ = split(trusted, holdout=size, validation=0, seed=self.seed)
        self.fits: list[Round] = []

    def rehearse(self, file: RehearsalFile) -> tuple[IrreducibleLossStore, Rehearsal]:
        """Score a sample; if labels are wrong there, one part of the data; if they are there as well, the other parts, too."""
        too_few = self._too_few()
        if too_few:
            self.notes.append(too_few)
            store = IrreducibleLossStore(torch.full((self.total,), math.nan))
            return store, self._found(store, False, leave_out=False)
        store, scored, self.fits = file.begun() or (self._screen(), 0, self.fits)
        helps = self._judged(store, early=not scored)
        for fold in range(scored, self.folds):
            if fold < 2 and not (helps or self.force):  # after the first look, and after the first part
                break
            self.fits = self.fits if fold else []
            part = self._score(fold)
            store = store.merge(part) if fold else part
            helps = self._judged(store)
            file.save_part(store, fold + 1, self.fits)
        leave_out = helps or self.force
        store = self._with_unlabelled(store) if leave_out else store
        rehearsal = self._found(store, helps, leave_out)
        file.save(store, rehearsal)
        return store, rehearsal

    def asked(self) -> Asked:
        """What decides the outcome, as JSON."""
        made = self._network("as asked")
        network = digest(repr([(name, list(value.shape)) for name, value in made.state_dict().items()]).encode())
        data = fingerprint(self.loader_of(self.data))
        return {
            "data": data,
            "trusted": self.trusted_digest,
            "only_trusted_classes": self.only,
            "force": self.force,
            "seed": self.seed,
            "steps": self._fit_steps(),
            "network": network,
        }

    def _screen(self) -> IrreducibleLossStore:
        """The losses of some examples under a network that was fitted on others, in a sixth of the steps."""
        steps = max(_STEPS[0], self._fit_steps() // 6)
        scored = min(_SCREENED, self.n // 4)
        order = torch.randperm(self.n, generator=torch.Generator().manual_seed(derived_seed("screen", self.seed)))
        order = order[: scored + max(steps * _BATCH, scored)]
        folds = (torch.arange(len(order)) >= scored).long()  # the first ones are scored, and the others fitted on
        data = self.loader_of(IndexedSubset(self.data, order), batch_size=512)
        return cross_fit(data, partial(self._fit, 0, steps=steps), folds, only=0, progress=self.progress, **self._hooks())

    def _hooks(self) -> dict[str, Any]:
        return {"forward": self.task.forward, "loss": self.task.loss, "batch_size": 512}

    def _score(self, fold: int) -> IrreducibleLossStore:
        data = self.loader_of(self.data, batch_size=512)
        return cross_fit(
            data, partial(self._fit, fold), folds=self.folds, only=fold, seed=self.seed, progress=self.progress, **self._hooks()
        )

    def _fit(self, fold: int, part: IndexedSubset, steps: int | None = None) -> nn.Module:
        """A small network, fitted on a part of the data and the trusted examples."""
        validation = self.validation
        if self.verdict.asked_for is not None:
            labels = self.reader.labels(part, len(part))
            part = IndexedSubset(part, torch.isin(labels, self.verdict.asked_for).nonzero().flatten())
        if validation is None:
            size = min(_VALIDATED, len(part) // 10)
            part, validation, _ = split(part, holdout=size, validation=0, seed=self.seed)
        quick, lr = steps is not None, _LR  # only the first look says how many steps
        steps = steps or self._fit_steps()
        if len(part) > steps * _BATCH:  # no more than are read
            part = split(part, holdout=steps * _BATCH, validation=0, seed=self.seed).holdout
        network = self._network(fold, quick=quick)
        if isinstance(network, SmallNetwork) and network.words:  # the rest is fitted on other examples than those counted
            counted, part, _ = split(part, holdout=len(part) // (2 if network.head else 5), validation=0, seed=self.seed)
            batches = self.loader_of(self._with_trusted(counted), batch_size=512)
            network.count((move(batch, self.device) for batch in batches), self.task.forward)
            if network.head is None:
                steps, lr = max(_STEPS[0], steps // 4), 4 * _LR
            else:
                part = self._with_trusted(part)
        else:
            part = self._with_trusted(part)
        try:
            fit = fit_irreducible_model(
                network,
                self.loader_of(part, batch_size=_BATCH, shuffle=True),
                self.loader_of(validation, batch_size=512),
                steps=steps,
                patience=None,
                optimizer=partial(torch.optim.AdamW, lr=lr, fused=self.device.type in ("cpu", "cuda")),
                scheduler=partial(LambdaLR, lr_lambda=up_and_down(steps)),
                task=Task(self.task.forward, self.task.loss),
                seed=self.seed,
                on_duplicates="ignore",  # compared before
                progress=self.progress,
            )
        except NotFiniteError:
            self.reader.refuse_not_finite(self.data)  # the likely cause
            raise
        self.fits += [Round(fold, each.steps, each.validation_loss, each.accuracy) for each in fit.epochs]
        return fit.model

    def _with_trusted(self, part: IndexedSubset) -> Any:
        """A part of the data, and the trusted examples to learn from, several times each."""
        repeats = 0 if self.learned is None else max(1, min(_REPEATS, len(part) // len(self.learned)))
        return joined([part] + [self.learned] * repeats)

    def _fit_steps(self) -> int:
        """Optimizer steps of a fit, from the sizes of the data and the run alone."""
        steps = max(_STEPS[1], self.n // 2 // _BATCH)
        bound = steps if self.steps is None else self.steps * self.batch_size // _BATCH
        return max(_STEPS[0], min(steps, bound))

    def _judged(self, store: IrreducibleLossStore, early: bool = False) -> bool:
        """Whether it helps, as far as these losses tell; ``early``: those of the first look."""
        return self._helps(store) and (self._is_strong(store) or (early and not self.judged_early))

    def _helps(self, store: IrreducibleLossStore) -> bool:
        return self._wrong(store).low >= WORTH or self.verdict.unasked >= WORTH

    def _is_strong(self, store: IrreducibleLossStore) -> bool:
        """Whether the networks know enough to find wrong labels; those of irrelevant classes are known without them."""
        reached = strength(self._counts(store).accuracy, self._wrong(store).low, self.frequent)
        return self.verdict.unasked >= WORTH or reached >= self.strong

    def _counts(self, store: IrreducibleLossStore) -> CalibrationCounts:
        found = store.meta.calibration or CalibrationCounts()
        return CalibrationCounts(self.occurring, found.bins, found.halves, found.formula)

    def _trusted_accuracy(self) -> float | None:
        """The mean accuracy of the fits on the trusted examples that they were not fitted on; None without any."""
        folds = [[each for each in self.fits if each.fold == fold] for fold in range(self.folds)]
        best = [min(rounds, key=lambda each: each.validation_loss) for rounds in folds if rounds]
        found = [each.accuracy for each in best if each.accuracy is not None]
        return sum(found) / len(found) if self.validation is not None and found else None

    def _wrong(self, store: IrreducibleLossStore) -> WrongShare:
        accuracy = self._trusted_accuracy()
        return wrong_share(self._counts(store), None if accuracy is None else (accuracy, len(self.validation)))

    def _found(self, store: IrreducibleLossStore, helps: bool, leave_out: bool) -> Rehearsal:
        counts, wrong = self._counts(store), self._wrong(store)
        limit = gate(wrong.share, self.occurring) if leave_out else math.inf
        known = store.losses[torch.isfinite(store.losses)]
        return Rehearsal(
            helps=helps,
            wrong=wrong,
            accuracy=counts.accuracy,
            trusted=0 if self.learned is None else len(self.learned) + len(self.validation),
            trusted_accuracy=self._trusted_accuracy(),
            classes=self.occurring,
            examples=self.n,
            max_irreducible_loss=limit,
            left_out=float((known > limit).float().mean()) if leave_out else 0.0,
            calibration=counts.tenths(),
            fits=tuple(self.fits),
            notes=tuple(self.notes),
            seconds=time.perf_counter() - self.began,
        )

    def _network(self, *parts: int | str, quick: bool = False) -> nn.Module:
        """A new small network, whose weights depend on the seed and on what it is for."""
        with fork_rng(self.device, derived_seed("rehearsal", self.seed, *parts)):
            return self.make(quick).to(self.device)

    def _drawable(self, loader: DataLoader[Any]) -> Any:
        """The training data: what the sampler may draw; with a sampler that divides them among ranks, all of them."""
        positions = None if hasattr(loader.sampler, "num_replicas") else LoaderView(loader).drawable_positions()
        unique = None if positions is None else positions.unique()
        full = unique is None or len(unique) == len(loader.dataset)  # type: ignore[arg-type]
        return loader.dataset if full else IndexedSubset(loader.dataset, unique)

    def _is_no_class(self, labels: Tensor) -> Tensor:
        return (labels < 0) | (labels >= self.classes)

    def _unlabelled(self, labels: Tensor) -> Tensor:
        """Indices of the examples whose label is no class, such as -100; a ValueError if the loss would not ignore it."""
        where = self._is_no_class(labels).nonzero().flatten()
        if len(where) and self.task.loss in (default_loss, cross_entropy):
            refuse_wrong_labels(labels, self.classes, self.data)
        if len(where):
            which = f"have no class as their label, such as {int(labels[where[0]])}"
            self.notes.append(f"{len(where):,} of {len(labels):,} examples {which}: they are not judged, and not left out.")
        return torch.as_tensor(index_of(self.data, where))

    def _too_few(self) -> str:
        """A sentence if there are too few examples, or an empty string."""
        if self.n < FEWEST:
            return f"{self.n:,} examples are too few to rehearse with, at least {FEWEST} are needed."
        if self.n < FEWEST_OF_A_CLASS * self.occurring:
            of = f"{self.n:,} examples of {self.occurring:,} classes are too few to rehearse with"
            return f"{of}, at least {FEWEST_OF_A_CLASS} of a class are needed."
        return ""

    def _with_unlabelled(self, store: IrreducibleLossStore) -> IrreducibleLossStore:
        """The store with a loss of 0, as that of a label that does not count, for examples without a label: they stay in."""
        if not len(self.unlabelled):
            return store
        losses = torch.cat([store.losses, torch.zeros(len(self.unlabelled))])
        return IrreducibleLossStore(losses, torch.cat([torch.as_tensor(store.ids), self.unlabelled]), meta=store.meta)

    def _classes(self, model: nn.Module) -> int:
        """C, from the model's outputs for two examples."""
        batch = self.reader.some(self.data, 2)
        with seeded(0, device=self.device), preserve_state(model, self.device), torch.no_grad():
            outputs, targets = self.task.forward(model.eval(), batch)
        classes = check_classifier(outputs, targets)
        LossCheck().meet(self.task.loss, outputs, targets)  # warns of probabilities
        return classes

    def _checked(self, proxy: Callable[[], nn.Module]) -> Callable[[bool], nn.Module]:
        """Refuse a function whose networks do not return what the model returns for two examples."""
        with fork_rng(self.device, 0):
            network: Any = proxy()
        self.reader.check_proxy(network, self.data, self.classes)
        return lambda quick: proxy()

    def _default_network(self) -> Callable[[bool], nn.Module]:
        self.reader.stand_in = CallRecorder(self.classes).to(self.device)
        at = spread(len(self.data), 8)
        try:
            call, targets, outputs = self.reader.call(self.reader.batch((self.data, at.tolist())))
            cause = (
                ""
                if classes_of(outputs, targets) == self.classes
                else f"got {shown(outputs)} of logits {(len(targets), self.classes)}"
            )
        except Exception as error:  # whatever a forward function does to a tensor that is no such output
            cause = f"{type(error).__name__}: {error}"
        if cause:
            cure = "pass proxy=, a function that returns a new small network which is called, and answers, as the model does"
            raise TypeError(f"forward uses more of the model than a call that returns logits ({cause}); {cure}")
        refuse_not_finite_call(call, index_of(self.data, at))
        with fork_rng(self.device, 0):
            SmallNetwork(call, self.classes)  # refuses here what it cannot be made for
        return lambda quick: SmallNetwork(call, self.classes, quick)


def up_and_down(steps: int) -> Callable[[int], float]:
    """Learning rate factors by step: linearly up to 1 in three tenths of the steps, then linearly down to almost 0."""
    top = max(1, round(0.3 * steps))
    return lambda step: min((step + 1) / top, max(steps - step, 0) / max(steps - top, 1), 1.0)
