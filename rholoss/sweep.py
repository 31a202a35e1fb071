"""One pass over a whole dataset under one model, each example with its index."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rholoss.guest import forked_rng
from rholoss.indexing import IndexedBatches, altered, is_map_style
from rholoss.sampling import drawable, plain_sampler
from rholoss.scoring import Forward, Loss, Scorer
from rholoss.sizes import natural_batch_size
from rholoss.source import CandidateSource

Progress = bool | Callable[[int, int | None], None] | None


def sweep(
    model: Any,
    data: Any,
    *,
    measure: Callable[[Any, Any, int], Tensor] | None = None,
    forward: Forward | None = None,
    loss: Loss | None = None,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    progress: Progress = None,
) -> tuple[Tensor, Tensor, int | None]:
    """Measure every example of a dataset under a model in eval mode.

    Args:
        model: the model.
        data: a map-style dataset, a loader over it, or ``IndexedBatches``.
        measure: ``(outputs, targets, n) -> (n,)``; None for the loss.
        forward: see ``rholoss.scoring.Forward``.
        loss: see ``rholoss.scoring.Loss``.
        batch_size: examples in one forward pass; None for the loader's own, or 256 for a dataset.
        dtype: autocast dtype.
        progress: see ``IrreducibleLossStore.from_model``.

    Returns:
        Indices (N,), int64, and values (N,), float32, on the CPU, in the order of the data; and the dataset's length, or None.
    """
    scorer = Scorer(forward, loss, "eval", dtype, None)
    source = _in_order(data, batch_size)
    report = _reporter(progress)
    sampler = None if source.dataset_length is None else plain_sampler(source.loader)
    total = source.dataset_length if sampler is None else len(sampler)
    indices: list[Tensor] = []
    values: list[Tensor] = []
    done = 0
    with forked_rng():  # a shuffling loader draws its order
        for index, batch in source:
            n = len(index)
            indices.append(index.cpu())
            values.append(scorer.run(model, batch, n, measure or scorer.losses).float().cpu())
            done += n
            report(done, total)
    if not indices:
        raise ValueError("expected at least one example to score, got none")
    return torch.cat(indices), torch.cat(values), source.dataset_length


def _in_order(data: Any, batch_size: int | None) -> CandidateSource:
    """The data, each example that may be drawn once (all, if only drawing tells), without moving a loader's generator."""
    door = data if isinstance(data, IndexedBatches) else None
    loader = door.batches if door is not None else data
    if not isinstance(loader, DataLoader):
        if door is not None:
            return CandidateSource(door)
        if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
            raise TypeError(f"expected a map-style dataset, a DataLoader or IndexedBatches, got {type(data).__name__}")
        return CandidateSource(DataLoader(data, batch_size=batch_size or 256))
    size = batch_size or natural_batch_size(loader)
    if is_map_style(loader) and loader.batch_sampler is not None:
        n, size = len(loader.dataset), size or 256  # type: ignore[arg-type]
        indices = drawable(loader, n)
        loader = altered(loader, sampler=range(n) if indices is None else indices.tolist(), batch_size=size, generator=None)
    return CandidateSource(door.over(loader) if door is not None else loader, size if plain_sampler(loader) is not None else None)


def _reporter(progress: Progress) -> Callable[[int, int | None], None]:
    if callable(progress):
        return progress
    if progress is None:
        progress = sys.stderr.isatty() and importlib.util.find_spec("tqdm") is not None
    if not progress:
        return lambda done, total: None
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError(
            "progress=True draws its bar with tqdm, which is not installed; run: pip install 'rholoss[progress]'"
        ) from None
    bar: Any = None

    def report(done: int, total: int | None) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=total, unit="ex", desc="irreducible losses")
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    return report
