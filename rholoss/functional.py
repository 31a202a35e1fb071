"""The formulas of all methods: pure functions of tensors. The methods in ``rholoss.selectors`` name their papers.

Shapes: n_B candidates, of which n_b are kept; C classes; K forward passes with dropout. Higher scores are kept.
"""

import math

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

    The score of a target that is improbable for both models stays near 0, however high its loss becomes.
    """
    return torch.exp(-irreducible_loss) - torch.exp(-loss)


def gated(score: Tensor, irreducible_loss: Tensor, highest: float) -> Tensor:
    """The score, or -inf where the irreducible loss is above ``highest``, shape (n_B,)."""
    return torch.where(irreducible_loss > highest, -torch.inf, score)


def gradient_norm(logits: Tensor, targets: Tensor) -> Tensor:
    """L2 norm of the cross-entropy's gradient with respect to the logits, ||softmax(z) - onehot(y)||, shape (n_B,).

    Up to a constant, an upper bound on the norm of the gradient with respect to all weights, for logits z of shape (n_B, C) and
    classes y of shape (n_B,), int64.
    """
    check_logits(logits, 2)
    if targets.shape != logits.shape[:1]:
        raise ValueError(f"targets must be one class per example, shape ({len(logits)},), got {tuple(targets.shape)}")
    return (logits.float().softmax(-1) - _onehot(targets, logits.shape[-1])).norm(dim=-1)


def _onehot(targets: Tensor, C: int) -> Tensor:
    try:
        return F.one_hot(targets.long(), C)
    except RuntimeError as error:
        got = f"{int(targets.long().min())} to {int(targets.long().max())}"
        raise ValueError(f"targets must be classes from 0 on, below {C}, as the logits have {C}, got {got}") from error


def predictive_entropy(logits: Tensor) -> Tensor:
    """Entropy of the mean prediction, H[mean_k p_k], of logits (K, n_B, C): shape (n_B,), in nats."""
    check_logits(logits, 3)
    return torch.special.entr(logits.float().softmax(-1).mean(0)).sum(-1)


def conditional_entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the predictions, mean_k H[p_k], of logits (K, n_B, C): shape (n_B,), in nats."""
    check_logits(logits, 3)
    return torch.special.entr(logits.float().softmax(-1)).sum(-1).mean(0)


def bald(logits: Tensor) -> Tensor:
    """Mutual information of prediction and weights, H[mean_k p_k] - mean_k H[p_k], of logits (K, n_B, C): (n_B,), in nats."""
    return predictive_entropy(logits) - conditional_entropy(logits)


def least_confidence(logits: Tensor) -> Tensor:
    """One minus the largest class probability, of logits (n_B, C): shape (n_B,)."""
    check_logits(logits, 2)
    return 1 - logits.float().softmax(-1).amax(-1)


def top(score: Tensor, n_b: int) -> Tensor:
    """Positions of the n_b highest scores, shape (n_b,), int64, ascending; among equal scores the earlier position."""
    if n_b >= len(score):
        return torch.arange(len(score), device=score.device)
    return torch.argsort(score, descending=True, stable=True)[:n_b].sort().values


def gumbel(uniform: Tensor) -> Tensor:
    """Standard Gumbel noise from uniform numbers in [0, 1)."""
    tiny = torch.finfo(uniform.dtype).tiny
    exponential = -torch.log(uniform.clamp(min=tiny))
    return -torch.log(exponential.clamp(min=tiny))


def drawn(log_weight: Tensor, uniform: Tensor, n_b: int) -> Tensor:
    """Positions drawn without replacement in proportion to exp(log_weight), shape (n_b,), int64, ascending.

    Both inputs have shape (n_B,). A weight of -inf is drawn last; ``uniform`` are numbers in [0, 1).
    """
    return top(log_weight + gumbel(uniform), n_b)


