"""Rank correlation with ties: one way to compute it, for stores and for methods alike."""

import torch
from torch import Tensor


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two score vectors, in [-1, 1], a scalar, float64; equal values share their mean rank.

    NaN where it is not defined: one of the two is constant, or has fewer than 2 values.

    Args:
        a: shape (n,), without NaN; infinities are ranks like others.
        b: likewise.

    Examples:
        >>> spearman(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.1, 5.0, 5.0])).item()
        1.0

    References:
        Spearman, "The Proof and Measurement of Association between Two Things", 1904.
    """
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"scores must be one per candidate, twice shape (n,), got {tuple(a.shape)} and {tuple(b.shape)}")
    return correlations([ranks(a), ranks(b)])[0, 1]


def ranks(values: Tensor) -> Tensor:
    """Ranks from 1 in ascending order, of equal values the mean of theirs, shape (n,), float64.

    NaN is an error on the CPU; on an accelerator, where looking would wait for it, all ranks are NaN then.
    """
    values = (values.long() if values.dtype == torch.bool else values).contiguous()
    bad = values.isnan().any()
    if values.device.type == "cpu" and bool(bad):
        raise ValueError(f"NaN has no rank: {int(values.isnan().sum())} of {len(values)} scores are NaN")
    ordered = values.sort().values
    below, upto = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return torch.where(bad, torch.nan, (below + upto + 1) / 2)


def correlations(ranked: list[Tensor]) -> Tensor:
    """Correlation of each two of M vectors of shape (n,): shape (M, M), float64; NaN where one of the two is constant."""
    centred = torch.stack([one - one.mean() for one in ranked])
    norms = centred.norm(dim=1)
    return (centred @ centred.T / (norms[:, None] * norms)).clamp(-1, 1)
