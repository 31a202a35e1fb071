"""A second model that learns along on what the first one is trained on."""

from typing import Any

import torch
from torch import nn

from rholoss.batches import move
from rholoss.candidates import Candidates
from rholoss.isolation import device_of, fork_rng
from rholoss.scoring import Scorer
from rholoss.selection import Selection
from rholoss.selector import Selector


class CoTrainedModel:
    """A model that may take a step on every selected batch, with the selector's forward and loss.

    Args:
        model: the model.
        optimizer: its optimizer; None leaves the model as it is.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
        self.model = model
        self.optimizer = optimizer

    def step(self, candidates: Candidates, batch: Any, n: int, scorer: Scorer) -> None:
        """Train on a batch of n examples, each module in the mode it is in; what is drawn comes from the selector's generator."""
        if self.optimizer is None:
            return
        device = device_of(self.model)
        seed = int(torch.randint(2**62, (), generator=candidates.generator))
        with torch.enable_grad(), fork_rng(device, seed), scorer.autocast(device):
            outputs, targets = scorer.task.forward(self.model, move(batch, device or candidates.device))
            losses = scorer.losses(outputs, targets, n)
            self.optimizer.zero_grad()
            losses.mean().backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

    def state(self) -> dict[str, Any]:
        """Weights and the optimizer's state; nothing of a model that does not learn."""
        if self.optimizer is None:
            return {}
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        if self.optimizer is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])


class CoTrainingSelector(Selector):
    """The ground of selectors with a learner, which takes a step on each selected batch and is a part of the state."""

    _learner: CoTrainedModel

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        self._learner.step(candidates, batch, len(selection.index), self.scorer)

    def extra_state(self) -> dict[str, Any]:
        return self._learner.state()

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self._learner.load(state)
