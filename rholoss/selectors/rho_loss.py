"""RHO-LOSS: the method the library exists for."""

from torch import Tensor

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.registry import register
from rholoss.selectors.needs_store import StoreSelector


@register("rho_loss")
class RhoLossSelector(StoreSelector):
    """Keeps the examples with the highest reducible loss: learnable, worth learning, and not yet learnt.

    A noisy example has a high irreducible loss, one that is learnt has a low loss, and one not worth learning has a low loss as
    well or a high irreducible loss: all three score low. Train on the plain mean loss of what is yielded; the bias is intended.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        store: irreducible losses of the loader's dataset.
        **options: see ``Selector``.

    Raises:
        ValueError: the store is another dataset's, or lacks an example that may be drawn.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss import IrreducibleLossStore, RhoLossSelector
        >>> data = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
        >>> model, il_model = torch.nn.Linear(5, 3), torch.nn.Linear(5, 3)
        >>> store = IrreducibleLossStore.from_model(il_model, data)
        >>> loader = RhoLossSelector(DataLoader(data, batch_size=8, shuffle=True), model, store, keep=0.25)
        >>> [len(y) for x, y in loader]
        [8, 8]

    References:
        Mindermann et al., "Prioritized Training on Points that are Learnable, Worth Learning, and not yet Learnt", ICML 2022,
        equation 3.
    """

    def score(self, candidates: Candidates) -> Tensor:
        return functional.reducible_loss(candidates.loss, self.irreducible_loss(candidates))
