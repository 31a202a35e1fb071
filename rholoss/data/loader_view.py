"""The user's loader, inspected in one place."""

import warnings
from collections.abc import Iterable, Sized
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from rholoss.arguments import MAP_STYLE, fraction, map_style, whole
from rholoss.data import samplers
from rholoss.data.index import CARRY_THE_INDEX, IndexedBatches, copy_loader, is_map_style
from rholoss.data.indexed_dataset import attach_index
from rholoss.data.subset import index_of, labels_of, whole_of
from rholoss.states import described

MOST_CANDIDATES = 2**31  # in a batch
FAR_MORE = 4  # epochs' examples in a candidate batch, from which keep is surely a mistake
DATA = "a map-style dataset, a DataLoader or IndexedBatches"


class LoaderView:
    """What the package needs to know about a ``DataLoader``, ``IndexedBatches``, or any other iterable of batches."""

    def __init__(self, given: Any) -> None:
        self.given = given
        self.reports_index = isinstance(given, IndexedBatches)
        self.loader: Any = given.batches if isinstance(given, IndexedBatches) else given  # without ``IndexedBatches`` around it
        self.is_map_style = is_map_style(self.loader)
        self.is_stream = isinstance(self.loader, DataLoader) and not self.is_map_style
        self.dataset: Any = getattr(self.loader, "dataset", None)
        self.dataset_length = self._dataset_length()  # N, also where the dataset is a part of a larger one; None if unknown
        self.batching = samplers.plain_batching(self.loader)  # groups single indices in their order; None without one
        size = getattr(self.loader, "batch_size", None) or getattr(self.batching, "batch_size", None)
        self.batch_size = size if isinstance(size, int) else None
        own = getattr(self.loader, "batch_sampler", None)
        self.drop_last = bool(getattr(self.loader, "drop_last", False) or getattr(own, "drop_last", False))

    @classmethod
    def of_data(cls, data: Any, batch_size: int | None = None) -> "LoaderView":
        """The view of a loader, or of a new one over a map-style dataset, with a batch size of 256 if None."""
        if not isinstance(data, (DataLoader, IndexedBatches)):
            data = DataLoader(map_style(data, "data", what=DATA), batch_size=batch_size or 256)
        return cls(data)

    def require_length(self) -> None:
        """Raise a TypeError if the loader draws by the length of its dataset, which has none."""
        if self.is_map_style and isinstance(self.loader.sampler, SequentialSampler) and not hasattr(self.dataset, "__len__"):
            got = f"a {type(self.dataset).__name__} without __len__"
            raise TypeError(f"the loader's dataset must be {MAP_STYLE}, got {got}; define it as the number of examples")

    def require_index(self) -> None:
        """Raise a TypeError with the remedy if the indices of the batches are unknown."""
        self.require_length()
        if self.is_map_style or self.reports_index:
            return
        loader, name = self.given, type(self.given).__name__
        if hasattr(loader, "candidate_batches"):
            raise TypeError(f"a selector cannot wrap a selector, {name}; give it the DataLoader")
        if isinstance(getattr(loader, "_dataloader", None), DataLoader):
            cure = "pass the inner one, without fabric.setup_dataloaders, and use a DistributedSampler on several processes"
            raise TypeError(f"expected a DataLoader, got {name}, which hides the one inside it; {cure}")
        if self.is_stream:
            what = f"a {name} over the IterableDataset {type(self.dataset).__name__} does not say which examples it yields"
        elif isinstance(loader, Iterable):
            what = f"expected a DataLoader over a map-style dataset, got {name}, which does not say which examples it yields"
        else:
            raise TypeError(f"expected a DataLoader as the first argument, got {name}")
        raise TypeError(f"{what}; {CARRY_THE_INDEX}")

    def batch_sizes(self, keep: float | None, batch_size: int | None) -> tuple[int, int | None]:
        """n_b and n_B; None for n_B: the loader's own batches are the candidates."""
        if batch_size is None:
            return self._drawn_sizes(0.1 if keep is None else keep)
        if keep is not None:
            what = f"pass keep or batch_size, not both, got keep={keep} and batch_size={batch_size}"
            raise ValueError(f"{what}: keep draws larger candidate batches, batch_size selects from the loader's own")
        batch_size = whole(batch_size, "batch_size", "a whole number of examples, at least 1")
        if self.batch_size is not None and batch_size > self.batch_size:
            what = f"batch_size = {batch_size} examples cannot be chosen of the loader's batches of {self.batch_size}"
            raise ValueError(f"{what}; give the loader a larger batch_size: its batches are the candidates")
        return batch_size, None

    def _drawn_sizes(self, keep: float) -> tuple[int, int]:
        keep = fraction(keep, "keep", "the fraction of each candidate batch to keep, in (0, 1]")
        if self.batch_size is None or self.batching is None:
            size = "" if self.batch_size else "keeps the loop's batch size and "
            what = f"keep= {size}draws larger candidate batches with the loader's sampler, but {self._why_not_drawn()}"
            raise ValueError(f"{what}; pass batch_size= to select from the batches that come")
        if self.batch_size / keep > MOST_CANDIDATES:
            what = (
                f"at least {self.batch_size / MOST_CANDIDATES:.1g}, as a batch cannot have n_B = n_b / keep candidates otherwise"
            )
            raise ValueError(f"keep must be {what}, got {keep!r}; pass the fraction of each candidate batch to keep, such as 0.1")
        n_B = round(self.batch_size / keep)
        n = len(self.batching.sampler) if isinstance(self.batching.sampler, Sized) else n_B
        if n_B >= FAR_MORE * n and n > self.batch_size:
            what = f"keep={keep:.3g} asks for {n_B:,} candidates, and the loader draws {n:,} in an epoch, which has one step then"
            warnings.warn(f"{what}; pass a higher keep, or give the loader smaller batches", stacklevel=6)
        return self.batch_size, n_B

    def _why_not_drawn(self) -> str:
        if not isinstance(self.loader, DataLoader):
            return f"{type(self.loader).__name__} has no sampler of single indices and no batch_size"
        if self.loader.batch_sampler is None:
            return "this loader has batch_size=None: its dataset returns whole batches"
        return f"this loader has a batch_sampler of its own, {type(self.loader.batch_sampler).__name__}"

    def _dataset_length(self) -> int | None:
        try:
            return len(whole_of(self.dataset)) if self.is_map_style else None
        except (TypeError, NotImplementedError):
            return None

    @property
    def draws_by_index(self) -> bool:
        """Whether a sampler draws indices of the dataset, so that they are known before loading."""
        return self.is_map_style and not self.reports_index

    def drawable_positions(self) -> Tensor | None:
        """Positions in the dataset that the sampler may draw, int64; None if unknown until sampled."""
        return samplers.drawable(self.loader, len(self.dataset)) if self.dataset_length is not None else None

    def drawable(self) -> Tensor | None:
        """Indices that may be drawn, int64; None if unknown until sampled."""
        positions = None if self.reports_index else self.drawable_positions()
        return None if positions is None else self.index_of(positions)

    @cached_property
    def settings(self) -> list[Any]:
        """What decides the order of the examples besides the data and the random state: kinds of loader and samplers, as JSON."""
        if not isinstance(self.loader, DataLoader):
            return [type(self.loader).__name__]
        own = self.loader.sampler if self.loader.batch_sampler is None else self.loader.batch_sampler
        return [f"stream of {self.loader.num_workers} workers"] if self.is_stream else samplers.kinds(own)

    @cached_property
    def labels(self) -> Any:
        """A digest of the labels of the whole dataset, in their order; None where it does not show them."""
        return described(labels_of(whole_of(self.dataset))) if self.dataset_length is not None else None

    def index_of(self, positions: Tensor) -> Tensor:
        """The indices of positions in the loader's dataset, int64."""
        return index_of(self.dataset, positions)

    def names(self, batch: Any) -> list[Any] | None:
        """The names of a batch's examples, where it holds names; else None."""
        return self.given.names(batch) if self.reports_index else None

    def drawing(self, **changes: Any) -> Any:
        """An iterable of ``IndexedBatch`` like the loader, with some attributes changed; the loader itself does not change."""
        if self.draws_by_index:
            return attach_index(self.loader, **changes)
        loader = copy_loader(self.loader, **changes) if changes else self.loader
        return self.given.over(loader) if self.reports_index else loader

    def redrawn(self, batches: Any, batch_size: int) -> Any:
        """The loader over other batches of positions, with ``IndexedBatches`` around it if it had that."""
        loader = copy_loader(
            self.loader, sampler=batches.sampler, batch_sampler=batches, batch_size=batch_size, drop_last=False, generator=None
        )
        return self.given.over(loader) if self.reports_index else loader

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch to the sampler, the batch sampler and the dataset, where they have ``set_epoch``."""
        loader = self.loader
        holders = [*samplers.chain(getattr(loader, "sampler", None)), *samplers.chain(getattr(loader, "batch_sampler", None))]
        for holder in {id(holder): holder for holder in [*holders, self.dataset]}.values():
            if hasattr(holder, "set_epoch"):
                holder.set_epoch(epoch)
