"""Trackers for ``SelectionLog.every``: the numbers of a run in TensorBoard, W&B, MLflow, Trackio, or a framework's own log."""

import importlib
import re
from collections.abc import Callable
from typing import Any

from rholoss.arguments import shown

Track = Callable[[dict[str, float], int], None]


def tensorboard(writer: Any) -> Track:
    """A tracker that writes to TensorBoard.

    Args:
        writer: a ``torch.utils.tensorboard.SummaryWriter``, or another writer with ``add_scalar``.

    Examples:
        With a log of a selector::

            log.every(50, trackers.tensorboard(SummaryWriter("runs/rho")))
    """
    add_scalar = _method(writer, "add_scalar", "writer", "a SummaryWriter")

    def track(metrics: dict[str, float], step: int) -> None:
        for name, value in metrics.items():
            add_scalar(name, value, step)

    return track


def wandb(run: Any = None) -> Track:
    """A tracker that logs to Weights & Biases, with an x-axis of its own, ``rholoss/step``.

    It never moves W&B's step: it cannot be in the way of the steps that your loop logs.

    Args:
        run: what ``wandb.init`` returned; None for the run in progress.
    """
    run = _package("wandb").run if run is None else run
    if run is None:
        raise ValueError("there is no W&B run in progress; call wandb.init first, or pass what it returned as run=")
    log, held = _method(run, "log", "run", "what wandb.init returned"), -1
    run.define_metric("rholoss/*", step_metric="rholoss/step")

    def track(metrics: dict[str, float], step: int) -> None:
        nonlocal held
        if run.step == held:  # nothing was logged since, and W&B's row of a step keeps the latest values only
            log({}, commit=True)
        log({**metrics, "rholoss/step": step}, commit=False)  # in the row that the loop logs next
        held = run.step

    return track


def mlflow(run_id: str | None = None) -> Track:
    """A tracker that logs metrics to MLflow; characters that MLflow does not take in a name become ``_``.

    Args:
        run_id: the run; None for the active one, or a new one.
    """
    package = _package("mlflow")

    def track(metrics: dict[str, float], step: int) -> None:
        named = {re.sub(r"[^\w\-. :/]", "_", name): value for name, value in metrics.items()}
        package.log_metrics(named, step=step, run_id=run_id)

    return track


def trackio(run: Any = None) -> Track:
    """A tracker that logs to Trackio.

    Args:
        run: what ``trackio.init`` returned; None for the run in progress.
    """
    log = _package("trackio").log if run is None else _method(run, "log", "run", "what trackio.init returned")
    return lambda metrics, step: log(metrics, step=step)


def accelerate(accelerator: Any) -> Track:
    """A tracker that logs to all trackers of an ``Accelerator``.

    Args:
        accelerator: an ``Accelerator(log_with=...)``; call its ``init_trackers`` before the first report.
    """
    log = _method(accelerator, "log", "accelerator", "an Accelerator")
    return lambda metrics, step: log(metrics, step=step)


def transformers(trainer: Any) -> Track:
    """A tracker that adds to the log of a transformers ``Trainer``, and so to all that it reports to, at its ``global_step``.

    Args:
        trainer: the ``Trainer``; in ``make_selector``, ``self``.
    """
    _method(trainer, "log", "trainer", "a Trainer of transformers")
    return lambda metrics, step: trainer.log(dict(metrics))


def lightning(trainer: Any) -> Track:
    """A tracker that logs to all loggers of a Lightning ``Trainer``, or of a ``Fabric``; of a ``Trainer`` at its ``global_step``.

    Args:
        trainer: the ``Trainer``, or the ``Fabric``.
    """
    if not hasattr(trainer, "loggers"):
        raise TypeError(f"trainer must be a Trainer of Lightning, or a Fabric, got {shown(trainer)}")

    def track(metrics: dict[str, float], step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, getattr(trainer, "global_step", step))

    return track


def _method(owner: Any, name: str, argument: str, expected: str) -> Callable[..., Any]:
    found = getattr(owner, name, None)
    if isinstance(owner, type) or not callable(found):
        raise TypeError(f"{argument} must be {expected}, got {shown(owner)}")
    return found


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        what = f"trackers.{name} needs {name}, which is not installed"
        raise ImportError(f"{what}; run: pip install {name}, or pip install 'rholoss[trackers]' for all of them") from None
