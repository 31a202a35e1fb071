"""RHO-LOSS for the tokens of a language model: train on the tokens with the highest loss minus reference loss (Rho-1).

Start with ``RhoTokenLoss``, the loss of a training loop, and ``reference_losses``, a reference model's losses of a batch, or
``ReferenceLossCache``, its losses of a dataset on disk. ``causal_loss`` and ``tagging_loss`` are for whole sequences.
"""

from rholoss.tokens.cache import ReferenceLossCache as ReferenceLossCache
from rholoss.tokens.functional import (
    select_tokens as select_tokens,
    sequence_loss as sequence_loss,
    token_losses as token_losses,
    token_mask as token_mask,
)
from rholoss.tokens.heads import causal_loss as causal_loss, tagging_loss as tagging_loss
from rholoss.tokens.loss import RhoTokenLoss as RhoTokenLoss, reference_losses as reference_losses
