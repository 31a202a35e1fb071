"""How far methods agree on the same candidates: shares in common, and rank correlation with ties."""

from collections.abc import Mapping

import torch
from torch import Tensor

from rholoss.functional import correlations, ranks
from rholoss.selection import Selection


def rank_correlations(selections: Mapping[str, Selection]) -> Tensor:
    """Spearman rank correlation of the scores that M methods gave the same candidates, shape (M, M), float64: ``spearman``."""
    return correlations([ranks(selection.scores) for selection in selections.values()])


def overlaps(selections: Mapping[str, Selection]) -> Tensor:
    """Shares in common of what M methods chose from the same candidates, shape (M, M), float64.

    In row i and column j: the share of what method i selected that method j selected too. By chance it is n_b / n_B.
    """
    n_B = max(len(selection.scores) for selection in selections.values())
    counts = torch.stack([_times_chosen(selection, n_B) for selection in selections.values()])
    return counts @ (counts > 0).double().T / counts.sum(1, keepdim=True)


def _times_chosen(selection: Selection, n_B: int) -> Tensor:
    """How often each candidate was chosen, shape (n_B,), float64."""
    positions = selection.positions
    return torch.zeros(n_B, dtype=torch.float64, device=positions.device).index_add_(
        0, positions, torch.ones_like(positions, dtype=torch.float64)
    )
