"""What the indicators of a store mean, in words: will selection with it help, and what to do. The thresholds are all here."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Helps = Literal["yes", "with a gate", "no", "unknown"]
Holdout = Literal["cleaner", "as noisy", "overconfident", "unknown"]

# PLACEHOLDERS
DIRTY = 0.05  # share above log(C) from which the labels are dirty enough for a gate
WEAK = 0.9  # median irreducible loss, as a share of a guess's loss, from which the model knows next to nothing
SURER = 0.2  # confidence less accuracy from which the model is surer than these labels bear out
CONFIDENT = 0.75  # confidence from which being surer comes from a cleaner holdout rather than from learning noise by heart
UNSTABLE = 0.5  # correlation between two halves below which irreducible losses are the luck of the fit
FEW = 1_000  # examples below which shares are too rough to judge by


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
        weak: whether the irreducible-loss model knows next to nothing; None where that cannot be told.
        dirty: whether many labels are ones that it holds for less likely than a guess; None where that cannot be told.
        holdout: whether it was fitted on cleaner labels than it scored, on labels as noisy, or is surer of itself than either.
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
    weak = None if of.guess is None or not of.known else of.median >= WEAK * of.guess
    dirty = None if of.above_guess is None else of.above_guess >= DIRTY
    correlations = [value for value in (of.halves, of.other) if value is not None]
    unstable = min(correlations) < UNSTABLE if correlations else None
    holdout = _holdout(of) if dirty else "unknown"
    helps: Helps = "unknown"
    if weak or unstable:
        helps = "no"
    elif weak is not None and dirty is not None:
        helps = "with a gate" if dirty and holdout != "cleaner" else "yes"
    verdict = Verdict(helps, weak, dirty, holdout, unstable, ())
    return replace(verdict, sentences=tuple(_sentences(of, verdict)))


def _holdout(of: Indicators) -> Holdout:
    if of.gap is None or of.confidence is None:
        return "unknown"
    if of.gap < SURER:
        return "as noisy"
    return "cleaner" if of.confidence >= CONFIDENT else "overconfident"


def _sentences(of: Indicators, verdict: Verdict) -> Iterator[str]:
    if not of.known:
        yield "No irreducible loss is known: there is nothing to judge. Score the examples first, with from_model or cross_fit."
        return
    yield HELPS[verdict.helps]
    if of.known < FEW:
        yield f"These are only {of.known:,} examples: every share here is rough."
    if verdict.weak is None:
        yield "Whether the irreducible-loss model is too weak cannot be told without the number of classes."
    elif verdict.weak:
        yield (
            f"The irreducible-loss model knows next to nothing: its median loss, {of.median:.2f}, is about that of a guess, "
            f"{of.guess:.2f}. Fit a stronger one, for longer, or on more data; cross_fit gives it all of the data."
        )
    elif of.accuracy is not None:
        yield (
            f"The irreducible-loss model is right on {of.accuracy:.1%} of these labels. Whether that is too weak depends on the "
            "model in training: if that one gets clearly more of such labels right, on examples that it did not train on, fit a "
            "stronger irreducible-loss model."
        )
    if verdict.unstable:
        yield (
            "The irreducible losses depend on the luck of the fit: two halves hardly agree. Take the mean of several models, "
            "and choose their weights by the lowest validation loss."
        )
    if verdict.dirty is None:
        yield "How dirty the labels are cannot be told without the number of classes; pass classes= if this is a cross-entropy."
    elif verdict.dirty:
        yield (
            f"{of.above_guess:.1%} of the labels are less likely to the irreducible-loss model than a guess: they are wrong, or "
            "beyond it."
        )
        yield HOLDOUT[verdict.holdout]
    else:
        yield "Few examples are worse than a guess: no gate is needed."
    if verdict.helps == "with a gate":
        do = "Gate" if of.folds else "Score all of the data with cross_fit rather than hold some of it out, and gate"
        yield f"{do} such examples out: RhoLossSelector(loader, model, store, max_irreducible_loss=math.log({of.classes}))."


HELPS: dict[Helps, str] = {
    "yes": "Selection with this store is likely to help.",
    "with a gate": "Selection with this store is likely to help if the examples that are worse than a guess are gated out.",
    "no": "Selection with this store is not likely to help; better irreducible losses come first.",
    "unknown": "Whether selection with this store will help cannot be told from what is known.",
}
HOLDOUT: dict[Holdout, str] = {
    "cleaner": (
        "The irreducible-loss model is far surer than these labels bear out, as one is that was fitted on cleaner labels than it "
        "scores: the setting that RHO-LOSS is made for."
    ),
    "as noisy": (
        "The irreducible-loss model is no surer than these labels bear out: those that it was fitted on are about as noisy. "
        "Without a gate, wrong labels are selected about as often as they occur."
    ),
    "overconfident": (
        "The irreducible-loss model is surer than these labels bear out, but not of much: it has learnt noise by heart. Choose "
        "its weights by the lowest validation loss, as fit_irreducible_model does."
    ),
    "unknown": (
        "Whether the holdout is as noisy as these labels cannot be told, as no predictions were tallied; look at some of the "
        "highest by index."
    ),
}
