"""What a selector shows of a loader: to loops, and to frameworks that look for the parts of one."""

from abc import ABC, abstractmethod
from typing import Any

from torch.utils.data import SequentialSampler

from rholoss.arguments import whole
from rholoss.data.candidate_loader import KEPT, CandidateLoader
from rholoss.data.epoch_state import EpochState
from rholoss.data.loader_view import LoaderView
from rholoss.data.samplers import InOrder, is_called_by


class LoaderInterface(ABC):
    """Base class of what is iterated in place of a loader: its batch size, dataset, sampler and epochs.

    Attributes:
        view: what is known of the loader.
        n_b: examples in a batch.
        epoch_state: the passes over the data, counted, and the one in progress.
    """

    view: LoaderView
    n_b: int
    epoch_state: EpochState

    @property
    @abstractmethod
    def candidate_loader(self) -> CandidateLoader:
        """Where candidate batches come from."""

    @abstractmethod
    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch is drawn, and when ``set_epoch`` announces it."""

    @property
    def candidate_batches(self) -> Any:
        """The ``IndexedBatch`` items to select from, for loops that draw them and call ``select``."""
        return self.candidate_loader.batches

    batch_size = property(lambda self: self.n_b, doc="n_b, as of a loader.")
    dataset = property(lambda self: self.view.dataset, doc="The loader's dataset.")
    epoch = property(lambda self: self.epoch_state.epoch, doc="Passes over the data before this one.")

    @property
    def next_epoch(self) -> int:
        """The epoch of the next iteration, also where it resumes one: ``range(selector.next_epoch, epochs)`` are left."""
        return self.epoch_state.next_epoch

    def set_epoch(self, epoch: int) -> None:
        """Announce the next epoch, also to the loader's sampler and dataset; after ``load_state_dict``, the same one resumes."""
        epoch = whole(epoch, "epoch", "a whole number, at least 0", 0)
        self.candidate_loader.set_epoch(epoch)
        self.epoch_state.announce(epoch)
        self.begin_epoch(epoch)

    @property
    def sampler(self) -> Any:
        """What frameworks call ``set_epoch`` of: the selector, or a sampler that passes it on, where examples come in order."""
        own = getattr(self.view.loader, "sampler", None)
        if not self.view.is_map_style or isinstance(own, SequentialSampler):
            return InOrder(self.dataset, self.set_epoch)
        if is_called_by("_resolve_overfit_batches"):
            what = "Lightning's overfit_batches turns shuffling off, which it cannot do inside a selector"
            expected = f"expected a selector around a loader that does not shuffle, got one around a {type(own).__name__}"
            raise ValueError(f"{what}: {expected}; wrap a DataLoader with shuffle=False, or pass limit_train_batches= instead")
        return self

    @property
    def _iterator(self) -> Any:
        """That of a loader whose workers live from epoch to epoch: Lightning ends them after ``fit``, and sets None."""
        return getattr(self.candidate_loader.reader, KEPT, None)

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        if hasattr(self.candidate_loader.reader, KEPT):
            setattr(self.candidate_loader.reader, KEPT, iterator)
