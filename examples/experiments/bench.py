"""Performs runs, keeping the task, the irreducible losses and the plans at hand from one to the next."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import rholoss
from experiments.comparing import Comparison
from experiments.loop import Look, clock_for, train
from experiments.measures import Evaluation, Tally
from experiments.methods import build_method
from experiments.planned import Plans
from experiments.references import Reference, make_reference
from experiments.setups import Irreducible, Setup, described, located, row_id
from experiments.tasks import Task, load_task, make_model
from rholoss import scoring
from rholoss.irreducible.models import describe


class Bench:
    """Where runs are performed.

    Args:
        root: the folder of the data.
        device: where to train.
    """

    def __init__(self, root: Path, device: str = "cpu") -> None:
        self.root = root
        self.device = torch.device(device)
        self._asked: str | None = None  # the task at hand
        self._task: Task | None = None
        self._test: Evaluation | None = None
        self._references: dict[str, Reference] = {}
        self._plans = Plans()

    def run(self, setup: Setup, seed: int, look: Look = lambda step, metric: None) -> dict[str, Any]:
        """One run's row, but for what it is called."""
        task, test = self._load(setup, seed)
        reference = self._reference(setup.irreducible, task, test, seed)
        compared = {name: self._reference(how, task, test, seed) for name, how in setup.compared.items()}
        torch.manual_seed(seed)
        model = make_model(setup.model, task, **located(setup.model_options, self.root)).to(self.device).train()
        method = build_method(setup, task, model, reference, seed, self.root, self._plans)
        tally = Tally(task.flags, len(task.train))
        comparison = Comparison(compared, reference, method.irreducible_model, task, seed, self.device) if compared else None

        def measure(model: nn.Module) -> float:
            if comparison is not None:
                comparison.look(model)
            return test(model)

        torch.manual_seed(seed)
        curve = train(setup, model, method, tally, measure, look, clock_for(self.device))
        return {
            "id": row_id(setup, seed),
            "seed": seed,
            "setup": described(setup),
            "metric": task.metric,
            "evaluations": vars(curve),
            "final": curve.metric[-1],
            "examples_trained": tally.trained,
            "examples_scored": method.forward.count,
            "seconds": curve.seconds[-1],
            "seconds_before": round(method.seconds + (reference.seconds if reference else 0.0), 3),
            "seconds_are": "of the CPU" if self.device.type == "cpu" else "by the clock",
            "selected": _rounded(tally.shares()),
            "in_data": _rounded({name: float(flag.float().mean()) for name, flag in task.flags.items()}),
            "already_right": round(tally.right / tally.trained, 5),
            "repeated": round(tally.repeated / tally.trained, 5),
            "overlap": tally.overlap(),
            "irreducible": _about(reference),
            "rank_correlation": comparison.curves if comparison else None,
            "examples": [len(task.train), len(task.holdout or ()), len(task.validation), len(task.test)],
            "weights": describe(model)["digest"],
            "versions": versions(),
        }

    def _load(self, setup: Setup, seed: int) -> tuple[Task, Evaluation]:
        asked = json.dumps([setup.task, dict(setup.task_options), seed], sort_keys=True)
        if self._asked != asked or self._task is None or self._test is None:
            self._references.clear()
            self._plans.clear()
            self._asked = None
            self._task = load_task(setup.task, self.root, seed=seed, **setup.task_options)
            self._test = Evaluation(self._task.test, self._task.metric)
            self._asked = asked
        return self._task, self._test

    def _reference(self, how: Irreducible | None, task: Task, test: Evaluation, seed: int) -> Reference | None:
        if how is None:
            return None
        key = json.dumps(asdict(how), sort_keys=True)
        if key not in self._references:
            self._references[key] = make_reference(how, task, seed, test, self.root, self.device)
        return self._references[key]


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {
        "rholoss": rholoss.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} thread(s)",
        "images_at_once": str(scoring.IMAGES_AT_ONCE),  # of scoring passes, which decides on the last bits of losses
    }


def _about(reference: Reference | None) -> dict[str, Any] | None:
    if reference is None:
        return None
    losses = reference.store.losses
    return {
        "seconds": round(reference.seconds, 3),
        "metric": round(reference.metric, 6),
        "parameters": reference.parameters,
        "mean": round(float(losses.double().mean()), 4),
    }


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(share, 5) for name, share in shares.items()}
