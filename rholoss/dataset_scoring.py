"""One pass of a model over a dataset, or a part of it, with the index of each example."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler
from typing_extensions import Unpack

from rholoss.arguments import optional, refuse_unknown, seed_of, whole
from rholoss.data import CandidateLoader, LoaderView
from rholoss.isolation import device_of, seeded
from rholoss.losses import LabelError
from rholoss.options import ScoringOptions
from rholoss.scoring import Reduce, Scorer, Task


class DatasetScorer:
    """Measures each example of a map-style dataset, a loader over it, or ``IndexedBatches`` once under a model in eval mode.

    Of a loader, the collate function, the workers and what the sampler may draw are used; its order and its generator are not.
    ``positions``, ascending, shape (m,), int64, restrict it to a part. ``views`` and ``progress`` are left to the caller.
    """

    def __init__(self, data: Any, *, positions: Tensor | None = None, **options: Unpack[ScoringOptions]) -> None:
        refuse_unknown(options, ScoringOptions.__annotations__, "scoring a dataset")
        batch_size = optional(whole, options.get("batch_size"), "batch_size", "a number of examples, at least 1, or None")
        self.scorer = Scorer(Task.of(*(options.get(name) for name in ("task", "forward", "loss", "dtype"))))  # type: ignore[arg-type]
        self.seed = seed_of(options.get("seed", 0))
        self.view = view = LoaderView.of_data(data, batch_size)
        view.require_length()
        self.positions: Tensor | None = None  # to draw, ascending, distinct, (m,) int64; None if unknown until sampled
        self.total: int | None = None  # number of examples; None if unknown until sampled
        self.batch_size: int | None = None  # examples in one forward pass; None if the data come in batches
        if view.is_map_style:
            self.total = len(view.dataset)
            if view.loader.batch_sampler is not None:
                drawn = view.drawable_positions() if positions is None else positions
                self.positions = torch.arange(len(view.dataset)) if drawn is None else drawn.unique()
                self.total = len(self.positions)
                self.batch_size = batch_size or view.batch_size or 256
        elif view.batching is not None:
            self.batch_size = batch_size or view.batch_size

    def run(
        self,
        model: Any,
        measure: Reduce | None = None,
        *,
        rows: range | None = None,
        view: int = 0,
        seen: Callable[[int], None] = lambda n: None,
    ) -> tuple[Tensor, Tensor]:
        """Measure the examples, or a range of ``positions``: indices (m,), int64, and values (m, ...), float32, on the CPU.

        If a range starts at a multiple of ``batch_size``, the forward passes are bit for bit those of a run over all. The same
        ``view``, a pass over random augmentation, of the same rows is the same in every process. ``measure`` computes the loss if
        None; ``seen`` is called with the number of examples after each forward pass.
        """
        self.scorer.refuse_causal(model)
        measure = measure or self.scorer.losses
        indices, values = [], []
        with seeded(self.seed, view, rows.start if rows else 0, device=device_of(model)):
            for index, batch in self.batches(rows):
                indices.append(index.cpu())
                try:
                    values.append(self.scorer.run(model, batch, len(index), measure).float().cpu())
                except LabelError as error:
                    raise error.of(index) from error
                seen(len(index))
        if not indices:
            raise ValueError("expected at least one example to score, got none")
        return torch.cat(indices), torch.cat(values)

    def batches(self, rows: range | None = None) -> CandidateLoader:
        """The data in batches, each with its index; ``rows`` as in ``run``."""
        if self.positions is not None:
            positions = self.positions if rows is None else self.positions[rows.start : rows.stop]
            batches = BatchSampler(positions.tolist(), self.batch_size or 1, drop_last=False)
            return CandidateLoader(LoaderView(self.view.redrawn(batches, self.batch_size or 1)), self.batch_size)
        if rows is not None:
            what = f"only a map-style dataset can be scored in shares, got {type(self.view.loader).__name__}"
            raise TypeError(f"{what}; let every process read data of its own, with distinct ids, and merge the stores")
        return CandidateLoader(self.view, self.batch_size)