def importance_sample(score: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw positions with replacement, with probability p_i in proportion to the score, and weights for an unbiased mean loss.

    Scores (n_B,) are at least 0; if all are 0 the draw is uniform. ``uniform`` are n_b numbers in [0, 1). Returns positions
    (n_b,), int64, ascending, each as often as drawn; and weights 1 / (n_B p_i), shape (n_b,).
    """
    n_B = len(score)
    mass = score.double().clamp(min=0)
    mass = torch.where(mass.sum() > 0, mass, torch.ones_like(mass))
    p = mass / mass.sum()
    positions = torch.searchsorted(p.cumsum(0), uniform.double(), right=True).clamp(max=n_B - 1).sort().values
    return positions, (1 / (n_B * p[positions])).to(score.dtype)


def overlap(positions: Tensor, others: Tensor) -> Tensor:
    """Fraction of distinct ``positions`` (n_b,) that are among distinct ``others`` (m,), int64: a scalar in [0, 1]."""
    return torch.isin(positions, others, assume_unique=True).float().mean()


def check_logits(logits: Tensor, ndim: int) -> None:
    """Refuse what is not logits of shape (n_B, C), or (K, n_B, C)."""
    if not isinstance(logits, Tensor) or logits.ndim != ndim:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        expected = "(n_B, C)" if ndim == 2 else "(K, n_B, C)"
        raise ValueError(f"logits must have shape {expected}, got {got}; this method needs the logits of a classifier as outputs")


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Rank correlation of two score vectors, in [-1, 1], a scalar, float64; equal values share their mean rank.

    NaN if one of the two, each of shape (n,), is constant or has fewer than 2 values. Infinities are allowed, NaN is not.

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
    """Ascending ranks from 1, (n,) float64; equal values share their mean rank. NaN is an error, or all NaN on an accelerator."""
    values = (values.long() if values.dtype == torch.bool else values).contiguous()
    bad = values.isnan().any()
    if values.device.type == "cpu" and bool(bad):
        raise ValueError(f"NaN has no rank: {int(values.isnan().sum())} of {len(values)} scores are NaN")
    ordered = values.sort().values
    below, upto = (torch.searchsorted(ordered, values, right=right).double() for right in (False, True))
    return torch.where(bad, torch.nan, (below + upto + 1) / 2)


def correlations(ranked: list[Tensor]) -> Tensor:
    """Correlations of M vectors of shape (n,): shape (M, M), float64; NaN where one of the two is constant."""
    centred = torch.stack([one - one.mean() for one in ranked])
    norms = centred.norm(dim=1)
    return (centred @ centred.T / (norms[:, None] * norms)).clamp(-1, 1)


_SPANNED = 1e-10  # fraction of a squared length that counts as rounding
_AS_GOOD = 0.999999  # fraction of the best gain that counts as equal: with one direction left, gains differ by rounding only


def percentile(loss: Tensor, history: Tensor) -> Tensor:
    """Fraction of a history (R,) that is no higher than each loss, shape (n_B,), in [0, 1]; NaN for a loss that is not finite."""
    upto = torch.searchsorted(history.sort().values, loss, right=True)
    return torch.where(loss.isfinite(), upto.to(loss.dtype) / len(history), torch.nan)


def percentile_rank(loss: Tensor) -> Tensor:
    """(Ascending rank - 1/2) / n_B of each loss, shape (n_B,), in (0, 1); NaN for a loss that is not finite.

    References:
        The MosaicML team, "Composer", 2021: its Selective-Backprop.
    """
    middle = (ranks(loss.nan_to_num()) - 0.5) / len(loss)
    return torch.where(loss.isfinite(), middle.to(loss.dtype), torch.nan)


def log_rank_probability(score: Tensor, pressure: float) -> Tensor:
    """Unnormalised log-probability of each score's rank, log P(rank j) = -j log(pressure) / n_B + const, shape (n_B,).

    The highest score has rank 1; equal scores share their mean rank. The highest is about ``pressure`` (at least 1) times as
    probable as the lowest.
    """
    return (-ranks(-score) * math.log(pressure) / len(score)).to(score.dtype)


def gram(logits: Tensor, targets: Tensor, features: Tensor | None = None) -> Tensor:
    """Inner products of the cross-entropy's gradients with respect to the last layer's weights, shape (n_B, n_B), float64.

    K_ij = <p_i - y_i, p_j - y_j> <h_i, h_j>, with p = softmax(z) of logits z (n_B, C), classes y (n_B,), int64, and the last
    layer's inputs h (n_B, d). Without these features the second factor is 1: the gradients with respect to the logits.
    """
    check_logits(logits, 2)
    error = logits.double().softmax(-1) - _onehot(targets, logits.shape[-1])
    if features is None:
        return error @ error.T
    if features.ndim != 2 or len(features) != len(logits):
        raise ValueError(f"features must be one vector per example, shape ({len(logits)}, d), got {tuple(features.shape)}")
    return (error @ error.T) * (features.double() @ features.double().T)


def divbs_order(gram: Tensor, n_b: int) -> Tensor:
    """The order in which DivBS picks, shape (n_B,): n_b for the first one, n_b - 1 for the second and so on, 0 for the others.

    Each pick has the highest |<e, r>|, and is the earliest among equal ones. Here e is the normalised part of a candidate's
    gradient g orthogonal to the gradients picked before, and r the part of the mean gradient orthogonal to them. Picking stops
    after n_b picks, or when all products are 0. ``gram`` are the inner products of the gradients, shape (n_B, n_B), float64.
    """
    length = gram.diagonal()  # <g, g>
    left = length.clone()  # the squared length of the part of g orthogonal to the picked
    along = gram.mean(1)  # <g, r>
    least = (_SPANNED * gram.mean()).clamp(min=0)  # <mean, mean>
    basis = gram.new_zeros(len(gram), n_b)  # <g, e> for each e so far
    order = gram.new_zeros(len(gram))
    for t in range(n_b):
        gain = along.square() / left.clamp(min=torch.finfo(gram.dtype).tiny)
        gain = gain.where((left > _SPANNED * length) & (gain > least) & (order == 0), 0)
        best = (gain >= _AS_GOOD * gain.max()).byte().argmax(keepdim=True)
        picked = gain[best] > 0  # a tensor: no synchronization
        scale = torch.where(picked, left[best], torch.inf).rsqrt()
        onto = (gram[best] - basis[best] @ basis.T)[0] * scale
        along, left = along - along[best] * scale * onto, left - onto.square()
        basis[:, t] = onto
        order = order.index_put((best,), torch.where(picked, float(n_b - t), order[best]))
    return order


def infobatch_part(losses: Tensor, kept: float, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Which examples InfoBatch keeps for an epoch, shape (N,), bool, and the weights of their losses, shape (N,).

    Each example with a loss below the mean is kept with probability ``kept`` = 1 - r, in (0, 1], and weight 1 / kept, all others
    with weight 1. A loss is NaN if the example was never trained on; ``uniform`` are numbers in [0, 1), shape (N,).
    """
    low = losses < losses.nanmean()
    return ~low | (uniform < kept), torch.where(low, 1 / kept, 1.0)


def kakurenbo_part(losses: Tensor, hide: float, bound: float) -> Tensor:
    """Which examples KAKURENBO trains on in an epoch, shape (N,), bool; the others are hidden.

    Hidden are the ``hide`` N examples, ``hide`` in [0, 1], with the lowest losses, except those with a loss above ``bound`` or of
    NaN. The paper's exception, anything but a correct prediction with a confidence of at least tau, is for the cross-entropy and
    tau above 0.5 the same as a loss above -ln(tau).
    """
    lowest = losses.argsort(stable=True)[: round(hide * len(losses))]  # NaN comes last
    part = torch.ones_like(losses, dtype=torch.bool)
    part[lowest] = ~(losses[lowest] <= bound)  # true of NaN
    return part


def sigmoid_pair_losses(firsts: Tensor, seconds: Tensor, scale: Tensor | float = 1.0, bias: Tensor | float = 0.0) -> Tensor:
    """Sigmoid loss of each pair, -log sigmoid(z_ij (scale <x_i, y_j> + bias)), shape (n_B, n_B), in nats; z_ii is 1, others -1.

    ``firsts`` are embeddings x, such as those of images, and ``seconds`` embeddings y, such as those of texts, each (n_B, d).

    References:
        Zhai et al., "Sigmoid Loss for Language Image Pre-Training", ICCV 2023.
    """
    sign = 2 * torch.eye(len(firsts), device=firsts.device) - 1
    return -F.logsigmoid(sign * (scale * (firsts.float() @ seconds.float().T) + bias))


def jest_choice(pair_scores: Tensor, n_b: int, chunks: int, uniform: Tensor) -> Tensor:
    """Positions of a batch drawn jointly, chunk by chunk, without replacement: shape (n_b,), int64, ascending.

    Each of the ``chunks``, at least 1, is drawn in proportion to exp(s_ii + the sum of s_ij + s_ji over the j drawn before). Here
    s are the ``pair_scores``: the model's loss of each pair minus that of the reference model, shape (n_B, n_B). ``uniform`` are
    numbers in [0, 1), shape (chunks, n_B).
    """
    chunks = min(chunks, n_b)
    own, both = pair_scores.diagonal(), pair_scores + pair_scores.T
    before = torch.zeros_like(own)  # 1 for those drawn before
    chosen: list[Tensor] = []
    for chunk in range(chunks):
        size = n_b // chunks + (chunk < n_b % chunks)
        together = (own + both @ before).where(before == 0, -torch.inf)
        chosen.append(drawn(together, uniform[chunk], size))
        before = before.index_fill(0, chosen[-1], 1)
    return torch.cat(chosen).sort().values
