"""RHO-LOSS: the method the library exists for."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import flag, number, optional
from rholoss.candidates import Candidates
from rholoss.options import SelectorOptions
from rholoss.registry import register
from rholoss.selectors.store_selector import StoreSelector
from rholoss.store import IrreducibleLossStore


class RhoLossFormula:
    """The score: loss - irreducible loss, in nats, or its bounded form; optionally gated. See ``RhoLossSelector``."""

    def __init__(self, max_irreducible_loss: float | None, bounded: bool) -> None:
        self.max_irreducible_loss = optional(checked_limit, max_irreducible_loss, "max_irreducible_loss")
        self.bounded = flag(bounded, "bounded")

    def __call__(self, loss: Tensor, irreducible_loss: Tensor, notes: dict[str, Tensor]) -> Tensor:
        """The score of candidates, shape (n_B,); the share that the gate removes is left in the notes."""
        if self.bounded:
            score = functional.bounded_reducible_loss(loss, irreducible_loss)  # exp(-irreducible loss) - exp(-loss)
        else:
            score = functional.reducible_loss(loss, irreducible_loss)  # loss - irreducible loss
        if self.max_irreducible_loss is None:
            return score
        notes["gated"] = (irreducible_loss > self.max_irreducible_loss).float().mean()
        return functional.gated(score, irreducible_loss, self.max_irreducible_loss)  # -inf above the limit


def checked_limit(limit: Any, name: str) -> float:
    """The highest irreducible loss to admit, in nats, checked."""
    return number(limit, name, "a loss in nats above 0, such as math.log(number of classes), or None", lambda nats: nats > 0)


@register("rho_loss")
class RhoLossSelector(StoreSelector):
    """Keeps the examples with the highest reducible loss, loss - irreducible loss: learnable, worth learning, not yet learned.

    A noisy example has a high irreducible loss, and an example that is already learned has a low loss: both score low. Train on
    the plain mean loss of what is yielded: the bias is intended.

    Args:
        loader: see ``Selector``.
        model: the model in training.
        store: irreducible losses of the loader's dataset.
        max_irreducible_loss: a gate, in nats: candidates with a higher irreducible loss score -inf, so they are selected only
            where fewer than n_b others are left. ``selector.last.notes["gated"]`` has their share. ``math.log(C)`` is the chance
            level of C classes. None, as in the paper: no gate.
        bounded: score in probability, exp(-irreducible loss) - exp(-loss), rather than in nats as in the paper.
        **options: see ``Selector``.

    Raises:
        ValueError: at construction, the store is another dataset's, or lacks an example that the sampler may draw.

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

    def __init__(
        self,
        loader: Any,
        model: Any,
        store: IrreducibleLossStore,
        *,
        max_irreducible_loss: float | None = None,
        bounded: bool = False,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, store, **options)
        self.formula = RhoLossFormula(max_irreducible_loss, bounded)

    def score(self, candidates: Candidates) -> Tensor:
        irreducible_loss = self.irreducible_loss(candidates)  # self.store[candidates.index], checked to be finite
        return self.formula(candidates.loss, irreducible_loss, candidates.notes)
