"""A model in a mode for a block; its modes, buffers and random states are put back, and other changes are reported."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import RLock
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import nn

from rholoss.isolation.model_state import same_state
from rholoss.isolation.random_states import fork_rng
from rholoss.isolation.unwrapping import module_of, unwrapped

Mode = Literal["eval", "train", "dropout"]

_locks: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # of models, and of the wrappers around them
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_locks.clear)  # a thread that the child does not have may hold one


def _lock_of(model: nn.Module) -> Any:
    lock = _locks.get(model)
    if lock is None:
        lock = _locks[model] = _locks.setdefault(unwrapped(model), RLock())
    return lock


@contextmanager
def preserve_state(model: Any, device: torch.device | None, mode: Mode = "eval", seed: int | None = None) -> Iterator[None]:
    """Run a block under no_grad with a model in a mode, then restore modes, buffers and random states, see ``same_state``.

    Each module's own flag is set and restored, as ``model.train(...)`` would unfreeze a frozen BatchNorm. ``"train"`` keeps the
    modules' current modes; ``"dropout"`` is train mode, except for modules with running statistics. Threads that score one model
    take turns.
    """
    model = module_of(model)
    with ExitStack() as stack:
        if model is not None:
            stack.enter_context(_lock_of(model))
        modules = list(model.modules()) if model is not None else []
        flags = [(module, module.training) for module in modules]
        stack.enter_context(torch.no_grad())
        stack.enter_context(fork_rng(device, seed))
        if model is not None:
            stack.enter_context(same_state(model, modules, every_block=mode != "eval"))
        try:
            for module, was in flags:
                wanted = {"eval": False, "train": was, "dropout": not hasattr(module, "running_mean")}[mode]
                if was != wanted:
                    _set_training(module, wanted)
            yield
        finally:
            for module, was in flags:
                if module.training != was:
                    _set_training(module, was)


def _set_training(module: nn.Module, flag: bool) -> None:
    if type(module).__setattr__ is nn.Module.__setattr__ and "training" in vars(module):  # what that does, in a tenth of the time
        vars(module)["training"] = flag
    else:
        module.training = flag
