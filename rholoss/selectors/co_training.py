"""A second model that is co-trained on the selected batches."""

from typing import Any

import torch
from torch import nn

from rholoss.arguments import shown
from rholoss.batches import move
from rholoss.candidates import Candidates
from rholoss.isolation import device_of, fork_rng
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.states import taken


def optimizer_of(value: Any, name: str) -> torch.optim.Optimizer:
    """An optimizer that is made already."""
    if not (hasattr(value, "zero_grad") and hasattr(value, "step")) or isinstance(value, type):
        such = f"torch.optim.SGD({name.replace('optimizer', 'model')}.parameters(), lr=0.1)"
        raise TypeError(f"{name} must be an optimizer, such as {such}, got {shown(value)}")
    return value


class CoTrainingSelector(Selector):
    """Base class of selectors with a second model, which is co-trained on the selected batches and saved in the state.

    Each module of that model trains in the mode that it is in. The constructor of a subclass sets the attributes.
    """

    co_trained: nn.Module
    co_optimizer: torch.optim.Optimizer | None  # None leaves the model as it is

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        if self.co_optimizer is None:
            return
        device = device_of(self.co_trained)
        seed = int(torch.randint(2**62, (), generator=candidates.generator))
        with torch.enable_grad(), fork_rng(device, seed), self.scorer.autocast(device):
            outputs, targets = self.scorer.task.forward(self.co_trained, move(batch, device or candidates.device))
            losses = self.scorer.losses(outputs, targets, len(selection.index))
            self.co_optimizer.zero_grad()
            losses.mean().backward()
            self.co_optimizer.step()
            self.co_optimizer.zero_grad()

    def extra_state(self) -> dict[str, Any]:
        if self.co_optimizer is None:
            return {}
        return {"model": self.co_trained.state_dict(), "optimizer": self.co_optimizer.state_dict()}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.co_optimizer is not None:
            self.co_trained.load_state_dict(taken(state, "model", self.co_trained.state_dict()))
            self.co_optimizer.load_state_dict(taken(state, "optimizer", self.co_optimizer.state_dict()))
