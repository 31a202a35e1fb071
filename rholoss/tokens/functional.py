"""The formulas of token-level RHO-LOSS: pure functions of tensors.

Shapes: n sequences, T positions, V words in the vocabulary. The loss of a token is at the token's own position t, even if the
logits that predict it are at position t - 1.

References:
    Lin et al., "Rho-1: Not All Tokens Are What You Need", NeurIPS 2024, section 2.2.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rholoss.arguments import fraction, one_of

Per = Literal["batch", "sequence"]


def token_mask(labels: Tensor, *, shift: bool = True, ignore_index: int = -100, document_ids: Tensor | None = None) -> Tensor:
    """Which tokens are valid, that is, predicted and counted, shape (n, T), bool; arguments: see ``token_losses``.

    Examples:
        >>> labels = torch.tensor([[5, 6, 7, 8, -100]])
        >>> token_mask(labels, document_ids=torch.tensor([[0, 0, 1, 1, 1]]))
        tensor([[False,  True, False,  True, False]])
    """
    if not isinstance(labels, Tensor) or labels.ndim != 2 or labels.is_floating_point():
        got = f"{tuple(labels.shape)} {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be one token per position, shape (n, T), integer, got {got}; pass (1, T) for one sequence")
    if document_ids is not None:
        check_shape("document_ids", document_ids, labels, "give each position the id of its document")
    mask = labels != ignore_index
    if shift:
        mask[:, :1] = False
        if document_ids is not None:
            mask[:, 1:] &= document_ids[:, 1:] == document_ids[:, :-1]
    return mask


def token_losses(
    logits: Tensor, labels: Tensor, *, shift: bool = True, ignore_index: int = -100, document_ids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The cross-entropy of every token, in nats, 0 if it is not valid; and which tokens are valid.

    Args:
        logits: shape (n, T, V), floating; half precision is computed in float32.
        labels: the tokens, shape (n, T), integer; ``ignore_index`` for padding and tokens not to learn.
        shift: True for causal models, whose logits at position t predict token t + 1: the first token is not valid. False for
            masked models, whose logits at position t predict token t.
        ignore_index: the label that does not count.
        document_ids: for packed rows, the document of each position, shape (n, T), integer. With ``shift``, the first token of a
            document is not valid. An attention mask works too: padding on the left is then a document. The model itself has to
            keep attention within a document.

    Returns:
        Losses, shape (n, T), float32 (or float64 for such logits), and the mask, shape (n, T), bool.

    Examples:
        >>> losses, mask = token_losses(torch.zeros(1, 3, 8), torch.tensor([[5, 6, -100]]))
        >>> losses
        tensor([[0.0000, 2.0794, 0.0000]])
    """
    mask = token_mask(labels, shift=shift, ignore_index=ignore_index, document_ids=document_ids)
    return losses_of(log_probabilities(logits, labels), labels, mask, shift, ignore_index), mask


def sequence_loss(token_losses: Tensor, mask: Tensor, *, normalise: bool = True) -> Tensor:
    """The loss of every sequence, shape (n,), in nats; 0 where no token is valid.

    ``sequence_loss(*token_losses(logits, labels))`` is a ``loss=`` for selectors and stores of causal models. The mean of few
    tokens varies more, so short sequences are ranked very high or very low more often. The sum is the negative log-likelihood; it
    grows with the length, so long sequences are ranked first.

    Args:
        token_losses: shape (n, T).
        mask: which tokens are valid, shape (n, T), bool.
        normalise: True for the mean over the valid tokens, False for their sum.
    """
    check_shape("mask", mask, token_losses, "give the one that came with the losses")
    total = token_losses.where(mask, 0).sum(1)
    return total / mask.sum(1).clamp(min=1) if normalise else total


