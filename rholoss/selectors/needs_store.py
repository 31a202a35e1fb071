"""The ground of every method that looks irreducible losses up."""

import warnings
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.fingerprint import difference, fingerprint
from rholoss.ids import some
from rholoss.indexing import IndexedBatches
from rholoss.models import named
from rholoss.options import Options
from rholoss.scoring import Loss, default_loss
from rholoss.selector import Selector
from rholoss.store import IrreducibleLossStore

_CHUNK = 1 << 20  # indices that are looked up at a time


class StoreSelector(Selector):
    """A selector with a store, checked against the loader when the two first meet.

    Args:
        loader: see ``Selector``.
        model: see ``Selector``.
        store: irreducible losses of the loader's dataset.
        **options: see ``Selector``.

    Raises:
        ValueError: the store is another dataset's, also the same dataset's in another order or with other labels, or lacks the
            irreducible loss of an example that may be drawn; the message says which.
    """

    needs_all = True  # whether every example that may be drawn has to have an irreducible loss

    def __init__(self, loader: Any, model: Any, store: IrreducibleLossStore, **options: Unpack[Options]) -> None:
        if not isinstance(store, IrreducibleLossStore):
            raise TypeError(
                f"expected store to be an IrreducibleLossStore, got {type(store).__name__}; make one with "
                "IrreducibleLossStore.from_model(il_model, dataset), .load(path), or of losses by index"
            )
        super().__init__(loader, model, **options)
        refuse_gaps(store, self._source.drawable() if self.needs_all else None, self._source.dataset_length)
        refuse_other_data(store, loader)
        if model is not None:
            warn_of_other_loss(store, self._scorer.loss)
        self.store = store

    def irreducible_loss(self, candidates: Candidates) -> Tensor:
        """The irreducible loss of each candidate, shape (n_B,), float32, in nats."""
        losses = self.look_up(candidates)
        # Elsewhere than on the CPU looking would stall the queue, and the check of the score follows.
        if losses.device.type == "cpu" and not bool(torch.isfinite(losses).all()):
            names = self.loader.names(candidates.batch) if isinstance(self.loader, IndexedBatches) else None
            refuse_not_finite(losses, candidates.loader_index.cpu(), names)
        return losses.to(candidates.device, non_blocking=True)

    def look_up(self, candidates: Candidates) -> Tensor:
        """What the store holds of each candidate, shape (n_B,), float32, in nats, where the store is; NaN for the unknown."""
        if self.store.is_mapped:  # stays on the disk; looked up by the index as the loader gave it, which is on the CPU
            return self.store[candidates.loader_index.cpu()]
        self.store = self.store.to(candidates.index.device)
        return self.store[candidates.index]


def refuse_gaps(store: IrreducibleLossStore, index: Tensor | None, dataset_length: int | None) -> None:
    """Check that a store knows every example that may be drawn from a dataset.

    Args:
        store: the store.
        index: the indices that may be drawn, int64; None where only drawing tells.
        dataset_length: N, or None where it is not known.

    Raises:
        ValueError: the lengths differ, or an irreducible loss is missing, NaN or infinite; the message names how many and which.
    """
    if store.ids is None and dataset_length is not None and dataset_length != len(store):
        raise ValueError(
            f"this store holds the irreducible losses of {len(store):,} examples, but the loader's dataset has "
            f"{dataset_length:,}: it was made for another dataset. Make it from the dataset that the loader reads, with "
            "IrreducibleLossStore.from_model(il_model, dataset). (A torch Subset numbers its examples anew; a rholoss.Part keeps "
            "their numbers.)"
        )
    if index is not None:
        unknown = [part[~torch.isfinite(store[part.to(store.device)]).to(part.device)] for part in index.split(_CHUNK)]
        _refuse(torch.cat(unknown) if unknown else index[:0], len(index))


def refuse_other_data(store: IrreducibleLossStore, data: Any) -> None:
    """Check that data are those that a store was made of, by the fingerprint that it keeps.

    Args:
        store: the store; nothing is checked where it has no fingerprint.
        data: a map-style dataset or a loader over one; nothing is checked of other data.

    Raises:
        ValueError: they have another length, other labels or another order.
    """
    saved = store.meta.get("data")
    now = fingerprint(data) if saved else None
    how = difference(saved, now) if saved and now else None
    if how:
        raise ValueError(
            f"this store was made from other data than the loader reads: {how}. Make the store anew from this dataset; if its "
            "examples are the same, in the same order, and only their transform is another, pass store.belongs_to(dataset)"
        )


def warn_of_other_loss(store: IrreducibleLossStore, loss: Loss) -> None:
    """Warn where a store says that it was made with a loss of another name than the one that is to be compared with it."""
    made, mine = store.meta.get("loss"), "default_loss" if loss is default_loss else named(loss)
    if made not in (None, mine):
        warnings.warn(
            f"this store was made with the loss {made!r}, and the selector scores with {mine!r}: their difference means nothing "
            "unless the two are the same; pass one loss= to both",
            stacklevel=4,
        )


def refuse_not_finite(losses: Tensor, index: Tensor, names: list[Any] | None = None) -> None:
    """Raise a ValueError that names the examples without a finite irreducible loss, if there are any.

    Args:
        losses: shape (n,).
        index: the index of each, shape (n,), int64.
        names: what each is called by the data, where they have names.
    """
    finite = torch.isfinite(losses).to(index.device)
    if not bool(finite.all()):
        _refuse(index[~finite], len(index), names and [names[i] for i in torch.nonzero(~finite).flatten().tolist()])


def _refuse(unknown: Tensor, n: int, names: list[Any] | None = None) -> None:
    if len(unknown):
        raise ValueError(
            f"{len(unknown):,} of {n:,} examples have no finite irreducible loss (missing, NaN or infinite): indices "
            f"{some(names or unknown.sort().values.tolist())}. "
            "Score them with IrreducibleLossStore.from_model, keep the loader from drawing them, or let growing_rho_loss score "
            "what the store lacks as it comes"
        )
