"""What to do when the only holdout is as dirty as the training data: a study on labels of which some are wrong.

    python examples/holdout_study.py run --fashion-mnist DIR --cifar10 DIR --cifar10n FILE [--seeds 0 1 2 3 4] [--results FILE]
    python examples/holdout_study.py report [--results FILE] [--plots DIR]

``run`` trains one network in many ways: on uniform batches, and with RHO-LOSS by irreducible losses of several kinds (from a
clean holdout, from a holdout as dirty as the training data, cross-fitted over all of the dirty data) and several scores.
Everything else is the same: network, initial weights, optimizer, batch size, evaluation. It appends one JSON line for each run
and goes on where it stopped; several processes may share one file if they are given different seeds or data. ``report`` prints
the tables and draws the plots of those lines.

No method but those named "clean holdout" sees a label that is known to be right. Test labels are right and only measure.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from noisy_data import CLASSES, HUMAN_LABELS, Data, cifar10_images, cifar10n_labels, fashion_mnist, patch_features, wrong_labels
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import rholoss
from rholoss import IndexedSubset, IrreducibleLossStore, build_selector, cross_fit, fit_irreducible_model, split

N_B = 32  # examples in a training batch
KEEP = 0.1  # so that a candidate batch has 320
GUESS = math.log(CLASSES)  # nats; the loss of a guess
RESULTS = Path(__file__).parent / "results" / "holdout_study.jsonl"


@dataclass(frozen=True)
class Making:
    """How irreducible losses are made. ``labels`` and ``holdout`` are of a holdout; with ``folds`` there is none."""

    folds: int = 2  # 0: a holdout
    labels: str = "given"  # or "true"
    holdout: float = 1 / 6  # share of the training data
    models: int = 2  # whose mean loss is taken
    hidden: int = 256  # 0: a linear model
    dropout: float = 0.5
    smoothing: float = 0.0
    temperature: float = 1.0  # divides the logits when scoring
    epochs: int = 30
    patience: int | None = 2
    last_weights: bool = False  # rather than those of the lowest validation loss


@dataclass(frozen=True)
class Variant:
    """A row of the tables: irreducible losses of which kind, and what is done with them."""

    making: str | None = None  # None: uniform
    gate: float | None = None  # nats
    bounded: bool = False
    lr: float = 1e-3
    select: bool = True  # False: train on uniform batches of what the gate lets through


CROSS = Making()
HOLDOUT = Making(folds=0, epochs=60, patience=4)
MAKINGS = {
    "clean holdout": replace(HOLDOUT, labels="true"),
    "dirty holdout": HOLDOUT,
    "cross-fit": CROSS,
    "cross-fit, 1 model": replace(CROSS, models=1),
    "cross-fit, 4 models": replace(CROSS, models=4),
    "cross-fit, 1 model, 5 folds": replace(CROSS, folds=5, models=1),
    "cross-fit, 1 model, no dropout": replace(CROSS, models=1, dropout=0.0),
    "cross-fit, 1 model, label smoothing 0.1": replace(CROSS, models=1, smoothing=0.1),
    "cross-fit, 1 model, no dropout, last weights of 20 epochs": replace(
        CROSS, models=1, dropout=0.0, last_weights=True, epochs=20
    ),
    "cross-fit, temperature 0.5": replace(CROSS, temperature=0.5),
    "weak: linear, 1 % as holdout": replace(HOLDOUT, hidden=0, holdout=0.01, epochs=3),
}
MAIN = {
    "uniform": Variant(),
    "uniform, lr 3e-4": Variant(lr=3e-4),
    "clean holdout": Variant("clean holdout"),
    "dirty holdout": Variant("dirty holdout"),
    "dirty holdout, gate": Variant("dirty holdout", gate=GUESS),
    "cross-fit": Variant("cross-fit"),
    "cross-fit, bounded": Variant("cross-fit", bounded=True),
    "cross-fit, gate": Variant("cross-fit", gate=GUESS),
    "cross-fit, gate, bounded": Variant("cross-fit", gate=GUESS, bounded=True),
    "cross-fit, lr 3e-4": Variant("cross-fit", lr=3e-4),
    "cross-fit, gate, lr 3e-4": Variant("cross-fit", gate=GUESS, lr=3e-4),
    "cross-fit, gate, bounded, lr 3e-4": Variant("cross-fit", gate=GUESS, bounded=True, lr=3e-4),
    "cross-fit, gate, no selection": Variant("cross-fit", gate=GUESS, select=False),
}
MORE = {f"{name}, gate, bounded": Variant(name, gate=GUESS, bounded=True) for name in MAKINGS if name.startswith("cross-fit,")}
MORE |= {
    "cross-fit, gate at 1.6, bounded": Variant("cross-fit", gate=1.6, bounded=True),
    "cross-fit, gate at 3.0, bounded": Variant("cross-fit", gate=3.0, bounded=True),
    "weak: linear, 1 % as holdout": Variant("weak: linear, 1 % as holdout"),
    "weak: linear, 1 % as holdout, gate, bounded": Variant("weak: linear, 1 % as holdout", gate=GUESS, bounded=True),
}
EVERYWHERE = ["uniform", "uniform, lr 3e-4", "dirty holdout", "cross-fit", "cross-fit, gate", "cross-fit, gate, bounded"]
EVERYWHERE += ["cross-fit, gate, bounded, lr 3e-4"]
CELLS = [("Fashion-MNIST", noise) for noise in ("0", "0.1", "0.3")] + [
    ("CIFAR-10", which) for which in ("aggre", "random1", "worse")
]
NOISIEST = [("Fashion-MNIST", "0.3"), ("CIFAR-10", "worse")]  # these have all rows, and those of MORE too; the others EVERYWHERE


@dataclass
class Task:
    """The training data of one seed. ``is_wrong`` is for measuring only."""

    data: Data
    training: TensorDataset  # with the given labels
    is_wrong: Tensor  # (N,) bool
    seed: int


# --- data -----------------------------------------------------------------------------------------------------------------------


def load_task(options: argparse.Namespace, data: str, noise: str, seed: int) -> Task:
    """One data set with one kind of noise; that of Fashion-MNIST is drawn anew for each seed, that of CIFAR-10N is as it is."""
    if data == "Fashion-MNIST":
        loaded = _fashion_mnist(options.fashion_mnist)
        loaded = replace(loaded, given=wrong_labels(loaded.true, float(noise), seed=10_000 + seed))
    else:
        loaded = _cifar10(options.cifar10, options.work)
        loaded = replace(loaded, given=cifar10n_labels(options.cifar10n, noise))
    return Task(loaded, TensorDataset(loaded.x, loaded.given), loaded.given != loaded.true, seed)


@lru_cache(1)
def _fashion_mnist(folder: Path) -> Data:
    return fashion_mnist(folder)


@lru_cache(1)
def _cifar10(folder: Path, work: Path) -> Data:
    """CIFAR-10 as frozen features, which are computed once and kept in the working folder."""
    images, labels, test_images, test_labels = cifar10_images(folder)
    kept = work / "cifar10_features.npz"
    if not kept.exists():
        x, x_test = patch_features(images, test_images)
        np.savez(kept, x=x.numpy(), x_test=x_test.numpy())
    with np.load(kept) as features:
        x, x_test = (torch.from_numpy(features[name]) for name in ("x", "x_test"))
    return Data(x, labels, labels, x_test, test_labels)


# --- irreducible losses ---------------------------------------------------------------------------------------------------------


def network(width: int, hidden: int, dropout: float = 0.0) -> nn.Module:
    if not hidden:
        return nn.Linear(width, CLASSES)
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, CLASSES))


def adamw(parameters: Iterable[nn.Parameter], lr: float = 1e-3) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01)


def fit(part: IndexedSubset, making: Making, seed: int, kept: str) -> tuple[list[nn.Module], list[dict[str, float]]]:
    """Fit the models of an ensemble on a part of the data, a tenth of which is for validation: as dirty as the rest.

    A model that an earlier ensemble had as well is read from where it was kept.

    Returns:
        The models, and of each the seconds that it took and its loss on the validation part.
    """
    training, validation, _ = split(part, holdout=0.1, validation=0, seed=seed)
    smoothed = nn.CrossEntropyLoss(reduction="none", label_smoothing=making.smoothing)
    models, notes = [], []
    for number in range(making.models):
        torch.manual_seed(1000 * seed + number)
        model = network(part.dataset.tensors[0].shape[1], making.hidden, making.dropout)
        alike = replace(making, models=1, temperature=1.0)
        path = Path(f"{kept}-{seed}-{number}-{hashlib.sha256(repr(alike).encode()).hexdigest()[:12]}.pt")
        if not path.exists():
            began = time.process_time()
            if making.last_weights:
                train_to_the_end(model, training, making.epochs)
            else:
                settings = {"epochs": making.epochs, "patience": making.patience, "batch_size": 256, "seed": 1000 * seed + number}
                fit_irreducible_model(model, training, validation, loss=smoothed, progress=False, **settings)
            took = time.process_time() - began
            x, y = (tensor[validation.indices] for tensor in part.dataset.tensors)
            loss = F.cross_entropy(logits_of(model, x), y).item()
            torch.save({"weights": model.state_dict(), "notes": {"seconds": took, "validation_loss": loss}}, path)
        state = torch.load(path)
        model.load_state_dict(state["weights"])
        models.append(model)
        notes.append(state["notes"])
    return models, notes


def train_to_the_end(model: nn.Module, data: IndexedSubset, epochs: int) -> None:
    """What not to do: train for many epochs and keep the last weights."""
    optimizer = adamw(model.parameters())
    for _ in range(epochs):
        for x, y in DataLoader(data, batch_size=128, shuffle=True):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()


def make_store(task: Task, making: Making, kept: str) -> IrreducibleLossStore:
    """Irreducible losses of every example that has one: all of them, or all but the holdout."""
    numbers, notes, accuracy = itertools.count(10 * task.seed), [], []

    def forward(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return model(batch[0]) / making.temperature, batch[1]

    def models_for(part: IndexedSubset) -> list[nn.Module]:
        models, about = fit(part, making, next(numbers), kept)
        notes.extend(about)
        accuracy.append(
            test_accuracy(task, torch.stack([logits_of(model, task.data.x_test).softmax(1) for model in models]).mean(0))
        )
        return models

    options = {"forward": forward, "batch_size": 1000, "progress": False}
    if making.folds:
        store = cross_fit(task.training, models_for, folds=making.folds, seed=task.seed, **options)
    else:
        rest, held, _ = split(task.training, holdout=making.holdout, validation=0, seed=task.seed)
        labels = task.data.true if making.labels == "true" else task.data.given
        models = models_for(IndexedSubset(TensorDataset(task.data.x, labels), held.indices))
        store = IrreducibleLossStore.from_model(models, rest, **options)
    own = {"seconds": sum(note["seconds"] for note in notes), "test_accuracy": statistics.fmean(accuracy)}
    validation_loss = statistics.fmean(note["validation_loss"] for note in notes)
    store.meta = replace(store.meta, validation_loss=validation_loss, extra=own)
    return store


def kept_store(task: Task, name: str, cell: str, work: Path) -> IrreducibleLossStore:
    """The irreducible losses of a cell, made once and shared by the variants."""
    kept = f"{work / cell}-{task.seed}"
    path = Path(f"{kept}-{hashlib.sha256(name.encode()).hexdigest()[:12]}.npz")
    if not path.exists():
        make_store(task, MAKINGS[name], kept).save(path)
    return IrreducibleLossStore.load(path)


def indicators(store: IrreducibleLossStore) -> dict[str, float]:
    """What can be said of irreducible losses without knowing which labels are wrong. ``mean`` is of the data that they score."""
    losses = store.losses.double()
    found = {
        "mean": losses.mean().item(),
        "validation_loss": store.meta.validation_loss,
        "worse_than_a_guess": (losses > GUESS).double().mean().item(),
    }
    tally = store.meta.calibration
    if tally:
        n, right, confidence = tally.bins.sum(0)
        found |= {"accuracy": right / n, "confidence_minus_accuracy": (confidence / 1e6 - right) / n}
        n, a, b, aa, bb, ab = tally.halves
        found["agreement"] = (n * ab - a * b) / math.sqrt((n * aa - a * a) * (n * bb - b * b)) if n else math.nan
    return found


# --- training -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    was = model.training
    model.eval()
    logits = torch.cat([model(part) for part in x.split(2000)])
    model.train(was)
    return logits


def test_accuracy(task: Task, scores: Tensor) -> float:
    return (scores.argmax(1) == task.data.y_test).double().mean().item()


def train(task: Task, variant: Variant, store: IrreducibleLossStore | None, options: argparse.Namespace) -> dict[str, Any]:
    """Train the network one way. Seconds are of selecting and training, without evaluation: processor time on one core."""
    torch.manual_seed(task.seed)
    model = network(task.data.x.shape[1], options.hidden)
    optimizer = adamw(model.parameters(), variant.lr)
    data: Any = task.training
    if store is not None:
        index = torch.arange(len(store)) if store.ids is None else store.ids
        data = IndexedSubset(data, index if variant.select else index[store.losses <= variant.gate])
    loader = DataLoader(data, batch_size=N_B, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(task.seed))
    uniform = store is None or not variant.select
    if uniform:
        selector = build_selector("uniform", loader, model, keep=1.0)
    else:
        gate = {"max_irreducible_loss": variant.gate, "bounded": variant.bounded}
        selector = build_selector("rho_loss", loader, model, store=store, keep=KEEP, **gate)
    steps = options.uniform_steps if store is None else options.steps
    record: dict[str, Any] = {"steps": steps, "evaluate_every": options.evaluate_every, "accuracy": [], "wrong": [], "probe": []}
    wrong, trained, seconds = 0, 0, 0.0
    began = time.process_time()
    while selector.step < steps:
        for x, y in selector:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            wrong += int(task.is_wrong[selector.last.index].sum())
            trained += len(x)
            if selector.step % options.evaluate_every == 0:
                seconds += time.process_time() - began
                record["accuracy"].append(round(test_accuracy(task, logits_of(model, task.data.x_test)), 4))
                record["wrong"].append(round(wrong / trained, 3))
                wrong, trained = 0, 0
                if store is not None and len(record["accuracy"]) % 5 == 0:
                    record["probe"].append([selector.step, *probe(task, model, store)])
                began = time.process_time()
            if selector.step == steps:
                break
    scored = 0 if uniform else steps * selector.n_B
    return record | {"seconds": round(seconds, 2), "trained": steps * N_B, "scored": scored}


def probe(task: Task, model: nn.Module, store: IrreducibleLossStore, n: int = 2000) -> list[float]:
    """Mean loss and mean reducible loss, in nats, of some examples: of those with a right label, then a wrong one."""
    index = (torch.arange(len(store)) if store.ids is None else store.ids)[:n]
    loss = F.cross_entropy(logits_of(model, task.data.x[index]), task.data.given[index], reduction="none")
    found = []
    for which in (~task.is_wrong[index], task.is_wrong[index]):
        found += [part[which].mean().item() if which.any() else 0.0 for part in (loss, loss - store[index])]
    return [round(value, 3) for value in found]


def run(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)  # seconds stay comparable on a busy machine
    options.work.mkdir(parents=True, exist_ok=True)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    done = {(line["data"], line["noise"], line["seed"], line["variant"]) for line in read_lines(options.results)}
    for seed in options.seeds:
        for data, noise in CELLS:
            if data in options.data and (not options.noise or noise in options.noise):
                noisiest = (data, noise) in NOISIEST
                rows = {name: MAIN[name] for name in MAIN if "main" in options.rows and (noisiest or name in EVERYWHERE)}
                rows |= MORE if "more" in options.rows and noisiest else {}
                wanted = {name: variant for name, variant in rows.items() if not options.only or name in options.only}
                missing = [name for name in wanted if (data, noise, seed, name) not in done]
                if missing:
                    run_cell(
                        load_task(options, data, noise, seed), data, noise, {name: wanted[name] for name in missing}, options
                    )


def run_cell(task: Task, data: str, noise: str, variants: dict[str, Variant], options: argparse.Namespace) -> None:
    for name, variant in variants.items():
        store = kept_store(task, variant.making, f"{data}-{noise}", options.work) if variant.making else None
        line = {"data": data, "noise": noise, "seed": task.seed, "variant": name, "rate": task.is_wrong.double().mean().item()}
        line |= train(task, variant, store, options)
        if store is not None:
            of = task.is_wrong if store.ids is None else task.is_wrong[store.ids]
            by_label = [store.losses[which].mean().item() if which.any() else 0.0 for which in (~of, of)]
            line |= {
                "making": variant.making,
                "irreducible_seconds": round(store.meta.extra["seconds"], 2),
                "irreducible_accuracy": round(store.meta.extra["test_accuracy"], 4),
                "irreducible_loss": [round(value, 3) for value in by_label],
                "indicators": {key: round(float(value), 4) for key, value in indicators(store).items()},
            }
        line["settings"] = {"n_b": N_B, "keep": KEEP, "hidden": options.hidden, "lr": variant.lr, "gate": variant.gate}
        line["versions"] = {"rholoss": rholoss.__version__, "torch": torch.__version__, "python": platform.python_version()}
        append(options.results, line)
        print(f"{data} {noise} seed {task.seed}: {name}, best {max(line['accuracy']):.1%}", flush=True)


def append(path: Path, line: dict[str, Any]) -> None:
    """Add a line in one write, so that processes may share the file."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, (json.dumps(line, separators=(",", ":")) + "\n").encode())
    finally:
        os.close(file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# --- report ---------------------------------------------------------------------------------------------------------------------

Cell = tuple[str, str]
HOW = ("", ", gate", ", gate, bounded")  # scores, by the ends of the variants' names


class Results:
    """The lines of a results file, by cell and variant.

    Args:
        lines: the lines.
        bar: the variant whose best accuracy, at the same seed, is the target.
    """

    def __init__(self, lines: list[dict[str, Any]], bar: str = "uniform") -> None:
        self.lines = lines
        self.bar = bar
        self.cells = [cell for cell in CELLS if any((line["data"], line["noise"]) == cell for line in lines)]
        self.uniform = {self.key(line): line for line in lines if line["variant"] == bar}

    def of(self, cell: Cell, variant: str) -> list[dict[str, Any]]:
        """One variant's lines in a cell, of seeds that the bar has as well."""
        found = [line for line in self.lines if (line["data"], line["noise"], line["variant"]) == (*cell, variant)]
        return sorted((line for line in found if self.key(line) in self.uniform), key=lambda line: line["seed"])

    def variants(self, cell: Cell, among: Iterable[str]) -> list[str]:
        return [variant for variant in among if self.of(cell, variant)]

    @staticmethod
    def key(line: dict[str, Any]) -> tuple[str, str, int]:
        return line["data"], line["noise"], line["seed"]

    def steps(self, line: dict[str, Any]) -> float:
        """Steps to the target; infinite where it is not reached."""
        every, target = line["evaluate_every"], max(self.uniform[self.key(line)]["accuracy"])
        return next((every * (i + 1) for i, accuracy in enumerate(line["accuracy"]) if accuracy >= target), math.inf)

    def fewer(self, line: dict[str, Any]) -> float:
        """How many times fewer steps than uniform; 0 where the target is not reached."""
        return self.steps(self.uniform[self.key(line)]) / self.steps(line)

    def per_step(self, line: dict[str, Any], what: str) -> float:
        """A count or seconds of the whole run, as far as the target."""
        return line[what] / line["steps"] * self.steps(line)

    def gain(self, line: dict[str, Any]) -> float:
        """Points of accuracy above uniform, each at its end."""
        return 100 * (at_end(line) - at_end(self.uniform[self.key(line)]))


def at_end(line: dict[str, Any]) -> float:
    """Mean accuracy over the last five evaluations of a run: one evaluation alone is noisy."""
    return statistics.fmean(line["accuracy"][-5:])


def show(value: float, form: str) -> str:
    """A number, or "never" where there is none."""
    return "never" if math.isinf(value) else format(value, form)


def median(values: Iterable[float], form: str) -> str:
    return show(statistics.median(values), form)


def spread(values: Iterable[float], form: str) -> str:
    """Median, and lowest to highest in brackets; one number where they are the same."""
    values = list(values)
    low, mid, high = (show(of(values), form) for of in (min, statistics.median, max))
    return mid if low == high else f"{mid} ({low} to {high})"


def cell_table(results: Results, cell: Cell, among: Iterable[str]) -> list[str]:
    """What each variant needed and reached in a cell."""
    head = ["", "steps to uniform's best", "times fewer", "scored until then", "seconds until then", "with making the losses"]
    rows = [[*head, "best, %", "at the end, %", "wrong among selected, %", "seeds"]]
    for name in results.variants(cell, among):
        lines = results.of(cell, name)
        until = [results.per_step(line, "seconds") for line in lines]
        making = [line.get("irreducible_seconds", 0.0) for line in lines]
        row = [name, spread([results.steps(line) for line in lines], ",.0f"), spread(map(results.fewer, lines), ".1f")]
        row += [
            median([results.per_step(line, "scored") if line["scored"] else 0 for line in lines], ",.0f"),
            median(until, ".1f"),
        ]
        row.append(median([a + b for a, b in zip(until, making, strict=True)], ".1f"))
        row += [
            spread([100 * max(line["accuracy"]) for line in lines], ".1f"),
            spread([100 * at_end(line) for line in lines], ".1f"),
        ]
        rows.append([*row, spread([100 * statistics.fmean(line["wrong"]) for line in lines], ".1f"), str(len(lines))])
    return markdown(rows)


def overview(results: Results) -> list[str]:
    """Every main variant in every cell: how many times fewer steps, and points above the bar at the end."""
    rows = [["", *(f"{data}, {title(noise)}" for data, noise in results.cells)]]
    for name in MAIN:
        lines = [results.of(cell, name) for cell in results.cells]
        if name != results.bar and any(lines):
            rows.append([name, *(outcome(results, at) for at in lines)])
    return markdown(rows)


def outcome(results: Results, lines: list[dict[str, Any]]) -> str:
    """Times fewer steps, and points at the end, in short."""
    if not lines:
        return ""
    fewer = statistics.median(map(results.fewer, lines))
    return f"{f'{fewer:.1f} x' if fewer else 'never'}; {median(map(results.gain, lines), '+.1f')}"


def indicator_table(results: Results) -> list[str]:
    """What the irreducible losses show by themselves, beside how selection by them went."""
    names = ["worse_than_a_guess", "accuracy", "confidence_minus_accuracy", "agreement"]
    head = ["", "irreducible losses", "mean, nats", "in validation, nats", "worse than a guess, %", "accuracy on given labels, %"]
    head += ["confidence - accuracy, points"]
    head += [
        "agreement of the halves",
        "wrong labels, %",
        "plain: times fewer; points",
        "gate: times fewer; points",
        "gate, bounded: times fewer; points",
        "wrong selected, %",
    ]
    rows = [head]
    for cell in results.cells:
        for making in MAKINGS:
            ways = [results.of(cell, f"{making}{how}") for how in HOW]
            lines = next((way for way in ways if way), None)
            if not lines or names[-1] not in lines[0]["indicators"]:
                continue
            found = {name: statistics.median([line["indicators"][name] for line in lines]) for name in lines[0]["indicators"]}
            agreement = "" if math.isnan(found[names[3]]) else f"{found[names[3]]:.2f}"  # there is none of a single model
            row = [f"{cell[0]}, {title(cell[1])}", making, *(f"{found[name]:.2f}" for name in ("mean", "validation_loss"))]
            row += [
                *(f"{100 * found[name]:.1f}" for name in names[:3]),
                agreement,
                f"{100 * lines[0]['rate']:.0f}",
            ]
            row += [outcome(results, way) for way in ways]
            wrong = [median([100 * statistics.fmean(line["wrong"]) for line in way], ".0f") if way else "" for way in ways]
            rows.append([*row, ", ".join(filter(None, wrong))])
    return markdown(rows)


def ending_table(results: Results) -> list[str]:
    """Accuracy of the irreducible-loss models, and where selection by their losses ends."""
    rows = [
        ["", "irreducible losses", "their models, %", *(f"{how} at the end, %" for how in ("plain", "gate", "gate, bounded"))]
    ]
    rows[0].append("uniform at the end, %")
    for cell in results.cells:
        uniform = median([100 * at_end(line) for line in results.of(cell, "uniform")], ".1f")
        for making in MAKINGS:
            ways = [results.of(cell, f"{making}{how}") for how in HOW]
            lines = next((way for way in ways if way), None)
            if lines:
                models = spread([100 * line["irreducible_accuracy"] for line in lines], ".1f")
                ends = [spread([100 * at_end(line) for line in way], ".1f") if way else "" for way in ways]
                rows.append([f"{cell[0]}, {title(cell[1])}", making, models, *ends, uniform])
    return markdown(rows)


def title(noise: str) -> str:
    return f"human labels {noise}" if noise in HUMAN_LABELS else f"{100 * float(noise):.0f} % wrong"


def markdown(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]]


