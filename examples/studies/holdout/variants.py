"""What the study compares: kinds of irreducible losses, what is done with them, and the data with their noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

N_B = 32  # examples in a selected batch
KEEP = 0.1  # so a candidate batch has 320
CLASSES = 10
CHANCE_LEVEL = math.log(CLASSES)  # nats; the loss of a model that gives every class the same probability


@dataclass(frozen=True)
class Recipe:
    """How irreducible losses are computed: by cross-fitting, or with a holdout.

    Attributes:
        folds: of cross-fitting; 0: with a holdout.
        labels: of the holdout: ``"given"``, as noisy as the training labels, or ``"true"``.
        holdout: size of the holdout, as a share of the training data.
        models: how many are fitted; their mean loss counts.
        hidden: hidden units; 0: a linear model.
        dropout: of the hidden layer.
        smoothing: label smoothing.
        temperature: divides the logits when the examples are scored.
        epochs: at most.
        patience: epochs without a lower validation loss before fitting stops.
        last_weights: keep the weights of the last epoch, rather than those of the lowest validation loss.
    """

    folds: int = 2
    labels: str = "given"
    holdout: float = 1 / 6
    models: int = 2
    hidden: int = 256
    dropout: float = 0.5
    smoothing: float = 0.0
    temperature: float = 1.0
    epochs: int = 30
    patience: int | None = 2
    last_weights: bool = False


@dataclass(frozen=True)
class Variant:
    """A row of the tables: which irreducible losses, and what is done with them.

    Attributes:
        recipe: name of the recipe of the irreducible losses; None: uniform sampling.
        gate: never select an example with an irreducible loss above this, in nats; None: no gate.
        bounded: score in probability rather than in loss.
        lr: learning rate.
        select: False: train on uniform batches of what passes the gate.
    """

    recipe: str | None = None
    gate: float | None = None
    bounded: bool = False
    lr: float = 1e-3
    select: bool = True


CROSS_FIT = Recipe()
HOLDOUT = Recipe(folds=0, epochs=60, patience=4)
RECIPES = {
    "clean holdout": replace(HOLDOUT, labels="true"),
    "dirty holdout": HOLDOUT,
    "cross-fit": CROSS_FIT,
    "cross-fit, 1 model": replace(CROSS_FIT, models=1),
    "cross-fit, 4 models": replace(CROSS_FIT, models=4),
    "cross-fit, 1 model, 5 folds": replace(CROSS_FIT, folds=5, models=1),
    "cross-fit, 1 model, no dropout": replace(CROSS_FIT, models=1, dropout=0.0),
    "cross-fit, 1 model, label smoothing 0.1": replace(CROSS_FIT, models=1, smoothing=0.1),
    "cross-fit, 1 model, no dropout, last weights of 20 epochs": replace(
        CROSS_FIT, models=1, dropout=0.0, last_weights=True, epochs=20
    ),
    "cross-fit, temperature 0.5": replace(CROSS_FIT, temperature=0.5),
    "weak: linear, 1 % as holdout": replace(HOLDOUT, hidden=0, holdout=0.01, epochs=3),
}

# The variants of the main tables, and those of the further tables.
MAIN = {
    "uniform": Variant(),
    "uniform, lr 3e-4": Variant(lr=3e-4),
    "clean holdout": Variant("clean holdout"),
    "dirty holdout": Variant("dirty holdout"),
    "dirty holdout, gate": Variant("dirty holdout", gate=CHANCE_LEVEL),
    "cross-fit": Variant("cross-fit"),
    "cross-fit, bounded": Variant("cross-fit", bounded=True),
    "cross-fit, gate": Variant("cross-fit", gate=CHANCE_LEVEL),
    "cross-fit, gate, bounded": Variant("cross-fit", gate=CHANCE_LEVEL, bounded=True),
    "cross-fit, lr 3e-4": Variant("cross-fit", lr=3e-4),
    "cross-fit, gate, lr 3e-4": Variant("cross-fit", gate=CHANCE_LEVEL, lr=3e-4),
    "cross-fit, gate, bounded, lr 3e-4": Variant("cross-fit", gate=CHANCE_LEVEL, bounded=True, lr=3e-4),
    "cross-fit, gate, no selection": Variant("cross-fit", gate=CHANCE_LEVEL, select=False),
}
MORE = {
    f"{name}, gate, bounded": Variant(name, gate=CHANCE_LEVEL, bounded=True) for name in RECIPES if name.startswith("cross-fit,")
}
MORE |= {
    "cross-fit, gate at 1.6, bounded": Variant("cross-fit", gate=1.6, bounded=True),
    "cross-fit, gate at 3.0, bounded": Variant("cross-fit", gate=3.0, bounded=True),
    "weak: linear, 1 % as holdout": Variant("weak: linear, 1 % as holdout"),
    "weak: linear, 1 % as holdout, gate, bounded": Variant("weak: linear, 1 % as holdout", gate=CHANCE_LEVEL, bounded=True),
}

# A cell is a data set with one kind of noise. The noisiest have all variants, the others have those of EVERYWHERE.
Cell = tuple[str, str]
CELLS: list[Cell] = [("Fashion-MNIST", noise) for noise in ("0", "0.1", "0.3")]
CELLS += [("CIFAR-10", noise) for noise in ("aggre", "random1", "worse")]
NOISIEST: list[Cell] = [("Fashion-MNIST", "0.3"), ("CIFAR-10", "worse")]
EVERYWHERE = ["uniform", "uniform, lr 3e-4", "dirty holdout", "cross-fit", "cross-fit, gate", "cross-fit, gate, bounded"]
EVERYWHERE += ["cross-fit, gate, bounded, lr 3e-4"]


def variants_of(cell: Cell) -> tuple[dict[str, Variant], dict[str, Variant]]:
    """The variants that run in a cell: of the main tables, and of the further tables."""
    if cell in NOISIEST:
        return MAIN, MORE
    return {name: MAIN[name] for name in MAIN if name in EVERYWHERE}, {}
