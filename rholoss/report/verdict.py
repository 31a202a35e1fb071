"""What the indicators of a store mean, in words: will selection with it help, and what to do. The thresholds are all here."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Helps = Literal["yes", "with a gate", "no", "unknown"]
Holdout = Literal["cleaner", "as noisy", "overconfident", "surer", "less sure", "unknown"]

# From the study of docs/pages/dirty_holdout.md: Fashion-MNIST with 0, 10 and 30 % wrong labels, CIFAR-10 with human ones.
DIRTY = 0.10  # share above log(C) from which there is something to gate; it was 12 to 34 % where labels were wrong
CLEAN = 0.05  # share above log(C) below which there is nothing to gate; it was 3 % where all labels were right
SURER = 0.08  # confidence less accuracy from which models are surer than the labels bear out, and below minus which less sure;
# clean holdouts had 0.21 and 0.26
ALIKE = 0.05  # and up to which they are as sure; fitted on labels as dirty as the scored ones they had -0.05 to 0.00
CLEANER = 1.3  # mean irreducible loss, in validation losses, from which being surer comes of a cleaner holdout: that had 2 and 10
WEAKER = 0.005  # accuracy behind plain training from which selection ends below it; an estimate from where it lost and won there
# Not from that study: what any model has to beat.
KNOWS_NOTHING = 0.9  # median irreducible loss, as a share of a guess's loss
UNSTABLE = 0.7  # correlation between two halves of the models
FEW = 1_000  # examples, below which every share is rough


@dataclass(frozen=True, kw_only=True)
class Indicators:
    """What a store is judged by. None: not known.

    Attributes:
        known: examples with a known irreducible loss.
        classes: C.
        mean: irreducible loss, in nats.
        median: irreducible loss, in nats.
        above_guess: share of the examples above log(C), in [0, 1]: worse than a guess.
        label_entropy: the loss of a guess that knows how frequent the classes are, in nats; log(C) where they are balanced.
        confidence: mean probability of the likeliest class, in [0, 1].
        accuracy: share of the examples whose label is the likeliest class, in [0, 1].
        calibration_error: expected calibration error over ten bins, in [0, 1].
        halves: Pearson correlation of the irreducible losses under two halves of the models.
        other: Spearman correlation with the other store's irreducible losses.
        models: how many models made the store, over all folds; 0 where it does not say.
        folds: of the cross-fit; 0 for none.
        validation_loss: of the fit of the irreducible-loss model, in nats.
        plain_accuracy: of the model in training, trained without selection, on such labels that it did not train on, in [0, 1].
    """

    known: int
    classes: int | None = None
    mean: float = math.nan
    median: float = math.nan
    above_guess: float | None = None
    label_entropy: float | None = None
    confidence: float | None = None
    accuracy: float | None = None
    calibration_error: float | None = None
    halves: float | None = None
    other: float | None = None
    models: int = 0
    folds: int = 0
    validation_loss: float | None = None
    plain_accuracy: float | None = None

    @property
    def gap(self) -> float | None:
        """Confidence less accuracy: above 0, the models are surer than these labels bear out."""
        return None if self.confidence is None or self.accuracy is None else self.confidence - self.accuracy

    @property
    def guess(self) -> float | None:
        """The loss of a guess, in nats."""
        return self.label_entropy or (math.log(self.classes) if self.classes else None)


@dataclass(frozen=True)
class Verdict:
    """What to think of a store.

    Attributes:
        helps: whether selection with it will help.
        weak: whether the irreducible-loss model is too weak; None where that cannot be told.
        dirty: whether many labels are less likely to it than a guess; None for a few, and where that cannot be told.
        holdout: whether it was fitted on ``"cleaner"`` labels than it scored, or on labels ``"as noisy"``; whether it is
            ``"overconfident"``; ``"surer"`` where it is one of cleaner and overconfident; ``"less sure"``; or ``"unknown"``.
        unstable: whether it depends on the luck of the fit; None where that cannot be told.
        sentences: the same in words, and what to do.
    """

    helps: Helps
    weak: bool | None
    dirty: bool | None
    holdout: Holdout
    unstable: bool | None
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ") for line in self.sentences)


def judge(of: Indicators) -> Verdict:
    """The verdict on a store, from its indicators alone."""
    correlations = [value for value in (of.halves, of.other) if value is not None]
    above = of.above_guess
    found = Verdict(
        helps="unknown",
        weak=_weak(of),
        dirty=None if above is None or CLEAN <= above < DIRTY else above >= DIRTY,
        holdout=_holdout(of),
        unstable=min(correlations) < UNSTABLE if correlations else None,
        sentences=(),
    )
    found = replace(found, helps=_helps(of, found))
    return replace(found, sentences=tuple(_sentences(of, found)))


def _knows_nothing(of: Indicators) -> bool:
    return of.guess is not None and of.median >= KNOWS_NOTHING * of.guess


def _weak(of: Indicators) -> bool | None:
    if _knows_nothing(of):
        return True
    if of.accuracy is None or of.plain_accuracy is None:
        return None
    return of.plain_accuracy - of.accuracy >= WEAKER


def _holdout(of: Indicators) -> Holdout:
    if of.gap is None or of.above_guess is None or of.above_guess < CLEAN or ALIKE <= of.gap < SURER:
        return "unknown"
    if of.gap < ALIKE:
        return "as noisy" if of.gap > -SURER else "less sure"
    if of.validation_loss is None:
        return "surer"
    return "cleaner" if of.mean >= CLEANER * of.validation_loss else "overconfident"


def _helps(of: Indicators, found: Verdict) -> Helps:
    if found.weak or (found.holdout == "overconfident" and not of.folds):  # overfitted cross-fits still helped, gated
        return "no"
    if of.above_guess is None or found.unstable or found.holdout == "surer":
        return "unknown"
    if found.holdout == "cleaner":
        return "yes"
    if found.weak is None and not of.folds:  # in the study holdouts as dirty as the training data lost, and cross-fits won
        return "unknown"
    return "yes" if found.dirty is False else "with a gate"


def _sentences(of: Indicators, found: Verdict) -> Iterator[str]:
    if not of.known:
        yield "No irreducible loss is known, so that there is nothing to judge. Score the examples with from_model or cross_fit."
        return
    yield HELPS[found.helps]
    if of.known < FEW:
        yield f"These are only {of.known:,} examples: every share here is rough."
    yield from _of_weakness(of, found)
    if _knows_nothing(of):
        return
    if found.unstable:
        yield (
            "The irreducible losses depend on the luck of the fit: two halves hardly agree. Take the mean of several models, and "
            "choose the weights of each by the lowest validation loss."
        )
    if of.above_guess is None:
        yield "How dirty the labels are cannot be told without the number of classes; pass classes= if this is a cross-entropy."
        return
    if found.dirty is False:
        yield f"Only {of.above_guess:.1%} of the labels are less likely to it than a guess: there is nothing to gate out."
        return
    much = "" if found.dirty else ", few enough that a gate will change little, and do no harm"
    yield f"{of.above_guess:.1%} of the labels are less likely to it than a guess: they are wrong, or beyond it{much}."
    yield HOLDOUT[found.holdout]
    if found.helps != "no" and (found.holdout in GATED or (found.holdout == "overconfident" and of.folds)):
        do = "Gate" if of.folds else "Score all of the data with cross_fit instead of holding some of it out, and gate"
        options = f"max_irreducible_loss=math.log({of.classes}), bounded=True"  # together the steadiest over seeds in the study
        yield f"{do}: RhoLossSelector(loader, model, store, {options})."


def _of_weakness(of: Indicators, found: Verdict) -> Iterator[str]:
    more = "or for longer." if of.folds else "or on more data: cross_fit gives it all of the data."
    stronger = f"Fit a stronger one, {more}"
    if _knows_nothing(of):
        yield (
            f"The irreducible-loss model knows next to nothing: its median loss, {of.median:.2f}, is about that of a guess, "
            f"{of.guess:.2f}. {stronger}"
        )
    elif of.accuracy is None:
        yield "Whether the irreducible-loss model is too weak cannot be told, as no predictions of classes were tallied."
    elif of.plain_accuracy is None:
        yield (
            f"Whether the irreducible-loss model, right on {of.accuracy:.1%} of these labels, is too weak cannot be told from it "
            "alone: selection ends about where that model is. Train the model in training without selection, and pass its "
            "accuracy on such labels that it did not train on as plain_accuracy=."
        )
    else:
        right = f"is right on {of.accuracy:.1%} of these labels, and plain training on {of.plain_accuracy:.1%}"
        yield f"The irreducible-loss model {right}" + (
            f": it is too weak. {stronger}" if found.weak else ": it is strong enough."
        )


HELPS: dict[Helps, str] = {
    "yes": "Selection with this store is likely to help.",
    "with a gate": "Selection with this store is likely to help, with the labels that are worse than a guess gated out.",
    "no": "Selection with this store is likely to end below plain training; better irreducible losses come first.",
    "unknown": "Whether selection with this store will help cannot be told from what is known.",
}
HOLDOUT: dict[Holdout, str] = {
    "cleaner": (
        "The irreducible-loss model is surer than these labels bear out, and loses far more on them than it did in validation: "
        "it was fitted on cleaner labels than these. That is what RHO-LOSS is made for, and needs no gate."
    ),
    "as noisy": (
        "The irreducible-loss model is no surer than these labels bear out: it was fitted on labels as noisy as these, or the "
        "data are hard. Without a gate wrong labels are selected about as often as they occur."
    ),
    "overconfident": (
        "The irreducible-loss model is surer than these labels bear out, though it loses no more on them than in validation: it "
        "is overconfident. Stop its fit at the lowest validation loss, use dropout, or take the mean of several models."
    ),
    "surer": (
        "The irreducible-loss model is surer than these labels bear out. Either it was fitted on cleaner labels, which "
        "is good, or it is overconfident, which is bad: pass the loss that it had in validation as validation_loss=."
    ),
    "less sure": (
        "The irreducible-loss model is less sure than these labels bear out: it was fitted on noisier ones, on smoothed ones, or "
        "for too short a time."
    ),
    "unknown": "Whether it was fitted on labels as noisy as these cannot be told; look at the highest by index.",
}
GATED: tuple[Holdout, ...] = ("as noisy", "less sure", "unknown")