def tables(lines: list[dict[str, Any]]) -> str:
    """All tables as text."""
    results = Results(lines)
    text = ["Medians over the seeds, lowest and highest in brackets."]
    for bar in (name for name in MAIN if name.startswith("uniform")):
        against = Results(lines, bar)
        if against.uniform:
            text += ["", f'## Overview: times fewer steps to the best accuracy of "{bar}"; points above it at the end', ""]
            text += overview(against)
    for cell in results.cells:
        at = [line for line in lines if (line["data"], line["noise"]) == cell]
        text += ["", f"## {cell[0]}, {title(cell[1])}: {100 * at[0]['rate']:.1f} % of the labels are wrong", ""]
        text += cell_table(results, cell, MAIN)
        if results.variants(cell, MORE):
            text += ["", "### Other irreducible-loss models and gates", "", *cell_table(results, cell, MORE)]
    text += [
        "",
        "## Where selection ends, and how good the irreducible-loss models are by themselves",
        "",
        *ending_table(results),
    ]
    text += ["", "## What the irreducible losses show by themselves", "", *indicator_table(results)]
    return "\n".join(text)


COLOURS = {
    "uniform": "tab:gray",
    "uniform, lr 3e-4": "black",
    "clean holdout": "tab:green",
    "dirty holdout": "tab:red",
    "cross-fit": "tab:orange",
}
COLOURS |= {"cross-fit, gate": "tab:blue", "cross-fit, gate, bounded": "tab:purple"}


