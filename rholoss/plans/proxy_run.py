"""Recording a plan in one call: a small network trains with RHO-LOSS, and what it selects is the plan."""

from __future__ import annotations

import math
import os
import random
import re
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from rholoss.arguments import function, optional, options_of, refuse_unknown, whole
from rholoss.batches import move
from rholoss.files import StrPath, explained, open_regular, read_torch, write_torch
from rholoss.irreducible.fit import checked_optimizer, trainable
from rholoss.isolation import device_of, seeded, set_torch_states, torch_states, unwrapped
from rholoss.options import SelectorOptions
from rholoss.plans.plan import SelectionPlan
from rholoss.plans.recorder import PlanRecorder
from rholoss.progress import Progress, Reporter
from rholoss.selector import Selector
from rholoss.selectors import RhoLossSelector
from rholoss.states import described, digest
from rholoss.store import IrreducibleLossStore

_SAVE_EVERY = 200  # steps
_KEEP, _LR = 0.25, 3e-3  # those of the experiments plans-wide and plans-transfer
_STATE = "run.pt"


def record_plan(
    loader: DataLoader[Any],
    proxy: nn.Module,
    store: IrreducibleLossStore,
    *,
    steps: int,
    path: StrPath,
    max_irreducible_loss: float | Literal["chance"] | None = "chance",
    bounded: bool = False,
    optimizer: Callable[[Any], torch.optim.Optimizer] | None = None,
    weights: bool = False,
    scores: bool = False,
    progress: Progress = None,
    **options: Unpack[SelectorOptions],
) -> SelectionPlan:
    """Train a small network with RHO-LOSS and record what it selects, for every later run of any network to train on.

    After a kill, call it again with the same arguments: it resumes, and the file has the same bytes. The loader's order depends
    only on ``seed``, and random states are as before afterwards. If the plan is there already, it is returned, and the proxy is
    not trained.

    Args:
        loader: a ``DataLoader`` over the training data, a map-style dataset; its batch size is that of a step.
        proxy: the small network, a new one; it is trained.
        store: irreducible losses of the loader's dataset.
        steps: steps to record, at least 1: as many as a later run replays.
        path: the file to write.
        max_irreducible_loss: see ``RhoLossSelector``; ``"chance"``: log(C) where the store knows the number of classes C.
        bounded: see ``RhoLossSelector``.
        optimizer: makes the proxy's optimizer from its parameters; None for AdamW with a learning rate of 3e-3.
        weights: see ``PlanRecorder``.
        scores: see ``PlanRecorder``.
        progress: see ``rholoss.progress.Progress``.
        **options: see ``Selector``; ``keep`` is 0.25 if neither it nor ``batch_size`` is given.

    Raises:
        ValueError: ``path`` holds another plan, or ``path.recording`` another unfinished recording: of other data, options or
            steps, of a proxy with other layers or another optimizer. Other initial weights are a warning.
    """
    refuse_unknown(options, [*options_of(record_plan), *SelectorOptions.__annotations__], "record_plan")
    steps = whole(steps, "steps", "a number of steps to record, at least 1")
    optional(function, optimizer, "optimizer", "(parameters) -> optimizer, such as torch.optim.SGD")
    trainable(proxy, "proxy")
    if options.get("keep") is None and options.get("batch_size") is None:
        options["keep"] = _KEEP
    limit = _limit(max_irreducible_loss, store)
    selector = RhoLossSelector(loader, proxy, store, max_irreducible_loss=limit, bounded=bounded, **options)
    recorder = PlanRecorder(path, weights=weights, scores=scores).attach(selector)
    run = _ProxyRun(selector, recorder, optimizer)
    recorder.meta["proxy"], recorder.meta["optimizer"] = _layers(proxy), _described(run.optimizer)
    if os.path.exists(recorder.path):
        return _finished(recorder, steps)
    with seeded(options.get("seed", 0), device=device_of(proxy)), Reporter(progress, "step", "recording a plan") as report:
        run.resume()
        try:
            run.train(steps, report)
        except Exception:
            if not run.is_begun:
                shutil.rmtree(recorder.folder, ignore_errors=True)
            raise
    return recorder.finish()


