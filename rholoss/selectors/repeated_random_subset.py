"""Repeated random subsets: another random part of the dataset in each epoch."""

import torch
from torch import Tensor

from rholoss.registry import register
from rholoss.selectors.epoch_pruning import EpochPruningSelector


@register("repeated_random_subset")
class RepeatedRandomSubsetSelector(EpochPruningSelector):
    """Trains, in each epoch, on a random part of the dataset, the share ``keep`` of what the loader may draw.

    The parts of two epochs have nothing to do with each other: the paper's variant with replacement. Costs nothing, and needs no
    model; an epoch is shorter. From plain training of as many steps it differs in the order alone.

    References:
        Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning", ICLR 2024.
    """

    def choose_subset(self, epoch: int, generator: torch.Generator) -> Tensor:
        drawable = self.drawable()
        chosen = torch.randperm(len(drawable), generator=generator)[: max(1, round(self.share * len(drawable)))]
        subset = torch.zeros_like(self.subset)
        subset[drawable[chosen]] = True
        return subset
