"""The shell around every method: wraps a loader and a model, yields selected batches."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from rholoss import functional
from rholoss.batches import Rows, cut, move
from rholoss.candidates import Candidates
from rholoss.cost import Cost, Ledger
from rholoss.guest import derived_seed, device_of
from rholoss.indexing import IndexedBatch, as_index
from rholoss.scoring import Forward, Loss, Scorer
from rholoss.selection import FiniteCheck, Selection, check_score, checked_choice
from rholoss.sizes import how_many, natural_batch_size
from rholoss.source import CandidateSource


class Selector(ABC):
    """Wraps a loader and a model and yields, of each candidate batch, the examples worth training on.

    Iterate it where the loop iterated its loader, or call ``select`` inside a step. A method is a subclass that implements
    ``score``.

    There are two ways to say how many, never both. ``keep=0.1``: the loop's batch size stays what it was, n_b =
    ``loader.batch_size``, and each selected batch is chosen from n_B = round(n_b / keep) candidates, drawn with the loader's own
    sampler. ``batch_size=32``: the loader's own batches are the candidates, and 32 of each are yielded.

    Every selected batch has n_b examples, but the last of an epoch: fewer than n_b candidates are all yielded, or none of them
    where the loader's own rule is ``drop_last=True``.

    Args:
        loader: a ``DataLoader`` over a map-style dataset, or ``IndexedBatches`` around anything else. It is left as it is.
        model: the model in training; None for methods that need none.
        keep: n_b / n_B, the fraction of each candidate batch to keep, in (0, 1]; 0.1 where ``batch_size`` is not given either.
        batch_size: n_b, at least 1, where the loader's batches are the candidates.
        forward: ``(model, batch) -> (outputs, targets)``; None for ``rholoss.scoring.default_forward``.
        loss: ``(outputs, targets) -> (n,)``; None for ``rholoss.scoring.default_loss``.
        mode: score with the model in ``"eval"`` mode, or in ``"train"`` mode: each module as the loop left it.
        dtype: autocast dtype for scoring; None for the model's own precision.
        chunk_size: most examples in one scoring pass, at least 1; None for a whole candidate batch.
        device: where to hand the batches back: a device, ``"model"`` for the model's, None for where the loader left them.
        drop_last: whether to drop a last candidate batch of fewer than n_b; None for the loader's own rule.
        seed: seed of the selector's own random generator.

    Attributes:
        last: the ``Selection`` of the latest batch, or None.
        n_b: examples in a selected batch.
        n_B: examples in a candidate batch, or None where the loader does not tell.
        step: batches selected so far.
        epoch: passes over the data before this one.
        listeners: called with ``(candidates, selection)`` for each selection, such as the logs of ``rholoss.diagnostics``;
            nothing that they compute or draw changes the run.
        candidate_batches: the ``IndexedBatch`` items to select from, for who fetches them on their own and calls ``select``.
    """

    def __init__(
        self,
        loader: Any,
        model: Any = None,
        *,
        keep: float | None = None,
        batch_size: int | None = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        mode: Literal["eval", "train"] = "eval",
        dtype: torch.dtype | None = None,
        chunk_size: int | None = None,
        device: torch.device | str | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
    ) -> None:
        self.loader = loader
        self.model = model
        self.n_b, n_B = how_many(loader, keep, batch_size)
        self._source = self._make_source(loader, n_B)
        self.n_B = n_B or natural_batch_size(loader)
        self._scorer = Scorer(forward, loss, mode, dtype, chunk_size)
        self._device = device
        self._drop_last = self._source.drop_last if drop_last is None else drop_last
        self._generator = torch.Generator().manual_seed(seed)
        self._finite, self._ledger = FiniteCheck(), Ledger()
        self.last: Selection | None = None
        self.listeners: list[Callable[[Candidates, Selection], Any]] = []
        self.step = self.epoch = 0
        self._fresh = True  # the next iteration does not count the epoch up

    @abstractmethod
    def score(self, candidates: Candidates) -> Tensor:
        """What candidates are ranked by, shape (n_B,), on the scoring device; higher is kept. -inf is last, NaN an error."""

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        """Positions (n_b,) of the candidates to keep, and their weights (n_b,) or None: here the highest scores, unweighted."""
        return functional.top(score, n_b), None

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        """Called with each selected batch before it is handed back; for methods that learn along."""

    def __iter__(self) -> Iterator[Any]:
        self.epoch = self.next_epoch
        self._fresh = False
        for candidates in self._ledger.around(self._source.epoch(self.n_b, self._drop_last), self.scoring_device):
            yield self._select(candidates)
        self._finite.wait()

    def __len__(self) -> int:
        """Selected batches in an epoch."""
        return self._source.count(self.n_b, self._drop_last)

    def select(self, candidates: IndexedBatch | tuple[Any, Any]) -> Any:
        """Choose n_b examples of a candidate batch, with the model as it is now.

        Args:
            candidates: an ``IndexedBatch``, as ``candidate_batches`` yields them, or a pair (index, batch).

        Returns:
            The selected batch, of the same type as the batch.

        Raises:
            ValueError: there are fewer than n_b candidates, or a loss, score or choice is not what it has to be.
        """
        index, batch = candidates
        if len(index) < self.n_b:
            raise ValueError(
                f"cannot choose n_b = {self.n_b} of {len(index)} candidates; pass more of them, or a smaller batch_size"
            )
        return self._select(IndexedBatch(as_index(index), batch))

    def mean_loss(self, losses: Tensor) -> Tensor:
        """The loss to train on, a scalar: the mean of the losses of the batch selected last, shape (n_b,).

        Where the method has weights, each loss is multiplied by its weight first; without, it is ``losses.mean()``.
        """
        if self.last is None:
            raise ValueError("mean_loss needs the losses of the batch that was selected last, and none was selected yet")
        return self.last.mean_loss(losses)

    def cost(self) -> Cost:
        """What a step costs, of the latest steps, without waiting for an accelerator: print it, or read its ``ratio``."""
        return self._ledger.cost(self.n_b, self.n_B)

    @property
    def candidate_batches(self) -> Any:
        return self._source.batches

    batch_size = property(lambda self: self.n_b, doc="n_b, as of a loader.")
    dataset = property(lambda self: self._source.loader.dataset, doc="The loader's dataset.")
    sampler = property(lambda self: self, doc="The selector: frameworks say the epoch to ``loader.sampler.set_epoch``.")

    @property
    def scoring_device(self) -> torch.device:
        """Where scores are computed: the model's device; without a model, ``device``, or the CPU."""
        own = device_of(self.model)
        return own if own is not None else torch.device(self._device if self._device not in (None, "model") else "cpu")

    @property
    def next_epoch(self) -> int:
        """Which pass over the data the next iteration is, or is the rest of: ``range(selector.next_epoch, epochs)`` are left."""
        return self.epoch + (not (self._fresh or self._source.resuming))

    def set_epoch(self, epoch: int) -> None:
        """Say which pass over the data comes next; told to the loader's sampler and dataset where they have ``set_epoch``.

        After ``load_state_dict`` in mid-epoch, saying that epoch again goes on with it, and saying another one begins that.
        """
        self._source.set_epoch(epoch)
        if epoch != self.epoch:
            self._source.abandon()
        self.epoch, self._fresh = epoch, True

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on with the very selections that would have followed: tensors, numbers and strings."""
        return {
            "selector": type(self).__name__,
            "n_b": self.n_b,
            "n_B": self.n_B,
            "step": self.step,
            "epoch": self.epoch,
            "fresh": self._fresh,
            "source": self._source.state(),
            "generator": self._generator.get_state(),
            "extra": copy.deepcopy(self.extra_state()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state; the next iteration resumes the epoch in progress, without reading what a sampler can skip.

        Raises:
            ValueError: the state is of another selector or of other batch sizes.
        """
        for name, mine in (("selector", type(self).__name__), ("n_b", self.n_b), ("n_B", self.n_B)):
            if (its := state.get(name)) != mine:
                raise ValueError(
                    f"this state cannot be loaded: expected {name} = {mine!r}, got {its!r}; build the selector as it was"
                )
        self.load_extra_state(state["extra"])
        self._source.resume(state["source"])
        self.step, self.epoch, self._fresh = state["step"], state["epoch"], state["fresh"]
        self._generator.set_state(state["generator"].cpu())

    def extra_state(self) -> dict[str, Any]:
        """What a method has to add to the state; nothing here."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what ``extra_state`` gave."""

    def _make_source(self, loader: Any, n_B: int | None) -> CandidateSource:
        return CandidateSource(loader, n_B)

    def _select(self, indexed: IndexedBatch) -> Any:
        (index, batch), device = indexed, self.scoring_device
        self._ledger.enter("selecting", device)
        if self._device is not None:
            batch = move(batch, device if self._device == "model" else torch.device(self._device))
        candidates = self._candidates(index, batch, device)
        score = check_score(self.score(candidates), len(candidates), candidates.device)
        score = self._finite(type(self).__name__, score, candidates)
        chosen, positions, weights, selected = self._take(candidates, score)
        self.last = Selection(chosen, positions, weights, score, candidates.index, self.step, self.epoch, candidates.notes)
        self._ledger.count(candidates.scored, len(candidates))
        if self.listeners:
            self._tell(candidates, self.last)
        self.after_select(candidates, self.last, selected)
        self.step += 1
        self._ledger.enter("training", candidates.device)
        return selected

    def _take(self, candidates: Candidates, score: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """What to train on: indices, the positions chosen, weights, and the selected batch."""
        n_B = len(candidates)
        n_b = min(self.n_b, n_B)
        choice = self.choose(candidates, score, n_b)
        positions, weights = choice if type(self).choose is Selector.choose else checked_choice(choice, n_b, n_B)
        if n_b == n_B and weights is None:
            return candidates.index, positions, None, candidates.batch
        return candidates.index[positions], positions, weights, cut(candidates.batch, Rows(positions), n_B)

    def _candidates(self, index: Tensor, batch: Any, device: torch.device) -> Candidates:
        return Candidates(index, batch, self.model, self._scorer, device, (self.step, self.epoch), self._generator)

    def _tell(self, candidates: Candidates, selection: Selection) -> None:
        apart = candidates.apart(derived_seed("listeners", self._generator.initial_seed(), self.step))
        for listener in self.listeners:
            listener(apart, selection)
