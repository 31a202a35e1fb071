"""One pass over a dataset, or a part of it, under one model, each example with its index."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from rholoss.guest import device_of, seeded
from rholoss.indexing import IndexedBatches, altered, is_map_style
from rholoss.parts import whole_length
from rholoss.sampling import drawable, plain_sampler
from rholoss.scoring import Forward, Loss, Scorer
from rholoss.sizes import natural_batch_size
from rholoss.source import CandidateSource

Measure = Callable[[Any, Any, int], Tensor]
"""``measure(outputs, targets, n) -> (n, ...)``: what to keep of n examples."""


class Sweep:
    """Measures every example of some data under a model in eval mode, each once.

    Args:
        data: a map-style dataset, a loader over it, or ``IndexedBatches``. Of a loader, the collate function, the workers and
            what the sampler may draw are used; its order and its generator are not.
        forward: see ``rholoss.scoring.Forward``.
        loss: see ``rholoss.scoring.Loss``.
        batch_size: examples in one forward pass; None for the loader's own, or 256 for a dataset.
        dtype: autocast dtype.
        seed: what random augmentation or masking draws from, in the loading process and in the workers.
        positions: which examples of a map-style dataset, ascending, shape (m,), int64; None for all that the sampler may draw.

    Attributes:
        loader: what is iterated.
        dataset_length: N, or None where it is not known.
        entries: the positions that are drawn, ascending, each once, shape (m,), int64; None where only drawing tells.
        total: examples, or None where only drawing tells.
        batch_size: examples in one forward pass, or None where the data come in batches of their own.
        scorer: runs the model.
    """

    def __init__(
        self,
        data: Any,
        *,
        forward: Forward | None = None,
        loss: Loss | None = None,
        batch_size: int | None = None,
        dtype: torch.dtype | None = None,
        seed: int = 0,
        positions: Tensor | None = None,
    ) -> None:
        if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
            raise ValueError(f"batch_size must be a number of examples, at least 1, or None, got {batch_size!r}")
        self.scorer = Scorer(forward, loss, "eval", dtype, None)
        self._seed = seed
        self._door = data if isinstance(data, IndexedBatches) else None
        self.loader = _as_loader(data, batch_size)
        self.dataset_length: int | None = None
        self.entries: Tensor | None = None
        self.total: int | None = None
        self.batch_size: int | None = None
        if is_map_style(self.loader):
            dataset = self.loader.dataset
            self.dataset_length, self.total = whole_length(dataset), len(dataset)
            if self.loader.batch_sampler is not None:
                drawn = drawable(self.loader, len(dataset)) if positions is None else positions
                self.entries = torch.arange(len(dataset)) if drawn is None else drawn.unique()
                self.total = len(self.entries)
                self.batch_size = batch_size or natural_batch_size(self.loader) or 256
        elif plain_sampler(self.loader) is not None:
            self.batch_size = batch_size or natural_batch_size(self.loader)

    def run(
        self,
        model: Any,
        measure: Measure | None = None,
        *,
        rows: range | None = None,
        view: int = 0,
        seen: Callable[[int], None] = lambda n: None,
    ) -> tuple[Tensor, Tensor]:
        """Measure the examples.

        Args:
            model: the model.
            measure: see ``Measure``; None for the loss.
            rows: which of ``entries``, by their position among them; None for all. Where the first is a multiple of
                ``batch_size``, every forward pass is that of a run over all, to the last bit.
            view: which draw of random augmentation; the same view of the same rows is drawn alike by every process.
            seen: called with the number of examples after each forward pass.

        Returns:
            Indices (m,), int64, and values (m, ...), float32, on the CPU, in the order of the data.
        """
        self.scorer.refuse_causal(model)
        measured = list(self._measured(model, measure or self.scorer.losses, rows, view, seen))
        if not measured:
            raise ValueError("expected at least one example to score, got none")
        indices, values = zip(*measured, strict=True)
        return torch.cat(indices), torch.cat(values)

    def _measured(
        self, model: Any, measure: Measure, rows: range | None, view: int, seen: Callable[[int], None]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        with seeded(self._seed, view, rows.start if rows else 0, device=device_of(model)):
            for index, batch in self._source(rows):
                n = len(index)
                yield index.cpu(), self.scorer.run(model, batch, n, measure).float().cpu()
                seen(n)

    def _source(self, rows: range | None) -> CandidateSource:
        loader = self.loader
        if self.entries is not None:
            entries = self.entries if rows is None else self.entries[rows.start : rows.stop]
            batches = BatchSampler(entries.tolist(), self.batch_size or 1, drop_last=False)
            loader = altered(loader, batch_sampler=batches, batch_size=self.batch_size, generator=None)
        elif rows is not None:
            raise TypeError(
                f"only the examples of a map-style dataset can be scored in shares, got {type(loader).__name__}; let every "
                "process read data of its own, with distinct ids, and merge the stores"
            )
        return CandidateSource(self._door.over(loader) if self._door is not None else loader, self.batch_size)


def _as_loader(data: Any, batch_size: int | None) -> Any:
    """A loader over the data, or what is behind the door."""
    if isinstance(data, IndexedBatches):
        return data.batches
    if isinstance(data, DataLoader):
        return data
    if not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        raise TypeError(f"expected a map-style dataset, a DataLoader or IndexedBatches, got {type(data).__name__}")
    return DataLoader(data, batch_size=batch_size or 256)
