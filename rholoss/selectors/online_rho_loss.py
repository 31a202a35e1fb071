"""RHO-LOSS with an irreducible-loss model that scores online, without a store."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import model_of, optional
from rholoss.candidates import Candidates
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.co_training import CoTrainingSelector, optimizer_of


@register("online_rho_loss")
class OnlineRhoLossSelector(CoTrainingSelector):
    """Keeps the examples with the highest reducible loss, and computes irreducible losses in each step, in eval mode.

    Costs a forward pass of the irreducible-loss model per candidate. With augmentation, both losses are those of the same view.
    Other arguments: see ``Selector``; ``mode`` is that of the model in training only.

    Args:
        irreducible_model: the irreducible-loss model, trained on the holdout.
        irreducible_optimizer: an optimizer that co-trains the irreducible-loss model on the selected batches; the authors use a
            hundredth of the model's learning rate. None leaves the model as it is.

    References:
        Mindermann et al., ICML 2022, section 3, before the approximation of a fixed irreducible-loss model.
    """

    def __init__(
        self,
        loader: Any,
        model: Any,
        irreducible_model: nn.Module,
        *,
        irreducible_optimizer: torch.optim.Optimizer | None = None,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, **options)
        self.irreducible_model = self.co_trained = model_of(irreducible_model, "irreducible_model")
        self.co_optimizer = optional(optimizer_of, irreducible_optimizer, "irreducible_optimizer")

    def score(self, candidates: Candidates) -> Tensor:
        irreducible_loss = candidates.under(self.irreducible_model, mode="eval").loss
        return functional.reducible_loss(candidates.loss, to_device(irreducible_loss, candidates.device))
