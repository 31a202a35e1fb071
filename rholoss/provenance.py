"""What made a store, as its metadata say: which stores belong together, and what their union was made by."""

from collections.abc import Mapping
from typing import Any

from rholoss.fingerprint import difference
from rholoss.tally import Tally


def refuse_strangers(mine: Mapping[str, Any], other: Mapping[str, Any]) -> None:
    """Raise a ValueError where two stores are of different data, losses, views or models, as far as their metadata say.

    The folds of one cross-fit have models of their own.
    """
    if mine.get("data") and other.get("data"):
        how = difference(mine["data"], other["data"])
        if how:
            raise ValueError(f"these stores are of different data, which cannot be merged: of the second store's, {how}")
    for name in ("loss", "views"):
        if mine.get(name) is not None and other.get(name) is not None and mine[name] != other[name]:
            raise ValueError(
                f"these stores were made with another {name}, {mine[name]!r} and {other[name]!r}, and cannot be merged: their "
                "numbers mean different things"
            )
    plans = [meta.get("cross_fit", {}).get("plan") for meta in (mine, other)]
    if plans[0] != plans[1]:
        raise ValueError(
            "these stores are of different cross-fits, or one of them is of none, and cannot be merged: an example could be "
            "scored by a model that trained on it; score all folds with the same data, folds and seed"
        )
    if plans[0] is None and mine.get("models") and other.get("models") and mine["models"] != other["models"]:
        raise ValueError(
            f"these stores were made by different models, {_named(mine)} and {_named(other)}, and cannot be merged: their "
            "numbers cannot be compared"
        )


def merged(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of the union of two stores that belong together."""
    meta = {**other, **mine}
    meta.pop("examples", None)
    if "cross_fit" in meta and "cross_fit" in mine and "cross_fit" in other:
        both = mine["cross_fit"], other["cross_fit"]
        by_fold = {name: dict(sorted((both[1][name] | both[0][name]).items())) for name in ("models", "validation_loss")}
        meta["cross_fit"] = {**mine["cross_fit"], **by_fold}
    if "tally" in mine and "tally" in other:
        meta["tally"] = (Tally(**mine["tally"]) + Tally(**other["tally"])).state()
    return meta


def validation_loss_of(meta: Mapping[str, Any]) -> float | None:
    """The mean validation loss of the fits that made a store, in nats; None where it does not say."""
    losses: list[Any] = (
        list(meta["cross_fit"]["validation_loss"].values()) if "cross_fit" in meta else [meta.get("validation_loss")]
    )
    return None if None in losses else sum(losses) / len(losses)


def _named(meta: Mapping[str, Any]) -> str:
    return " + ".join(f"{model['class']} {model['digest'] or ''}".strip() for model in meta["models"])
