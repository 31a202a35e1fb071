"""RHO-LOSS with the irreducible-loss model scored online, where no table can be made beforehand."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.co_training import CoTrainedModel, CoTrainingSelector


@register("online_rho_loss")
class OnlineRhoLossSelector(CoTrainingSelector):
    """Keeps the examples with the highest reducible loss, computing irreducible losses as they are needed, in eval mode.

    Costs a forward pass of the irreducible-loss model per candidate; each example gets the irreducible loss of the view at hand,
    augmented or not.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        irreducible_model: the irreducible-loss model, trained on the holdout.
        irreducible_optimizer: an optimizer of the irreducible-loss model, to train it along on the selected batches (the authors
            use a hundredth of the model's learning rate), each module in the mode it is in; None leaves the model as it is.
        **options: see ``Selector``; ``mode`` is the model's alone.

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
        self.irreducible_model = irreducible_model
        self._learner = CoTrainedModel(irreducible_model, irreducible_optimizer)

    def score(self, candidates: Candidates) -> Tensor:
        irreducible_loss = candidates.under(self.irreducible_model, mode="eval").loss
        return functional.reducible_loss(candidates.loss, irreducible_loss.to(candidates.device))