def band(axis: Any, steps: list[int], runs: list[list[float]], label: str, **style: Any) -> None:
    """The median over the seeds, lowest to highest shaded."""
    low, mid, high = ([of(values) for values in zip(*runs, strict=True)] for of in (min, statistics.median, max))
    axis.plot(steps, mid, label=label, **style)
    axis.fill_between(steps, low, high, color=style["color"], alpha=0.15, linewidth=0)


def legend(figure: Any) -> None:
    """One legend for all panels, below them."""
    found = {}
    for axis in figure.axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found, loc="outside lower center", ncols=min(len(found), 5))


def plot_accuracy(results: Results, path: Path) -> None:
    from matplotlib.figure import Figure

    rows, columns = -(-len(results.cells) // 3), min(3, len(results.cells))
    figure = Figure(figsize=(4 * columns, 3.5 * rows + 0.4), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for axis in axes[len(results.cells) :]:
        axis.set_visible(False)
    for axis, cell in zip(axes, results.cells, strict=False):
        top = 0.0
        for name in results.variants(cell, COLOURS):
            lines = results.of(cell, name)
            steps = [lines[0]["evaluate_every"] * (i + 1) for i in range(len(lines[0]["accuracy"]))]
            runs = [[100 * value for value in line["accuracy"]] for line in lines]
            top = max(top, *(max(run) for run in runs))
            band(axis, steps, runs, name, color=COLOURS[name])
        target = 100 * statistics.median(max(line["accuracy"]) for line in results.of(cell, "uniform"))
        axis.axhline(target, color="black", linestyle="--", linewidth=0.8, label="best of uniform")
        axis.set(
            xscale="log",
            title=f"{cell[0]}, {title(cell[1])}",
            xlabel="steps",
            ylabel="test accuracy, %",
            ylim=(target - 9, top + 0.5),
        )
        axis.grid(alpha=0.3)
    legend(figure)
    figure.savefig(path, dpi=90)


def plot_mechanism(results: Results, path: Path, cell: Cell = ("Fashion-MNIST", "0.3")) -> None:
    """Mean loss of the wrong and of the right labels along training, and how many wrong ones are selected."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name in results.variants(cell, [name for name in COLOURS if name.startswith("cross-fit")]):
        lines = results.of(cell, name)
        steps = [at[0] for at in lines[0]["probe"]]
        for axis, column in ((axes[0], 3), (axes[1], 1)):
            band(axis, steps, [[at[column] for at in line["probe"]] for line in lines], name, color=COLOURS[name])
        every = lines[0]["evaluate_every"]
        steps = [every * (i + 1) for i in range(len(lines[0]["wrong"]))]
        band(axes[2], steps, [[100 * value for value in line["wrong"]] for line in lines], name, color=COLOURS[name])
    lines = results.of(cell, "cross-fit")
    for axis, which in ((axes[0], 1), (axes[1], 0)):
        axis.axhline(
            statistics.median(line["irreducible_loss"][which] for line in lines),
            color="black",
            linestyle="--",
            label="their irreducible loss",
        )
    axes[2].axhline(100 * lines[0]["rate"], color="black", linestyle=":", label="share in the data")
    for axis, name in zip(
        axes, ("wrong labels: mean loss, nats", "right labels: mean loss, nats", "wrong among the selected, %"), strict=True
    ):
        axis.set(xlabel="steps", ylabel=name, ylim=(0, None))
        axis.grid(alpha=0.3)
    legend(figure)
    figure.suptitle(f"{cell[0]}, {title(cell[1])}: median and range over {len(lines)} seeds")
    figure.savefig(path, dpi=90)


def report(options: argparse.Namespace) -> None:
    lines = read_lines(options.results)
    print(tables(lines))
    if options.plots:
        options.plots.mkdir(parents=True, exist_ok=True)
        results = Results(lines)
        plot_accuracy(results, options.plots / "dirty_holdout_accuracy.png")
        if results.of(("Fashion-MNIST", "0.3"), "cross-fit"):
            plot_mechanism(results, options.plots / "dirty_holdout_mechanism.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Irreducible losses from data as dirty as the training data: a study.")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="train, and append the results to a file of JSON lines")
    reporting = commands.add_parser("report", help="print the tables, and draw the plots")
    for command in (running, reporting):
        command.add_argument("--results", type=Path, default=RESULTS, help="the file of JSON lines (default: %(default)s)")
    running.add_argument("--fashion-mnist", type=Path, help="folder with the four idx files, gzipped or not")
    running.add_argument("--cifar10", type=Path, help="the folder cifar-10-batches-py")
    running.add_argument("--cifar10n", type=Path, help="the file CIFAR-10_human.pt")
    running.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="which seeds (default: 0 to 4)")
    running.add_argument("--data", nargs="+", choices=["Fashion-MNIST", "CIFAR-10"], help="which data (default: those given)")
    running.add_argument("--noise", nargs="+", help="which noise, such as 0.3 or worse (default: all)")
    running.add_argument(
        "--rows", nargs="+", choices=["main", "more"], default=["main", "more"], help="which tables (default: both)"
    )
    running.add_argument("--only", nargs="+", help="which variants (default: all)")
    running.add_argument("--steps", type=int, default=1000, help="steps of a run with RHO-LOSS (default: 1000)")
    running.add_argument("--uniform-steps", type=int, default=4000, help="steps of a run of uniform (default: 4000)")
    running.add_argument("--evaluate-every", type=int, default=50, help="steps between evaluations (default: 50)")
    running.add_argument("--hidden", type=int, default=512, help="width of the network (default: 512)")
    running.add_argument(
        "--work",
        type=Path,
        default=Path(tempfile.gettempdir()) / "rholoss_holdout_study",
        help="folder for features and irreducible losses, which are made once (default: a temporary folder)",
    )
    reporting.add_argument("--plots", type=Path, help="folder for the plots (default: none are drawn)")
    options = parser.parse_args(arguments)
    if options.command == "report":
        report(options)
        return
    given = {"Fashion-MNIST": [options.fashion_mnist], "CIFAR-10": [options.cifar10, options.cifar10n]}
    options.data = options.data or [data for data, paths in given.items() if all(paths)]
    if not options.data or not all(all(given[data]) for data in options.data):
        parser.error("expected --fashion-mnist DIR, or both --cifar10 DIR and --cifar10n FILE")
    if not 1 <= options.evaluate_every <= min(options.steps, options.uniform_steps):
        parser.error("expected --evaluate-every from 1 to the number of steps")
    run(options)


if __name__ == "__main__":
    main()
