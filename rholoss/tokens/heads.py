"""``loss=`` hooks for models with logits at every token: one loss per sequence."""

from torch import Tensor

from rholoss.tokens.functional import sequence_loss, token_losses


def causal_loss(logits: Tensor, labels: Tensor, *, normalise: bool = True) -> Tensor:
    """The loss of every sequence under a causal language model: logits at position t predict token t + 1.

    Pad on the right: with padding on the left, a model that counts positions from the start of a row would read them differently.

    Args:
        logits: shape (n, T, V), floating, not shifted.
        labels: shape (n, T), integer, not shifted; -100 for tokens that do not count, such as padding and prompts.
        normalise: True for the mean over the tokens that count, False for their sum; see ``sequence_loss``.

    Returns:
        Shape (n,), in nats, float32 (float64 for such logits); 0 for a sequence without tokens that count.

    Raises:
        ValueError: the shapes do not match.

    Examples:
        >>> import torch
        >>> logits, labels = torch.zeros(2, 4, 8), torch.tensor([[5, 6, 7, 1], [5, 6, -100, -100]])
        >>> causal_loss(logits, labels)
        tensor([2.0794, 2.0794])
        >>> causal_loss(logits, labels, normalise=False)
        tensor([6.2383, 2.0794])
    """
    return sequence_loss(*token_losses(logits, labels), normalise=normalise)


def tagging_loss(logits: Tensor, labels: Tensor, *, normalise: bool = True) -> Tensor:
    """The loss of every sequence under a model whose logits at position t belong to the label at position t.

    For token classification, masked language models, and decoders whose labels are shifted already. A token without a tag or a
    mask has the label -100. With ``normalise`` this is the default loss. Arguments, result and errors: see ``causal_loss``.

    Examples:
        >>> import torch
        >>> tagging_loss(torch.zeros(2, 3, 8), torch.tensor([[-100, 2, 1], [-100, -100, -100]]), normalise=False)
        tensor([4.1589, 0.0000])
    """
    return sequence_loss(*token_losses(logits, labels, shift=False), normalise=normalise)
