"""Repeated random subsets: a new random subset of the dataset in each epoch."""

import torch
from torch import Tensor

from rholoss.registry import register
from rholoss.selectors.epoch_pruning import EpochPruningSelector


@register("repeated_random_subset")
class RepeatedRandomSubsetSelector(EpochPruningSelector):
    """Trains on a random subset in each epoch: the fraction ``keep`` of the examples that the loader may draw.

    The subsets of two epochs are independent: the paper's variant with replacement. No model is needed, and an epoch is shorter.
    It differs from plain training for as many steps in the order of the examples only. Arguments: see ``EpochPruningSelector``.

    References:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024.
    """

    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        drawable = self.drawable()
        chosen = torch.randperm(len(drawable), generator=generator)[: max(1, round(self.share * len(drawable)))]
        subset = torch.zeros_like(self.subset)
        subset[drawable[chosen]] = True
        return subset