class _ProxyRun:
    """The loop that trains the small network."""

    def __init__(self, selector: Selector, recorder: PlanRecorder, optimizer: Callable[[Any], Any] | None) -> None:
        self.selector, self.recorder, self.proxy = selector, recorder, selector.model
        self.is_begun = False  # whether the recording has a step
        make = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=_LR))
        self.optimizer = checked_optimizer(make(self.proxy.parameters()), self.proxy)
        self.file = os.path.join(recorder.folder, _STATE)

    def train(self, steps: int, report: Callable[[int, int | None], None]) -> None:
        device = device_of(self.proxy)
        task = self.selector.scorer.task
        self.proxy.train()
        empty = 0  # epochs without a step; one of them may be the rest of an epoch that was resumed
        while self.selector.step < steps:
            before = self.selector.step
            for batch in self.selector:
                outputs, targets = task.forward(self.proxy, batch if device is None else move(batch, device))
                loss = self.selector.mean_loss(task.loss(outputs, targets))
                if not loss.requires_grad:
                    what = "the proxy's loss has no gradient to train it by"
                    raise ValueError(f"{what}; run it in forward= and loss= without torch.no_grad() and detach()")
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                self.is_begun = True
                report(self.selector.step, steps)
                if self.selector.step == steps:
                    return
                if self.selector.step % _SAVE_EVERY == 0:
                    self.save()
            empty = empty + 1 if self.selector.step == before else 0
            if empty == 2:
                raise ValueError("the loader yields no batches to select from; give it more examples than a candidate batch has")

    def save(self) -> None:
        """Save everything that the next step depends on."""
        state = {
            "selector": self.selector.state_dict(),
            "recorder": self.recorder.state_dict(),
            "proxy": self.proxy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": _random_states(device_of(self.proxy)),
        }
        write_torch(self.file, state)

    def resume(self) -> None:
        """Restore the latest saved state, or save the first one."""
        if not os.path.exists(self.file):
            self.recorder.open()
            self.save()
        cure, first = f"delete {self.recorder.folder} to record again", self.recorder.meta
        with explained(self.file, "the state of a recording", cure), open_regular(self.file) as file:
            state = read_torch(file)
        self.recorder.load_state_dict(state["recorder"])
        _warn_of_other_weights(
            first, state["recorder"]["meta"], f"the recording in {self.recorder.folder} is resumed with its own"
        )
        self.selector.load_state_dict(state["selector"])
        self.is_begun = self.selector.step > 0
        self.proxy.load_state_dict(state["proxy"])
        self.optimizer.load_state_dict(state["optimizer"])
        _set_random_states(state["random"], device_of(self.proxy))


def _random_states(device: torch.device | None) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    numpy = (kind, torch.from_numpy(np.array(keys)), *rest)
    return {"python": random.getstate(), "numpy": numpy, "torch": torch_states(device)}


def _set_random_states(states: dict[str, Any], device: torch.device | None) -> None:
    kind, keys, *rest = states["numpy"]
    random.setstate(states["python"])
    np.random.set_state((kind, keys.numpy(), *rest))  # noqa: NPY002
    set_torch_states(states["torch"], device)


def _limit(limit: Any, store: IrreducibleLossStore) -> float | None:
    if limit != "chance":
        return limit
    classes = store.meta.calibration.classes if store.meta.calibration else 0
    return math.log(classes) if classes > 1 else None


def _finished(recorder: PlanRecorder, steps: int) -> SelectionPlan:
    plan = SelectionPlan.load(recorder.path)
    different = recorder.differences(plan.meta)
    if different or plan.steps != steps:
        what = f"with other {', '.join(different)}" if different else f"of {plan.steps:,} steps, not {steps:,}"
        raise ValueError(f"{recorder.path} holds a plan {what}; load it, delete it, or choose another path")
    _warn_of_other_weights(recorder.meta, plan.meta, f"the plan in {recorder.path} is returned as it is")
    return plan


def _layers(proxy: nn.Module) -> str:
    """A digest of a network's layers with their options, of the shapes of its weights, and of which are frozen."""
    module = unwrapped(proxy)
    shapes = [
        (name, described(value.dtype), tuple(value.shape), value.requires_grad) for name, value in module.named_parameters()
    ]
    return digest(re.sub(r" at 0x[0-9a-fA-F]+", "", f"{module!r} {shapes}"))


def _described(optimizer: torch.optim.Optimizer) -> str:
    """An optimizer's kind, and the options of each group of parameters."""
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    return f"{type(optimizer).__qualname__} {described(groups)}"


def _warn_of_other_weights(mine: Mapping[str, Any], its: Mapping[str, Any], so: str) -> None:
    """Warn if a recording began with other weights than this proxy has."""
    if mine["model"]["digest"] != its["model"]["digest"]:
        what = f"this proxy has other initial weights than the one that was recorded: {so}"
        warnings.warn(f"{what}; seed before you make the proxy, or delete the file to record again", stacklevel=4)