def select_tokens(loss: Tensor, reference_loss: Tensor, mask: Tensor, keep: float, *, per: Per = "batch") -> Tensor:
    """The valid tokens with the highest loss minus reference loss, shape (n, T), bool; among equal ones the earlier position.

    Args:
        loss: the model's loss of each token, in nats, shape (n, T).
        reference_loss: that of the reference model, shape (n, T); only read at valid tokens.
        mask: which tokens are valid, shape (n, T), bool.
        keep: fraction of the valid tokens to select, in (0, 1]; at least 1 token if any is valid.
        per: ``"batch"``: one ranking of all tokens, as in the paper; ``"sequence"``: one for each row.

    Raises:
        ValueError: the shapes do not match; or, checked on the CPU only, a loss of a valid token is NaN or infinite.

    Examples:
        >>> excess = torch.tensor([[1.0, 3.0, 2.0, 9.0]])
        >>> select_tokens(excess, torch.zeros(1, 4), torch.tensor([[True, True, True, False]]), keep=0.67)
        tensor([[False,  True,  True, False]])
    """
    keep, per = checked(keep, per)
    check_shape("reference_loss", reference_loss, loss, "give one value per token, at the token's own position")
    check_shape("mask", mask, loss, "give the one that came with the losses")
    excess = loss.detach().to(torch.promote_types(loss.dtype, torch.float32)) - reference_loss.detach()
    if excess.device.type == "cpu" and (bad := mask & ~excess.isfinite()).any():
        got = f"NaN or infinity for {int(bad.sum()):,} of {int(mask.sum()):,}"
        cure = "find out which of the two it is, and give the label -100 to tokens without such a loss"
        raise ValueError(f"loss minus reference_loss must be finite for valid tokens, got {got}; {cure}")
    rows = excess.masked_fill(~mask, -torch.inf).reshape(len(mask) if per == "sequence" else 1, -1)
    order = rows.argsort(dim=1, descending=True, stable=True)
    places = torch.arange(rows.shape[1], device=rows.device).expand_as(rows)
    return (torch.empty_like(order).scatter_(1, order, places) < how_many(mask, keep, per)[:, None]).view_as(mask)


def log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probabilities of checked logits, shape (n * T, V), at least float32."""
    if not isinstance(logits, Tensor) or logits.ndim != 3 or logits.shape[:2] != labels.shape or not logits.is_floating_point():
        got = f"{tuple(logits.shape)} {logits.dtype}" if isinstance(logits, Tensor) else type(logits).__name__
        shape = ", ".join(map(str, labels.shape))
        raise ValueError(f"logits must have shape ({shape}, V) for labels ({shape}), floating, got {got}; shift nothing yourself")
    return logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)


def targets_of(labels: Tensor, wanted: Tensor, shift: bool, ignore_index: int) -> Tensor:
    """The wanted tokens at the positions of the logits that predict them, shape (n * T,)."""
    targets = labels.long().masked_fill(~wanted, ignore_index)
    return (F.pad(targets[:, 1:], (0, 1), value=ignore_index) if shift else targets).flatten()


def losses_of(log_p: Tensor, labels: Tensor, mask: Tensor, shift: bool, ignore_index: int) -> Tensor:
    """The losses of the valid tokens at their own positions, shape (n, T)."""
    losses = F.nll_loss(log_p, targets_of(labels, mask, shift, ignore_index), reduction="none", ignore_index=ignore_index)
    losses = losses.view_as(labels)
    return F.pad(losses[:, :-1], (1, 0)) if shift else losses


def how_many(mask: Tensor, keep: float, per: Per) -> Tensor:
    """How many tokens to select, ``round(keep * valid)``: in all, shape (1,), or per sequence, shape (n,), int64."""
    valid = mask.reshape(len(mask) if per == "sequence" else 1, -1).sum(1)
    return (valid.double() * keep).round().long().maximum(valid.clamp(max=1))


def checked(keep: float, per: Per) -> tuple[float, Per]:
    """The options of ``select_tokens``, or a ValueError."""
    one_of(per, "per", ("batch", "sequence"))
    return fraction(keep, "keep", "the fraction of tokens to train on, in (0, 1]"), per


def check_shape(name: str, value: Any, like: Tensor, cure: str) -> None:
    """Refuse a value that is not a tensor with the shape of another."""
    if not isinstance(value, Tensor) or value.shape != like.shape:
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(f"{name} must be a tensor of shape {tuple(like.shape)}, got {got}; {cure}")
