"""What a rehearsal found: how many labels are wrong, and whether leaving some examples out will help."""

from __future__ import annotations

import math
import os
import textwrap
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from rholoss.arguments import optional, path_of
from rholoss.store import CalibrationCounts

# Chosen on the battery of docs/pages/will_it_help.md.
WORTH = 0.05  # share of wrong labels from which leaving examples out helps
STRONG, STRONG_COUNTS = 0.5, 0.4  # how far networks, and counts of words, must be from a guess to perfect, to find wrong labels
SURE = 2.0  # standard errors that the share must be above it
TOP, MORE = 0.02, 0.2  # shares of the most confident predictions that the share is read from


class WrongShare(NamedTuple):
    """The estimated share of wrong labels, and its lowest and highest plausible values, in [0, 1]."""

    share: float
    low: float
    high: float


class Round(NamedTuple):
    """One validation of a fit: after how many steps, and what it found."""

    fold: int
    steps: int
    validation_loss: float
    accuracy: float | None


@dataclass(frozen=True)
class Rehearsal:
    """What ``rholoss.auto`` found out with small networks before the run; ``print`` says it in words.

    Attributes:
        helps: whether leaving examples out is expected to help; if not, the run is plain training, unless it was forced.
        wrong: the estimated share of wrong labels, from the most confident predictions of networks that have not seen them.
        accuracy: of these networks on the given labels of examples that they have not seen, in [0, 1].
        trusted: number of trusted examples that were used.
        trusted_accuracy: of these networks on trusted examples that they were not fitted on; None without any.
        classes: C.
        examples: number of training examples.
        max_irreducible_loss: the gate, in nats; ``math.inf`` for plain training.
        left_out: share of the training examples above the gate, in [0, 1].
        calibration: for each tenth of confidence, predictions, mean confidence and accuracy.
        fits: the validations of the fits.
        notes: what could not be used, and why, in sentences.
        seconds: how long it took.
    """

    helps: bool
    wrong: WrongShare
    accuracy: float
    trusted: int
    trusted_accuracy: float | None
    classes: int
    examples: int
    max_irreducible_loss: float
    left_out: float
    calibration: tuple[tuple[int, float, float], ...] = field(repr=False)
    fits: tuple[Round, ...] = field(repr=False)
    notes: tuple[str, ...]
    seconds: float

    @property
    def recipe(self) -> str:
        """``"filtered uniform"`` or ``"plain training"``."""
        return "plain training" if self.max_irreducible_loss == math.inf else "filtered uniform"

    def __str__(self) -> str:
        return "\n".join(textwrap.fill(" ".join(part), 100) for part in ([*self.notes], self._sentences()) if part)

    def _sentences(self) -> list[str]:
        wrong = self.wrong
        if not self.fits:
            return ["This is plain training."]
        found = (
            f"Small networks, fitted in {self.seconds:.1f} s, agree with {self.accuracy:.1%} of the labels of {self.examples:,} "
            f"examples that they have not seen. About {wrong.share:.0%} of the labels are wrong "
            f"({wrong.low:.0%} to {wrong.high:.0%})."
        )
        if not self.helps:
            if wrong.low >= WORTH:
                why = "The networks know too little of the task to tell which"
            elif wrong.high < 2 * WORTH:
                why = "That is too few for selection to help"
            else:
                why = "That is too uncertain for selection to be safe"
            if self.recipe == "plain training":
                return [found, f"{why}: this is plain training."]
            found = f"{found} {why}. But force=True was passed."
        kept = (
            f"examples with an irreducible loss above {self.max_irreducible_loss:.2f}, {self.left_out:.0%} of all, are left out"
        )
        return [found, f"So {kept}, and the others are trained on as usual. A step costs as much as before."]

    def table(self) -> list[dict[str, Any]]:
        """The validations of the fits, a row each."""
        return [each._asdict() for each in self.fits]

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the fits and how often the networks agree with the labels; see ``Report.plot``."""
        from rholoss.rehearsal.plots import draw

        return draw(self, optional(path_of, path, "path"))

    def to_json(self) -> dict[str, Any]:
        """JSON values, from which ``of_json`` makes the same rehearsal."""
        limit = None if self.max_irreducible_loss == math.inf else self.max_irreducible_loss
        return {**asdict(self), "max_irreducible_loss": limit}

    @classmethod
    def of_json(cls, values: dict[str, Any]) -> Rehearsal:
        limit = values["max_irreducible_loss"]
        made = cls(**{**values, "max_irreducible_loss": math.inf if limit is None else limit})
        fits, bins = tuple(Round(*each) for each in values["fits"]), tuple(tuple(row) for row in values["calibration"])
        return replace(made, wrong=WrongShare(*values["wrong"]), fits=fits, calibration=bins, notes=tuple(values["notes"]))


def wrong_share(counts: CalibrationCounts, trusted: tuple[float, int] | None = None) -> WrongShare:
    """The share of wrong labels, from predictions of models that have not seen them.

    Right labels agree with a model's most confident predictions, so labels that do not are wrong. If the agreement still rises
    towards the most confident ones, the model is not confident enough, and as much again counts as doubt.

    Args:
        counts: of the predictions.
        trusted: accuracy on trusted labels, and of how many; where the model does no better there than on the given labels, few
            of these are wrong.

    References:
        Patrini et al., "Making Deep Neural Networks Robust to Label Noise: A Loss Correction Approach", CVPR 2017, equation 12,
        for noise read from the most confident predictions.
    """
    if not counts.bins.any():
        return WrongShare(0.0, 0.0, 1.0)
    n, agreeing = counts.most_confident(TOP)
    more, agreeing_more = counts.most_confident(MORE)
    agreement = agreeing / n
    rise = max(0.0, agreement - agreeing_more / more)
    error = SURE * math.sqrt(max(agreement * (1 - agreement), 1 / n) / n)
    share = max(0.0, 1 - agreement - rise)
    low, high = max(0.0, share - error), min(1.0, 1 - agreement + error)
    if trusted is not None:
        accuracy, count = trusted
        by_chance = (1 - accuracy) / max(counts.classes - 1, 1)
        known = (accuracy - counts.accuracy) / max(accuracy - by_chance, 1e-6)
        doubt = SURE * math.sqrt(max(accuracy * (1 - accuracy), 1 / count) / count)
        most = max(0.0, known + doubt)
        share, low, high = min(share, most), min(low, most), min(high, most)
    return WrongShare(share, low, high)


def strength(accuracy: float, wrong: float, frequent: float) -> float:
    """How far a model is from a guess of the most frequent class, 0, to perfect, 1, by its accuracy where some labels are wrong.

    Args:
        accuracy: on these labels.
        wrong: the share of them that is wrong, so that a perfect model has an accuracy of 1 - wrong.
        frequent: the share of the most frequent class among them.
    """
    return (accuracy - frequent) / max(1 - wrong - frequent, 0.05)


def gate(wrong: float, classes: int) -> float:
    """The irreducible loss above which an example is left out, in nats; at least the chance level log(C).

    At the gate a label is wrong with probability 1/3: one wrong label harms as much as two lost right ones. With a share w of
    wrong labels, evenly over the other classes, a calibrated model of the given labels gives a label of clean probability p the
    probability (1 - w) p + w (1 - p) / (C - 1). The first part is of right labels.

    References:
        Liu and Tao, "Classification with Noisy Labels by Importance Reweighting", IEEE TPAMI 2016, for this posterior.
    """
    right, other = 1 - wrong, wrong / (classes - 1)
    given = 3 * other * right / (right + 2 * other)
    return math.log(classes) if given <= 0 else max(math.log(classes), -math.log(given))
