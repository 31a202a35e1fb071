"""How alike two ways of ranking are: rank correlations of approximations with what they approximate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from experiments.measures import spearman
from experiments.references import Reference
from experiments.tasks import Task
from rholoss.batches import move
from rholoss.scoring import Scorer

PROBES = 1000  # training examples on which rankings are compared


class Comparison:
    """Compares, during a run, what approximations rank highest with what a co-trained irreducible-loss model ranks highest.

    The co-trained model is the one that the paper's derivation asks for: it has seen all that the model in training has.

    Args:
        references: the approximations.
        fixed: irreducible losses of the same model, left as it was.
        along: the irreducible-loss model that is co-trained on the selected batches.
        task: the data.
        seed: of the choice of training examples.
        device: where the models are.

    Attributes:
        curves: for each approximation, its rank correlation at each look.
    """

    def __init__(
        self,
        references: Mapping[str, Reference],
        fixed: Reference,
        along: nn.Module,
        task: Task,
        seed: int,
        device: torch.device,
    ) -> None:
        index = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(seed + 90_000))[:PROBES]
        self.batch = move(next(iter(DataLoader(Subset(task.train, index.tolist()), batch_size=PROBES))), device)
        self.n = len(index)
        self.scorer = Scorer()
        self.losses = {"not co-trained": fixed.store[index]} | {name: ref.store[index] for name, ref in references.items()}
        self.along = along
        names = [*self.losses, "loss alone", "irreducible loss alone"]
        self.curves: dict[str, list[float]] = {name: [] for name in names}

    def look(self, model: nn.Module) -> None:
        """Compare the rankings as the models are now."""
        loss, along = self._loss(model), self._loss(self.along)
        rankings = {name: loss - irreducible for name, irreducible in self.losses.items()}
        rankings |= {"loss alone": loss, "irreducible loss alone": -self.losses["not co-trained"]}
        for name, ranking in rankings.items():
            self.curves[name].append(round(spearman(loss - along, ranking), 4))

    def _loss(self, model: Any) -> Tensor:
        def losses(outputs: Any, targets: Any, n: int) -> Tensor:
            return self.scorer.losses(outputs, targets, n)

        return self.scorer.run(model, self.batch, self.n, losses).cpu()
