"""The maths of the methods: pure functions of tensors.

Shapes: n_B candidates, C classes, K stochastic forward passes. Higher scores are kept.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reducible_loss(loss: Tensor, irreducible_loss: Tensor) -> Tensor:
    """Loss minus irreducible loss, shape (n_B,), in nats.

    References:
        Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and not yet Learnt", ICML 2022,
        equation 3.
    """
    return loss - irreducible_loss


def bounded_reducible_loss(loss: Tensor, irreducible_loss: Tensor) -> Tensor:
    """Reducible loss in probability, exp(-irreducible loss) - exp(-loss), shape (n_B,), in (-1, 1) for likelihoods.

    By how much the irreducible-loss model finds the target more probable than the model does. However sure the model becomes that
    a target is wrong, the score of one that is improbable for both stays near 0.
    """
    return torch.exp(-irreducible_loss) - torch.exp(-loss)


def gated(score: Tensor, irreducible_loss: Tensor, highest: float) -> Tensor:
    """The score, and -inf where the irreducible loss is above ``highest``, shape (n_B,): these rank below all others."""
    return torch.where(irreducible_loss > highest, -torch.inf, score)


def gradient_norm(logits: Tensor, targets: Tensor) -> Tensor:
    """L2 norm of the cross-entropy's gradient with respect to the logits, ||softmax(z) - onehot(y)||, shape (n_B,).

    An upper bound, up to a constant, of the norm of the gradient with respect to all weights.

    Args:
        logits: shape (n_B, C).
        targets: classes, shape (n_B,), int64.

    References:
        Katharopoulos and Fleuret, "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", ICML 2018.
    """
    check_logits(logits, 2)
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"targets must be one class per example, shape ({len(logits)},), got {tuple(targets.shape)}")
    onehot = F.one_hot(targets.long(), logits.shape[-1])
    return (logits.float().softmax(-1) - onehot).norm(dim=-1)


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction, H[mean_k p_k], shape (n_B,), in nats.

    Args:
        logits: shape (K, n_B, C).
    """
    check_logits(logits, 3)
    return torch.special.entr(logits.float().softmax(-1).mean(0)).sum(-1)


def conditional_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, mean_k H[p_k], shape (n_B,), in nats.

    Args:
        logits: shape (K, n_B, C).
    """
    check_logits(logits, 3)
    return torch.special.entr(logits.float().softmax(-1)).sum(-1).mean(0)


def bald(logits: Tensor) -> Tensor:
    """Mutual information of prediction and weights, H[mean_k p_k] - mean_k H[p_k], shape (n_B,), in nats.

    Args:
        logits: shape (K, n_B, C).

    References:
        Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", 2011.
        Gal et al., "Deep Bayesian Active Learning with Image Data", ICML 2017.
    """
    return predictive_entropy(logits) - conditional_entropy(logits)


def least_confidence(logits: Tensor) -> Tensor:
    """One minus the largest class probability, shape (n_B,).

    Args:
        logits: shape (n_B, C).

    References:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020.
    """
    check_logits(logits, 2)
    return 1 - logits.float().softmax(-1).amax(-1)


def top(score: Tensor, n_b: int) -> Tensor:
    """Positions of the n_b highest scores, shape (n_b,), int64, ascending; among equal scores the earlier position."""
    if n_b >= len(score):
        return torch.arange(len(score), device=score.device)
    return torch.argsort(score, descending=True, stable=True)[:n_b].sort().values


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise made of numbers that are uniform in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    exponential = -torch.log(uniform.clamp(min=tiny))
    return -torch.log(exponential.clamp(min=tiny))


def drawn(log_weight: Tensor, uniform: Tensor, n_b: int) -> Tensor:
    """Positions drawn without replacement in proportion to exp(log_weight), shape (n_b,), int64, ascending.

    Args:
        log_weight: shape (n_B,); -inf where all others come first.
        uniform: numbers in [0, 1), shape (n_B,).
        n_b: how many to draw.

    References:
        Kool et al., "Stochastic Beams and Where to Find Them: The Gumbel-Top-k Trick", ICML 2019.
    """
    return top(log_weight + gumbel(uniform), n_b)


def importance_sample(score: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw positions with probability p_i in proportion to the score, with replacement, and the weights that make up for it.

    The mean over the draws of weight times loss has the plain mean loss over all candidates as its expectation.

    Args:
        score: shape (n_B,), at least 0; where all are 0 the draw is uniform.
        uniform: one number in [0, 1) per draw, shape (n_b,).

    Returns:
        Positions (n_b,), int64, ascending, an example as often as it was drawn; and weights 1 / (n_B p_i), shape (n_b,).

    References:
        Katharopoulos and Fleuret, "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", ICML 2018.
    """
    n_B = len(score)
    mass = score.double().clamp(min=0)
    mass = torch.where(mass.sum() > 0, mass, torch.ones_like(mass))
    p = mass / mass.sum()
    positions = torch.searchsorted(p.cumsum(0), uniform.double(), right=True).clamp(max=n_B - 1).sort().values
    return positions, (1 / (n_B * p[positions])).to(score.dtype)


def overlap(positions: Tensor, others: Tensor) -> Tensor:
    """Share of ``positions`` that are among ``others``, a scalar in [0, 1].

    Args:
        positions: distinct, shape (n_b,), int64.
        others: distinct, shape (m,), int64.
    """
    return torch.isin(positions, others, assume_unique=True).float().mean()


def check_logits(logits: Tensor, ndim: int) -> None:
    """Refuse what are not logits of shape (n_B, C), or (K, n_B, C)."""
    if not isinstance(logits, Tensor) or logits.ndim != ndim:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expected = "(n_B, C)" if ndim == 2 else "(K, n_B, C)"
        raise ValueError(f"logits must have shape {expected}, got {got}; this method needs the logits of a classifier as outputs")
