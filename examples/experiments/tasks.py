"""Tasks: data in their parts, with what is known of every training example. This is what an experiment starts from.

::

    task = load_task("fashion-mnist", Path("data"), seed=0, noise=0.1, holdout="clean")
    model = make_model("mlp", task)
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from experiments import corruptions
from experiments.images import plain as plain
from experiments.models import make_model as make_model, model_names as model_names
from experiments.sources import SOURCES, Asked, Examples, Source, joined, only_relevant, some
from rholoss.isolation import derived_seed

NoiseKind = Literal["wrong", "redrawn", "similar"]


@dataclass(frozen=True)
class Task:
    """Data in their parts.

    Attributes:
        name: what it was asked for by.
        train: what the target model trains on; yields ``(x, y)``, with index 0 to N-1.
        holdout: what the irreducible-loss model trains on; None if there is to be none (``holdout="none"``).
        validation: what that model's weights are chosen by: examples of neither role, and dirty where the holdout is.
        test: clean, only for measuring.
        flags: what is known of the training examples, each ``(N,)`` bool by index in ``train``: ``"wrong"`` (label),
            ``"less relevant"``, ``"duplicate"``, ``"ambiguous"``, ``"noisy input"``. Only those that the task has. For measuring.
        classes: how many.
        metric: ``"accuracy"``, ``"auc"`` or ``"matthews"``.
        notes: what the data are, and what was done to them.
    """

    name: str
    train: Dataset[Any]
    holdout: Dataset[Any] | None
    validation: Dataset[Any]
    test: Dataset[Any]
    flags: dict[str, Tensor]
    classes: int
    metric: str
    notes: str


@dataclass(frozen=True)
class Corruption:
    """What is done to the training data, and to a holdout that is to be as dirty."""

    noise: str | float = 0.0
    noise_kind: NoiseKind = "wrong"
    input_noise: float = 0.0
    ambiguous: float = 0.0


def load_task(
    name: str,
    root: Path,
    *,
    seed: int = 0,
    noise: str | float = 0.0,
    holdout: str | int = "clean",
    limit: int | None = None,
    tested: int | None = None,
    noise_kind: NoiseKind = "wrong",
    input_noise: float = 0.0,
    ambiguous: float = 0.0,
    duplicates: float = 0.0,
    relevant: int | None = None,
    **options: Any,
) -> Task:
    """Read a data set from a folder, divide it and corrupt it.

    Args:
        name: one of ``task_names()``.
        root: the folder that holds a folder for each data set; see README.md beside this.
        seed: of the division and of the corruptions; the same seed makes the same task.
        noise: wrong labels among the training data: a share in [0, 1]; or, of CIFAR-10, the name of a set of labels that people
            gave: ``"aggre"``, ``"random1"``, ``"random2"``, ``"random3"`` or ``"worse"``.
        holdout: ``"clean"``: of the published size, with the published labels; ``"dirty"``: corrupted like the training data; a
            whole number: a clean one of so many examples, at least 10, while the rest of it is not used; ``"none"``: what would
            be the holdout is trained on, for cross-fitting. A tenth of it is the validation data.
        limit: at most so many training examples before duplicates, and so many held out, for a quick look.
        tested: at most so many test examples, for networks whose evaluation takes long.
        noise_kind: ``"wrong"``: the share of the labels that are wrong; ``"redrawn"``: the share that is drawn again from all
            classes; ``"similar"``: the share, of each class that has a similar one, that gets that one's label.
        input_noise: share of the examples whose input is nothing but noise, in [0, 1].
        ambiguous: share of the examples that are blended with one of another class, in [0, 1].
        duplicates: copies of training examples, labels and all, as a share of the examples.
        relevant: hold out and test on so many classes only, the first; training examples of the others are less relevant.
        **options: of this data set alone, listed in README.md.

    Raises:
        FileNotFoundError: the data are not there; the message says what was expected where.
        ValueError: an unknown name, or an option that makes no sense.
    """
    if holdout not in ("clean", "dirty", "none") and (isinstance(holdout, (str, bool)) or holdout < 10):
        raise ValueError(f"holdout must be 'clean', 'dirty', 'none' or a number of examples, at least 10, got {holdout!r}")
    source = only_relevant(_source(name)(Asked(Path(root), seed, holdout), **options), relevant)
    corruption = Corruption(noise, noise_kind, input_noise, ambiguous)
    train, held, validation = _roles(source, holdout, limit, seed)
    train = _corrupted(train, source, corruption, derived_seed("train", seed))
    if holdout in ("dirty", "none"):
        validation = _corrupted(validation, source, corruption, derived_seed("validation", seed))
        held = held and _corrupted(held, source, corruption, derived_seed("holdout", seed))
    train = _repeated(train, duplicates, seed)
    return Task(
        name,
        source.make("train", train),
        None if held is None else source.make("holdout", held),
        source.make("validation", validation),
        source.make("test", source.test if tested is None else _at_most(source.test, tested, seed)),
        train.flags,
        source.classes,
        source.metric,
        ". ".join(_notes(source, corruption, duplicates, holdout, Path(root) / name.removesuffix("-relevance"))),
    )


def task_names() -> list[str]:
    """The data sets that can be asked for."""
    return sorted(SOURCES)


def _source(name: str) -> Any:
    if name not in SOURCES:
        close = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no data set is called {name!r}; {hint}there are {', '.join(task_names())}")
    return SOURCES[name]


def _roles(source: Source, holdout: str | int, limit: int | None, seed: int) -> tuple[Examples, Examples | None, Examples]:
    """Training, holdout and validation examples."""
    train, held, validation = source.train, source.held, source.validation
    if isinstance(holdout, int) and held is not None:
        held = _at_most(held, holdout, seed, exactly=True)
    if limit is not None:
        train = _at_most(train, limit, seed)
        held = held and _at_most(held, limit, seed)
        validation = validation and _at_most(validation, limit, seed)
    if validation is None:
        assert held is not None
        validation, held = some(held, max(1, len(held) // 10), seed)
    if holdout == "none" and held is not None:
        train, held = joined(train, held), None
    return train, held, validation


def _at_most(examples: Examples, count: int, seed: int, exactly: bool = False) -> Examples:
    if exactly and count > len(examples):
        raise ValueError(f"a holdout of {count:,} examples was asked for, and there are {len(examples):,}")
    return examples if count >= len(examples) else some(examples, count, seed)[0]


def _corrupted(examples: Examples, source: Source, corruption: Corruption, seed: int) -> Examples:
    if corruption.ambiguous:
        examples = _changed(examples, source, "ambiguous", corruptions.ambiguous_inputs, examples.y, corruption.ambiguous, seed)
    if corruption.input_noise:
        examples = _changed(examples, source, "noisy input", corruptions.noisy_inputs, corruption.input_noise, seed)
    y, wrong = _wrong_labels(examples, source, corruption, seed)
    return replace(examples, y=y).flagged(wrong=wrong) if source.labels_known or bool(wrong.any()) else examples


def _changed(examples: Examples, source: Source, flag: str, corrupt: Any, *arguments: Any) -> Examples:
    """Examples whose inputs are corrupted, which adds to a flag."""
    if not isinstance(examples.x, Tensor) or examples.x.dtype == torch.int64:
        raise ValueError(f"{flag}: only images in memory and features can be corrupted so, not {source.notes}")
    x, mask = corrupt(examples.x, *arguments)
    return replace(examples, x=x, flags=examples.flags | {flag: mask | examples.flags.get(flag, torch.zeros_like(mask))})


def _wrong_labels(examples: Examples, source: Source, corruption: Corruption, seed: int) -> tuple[Tensor, Tensor]:
    noise, kind = corruption.noise, corruption.noise_kind
    if isinstance(noise, str):
        if noise not in examples.other_labels:
            there = ", ".join(examples.other_labels) or "none here"
            raise ValueError(f"noise must be a share in [0, 1] or a set of labels that people gave ({there}), got {noise!r}")
        return examples.other_labels[noise], examples.other_labels[noise] != examples.y
    if kind == "similar":
        if noise and not source.similar:
            raise ValueError(f"noise_kind='similar' needs classes that are alike, and none are known of {source.notes}")
        return corruptions.similar_labels(examples.y, noise, source.similar, seed)
    return corruptions.wrong_labels(examples.y, noise, source.classes, seed, kind)


def _repeated(train: Examples, share: float, seed: int) -> Examples:
    if not share:
        return train
    indices, copies = corruptions.duplicates(len(train), share, seed)
    more = train.take(indices)
    return more.flagged(duplicate=copies | more.flags.get("duplicate", torch.zeros_like(copies)))


def _notes(source: Source, corruption: Corruption, duplicates: float, holdout: str | int, folder: Path) -> Iterator[str]:
    yield source.notes
    if (folder / "NOTES.txt").exists():
        yield (folder / "NOTES.txt").read_text(encoding="utf-8").strip().rstrip(".")
    if isinstance(corruption.noise, str):
        yield f"labels that people gave, {corruption.noise!r} of CIFAR-10N"
    elif corruption.noise:
        yield f"labels: {corruption.noise:.1%} {corruption.noise_kind}"
    for what, share in (
        ("noisy inputs", corruption.input_noise),
        ("ambiguous", corruption.ambiguous),
        ("duplicates", duplicates),
    ):
        if share:
            yield f"{what}: {share:.1%}"
    yield f"holdout: {f'{holdout:,} clean examples' if isinstance(holdout, int) else holdout}"
