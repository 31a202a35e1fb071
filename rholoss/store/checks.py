"""Checks that a store belongs to a loader."""

import warnings
from typing import Any

import torch
from torch import Tensor

from rholoss.data.fingerprint import difference, fingerprint, is_same_but_transformed
from rholoss.data.index import some
from rholoss.losses import callable_name
from rholoss.scoring import Loss
from rholoss.store.store import IrreducibleLossStore

_CHUNK = 1 << 20  # indices to look up at a time


def refuse_gaps(store: IrreducibleLossStore, index: Tensor | None, dataset_length: int | None) -> None:
    """Raise a ValueError if a store lacks a finite irreducible loss of an index that may be drawn, int64; None: unknown."""
    if store.ids is None and dataset_length is not None and dataset_length != len(store):
        raise ValueError(
            f"this store holds the irreducible losses of {len(store):,} examples, but the loader's dataset has "
            f"{dataset_length:,}. Make a store from the dataset that the loader reads, with IrreducibleLossStore.from_model("
            "il_model, dataset). (A torch Subset numbers its examples from 0; a rholoss.IndexedSubset keeps their numbers.)"
        )
    if index is not None:
        unknown = [part[~torch.isfinite(store[part.to(store.device)]).to(part.device)] for part in index.split(_CHUNK)]
        _refuse(torch.cat(unknown) if unknown else index[:0], len(index))


def refuse_other_data(store: IrreducibleLossStore, data: Any) -> dict[str, Any] | None:
    """Raise a ValueError if the store's fingerprint, where it has one, shows other data, labels or another order.

    Returns the fingerprint of the data.
    """
    saved, now = store.meta.data, fingerprint(data)
    how = difference(saved, now) if saved and now else None
    if how:
        cure = "Make the store again from this dataset; if only its transform has changed, pass store.rebind(dataset)"
        raise ValueError(f"this store was made from other data than the loader reads: {how}. {cure}")
    return now


def refuse_changed_data(first: dict[str, Any] | None, data: Any, epoch: int, may_grow: bool) -> None:
    """Raise a ValueError if the indices of a dataset stand for other examples than at first, or warn if only fields changed."""
    now = fingerprint(data, seed=epoch) if first else None
    if not first or not now or (may_grow and first["length"] != now["length"]):
        return
    how = difference(first, now)
    if how and is_same_but_transformed(first, now):
        what = f"the dataset has changed since the selector was built: of its examples now, {how}, and other fields are the same"
        warnings.warn(f"{what}. The irreducible losses are those of the transform that made the store", stacklevel=4)
    elif how:
        what = f"the dataset has changed since the selector was built: as of epoch {epoch}, {how}"
        cure = "Shuffle in the loader or its sampler, not in the dataset; for other data, make the store and the selector again"
        raise ValueError(f"{what}. An index must stand for one example in all epochs. {cure}")


def warn_of_other_loss(store: IrreducibleLossStore, loss: Loss) -> None:
    """Warn if a store was made with a loss of another name than the selector's."""
    made, mine = store.meta.loss, callable_name(loss)
    is_formula = store.meta.formula and mine in ("default_loss", store.meta.formula)  # compared when the targets are met
    if made not in (None, mine) and not is_formula:
        warnings.warn(
            f"this store was made with the loss {made!r}, and the selector scores with {mine!r}: their difference means nothing "
            "unless the two are the same; pass one loss=, or one task= with it, to both",
            stacklevel=4,
        )


def refuse_not_finite(losses: Tensor, index: Tensor, names: list[Any] | None = None) -> None:
    """Raise a ValueError if irreducible losses, shape (n,), are not finite; it lists their names, or else their indices."""
    finite = torch.isfinite(losses).to(index.device)
    if not bool(finite.all()):
        _refuse(index[~finite], len(index), names and [names[i] for i in torch.nonzero(~finite).flatten().tolist()])


def _refuse(unknown: Tensor, n: int, names: list[Any] | None = None) -> None:
    if len(unknown):
        raise ValueError(
            f"{len(unknown):,} of {n:,} examples have no finite irreducible loss (missing, NaN or infinite): indices "
            f"{some(names or unknown.sort().values.tolist())}. "
            "Score them with IrreducibleLossStore.from_model, keep the loader from drawing them, or use lazy_rho_loss, which "
            "scores missing examples when they are drawn"
        )
