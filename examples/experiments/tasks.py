"""Tasks: data in their parts, with what is known of every training example. This is what an experiment starts from.

task = load_task("fashion-mnist", Path("data"), seed=0, noise=0.1, holdout="clean")
model = make_model("mlp", task)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset


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


def load_task(
    name: str,
    root: Path,
    *,
    seed: int = 0,
    noise: str | float = 0.0,
    holdout: str | int = "clean",
    limit: int | None = None,
    **options: Any,
) -> Task:
    """Read a data set from a folder and divide it.

    Args:
        name: one of ``task_names()``.
        root: the folder that holds a folder for each data set; see README.md beside this.
        seed: of the division and of the corruptions; the same seed makes the same task.
        noise: wrong labels among the training data: the share of them that get another class than their own, in [0, 1];
            ``"similar"`` or a share with ``similar=True`` as an option: of a similar class; on CIFAR-10 also the name of a set of
            human labels: ``"aggre"``, ``"random1"``, ``"random2"``, ``"random3"`` or ``"worse"``.
        holdout: ``"clean"``: of the published size, with the published labels; ``"dirty"``: likewise, with the same noise as the
            training data; a whole number: a clean one of so many examples, the rest of it not used; ``"none"``: what would
            be the holdout is trained on, for cross-fitting.
        limit: at most so many training examples (and so many holdout examples), for a quick look.
        **options: of this data set alone, listed in README.md.
    """
    raise NotImplementedError


def task_names() -> list[str]:
    """The data sets that can be asked for."""
    raise NotImplementedError


def make_model(name: str, task: Task, **options: Any) -> nn.Module:
    """A new model for a task, drawn from the global random state, as all PyTorch's are."""
    raise NotImplementedError


def model_names(task: Task) -> list[str]:
    """The models that fit a task's examples."""
    raise NotImplementedError
