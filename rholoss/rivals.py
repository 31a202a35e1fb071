"""The maths of the methods that RHO-LOSS is compared with: pure functions of tensors.

Shapes: n_B candidates, of which n_b are kept.
"""

import math

import torch
from torch import Tensor

from rholoss.ranking import ranks


def percentile(loss: Tensor, history: Tensor) -> Tensor:
    """Share of a history of losses that is no higher than each loss, shape (n_B,), in [0, 1]; NaN for a loss that is not finite.

    Args:
        loss: shape (n_B,).
        history: shape (R,), R at least 1.

    References:
        Jiang et al., "Accelerating Deep Learning by Focusing on the Biggest Losers", 2019.
    """
    upto = torch.searchsorted(history.sort().values, loss, right=True)
    return torch.where(loss.isfinite(), upto.to(loss.dtype) / len(history), torch.nan)


def percentile_rank(loss: Tensor) -> Tensor:
    """(Rank - 1/2) / n_B of each loss, from the lowest up, shape (n_B,), in (0, 1); NaN for a loss that is not finite.

    References:
        The MosaicML team, "Composer", 2021: its Selective-Backprop.
    """
    middle = (ranks(loss.nan_to_num()) - 0.5) / len(loss)
    return torch.where(loss.isfinite(), middle.to(loss.dtype), torch.nan)


def log_rank_probability(score: Tensor, pressure: float) -> Tensor:
    """Logarithm of what the probability of each rank is in proportion to, P(rank j) ~ 1 / exp(log(pressure) / n_B)^j.

    The highest score is of rank 1.

    Args:
        score: shape (n_B,).
        pressure: s_e, at least 1: about how many times as probable the highest is as the lowest.

    Returns:
        Shape (n_B,); equal scores share their mean rank.

    References:
        Loshchilov and Hutter, "Online Batch Selection for Faster Training of Neural Networks", 2015.
    """
    return (-ranks(-score) * math.log(pressure) / len(score)).to(score.dtype)
