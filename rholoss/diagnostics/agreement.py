"""How far methods agree on the same candidates: overlap of their choices, and rank correlation of their scores."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rholoss.functional import correlations, ranks
from rholoss.selection import Selection


def rank_correlations(selections: Mapping[str, Selection]) -> Tensor:
    """Spearman rank correlations of the scores of M methods on the same candidates, shape (M, M), float64; see ``spearman``."""
    return correlations([ranks(selection.scores) for selection in selections.values()])


def overlaps(selections: Mapping[str, Selection]) -> Tensor:
    """Overlaps of the choices of M methods from the same candidates, shape (M, M), float64.

    Row i, column j: the fraction of method i's choice that method j chose too; n_b / n_B on average for uniform sampling.
    """
    n_B = max(len(selection.scores) for selection in selections.values())
    counts = torch.stack([_times_chosen(selection, n_B) for selection in selections.values()])
    return counts @ (counts > 0).double().T / counts.sum(1, keepdim=True)


def _times_chosen(selection: Selection, n_B: int) -> Tensor:
    """How often each candidate was chosen, shape (n_B,), float64."""
    ones = torch.ones_like(selection.positions, dtype=torch.float64)
    return ones.new_zeros(n_B).index_add_(0, selection.positions, ones)  # bincount would synchronize an accelerator
