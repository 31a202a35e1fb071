"""The maths of the methods that RHO-LOSS is compared with: pure functions of tensors.

Shapes: n_B candidates, of which n_b are kept.
"""

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
