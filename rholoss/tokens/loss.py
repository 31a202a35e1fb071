"""The loss of a training loop that trains on selected tokens only, and the reference losses that it needs.

With l the model's loss of a token, r that of the reference model, and k the share to keep, it is

    loss = sum of l over S / |S|,  S = the k of all valid tokens with the highest l - r.

Where a step is made of several micro-batches, or runs on W processes that average their gradients, each selects from its own
tokens, and each divides by the same number, ``RhoTokenLoss.num_tokens``: the tokens selected in all of them, divided by W. The
gradient is then the one of a single batch of these selected tokens.

References:
    Lin et al., "Rho-1: Not All Tokens Are What You Need", NeurIPS 2024, section 2.2.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rholoss.distributed import rank_and_size
from rholoss.scoring import Forward, Scorer, Task
from rholoss.tokens.functional import (
    Per,
    checked,
    how_many,
    log_probabilities,
    losses_of,
    select_tokens,
    targets_of,
    token_losses,
    token_mask,
)


def reference_losses(
    model: Any,
    batch: Any,
    *,
    forward: Forward | None = None,
    shift: bool = True,
    ignore_index: int = -100,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The reference model's loss of every token, in nats, shape (n, T), without a gradient and without a trace in the model.

    The model runs in eval mode; its modes and all random state are left as they were. Of packed rows, what this says of a
    document's first token is not valid, and not read where the same ``document_ids`` go into the loss.

    Args:
        model: the reference model, trained on data of the kind that is wanted; it has the vocabulary of the model in training.
        batch: what ``forward`` takes; it is moved to the model's device.
        forward: ``(model, batch) -> (logits, labels)``; None for ``rholoss.scoring.default_forward``.
        shift: see ``token_losses``, as is
        ignore_index: this.
        dtype: autocast dtype; None for the model's own precision.
    """
    scorer = Scorer(Task.of(forward=forward, dtype=dtype))

    def losses(logits: Any, labels: Any, _: int) -> Tensor:
        return token_losses(logits, labels, shift=shift, ignore_index=ignore_index)[0]

    return scorer.run(model, batch, 0, losses)  # how many sequences there are is read for chunks only


class RhoTokenLoss:
    """The mean cross-entropy of the selected tokens: what to call ``backward`` on in place of the loss of all tokens.

    With ``keep=1`` it is ``F.cross_entropy`` of the same logits in float32 with the labels moved one to the left, bit for bit.

    Args:
        keep: share of the valid tokens to train on, in (0, 1]; the paper keeps 0.6 to 0.7.
        per: see ``select_tokens``.
        shift: see ``token_losses``, as is
        ignore_index: this.

    Attributes:
        selected: which tokens the latest call selected, shape (n, T), bool; None before.

    Examples:
        >>> criterion = RhoTokenLoss(keep=0.5)
        >>> logits, labels = torch.zeros(2, 5, 8, requires_grad=True), torch.ones(2, 5, dtype=torch.int64)
        >>> criterion(logits, labels, reference_loss=torch.zeros(2, 5)).backward()
        >>> criterion.selected.sum().item()
        4
    """

    def __init__(self, keep: float = 0.6, *, per: Per = "batch", shift: bool = True, ignore_index: int = -100) -> None:
        self.keep, self.per = checked(keep, per)
        self.shift = shift
        self.ignore_index = ignore_index
        self.selected: Tensor | None = None

    def __call__(
        self,
        logits: Tensor,
        labels: Tensor,
        reference_loss: Tensor,
        *,
        document_ids: Tensor | None = None,
        num_tokens: Tensor | float | None = None,
    ) -> Tensor:
        """The losses of the selected tokens, summed and divided by ``num_tokens``; 0, with a gradient of 0, where none is valid.

        Args:
            logits: see ``token_losses``.
            labels: see ``token_losses``.
            document_ids: see ``token_losses``.
            reference_loss: in nats, shape (n, T), each at its token's own position; 0 or anything else where not valid.
            num_tokens: what to divide by: None for the number selected here; for accumulation and for several processes what
                ``num_tokens`` says of the whole step; 1 for the sum.

        Raises:
            ValueError: see ``select_tokens``; on an accelerator, where looking would wait for it, the loss is NaN instead.
        """
        if isinstance(num_tokens, (int, float)) and not num_tokens > 0:
            raise ValueError(f"num_tokens must be a number of tokens above 0, got {num_tokens!r}; see RhoTokenLoss.num_tokens")
        mask = token_mask(labels, shift=self.shift, ignore_index=self.ignore_index, document_ids=document_ids)
        log_p = log_probabilities(logits, labels)
        losses = losses_of(log_p.detach(), labels, mask, self.shift, self.ignore_index)
        self.selected = select_tokens(losses, reference_loss, mask, self.keep, per=self.per)
        total = F.nll_loss(
            log_p,
            targets_of(labels, self.selected, self.shift, self.ignore_index),
            reduction="sum",
            ignore_index=self.ignore_index,
        )
        if total.device.type != "cpu":
            total = total + (losses - reference_loss.detach()).masked_fill(~mask, 0).mul(0).sum()  # 0, or NaN
        return total / (self.selected.sum().clamp(min=1) if num_tokens is None else num_tokens)

    def num_tokens(
        self,
        labels: Tensor | Iterable[Tensor],
        document_ids: Tensor | Iterable[Tensor] | None = None,
        *,
        distributed: bool = False,
    ) -> Tensor:
        """How many tokens will be selected in the micro-batches of a step, at least 1; labels alone say that. A scalar.

        Args:
            labels: those of each micro-batch, or of a single one; with ``distributed`` on the device that the processes share
                values on.
            document_ids: those of each micro-batch, if they have any.
            distributed: count those of all ranks of ``torch.distributed``, which all call this, and divide by how many ranks
                there are, since DDP and FSDP average gradients over them.
        """
        labels = [labels] if isinstance(labels, Tensor) else list(labels)
        given = [document_ids] if isinstance(document_ids, Tensor) else document_ids
        ids: list[Tensor | None] = [None] * len(labels) if given is None else list(given)
        if not labels or len(ids) != len(labels):
            raise ValueError(
                f"expected labels of at least one micro-batch, and document_ids of all or none, got {len(labels)} and {len(ids)}"
            )
        masks = [
            token_mask(each, shift=self.shift, ignore_index=self.ignore_index, document_ids=of)
            for each, of in zip(labels, ids, strict=True)
        ]
        total = torch.stack([how_many(mask, self.keep, self.per).sum() for mask in masks]).sum()
        ranks = 1
        if distributed:
            _, ranks = rank_and_size()
            torch.distributed.all_reduce(total)
        return total.clamp(min=1) / ranks
