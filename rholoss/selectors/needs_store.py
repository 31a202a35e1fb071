"""The ground of every method that looks irreducible losses up."""

from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.options import Options
from rholoss.selector import Selector
from rholoss.store import IrreducibleLossStore, refuse_not_finite


class StoreSelector(Selector):
    """A selector with a store, checked against the loader when the two first meet.

    Args:
        loader: see ``Selector``.
        model: see ``Selector``.
        store: irreducible losses of the loader's dataset.
        **options: see ``Selector``.

    Raises:
        ValueError: the store is another dataset's, or lacks the irreducible loss of an example that may be drawn; the message
            says which.
    """

    def __init__(self, loader: Any, model: Any, store: IrreducibleLossStore, **options: Unpack[Options]) -> None:
        if not isinstance(store, IrreducibleLossStore):
            raise TypeError(
                f"expected store to be an IrreducibleLossStore, got {type(store).__name__}; make one with "
                "IrreducibleLossStore.from_model(il_model, dataset), .load(path), or of losses by index"
            )
        super().__init__(loader, model, **options)
        store.refuse_gaps(self._source.drawable(), self._source.dataset_length)
        self.store = store

    def irreducible_loss(self, candidates: Candidates) -> Tensor:
        """The irreducible loss of each candidate, shape (n_B,), float32, in nats."""
        self.store = self.store.to(candidates.index.device)
        losses = self.store[candidates.index]
        if losses.device.type == "cpu":  # elsewhere looking would stall the queue, and the check of the score follows
            refuse_not_finite(losses, candidates.index)
        return losses
