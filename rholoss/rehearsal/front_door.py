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

from rholoss.arguments import flag, function, map_style, optional, options_of, path_of, refuse_unknown, shown, whole
from rholoss.batches import move
from rholoss.data import LoaderView
from rholoss.data.fingerprint import fingerprint, same_content, spread
from rholoss.data.subset import IndexedSubset, dataset_of, in_common, joined, labels_of, split, whole_of
from rholoss.files import StrPath
from rholoss.irreducible import cross_fit, fit_irreducible_model
from rholoss.isolation import derived_seed, device_of, fork_rng, preserve_state, seeded
from rholoss.losses import classes_of
from rholoss.options import SelectorOptions
from rholoss.progress import Progress, switched
from rholoss.rehearsal.networks import CallRecorder, SmallNetwork, check_classifier
from rholoss.rehearsal.rehearsal import STRONG, STRONG_COUNTS, WORTH, Rehearsal, Round, WrongShare, gate, strength, wrong_share
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
FEWEST, FEWEST_TRUSTED = 500, 40  # examples that a rehearsal needs, and trusted ones for these to count


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
    refuse_unknown(options, [*options_of(auto), *SelectorOptions.__annotations__], "auto")
    steps = optional(whole, steps, "steps", "the number of steps of the run, at least 1, or None")
    optional(function, proxy, "proxy", "() -> a new small network")
    progress = switched(progress)
    flag(only_trusted_classes, "only_trusted_classes")
    flag(force, "force")
    path = optional(path_of, path, "path")
    if not isinstance(loader, DataLoader) or not LoaderView(loader).draws_by_index or loader.batch_sampler is None:
        raise TypeError(f"auto needs a DataLoader over a map-style dataset, got {type(loader).__name__}; or use RhoLossSelector")
    map_style(loader.dataset, "the loader's dataset", 1)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be the torch.nn.Module in training, got {shown(model)}")
    refused = [name for name in ("keep", "batch_size") if options.get(name) is not None]
    if refused:
        cure = "to select among those that are left, pass selector.store and max_irreducible_loss= to RhoLossSelector"
        raise ValueError(f"auto trains on every example that it does not leave out, got {refused[0]}=; {cure}")
    run = _Run(loader, model, trusted, steps, proxy, progress, only_trusted_classes, force, options)
    store, rehearsal = run.saved(path) or run.rehearse(path)
    selector = RehearsedSelector(loader, model, store, rehearsal, **options)
    if progress is not False:
        print(rehearsal)  # noqa: T201
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
        self.n, self.total = len(self.data), LoaderView(loader).dataset_length or 0
        self.batch_size = loader.batch_size or 1
        self.classes = self._classes(model)
        self.make: Callable[[bool], nn.Module] = self._default_network() if proxy is None else lambda quick: proxy()
        if proxy is not None:
            self._check_proxy()
        made = self._network("counts?")
        counts = isinstance(made, SmallNetwork) and made.head is None
        self.folds, self.strong = (5, STRONG_COUNTS) if counts else (2, STRONG)  # counting is fast
        self.judged_early = proxy is None and not counts  # the first look at counts, or at an unknown network, says less
        self.labels = labels = self._labels(self.data, _LOOK)  # of a sample
        self.frequent = float(labels.bincount(minlength=1).max()) / max(len(labels), 1) if int(labels.min()) >= 0 else 0.0
        self.notes: list[str] = []
        self.validation: Any = None
        self.learned: Any = None
        self.force = force
        self.only, self.unasked = only_trusted_classes, 0.0  # share of the data whose class is irrelevant
        self.asked_for: Tensor | None = None  # labels, if only some are asked for
        trusted = None if trusted is None else map_style(dataset_of(trusted), "trusted", what="a dataset, or a loader over one")
        self.trusted_digest = None if trusted is None else fingerprint(trusted)
        if trusted is not None and self._is_usable(trusted):
            size = min(_VALIDATED, 3 * len(trusted) // 10)
            self.learned, self.validation, _ = split(trusted, holdout=size, validation=0, seed=self.seed)
        self.fits: list[Round] = []

    def rehearse(self, path: str | None) -> tuple[IrreducibleLossStore, Rehearsal]:
        """Score a sample; if labels are wrong there, one part of the data; if they are there as well, the other parts, too."""
        if self.n < FEWEST:
            self.notes.append(f"{self.n:,} examples are too few to rehearse with, at least {FEWEST} are needed.")
            store = IrreducibleLossStore(torch.full((self.total,), math.nan))
            return store, self._found(store, False, leave_out=False)
        store, scored = self._begun(path) or (self._screen(), 0)
        helps = self._judged(store, early=not scored)
        for fold in range(scored, self.folds):
            if fold < 2 and not (helps or self.force):  # after the first look, and after the first part
                break
            self.fits = self.fits if fold else []
            part = self._score(fold)
            store = store.merge(part) if fold else part
            helps = self._judged(store)
            if path is not None:
                extra = {"asked": self._asked(), "scored": fold + 1, "fits": [each._asdict() for each in self.fits]}
                store.meta.extra["rehearsal"] = extra
                store.save(path)
                del store.meta.extra["rehearsal"]
        rehearsal = self._found(store, helps, leave_out=helps or self.force)
        store.meta.extra["rehearsal"] = {"asked": self._asked(), "found": rehearsal.to_json()}
        if path is not None:
            store.save(path)
        return store, rehearsal

    def saved(self, path: str | None) -> tuple[IrreducibleLossStore, Rehearsal] | None:
        """What an earlier rehearsal with the same arguments saved at its end; None if there is none."""
        store = self._load(path)
        found = None if store is None else store.meta.extra["rehearsal"].get("found")
        return None if found is None else (store, Rehearsal.of_json(found))  # type: ignore[return-value]

    def _begun(self, path: str | None) -> tuple[IrreducibleLossStore, int] | None:
        """The parts that one scored which was killed, and how many; None if there are none."""
        store = self._load(path)
        if store is None:
            return None
        held = store.meta.extra.pop("rehearsal")
        self.fits = [Round(**each) for each in held["fits"]]
        return store, held["scored"]

    def _load(self, path: str | None) -> IrreducibleLossStore | None:
        """The file of a rehearsal with the same arguments; None if there is no file."""
        if path is None or not os.path.exists(path):
            return None
        store = IrreducibleLossStore.load(path)
        held = store.meta.extra.get("rehearsal")
        if not isinstance(held, dict) or held.get("asked") != self._asked():
            differ = "" if not isinstance(held, dict) else _difference(self._asked(), held.get("asked", {}))
            raise ValueError(f"{path} holds irreducible losses of another rehearsal{differ}; delete it, or choose another path")
        return store

    def _asked(self) -> dict[str, Any]:
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
        if self.asked_for is not None:
            labels = self._labels(part, len(part))
            part = IndexedSubset(part, torch.isin(labels, self.asked_for).nonzero().flatten())
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
        return self._wrong(store).low >= WORTH or self.unasked >= WORTH

    def _is_strong(self, store: IrreducibleLossStore) -> bool:
        """Whether the networks know enough to find wrong labels; those of irrelevant classes are known without them."""
        reached = strength(self._counts(store).accuracy, self._wrong(store).low, self.frequent)
        return self.unasked >= WORTH or reached >= self.strong

    def _counts(self, store: IrreducibleLossStore) -> CalibrationCounts:
        return store.meta.calibration or CalibrationCounts(self.classes)

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
        limit = gate(wrong.share, self.classes) if leave_out else math.inf
        known = store.losses[torch.isfinite(store.losses)]
        return Rehearsal(
            helps=helps,
            wrong=wrong,
            accuracy=counts.accuracy,
            trusted=0 if self.learned is None else len(self.learned) + len(self.validation),
            trusted_accuracy=self._trusted_accuracy(),
            classes=self.classes,
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

    def _read(self, most: int) -> Any:
        """Some training examples as one batch, on the device."""
        with seeded(self.seed, device=self.device):
            batch = self.loader_of(self.data).collate_fn([self.data[int(i)] for i in spread(self.n, most)])
        return move(batch, self.device)

    def _classes(self, model: nn.Module) -> int:
        """C, from the model's outputs for two examples."""
        batch = self._read(2)
        with seeded(0, device=self.device), preserve_state(model, self.device), torch.no_grad():
            return check_classifier(*self.task.forward(model.eval(), batch))

    def _check_proxy(self) -> None:
        """Refuse a factory of networks that do not return what the model returns for two examples."""
        with fork_rng(self.device, 0):
            network: Any = self.make(False)
        if not isinstance(network, nn.Module):
            raise TypeError(f"proxy must return a new small network, a torch.nn.Module, got {shown(network)}")
        with seeded(0, device=self.device), torch.no_grad():
            try:
                outputs, targets = self.task.forward(network.to(self.device).eval(), self._read(2))
            except Exception as error:
                what = f"proxy must make networks that are called as the model is, got {type(error).__name__}: {error}"
                raise ValueError(what) from error
        if classes_of(outputs, targets) != self.classes:
            got = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else shown(outputs)
            expected = f"logits of the model's {self.classes} classes, shape ({len(targets)}, {self.classes})"
            raise ValueError(f"proxy must make networks that return {expected} for {len(targets)} examples, got {got}")

    def _default_network(self) -> Callable[[bool], nn.Module]:
        recorder = CallRecorder(self.classes).to(self.device)
        try:
            self.task.forward(recorder, self._read(8))
        except AttributeError as error:
            raise TypeError(
                f"forward uses more of the model than a call ({error}); pass proxy=, which makes a small one"
            ) from error
        call = recorder.call
        with fork_rng(self.device, 0):
            SmallNetwork(call, self.classes)  # refuses here what it cannot be made for
        return lambda quick: SmallNetwork(call, self.classes, quick)

    def _labels(self, data: Any, most: int) -> Tensor:
        """Labels of some examples of a dataset, int64, on the CPU."""
        shown = labels_of(data)
        if shown is not None:
            return shown[spread(len(shown), most)].long()
        recorder, found = CallRecorder(self.classes), []
        for chunk in spread(len(data), most).split(256):
            batch = self.loader_of(data).collate_fn([data[int(i)] for i in chunk])
            found.append(torch.as_tensor(self.task.forward(recorder, batch)[1]).reshape(-1).long())
        return torch.cat(found)

    def _is_usable(self, trusted: Any) -> bool:
        """Whether the trusted examples can be used; if not, a note says why."""
        n, left = len(trusted), "they are not used"
        if n < FEWEST_TRUSTED:
            self.notes.append(f"{n:,} trusted examples are too few to learn from, at least {FEWEST_TRUSTED} are needed: {left}.")
            return False
        labels, mine = self._labels(trusted, n), self.labels
        if len(labels.unique()) < 2:
            self.notes.append(f"All trusted examples have the label {int(labels[0])}: {left}.")
            return False
        foreign = [int(label) for label in labels.unique() if not 0 <= int(label) < self.classes]
        if foreign:
            self.notes.append(f"The trusted examples have labels that the model does not know, such as {foreign[0]}: {left}.")
            return False
        shared = in_common(trusted, self.data) or self._same_content(trusted)
        if shared > n // 100:
            self.notes.append(f"About {shared:,} of {n:,} trusted examples are among the training data, too: {left}.")
            return False
        absent = ~torch.isin(mine, labels)
        self.unasked = float(absent.float().mean())
        if self.unasked * n < 10:  # so few may be missing by chance
            self.unasked = 0.0
            return True
        which = ", ".join(map(str, mine[absent].unique().tolist()[:5]))
        what = f"{self.unasked:.0%} of the training examples have labels that no trusted example has, such as {which}"
        if self.only:
            self.asked_for = labels.unique()
            self.notes.append(f"{what}: they are irrelevant to the task, and left out.")
            return True
        self.unasked = 0.0
        self.notes.append(f"{what}: {left}. If these classes are irrelevant to the task, pass only_trusted_classes=True.")
        return False

    def _same_content(self, trusted: Any) -> int:
        """How many trusted examples are, by content, among the training examples: an estimate from some of both."""
        at = spread(len(trusted), 512)
        among = spread(self.n, min(4_000, 800_000 // len(at)))
        found, compared = same_content(self.loader_of(self.data), self.loader_of(trusted), at, among)
        if found < 3:  # such as a text that happens to be in both
            return 0
        return min(len(trusted), round(found * len(trusted) / compared * self.n / len(among)))


def up_and_down(steps: int) -> Callable[[int], float]:
    """Learning rate factors by step: linearly up to 1 in three tenths of the steps, then linearly down to almost 0."""
    top = max(1, round(0.3 * steps))
    return lambda step: min((step + 1) / top, max(steps - step, 0) / max(steps - top, 1), 1.0)


def _difference(mine: dict[str, Any], saved: dict[str, Any]) -> str:
    names = [name for name in mine if saved.get(name) != mine[name]]
    return f", with other {', '.join(names)}" if names else ""
