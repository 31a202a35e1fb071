"""How many examples a batch has: n_b and n_B."""

from numbers import Integral, Real
from typing import Any

from torch.utils.data import DataLoader

from rholoss.indexing import IndexedBatches, refuse_unindexed
from rholoss.sampling import plain_batching


def natural_batch_size(loader: Any) -> int | None:
    """The batch size of a loader, or of the loader behind a door; None where it does not tell."""
    inner = loader.batches if isinstance(loader, IndexedBatches) else loader
    size = getattr(inner, "batch_size", None)
    batching = plain_batching(inner)
    if size is None and batching is not None:
        size = batching.batch_size
    return size if isinstance(size, int) else None


def how_many(loader: Any, keep: float | None, batch_size: int | None) -> tuple[int, int | None]:
    """n_b, and n_B where candidate batches have to be drawn anew."""
    if not isinstance(loader, (DataLoader, IndexedBatches)):
        refuse_unindexed(loader)
    natural = natural_batch_size(loader)
    if batch_size is not None:
        if keep is not None:
            raise ValueError(
                f"pass keep or batch_size, not both, got keep={keep} and batch_size={batch_size}: "
                "keep draws larger candidate batches, batch_size selects from the loader's own"
            )
        if isinstance(batch_size, bool) or not isinstance(batch_size, Integral) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number of examples, at least 1, got {batch_size!r}")
        if natural is not None and batch_size > natural:
            raise ValueError(
                f"batch_size = {batch_size} examples cannot be chosen of the loader's batches of {natural}; "
                "give the loader a larger batch_size: its batches are the candidates"
            )
        return int(batch_size), None
    keep = 0.1 if keep is None else keep
    if isinstance(keep, bool) or not isinstance(keep, Real) or not 0 < keep <= 1:
        raise ValueError(f"keep must be the fraction of each candidate batch to keep, in (0, 1], got {keep!r}")
    if natural is None:
        raise ValueError(
            f"keep= keeps the loop's batch size, but {describe(loader)}; pass batch_size= to select from the batches that come"
        )
    return natural, round(natural / float(keep))


def describe(loader: Any) -> str:
    """Why a loader cannot draw candidate batches of another size."""
    loader = loader.batches if isinstance(loader, IndexedBatches) else loader
    if not isinstance(loader, DataLoader):
        return f"{type(loader).__name__} has no sampler of single indices and no batch_size"
    if loader.batch_sampler is None:
        return "this loader has batch_size=None: its dataset returns whole batches"
    return f"this loader has a batch_sampler of its own, {type(loader.batch_sampler).__name__}"
