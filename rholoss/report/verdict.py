"""The verdict on a store: will selection with it help, and what to do. All thresholds are here."""

import math
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Helps = Literal["yes", "with a gate", "no", "unknown"]
Holdout = Literal["cleaner", "as noisy", "overconfident", "cleaner or overconfident", "underconfident", "unknown"]

# From the study of docs/pages/dirty_holdout.md: Fashion-MNIST with 0, 10 and 30 % wrong labels, CIFAR-10 with human labels.
NOISY = 0.10  # share above log(C) from which labels are noisy; it was 12 to 34 % with wrong labels
CLEAN = 0.05  # share above log(C) below which labels are clean; it was 3 % without wrong labels
OVERCONFIDENT = 0.08  # gap from which models are overconfident, and below minus which underconfident; clean holdouts: 0.21, 0.26
CALIBRATED = 0.05  # gap below which models are not overconfident; fitted on labels as noisy as the scored ones: -0.05 to 0.00
CLEANER = 1.3  # mean irreducible loss, in validation losses, from which a gap means a cleaner holdout, which had 2 and 10
FAR_CLEANER = 2.0  # the same without a gap
WEAKER = 0.005  # accuracy behind plain training from which selection ends below it, estimated from the study
# Not from that study: what any model has to exceed.
UNINFORMED = 0.9  # median irreducible loss, as a share of the chance level
UNSTABLE = 0.7  # correlation between two halves of the models
FEW = 1_000  # examples, below which all shares are rough


@dataclass(frozen=True, kw_only=True)
class Indicators:
    """The numbers that a store is judged by. None: unknown.

    Attributes:
        known: number of examples with a known irreducible loss.
        classes: C.
        mean: mean irreducible loss, in nats.
        median: median irreducible loss, in nats.
        above_chance: share of the examples above the chance level log(C), in [0, 1].
        label_entropy: entropy of the labels, in nats: the loss of a guess by class frequency; log(C) for balanced classes.
        confidence: mean probability of the most likely class, in [0, 1].
        accuracy: share of the examples whose label is the most likely class, in [0, 1].
        calibration_error: expected calibration error over ten bins, in [0, 1].
        halves: Pearson correlation of the irreducible losses under two halves of the models.
        other: Spearman correlation with the other store's irreducible losses.
        models: number of models that made the store, over all folds; 0 if unknown.
        folds: number of folds of the cross-fit; 0 for none.
        validation_loss: of the fit of the irreducible-loss model, in nats.
        plain_accuracy: held-out accuracy on such labels of the model in training without selection, in [0, 1].
    """

    known: int
    classes: int | None = None
    mean: float = math.nan
    median: float = math.nan
    above_chance: float | None = None
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
        """Confidence minus accuracy; above 0 the models are overconfident on these labels."""
        return None if self.confidence is None or self.accuracy is None else self.confidence - self.accuracy

    @property
    def chance_level(self) -> float | None:
        """The loss of a guess by class frequency, in nats; log(C) if the frequencies are unknown."""
        return self.label_entropy or (math.log(self.classes) if self.classes else None)


@dataclass(frozen=True)
class Verdict:
    """What the indicators of a store mean.

    Attributes:
        helps: whether selection with the store will help.
        weak: whether the irreducible-loss model is too weak; None if unknown.
        noisy: whether many labels are above the chance level; None in between, and if unknown.
        holdout: whether the model was fitted on ``"cleaner"`` labels than it scored, or on labels ``"as noisy"``; whether it is
            ``"overconfident"`` or ``"underconfident"``; ``"cleaner or overconfident"``; or ``"unknown"``.
        unstable: whether the losses are unstable across training runs; None if unknown.
        sentences: the same in words, and what to do.
    """

    helps: Helps
    weak: bool | None
    noisy: bool | None
    holdout: Holdout
    unstable: bool | None
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(textwrap.fill(line, 100, initial_indent="- ", subsequent_indent="  ") for line in self.sentences)


def judge(of: Indicators) -> Verdict:
    """The verdict on a store, from its indicators alone."""
    correlations = [value for value in (of.halves, of.other) if value is not None]
    above = of.above_chance
    found = Verdict(
        helps="unknown",
        weak=_weak(of),
        noisy=None if above is None or CLEAN <= above < NOISY else above >= NOISY,
        holdout=_holdout(of),
        unstable=min(correlations) < UNSTABLE if correlations else None,
        sentences=(),
    )
    found = replace(found, helps=_helps(of, found))
    return replace(found, sentences=tuple(_sentences(of, found)))


def _is_uninformed(of: Indicators) -> bool:
    return of.chance_level is not None and of.median >= UNINFORMED * of.chance_level


def _weak(of: Indicators) -> bool | None:
    if _is_uninformed(of):
        return True
    if of.accuracy is None or of.plain_accuracy is None:
        return None
    return of.plain_accuracy - of.accuracy >= WEAKER


