"""Token selection in the ``Trainer`` of Hugging Face transformers and in TRL's ``SFTTrainer``: a ``compute_loss_func``."""

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from rholoss.arguments import model_of
from rholoss.tokens.functional import Per, token_mask
from rholoss.tokens.loss import RhoTokenLoss, reference_losses


class SelectedTokenLoss:
    """The mean loss of the tokens that are selected with a reference model, as the ``compute_loss_func`` of a trainer.

    Trainers divide by ``num_items_in_batch``, the number of all valid tokens of an update, over its micro-batches and processes.
    Here each micro-batch selects from its own tokens, and the mean over them is weighted by its share of the valid tokens. The
    gradient is that of one large batch of the selected tokens, up to the rounding of ``keep`` in each micro-batch.

    In packed rows, a document begins where ``position_ids`` do not go up by 1; its first token is not predicted. An evaluation
    gives the ordinary loss, the mean over all valid tokens.

    Args:
        model: the model in training. A hook on it notes the inputs of its forward passes, for the reference model.
        reference: the reference model, on the device where it shall run, with the vocabulary of the model; or the name of another
            adapter of a PEFT model, trained on the good text, so that no second model is needed.
        keep: fraction of the valid tokens to train on, in (0, 1].
        per: see ``rholoss.tokens.select_tokens``.

    Attributes:
        criterion: the ``RhoTokenLoss``; its ``selected`` are the tokens that the latest micro-batch was trained on.

    Raises:
        TypeError: the model is not a module.
        ValueError: the reference is the model itself, or an adapter that it does not have.

    Examples:
        With a model, a reference model, arguments and data of your own::

            loss = SelectedTokenLoss(model, reference_model, keep=0.6)
            trainer = Trainer(model, args, train_dataset=train_set, data_collator=collate, compute_loss_func=loss)
    """

    def __init__(self, model: nn.Module, reference: Any, keep: float = 0.6, *, per: Per = "batch") -> None:
        self.criterion = RhoTokenLoss(keep, per=per)
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, the one that the trainer gets, got {type(model).__name__}")
        adapters = [*getattr(model, "peft_config", ())]
        if isinstance(reference, str) and reference not in adapters:
            raise ValueError(f"reference must be a model, or one of the model's adapters, {adapters}, got {reference!r}")
        if reference is model:
            cure = "pass a model that was trained on good text, or the name of such an adapter of a PEFT model"
            raise ValueError(f"reference must be another model: the excess of a model over itself is 0; {cure}")
        self.reference = reference if isinstance(reference, str) else model_of(reference, "reference")
        self._model = model
        self._inputs: dict[str, Any] | None = None  # of the latest forward pass
        self._hook = model.register_forward_pre_hook(self._note, with_kwargs=True)

    def _note(self, model: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        self._inputs = {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **inputs}

    def remove(self) -> None:
        """Take the hook off the model; the loss cannot be called after that."""
        self._hook.remove()

    def __call__(self, outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """The loss of a micro-batch, a scalar in nats; called by the trainer."""
        inputs, self._inputs = self._inputs, None
        if inputs is None or labels is None:
            cure = "pass the very model that the trainer calls (of PEFT, what get_peft_model returns), and batches with labels"
            raise ValueError(f"expected labels, and a forward pass of the model before each loss; {cure}")
        if isinstance(num_items_in_batch, Tensor) and num_items_in_batch.numel() != 1:
            got = f"{num_items_in_batch.numel()} counts of tokens, one for each device of DataParallel"
            raise ValueError(f"expected one process per device, got {got}; start the script with torchrun")
        logits, documents = outputs["logits"], documents_of(inputs, labels)
        criterion, reference = RhoTokenLoss(1), torch.zeros(labels.shape, device=labels.device)
        if logits.requires_grad:  # not an evaluation
            criterion, reference = self.criterion, self._reference_losses(inputs, labels).to(labels.device)
        valid = token_mask(labels, document_ids=documents).sum()
        total = valid if num_items_in_batch is None else torch.as_tensor(num_items_in_batch, device=labels.device)
        num_tokens = criterion.num_tokens(labels, documents) * total.clamp(min=1) / valid.clamp(min=1)
        return criterion(logits, labels, reference, document_ids=documents, num_tokens=num_tokens)

    def _reference_losses(self, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
        batch = {name: value for name, value in inputs.items() if name != "num_items_in_batch"} | {"labels": labels}
        reference = self._model if isinstance(self.reference, str) else self.reference
        if hasattr(getattr(reference, "config", None), "use_cache"):
            batch["use_cache"] = False  # with a cache, models of transformers attend across packed documents
        with active_adapter(reference, self.reference) if isinstance(self.reference, str) else nullcontext():
            return reference_losses(reference, batch)


def documents_of(inputs: Mapping[str, Any], labels: Tensor) -> Tensor | None:
    """The document of each position, shape (n, T), from position ids or else from the attention mask; None without either."""
    positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
    if positions is None:
        return mask
    if positions.ndim != 2:
        raise ValueError(f"position_ids must have shape (n, T) or (1, T), got {tuple(positions.shape)}; pass text only")
    begins = positions.diff(dim=1, prepend=positions[:, :1]) != 1
    return begins.cumsum(1).expand(labels.shape)


@contextmanager
def active_adapter(model: Any, name: str) -> Iterator[None]:
    """Another adapter of a PEFT model for a while; then the adapter and what is trained of the model are as before."""
    before, trained = model.active_adapter, [(weight, weight.requires_grad) for weight in model.parameters()]
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(before)
        for weight, flag in trained:
            weight.requires_grad_(flag)
