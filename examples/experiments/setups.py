"""What one training run is: a setup and a seed say all that there is to say, and their digest names the run's row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

Options = Mapping[str, Any]  # JSON values


@dataclass(frozen=True)
class Irreducible:
    """How irreducible losses are made.

    Attributes:
        kind: ``"holdout"``: by models fitted on the task's holdout; ``"cross-fit"``: by models fitted on the other folds of the
            training data.
        model: the name of the models.
        model_options: handed to ``make_model``.
        models: how many (in each fold); their mean loss is taken.
        folds: for cross-fitting.
        epochs: at most.
        patience: epochs without a lower validation loss.
        batch_size: of the fit.
        lr: of the fit.
        schedule: of the fit: ``"constant"``, or ``"one-cycle"``: up and down again.
    """

    kind: str = "holdout"
    model: str = "mlp"
    model_options: Options = field(default_factory=dict)
    models: int = 1
    folds: int = 2
    epochs: int = 60
    patience: int = 4
    batch_size: int = 128
    lr: float = 1e-3
    schedule: str = "constant"


@dataclass(frozen=True)
class Setup:
    """One training run but for its seed.

    Attributes:
        task: the data; see ``tasks.load_task``.
        task_options: handed to ``load_task``.
        model: the model in training; see ``tasks.make_model``.
        model_options: handed to ``make_model``.
        method: a selector's name, or ``"filtered_uniform"``, ``"gated_uniform"``, ``"payoff_gated"``, ``"plan"``, ``"auto"``.
        method_options: handed to ``build_selector``. The chance level, log(C), may be written ``"guess"``, a dtype
            ``"bfloat16"``, a forward pass that hands the last layer's inputs out ``"penultimate"``, and a schedule as
            ``{"schedule": "geometric", "start": 2.0, "end": 0.1}``, over all steps.
        irreducible: how the irreducible losses are made, for the methods that take them.
        irreducible_lr: learning rate of an irreducible-loss model that trains along; 0 for one that stays as it is.
        proxy: the name of a small model that scores instead, for the methods that take one.
        proxy_options: handed to ``make_model``.
        compared: other ways to make irreducible losses, whose ranking is compared with the one at hand.
        lr: learning rate.
        schedule: ``"constant"`` or ``"cosine"``, to 0 at the last step.
        weight_decay: of AdamW.
        n_b: examples in a selected batch.
        keep: share of each candidate batch that is kept; 1 for plain training.
        steps: how many.
        every: steps between evaluations; eight times as many after the first twenty.
    """

    task: str
    task_options: Options = field(default_factory=dict)
    model: str = "mlp"
    model_options: Options = field(default_factory=dict)
    method: str = "uniform"
    method_options: Options = field(default_factory=dict)
    irreducible: Irreducible | None = None
    irreducible_lr: float = 0.0
    proxy: str | None = None
    proxy_options: Options = field(default_factory=dict)
    compared: Mapping[str, Irreducible] = field(default_factory=dict)
    lr: float = 1e-3
    schedule: str = "constant"
    weight_decay: float = 0.01
    n_b: int = 32
    keep: float = 0.1
    steps: int = 1000
    every: int = 25


def located(options: Options, root: Path) -> dict[str, Any]:
    """Options of a model, with its files in the folder of the data: a setup does not say where that is."""
    return {name: root / value if name in ("path", "weights") else value for name, value in options.items()}


def described(setup: Setup) -> dict[str, Any]:
    """A setup as JSON values."""
    return json.loads(json.dumps(asdict(setup)))


def rebuilt(values: Mapping[str, Any]) -> Setup:
    """The setup that ``described`` described."""
    values = dict(values)
    if values.get("irreducible") is not None:
        values["irreducible"] = Irreducible(**values["irreducible"])
    values["compared"] = {name: Irreducible(**how) for name, how in values.get("compared", {}).items()}
    return Setup(**values)


def row_id(setup: Setup, seed: int) -> str:
    """What names a run: a digest of the seed and of all in its setup that is not as by default."""
    text = json.dumps([_particulars(setup), seed], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _particulars(value: Any) -> Any:
    """JSON values of what differs from a default, so that a field that is added later renames no row."""
    if isinstance(value, Mapping):
        return {name: _particulars(part) for name, part in value.items()}
    if not isinstance(value, (Irreducible, Setup)):
        return value
    given = {f.name: (getattr(value, f.name), _default(f)) for f in fields(value)}
    return {name: _particulars(part) for name, (part, default) in given.items() if part != default}


def _default(of: Any) -> Any:
    return of.default_factory() if of.default_factory is not MISSING else of.default
