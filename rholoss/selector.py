"""The loop around every method: wraps a loader and a model, yields selected batches."""

import copy
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from rholoss import functional
from rholoss.arguments import device_named, flag, model_of, optional, options_of, refuse_unknown, seed_of, shown
from rholoss.batches import Rows, cut, move
from rholoss.candidates import Candidates
from rholoss.cost import Cost, StepTimer
from rholoss.data import CandidateLoader, DrawRule, IndexedBatch, LoaderView
from rholoss.data.epoch_state import EpochState
from rholoss.data.index import as_index
from rholoss.data.loader_interface import LoaderInterface
from rholoss.isolation import derived_seed, device_of
from rholoss.losses import LossCheck
from rholoss.options import SelectorOptions
from rholoss.scoring import ChunkSize, Forward, Loss, Scorer, Task
from rholoss.selection import FiniteCheck, SelectedPass, Selection, check_score, checked_choice, checked_prefilter
from rholoss.states import RecordsOptions, Settings, check_settings, described, restoring, taken
from rholoss.tuning import Tuning, tune


class Selector(RecordsOptions, LoaderInterface):
    """Wraps a loader and a model and yields, of each candidate batch, the examples worth training on.

    Iterate it where the loop iterated its loader. A method is a subclass that implements ``score``.

    Set how many are selected with ``keep`` or with ``batch_size``, not both. ``keep=0.1``: the loop's batch size stays what it
    was, n_b = ``loader.batch_size``, and each selected batch is chosen from n_B = round(n_b / keep) candidates, drawn with the
    loader's own sampler. ``batch_size=32``: the loader's own batches are the candidates, and 32 of each are yielded.

    A last candidate batch of fewer than n_b examples is yielded whole, or dropped where the loader has ``drop_last=True``.

    Args:
        loader: a ``DataLoader`` over a map-style dataset, or ``IndexedBatches`` around anything else; never changed.
        model: the model in training; None for methods that need none.
        keep: n_b / n_B, the fraction of each candidate batch to keep, in (0, 1]; 0.1 where ``batch_size`` is not given either.
        batch_size: n_b, at least 1, where the loader's batches are the candidates.
        task: ``forward``, ``loss`` and ``dtype`` in one, see ``rholoss.Task``; or each by itself:
        forward: ``(model, batch) -> (outputs, targets)``; None for ``rholoss.scoring.default_forward``.
        loss: ``(outputs, targets) -> (n,)``; None for ``rholoss.scoring.default_loss``.
        dtype: autocast dtype for scoring; None for the model's own precision.
        mode: ``"eval"``: score with the model in eval mode; ``"train"``: leave every module in the mode that the loop set.
        chunk_size: most examples in one scoring pass, at least 1; None for all candidates; ``"auto"``: on a CPU at most 20 images
            or 64 sequences, and convolutions in channels-last order, if that changes losses by rounding only: see
            ``rholoss.scoring.rows_at_once``.
        device: where to hand the batches back: a device, ``"model"`` for the model's, None for where the loader left them.
        drop_last: whether to drop a last candidate batch of fewer than n_b; None for the loader's own rule.
        seed: seed of the selector's own random generator.

    Attributes:
        last: the ``Selection`` of the latest batch, or None.
        n_b: examples in a selected batch.
        n_B: examples in a candidate batch, or None where the loader does not tell.
        redraws: whether candidate batches are drawn with the loader's sampler; if False, they are the loader's own batches.
        step: batches selected so far.
        listeners: called with ``(candidates, selection)`` for each selection, such as the logs of ``rholoss.diagnostics``;
            nothing that they compute or draw changes the run.
        view: what is known of the loader, a ``LoaderView``.
        scorer: runs the model, a ``Scorer``.
        generator: the random generator that the method draws from.
    """

    scores_by_index: ClassVar[bool] = False
    """Whether ``score`` goes by ``candidates.index`` alone, and reads neither the batch nor the model."""
    compares_candidates: bool = False
    """Whether a score depends on the other candidates, so that scores of two batches cannot be ranked together."""

    not_recorded = ("loader", "model", *SelectorOptions.__annotations__)

    def __init__(
        self,
        loader: Any,
        model: Any = None,
        *,
        keep: float | None = None,
        batch_size: int | None = None,
        task: Task | None = None,
        forward: Forward | None = None,
        loss: Loss | None = None,
        dtype: torch.dtype | None = None,
        mode: Literal["eval", "train"] = "eval",
        chunk_size: ChunkSize = "auto",
        device: torch.device | str | None = None,
        drop_last: bool | None = None,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        if unknown:
            refuse_unknown(unknown, [*options_of(type(self)), *SelectorOptions.__annotations__], type(self).__name__)
        self.loader = loader
        self.model: Any = optional(model_of, model, "model")
        self.view = LoaderView(loader)
        self.view.require_index()
        self.n_b, n_B = self.view.batch_sizes(keep, batch_size)  # n_B is None where the loader's batches are the candidates
        self.n_B, self.redraws = n_B or self.view.batch_size, n_B is not None
        self.sizes_given = keep is not None or batch_size is not None
        self.scorer = Scorer(Task.of(task, forward, loss, dtype), mode, chunk_size, check=LossCheck(waits=False))
        task = self.scorer.task  # as it is now: a loss may count its calls
        self._described_task = {name: described(getattr(task, name)) for name in ("forward", "loss", "dtype")}
        self._device: Any = device if device is None or (isinstance(device, str) and device == "model") else device_named(device)
        self._drop_last = self.view.drop_last if drop_last is None else flag(drop_last, "drop_last")
        self.generator = torch.Generator().manual_seed(seed_of(seed))
        self.finite_check, self.timer = FiniteCheck(), StepTimer()
        self.last: Selection | None = None
        self.listeners: list[Callable[[Candidates, Selection], Any]] = []
        self.step = 0
        self.epoch_state = EpochState()

    @abstractmethod
    def score(self, candidates: Candidates) -> Tensor:
        """What candidates are ranked by, shape (n_B,), on the scoring device; higher is kept. -inf is last, NaN an error."""

    def choose(self, candidates: Candidates, score: Tensor, n_b: int) -> tuple[Tensor, Tensor | None]:
        """Positions (n_b,) of the candidates to keep, and their weights (n_b,) or None: here the highest scores, unweighted."""
        return functional.top(score, n_b), None

    def draw_rule(self) -> DrawRule:
        """Which examples may be drawn, and which of those drawn are loaded; asked for once, when the first batch is needed."""
        return DrawRule()

    def begin_epoch(self, epoch: int) -> None:
        """Called before an epoch is drawn, and when ``set_epoch`` announces it; perhaps again for the same epoch."""

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        """Called with each selected batch before it is handed back; for methods that learn from it."""

    def after_loss(self, selection: Selection, losses: Tensor) -> None:
        """Called when the loop passes the losses (n_b,) of a selected batch to ``record_losses``; for methods that use them."""

    def extra_state(self) -> dict[str, Any]:
        """What a method adds to the state."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what ``extra_state`` returned."""

    def __iter__(self) -> Iterator[Any]:
        epoch = self.next_epoch
        self.begin_epoch(epoch)
        enter = partial(self._enter, epoch)
        return SelectedPass(self.draw(), enter, self.select_from, self.timer, self.scoring_device, self.finite_check)

    def _enter(self, begun: int, candidates: Any) -> Any:
        """Count the epoch; another one than begun, where ``set_epoch``, a state or another iteration came between."""
        self.epoch_state.count()
        if self.epoch == begun:
            return candidates
        self.begin_epoch(self.epoch)
        if self._rule.members is None:
            return candidates
        candidates.close()
        return self.draw()

    def draw(self) -> Iterator[IndexedBatch]:
        """The candidate batches of an epoch, or the rest of one."""
        return self.candidate_loader.epoch(self.n_b, self._drop_last)

    def select_from(self, indexed: IndexedBatch) -> Any:
        """The selected batch of a candidate batch: score, choose, cut, then run the hooks."""
        (index, batch), device = indexed, self.scoring_device
        self.timer.enter("selecting", device)
        if self._device is not None:
            batch = move(batch, device if self._device == "model" else self._device)
        candidates = self.candidates_of(index, batch, device)
        score = check_score(self.score(candidates), len(candidates), candidates.device)
        score = self.finite_check(type(self).__name__, score, candidates)
        chosen, positions, weights, selected = self.take(candidates, score)
        self.last = Selection(chosen, positions, weights, score, candidates.index, self.step, self.epoch, candidates.notes)
        self.timer.count(candidates.scored, len(candidates))
        if self.listeners:
            self._tell(candidates, self.last)
        self.after_select(candidates, self.last, selected)
        self.step += 1
        self.timer.enter("training", candidates.device)
        return selected

    def candidates_of(self, index: Tensor, batch: Any, device: torch.device) -> Candidates:
        """A candidate batch as the method sees it."""
        return Candidates(index, batch, self.model, self.scorer, device, (self.step, self.epoch), self.generator)

    def take(self, candidates: Candidates, score: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        """What to train on: indices, the positions chosen, weights, and the selected batch."""
        n_B = len(candidates)
        n_b = min(self.n_b, n_B)
        choice = self.choose(candidates, score, n_b)
        positions, weights = choice if type(self).choose is Selector.choose else checked_choice(choice, n_b, n_B)
        if n_b == n_B and weights is None:
            return candidates.index, positions, None, candidates.batch
        return candidates.index[positions], positions, weights, cut(candidates.batch, Rows(positions), n_B)

    def _tell(self, candidates: Candidates, selection: Selection) -> None:
        apart = candidates.apart(derived_seed("listeners", self.generator.initial_seed(), self.step))
        for listener in self.listeners:
            listener(apart, selection)

    def __len__(self) -> int:
        """Selected batches in an epoch."""
        return self.candidate_loader.count(self.n_b, self._drop_last)

    def select(self, candidates: IndexedBatch | tuple[Any, Any]) -> Any:
        """The selected batch of a candidate batch, with the model as it is now, for loops that draw candidates themselves.

        Args:
            candidates: an ``IndexedBatch``, as ``candidate_batches`` yields them, or a pair (index, batch).

        Raises:
            ValueError: there are fewer than n_b candidates, or a loss, score or choice is not what it has to be.
        """
        if not (isinstance(candidates, tuple) and len(candidates) == 2):
            raise TypeError(f"candidates must be an IndexedBatch, or a pair (index, batch), got {shown(candidates)}")
        index, batch = as_index(candidates[0]), candidates[1]
        if len(index) < self.n_b:
            raise ValueError(
                f"cannot choose n_b = {self.n_b} of {len(index)} candidates; pass more of them, or a smaller batch_size"
            )
        return self.select_from(IndexedBatch(index, batch))

    def mean_loss(self, losses: Tensor) -> Tensor:
        """The loss to train on, a scalar: the mean of the latest batch's losses (n_b,), each times its weight if it has one."""
        return self._latest("mean_loss").mean_loss(losses)

    def record_losses(self, losses: Tensor) -> None:
        """Report the latest batch's losses (n_b,), without weights, to a method that goes by them; others ignore them."""
        latest = self._latest("record_losses")
        latest.check_losses(losses)
        self.after_loss(latest, losses.detach())

    def _latest(self, caller: str) -> Selection:
        if self.last is None:
            raise ValueError(f"{caller} needs the losses of the batch that was selected last, and none was selected yet")
        return self.last

    def cost(self) -> Cost:
        """What a step costs, of the latest steps, without waiting for an accelerator: print it, or read its ``ratio``."""
        return self.timer.cost(self.n_b, self.n_B)

    def tune(self, candidates: IndexedBatch | tuple[Any, Any] | None = None, *, compiled: bool = False) -> Tuning:
        """Time the options that may make scoring faster here, see ``rholoss.tuning.tune``: print it, or read its ``options``."""
        return tune(self, candidates, compiled=compiled)

    def settings(self) -> Settings:
        """What decides the selections besides the data, the weights and the state: JSON values by name.

        The options of every constructor of the class are among them. A state holds them, and ranks that select together compare
        them. ``device``, ``chunk_size`` and the loader's workers may differ.
        """
        return {
            "selector": type(self).__name__,
            **{"n_b": self.n_b, "n_B": self.n_B, "redraws": self.redraws, "drop_last": self._drop_last},
            **self._described_task,
            **{"mode": self.scorer.mode, "seed": self.generator.initial_seed(), "loader": self.view.settings},
            **self.own_options,
        }

    def state_dict(self) -> dict[str, Any]:
        """What is needed to resume with the same selections: tensors, numbers and strings."""
        return {
            "settings": self.settings(),
            "step": self.step,
            "loader": self.candidate_loader.state(),
            "generator": self.generator.get_state(),
            "extra": copy.deepcopy(self.extra_state()),
        }

    def load_state_dict(self, state: dict[str, Any], *, allow: Collection[str] = ()) -> None:
        """Resume from a state: the next iteration makes the rest of its epoch. Batches of a sampler are skipped without loading.

        Args:
            state: what ``state_dict`` returned.
            allow: names of ``settings`` that may differ from those of the state, such as ``["n_b", "n_B"]``, and ``"data"``. If
                a batch size, the loader or the data differ, the next iteration begins the next epoch.

        Raises:
            ValueError: the state is of another selector, store or loader, of other data or options, or damaged. The selector is
                then as it was.
        """
        differ = check_settings(self.settings(), taken(state, "settings", dict), allow)
        before, passes = self.state_dict(), dict(vars(self.epoch_state))

        def restore() -> None:
            self._resume(before)
            vars(self.epoch_state).update(passes)

        with restoring(restore):
            self._resume(state, differ, allow)
            self.begin_epoch(self.epoch)

    def _resume(self, state: dict[str, Any], differ: Collection[str] = (), allow: Collection[str] = ()) -> None:
        extra, step = taken(state, "extra", self.extra_state()), taken(state, "step", int, least=0)
        loader = self.candidate_loader.checked(taken(state, "loader", self.candidate_loader.state()), differ, allow)
        random = taken(state, "generator", self.generator.get_state()).cpu()
        self.load_extra_state(extra)
        self.generator.set_state(random)
        self.candidate_loader.resume(loader)
        self.step = step

    @property
    def scoring_device(self) -> torch.device:
        """Where scores are computed: the model's device; without a model, ``device``, or the CPU."""
        own = device_of(self.model)
        return own if own is not None else torch.device(self._device if self._device not in (None, "model") else "cpu")

    @cached_property
    def candidate_loader(self) -> CandidateLoader:
        """Where candidate batches come from; built lazily, as ``draw_rule`` may need what a subclass's constructor sets."""
        self._rule = rule = self.draw_rule()
        if not isinstance(rule, DrawRule):
            raise TypeError(f"draw_rule must return a DrawRule, got {shown(rule)}")
        n_B = rule.n_B or (self.n_B if self.redraws else None)
        prefilter, least = self._prefiltered if rule.prefilter else None, self.n_b if self._drop_last else 1
        return CandidateLoader(self.view, n_B, rule.members, prefilter, self.epoch_state, least)

    def _prefiltered(self, drawn: list[int]) -> list[int]:
        """Of the positions in the dataset that the sampler drew, those to load."""
        assert self._rule.prefilter is not None
        found = self._rule.prefilter(self.view.index_of(torch.tensor(drawn)), self.step)
        return drawn if found is None else [drawn[i] for i in checked_prefilter(found, self.n_b, len(drawn))]

    def describe(self) -> dict[str, Any]:
        """What ``print(selector)`` shows, by name."""
        dataset = "" if self.dataset is None else f" over {type(self.dataset).__name__}"
        loader = f"{type(self.loader).__name__}{dataset}"
        return {"n_b": self.n_b, "n_B": self.n_B, "loader": loader, "epoch": self.epoch, "step": self.step}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value}' for name, value in self.describe().items())})"
