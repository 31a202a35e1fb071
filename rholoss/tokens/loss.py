"""The loss of a training loop that trains on selected tokens only, and the reference losses that it needs.

With the model's loss l of a token, the reference model's loss r, and the fraction k to keep, it is

    loss = sum of l over S / |S|,  S = the fraction k of all valid tokens with the highest l - r.

With several micro-batches in a step, or W processes that average their gradients, each selects from its own tokens and divides by
``RhoTokenLoss.num_tokens``: all selected tokens of the step, divided by W. The gradient is that of one batch of these tokens.

References:
    Lin et al., "Rho-1: Not All Tokens Are What You Need", NeurIPS 2024, section 2.2.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rholoss.arguments import LARGEST, flag, model_of, whole
from rholoss.distributed import rank_and_size
from rholoss.scoring import Forward, Scorer, Task
from rholoss.tokens import functional
from rholoss.tokens.functional import Per


def reference_losses(
    model: Any,
    batch: Any,
    *,
    forward: Forward | None = None,
    shift: bool = True,
    ignore_index: int = -100,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The reference model's loss of every token, in nats, shape (n, T), without gradients and side effects.

    The model runs in eval mode. In packed rows, a document's first value is not valid: pass ``document_ids`` to the loss.

    Args:
        model: the reference model, trained on high-quality data, with the vocabulary of the model in training.
        batch: the argument of ``forward``, moved to the model's device.
        forward: ``(model, batch) -> (logits, labels)``; None for ``rholoss.scoring.default_forward``.
        shift: see ``token_losses``.
        ignore_index: see ``token_losses``.
        dtype: autocast dtype; None for the model's own precision.
    """
    model_of(model, "model")
    shift, ignore_index = _how(shift, ignore_index)
    scorer = Scorer(Task.of(forward=forward, dtype=dtype))

    def losses(logits: Any, labels: Any, _: int) -> Tensor:
        return functional.token_losses(logits, labels, shift=shift, ignore_index=ignore_index)[0]

    return scorer.run(model, batch, 0, losses)  # the number of sequences matters for chunks only


def _how(shift: bool, ignore_index: int) -> tuple[bool, int]:
    return flag(shift, "shift"), whole(ignore_index, "ignore_index", "a whole number", -LARGEST)


class RhoTokenLoss:
    """The mean cross-entropy of the selected tokens; call ``backward`` on it instead of the loss of all tokens.

    With ``keep=1`` it equals ``F.cross_entropy`` of the float32 logits and the labels shifted by one to the left, bit for bit.
    Other arguments: see ``select_tokens`` and ``token_losses``.

    Args:
        keep: fraction of the valid tokens to train on, in (0, 1]; the paper keeps 0.6 to 0.7.

    Attributes:
        selected: which tokens the latest call selected, shape (n, T), bool; None before the first.

    Examples:
        >>> criterion = RhoTokenLoss(keep=0.5)
        >>> logits, labels = torch.zeros(2, 5, 8, requires_grad=True), torch.ones(2, 5, dtype=torch.int64)
        >>> criterion(logits, labels, reference_loss=torch.zeros(2, 5)).backward()
        >>> criterion.selected.sum().item()
        4
    """

    def __init__(self, keep: float = 0.6, *, per: Per = "batch", shift: bool = True, ignore_index: int = -100) -> None:
        self.keep, self.per = functional.checked(keep, per)
        self.shift, self.ignore_index = _how(shift, ignore_index)
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
        """The losses of the selected tokens, summed and divided by ``num_tokens``; 0, with a gradient of 0, if none is valid.

        ``reference_loss``: in nats, shape (n, T), at each token's own position; any value at tokens that are not valid.
        ``num_tokens``: None for the number selected here; ``RhoTokenLoss.num_tokens`` of the whole step for accumulation and
        several processes; 1 for the sum. Other arguments: see ``token_losses``.

        Raises:
            ValueError: see ``select_tokens``; on an accelerator the loss is NaN instead.
        """
        if isinstance(num_tokens, (int, float)) and not num_tokens > 0:
            raise ValueError(f"num_tokens must be a number of tokens above 0, got {num_tokens!r}; see RhoTokenLoss.num_tokens")
        mask = self._mask(labels, document_ids)
        log_p = functional.log_probabilities(logits, labels)
        losses = functional.losses_of(log_p.detach(), labels, mask, self.shift, self.ignore_index)
        self.selected = functional.select_tokens(losses, reference_loss, mask, self.keep, per=self.per)
        targets = functional.targets_of(labels, self.selected, self.shift, self.ignore_index)
        total = F.nll_loss(log_p, targets, reduction="sum", ignore_index=self.ignore_index)
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
        """How many tokens the micro-batches of a step will select, at least 1, from the labels alone; a scalar.

        Args:
            labels: of each micro-batch, or of a single one; with ``distributed``, on the device of the collectives.
            document_ids: of each micro-batch, if any.
            distributed: sum over all ranks of ``torch.distributed``, which all call this, and divide by the number of ranks, as
                DDP and FSDP average gradients.
        """
        labels = [labels] if isinstance(labels, Tensor) else list(labels)
        given = [document_ids] if isinstance(document_ids, Tensor) else document_ids
        ids: list[Tensor | None] = [None] * len(labels) if given is None else list(given)
        if not labels or len(ids) != len(labels):
            got = f"{len(labels)} and {len(ids)}"
            raise ValueError(f"expected labels of at least one micro-batch, and document_ids of all or none, got {got}")
        masks = [self._mask(each, of) for each, of in zip(labels, ids, strict=True)]
        total = torch.stack([functional.how_many(mask, self.keep, self.per).sum() for mask in masks]).sum()
        ranks = 1
        if distributed:
            _, ranks = rank_and_size()
            torch.distributed.all_reduce(total)
        return total.clamp(min=1) / ranks

    def _mask(self, labels: Tensor, document_ids: Tensor | None) -> Tensor:
        return functional.token_mask(labels, shift=self.shift, ignore_index=self.ignore_index, document_ids=document_ids)
