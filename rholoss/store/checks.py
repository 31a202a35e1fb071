"""Do this store and this loader belong together?"""

import warnings
from typing import Any

import torch
from torch import Tensor

from rholoss.data.fingerprint import difference, fingerprint
from rholoss.data.index import some
from rholoss.scoring import Loss, callable_name
from rholoss.store.store import IrreducibleLossStore

_CHUNK = 1 << 20  # indices that are looked up at a time


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
            "IrreducibleLossStore.from_model(il_model, dataset). (A torch Subset numbers its examples from 0; a "
            "rholoss.IndexedSubset keeps their numbers.)"
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
    saved = store.meta.data
    now = fingerprint(data) if saved else None
    how = difference(saved, now) if saved and now else None
    if how:
        raise ValueError(
            f"this store was made from other data than the loader reads: {how}. Make the store anew from this dataset; if its "
            "examples are the same, in the same order, and only their transform is another, pass store.rebind(dataset)"
        )


def warn_of_other_loss(store: IrreducibleLossStore, loss: Loss) -> None:
    """Warn where a store says that it was made with a loss of another name than the one that is to be compared with it."""
    made, mine = store.meta.loss, callable_name(loss)
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
            "Score them with IrreducibleLossStore.from_model, keep the loader from drawing them, or let lazy_rho_loss score "
            "what the store lacks as it comes"
        )