def _holdout(of: Indicators) -> Holdout:
    if of.gap is None or of.above_chance is None or of.above_chance < CLEAN:
        return "unknown"
    if of.gap <= -OVERCONFIDENT:
        return "underconfident"
    is_overconfident = of.gap >= OVERCONFIDENT
    if of.validation_loss is not None and of.mean >= (CLEANER if is_overconfident else FAR_CLEANER) * of.validation_loss:
        return "cleaner"  # a fit that ended early need not be overconfident
    if not is_overconfident:
        return "as noisy" if of.gap < CALIBRATED else "unknown"
    return "cleaner or overconfident" if of.validation_loss is None else "overconfident"


def _helps(of: Indicators, found: Verdict) -> Helps:
    if found.weak or (found.holdout == "overconfident" and not of.folds):  # overfitted cross-fits still helped, with a gate
        return "no"
    if found.weak is None or of.above_chance is None or found.unstable or found.holdout == "cleaner or overconfident":
        return "unknown"  # a model that is too weak ends below plain training, whatever else is well
    if found.holdout == "cleaner":
        return "yes"
    return "yes" if found.noisy is False else "with a gate"


def _sentences(of: Indicators, found: Verdict) -> Iterator[str]:
    if not of.known:
        yield "No irreducible loss is known, so there is nothing to judge. Score the examples with from_model or cross_fit."
        return
    yield HELPS[found.helps]
    if of.known < FEW:
        yield f"There are only {of.known:,} examples: all shares are rough."
    yield _on_strength(of, found)
    if _is_uninformed(of):
        return
    if found.unstable:
        yield (
            "The irreducible losses are unstable across training runs: two halves of the models hardly agree. Average several "
            "models, and choose the weights of each by the lowest validation loss."
        )
    if of.above_chance is None:
        yield "How noisy the labels are is unknown without the number of classes; pass classes= if this is a cross-entropy."
        return
    share = f"{of.above_chance:.1%} of the labels are above chance"
    if found.noisy is False:
        yield f"Only {share}: no gate is needed."
        return
    few = "" if found.noisy else " A gate changes little here, and does no harm."
    yield f"{share}: they are wrong, or too hard for the model.{few}"
    yield HOLDOUT[found.holdout]
    if found.helps != "no" and (found.holdout in GATED or (found.holdout == "overconfident" and of.folds)):
        do = "Gate" if of.folds else "Score all of the data with cross_fit instead of a holdout, and gate"
        options = f"max_irreducible_loss=math.log({of.classes}), bounded=True"  # the most stable over seeds in the study
        yield f"{do}: RhoLossSelector(loader, model, store, {options})."


def _on_strength(of: Indicators, found: Verdict) -> str:
    more = "or for longer." if of.folds else "or on more data: cross_fit uses all of the data."
    stronger = f"Fit a stronger one, {more}"
    if _is_uninformed(of):
        return (
            f"The irreducible-loss model has learned almost nothing: its median loss, {of.median:.2f}, is about the chance "
            f"level, {of.chance_level:.2f}. {stronger}"
        )
    if of.accuracy is None:
        return "Whether the irreducible-loss model is too weak is unknown, as no class predictions were counted."
    if of.plain_accuracy is None:
        return (
            f"Whether the irreducible-loss model, with an accuracy of {of.accuracy:.1%} on these labels, is too weak is unknown: "
            "selection ends at about that accuracy. Train the model in training without selection, and pass its held-out "
            "accuracy on such labels as plain_accuracy=."
        )
    strength = f"it is too weak. {stronger}" if found.weak else "it is strong enough."
    return (
        f"The irreducible-loss model has an accuracy of {of.accuracy:.1%} on these labels, and plain training "
        f"{of.plain_accuracy:.1%}: {strength}"
    )


HELPS: dict[Helps, str] = {
    "yes": "Selection with this store is likely to help.",
    "with a gate": "Selection with this store is likely to help, with a gate that excludes labels above chance.",
    "no": "Selection with this store is likely to end below plain training; improve the irreducible losses first.",
    "unknown": "It is unknown whether selection with this store will help. rholoss.auto(loader, model) finds out.",
}
HOLDOUT: dict[Holdout, str] = {
    "cleaner": (
        "The loss of the irreducible-loss model is far higher on these labels than in validation: it was fitted on cleaner "
        "labels than these. RHO-LOSS is made for this case, and needs no gate."
    ),
    "as noisy": (
        "The irreducible-loss model is no more confident than correct on these labels: it was fitted on labels as noisy as "
        "these, or the data are hard. Without a gate, wrong labels are selected about as often as they occur."
    ),
    "overconfident": (
        "The irreducible-loss model is more confident than correct on these labels, but its loss is no higher than in "
        "validation: it is overconfident. Stop its fit at the lowest validation loss, use dropout, or average several models."
    ),
    "cleaner or overconfident": (
        "The irreducible-loss model is more confident than correct on these labels. Either it was fitted on cleaner labels, "
        "which is good, or it is overconfident, which is bad: pass its validation loss as validation_loss=."
    ),
    "underconfident": (
        "The irreducible-loss model is less confident than correct on these labels: it was fitted on noisier or smoothed labels, "
        "or for too short a time."
    ),
    "unknown": "Whether it was fitted on labels as noisy as these is unknown; look at the examples with the highest losses.",
}
GATED: tuple[Holdout, ...] = ("as noisy", "underconfident", "unknown")
