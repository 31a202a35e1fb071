"""A log of selections: fractions with a known property, already correct, or selected before."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import Self

from rholoss.arguments import flag, function, mapping, optional, shown, whole
from rholoss.candidates import Candidates
from rholoss.data.subset import checked_labels
from rholoss.diagnostics.counts import SelectionCounts
from rholoss.diagnostics.html import summary_of, write_run
from rholoss.diagnostics.shares import Shares
from rholoss.distributed import Ranks, group_of, is_initialized
from rholoss.losses import classes_of
from rholoss.report.gallery import Examples
from rholoss.report.page import fragment
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.states import described, restoring, taken

if TYPE_CHECKING:
    from rholoss.diagnostics.comparison import ComparisonLog

Tracker = Callable[[dict[str, float], int], Any]
"""What takes metrics by name, and the step: ``tracker(metrics, step)``."""


class SelectionLog:
    """Counts selected examples, by step and by example.

    Attach it to a selector, or call ``update(selector.last)`` after each batch. Counting runs on the device of the selections,
    many steps at once; reading a number synchronizes. A fraction is of examples over all batches: an example that was drawn twice
    counts twice, whatever its weight. Memory: 12 bytes per example and 1 for each flag; 48 per step and 28 for each flag.

    Args:
        n: N, examples in the whole dataset.
        flags: known properties of the examples, by name: each shape (N,), bool.
        ids: the ids of the examples, shape (N,), integers or names, if the loader's indices are ids instead of 0 to N-1.
        correct: run the model, in an attached log, if the selector did not compute its outputs, to know which candidates it
            classifies correctly. Costs a forward pass per candidate then.

    Attributes:
        asks: the argument ``correct``.
        loader: that of the selector that the log listens to; None without one.

    Examples:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.diagnostics import SelectionLog
        >>> from rholoss.selectors import TrainLossSelector
        >>> data, model = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,))), torch.nn.Linear(5, 3)
        >>> selector = TrainLossSelector(DataLoader(data, batch_size=8), model, keep=0.5)
        >>> log = SelectionLog(64, {"first class": data.tensors[1] == 0}).attach(selector)
        >>> for x, y in selector:
        ...     pass
        >>> log.summary()["selected"], log.summary()["never_selected"]
        (32.0, 0.5)
    """

    def __init__(self, n: int, flags: Mapping[str, Any] | None = None, *, ids: Any = None, correct: bool = False) -> None:
        optional(mapping, flags, "flags", "a mapping of one bool per example by name, or None")
        for name in {"correct", "candidates", "selected"} & set(flags or {}):
            raise ValueError(f"a flag cannot be called {name!r}, which the log has a meaning for; choose another name")
        self._counts = SelectionCounts(n, flags, ids)
        self.asks = flag(correct, "correct")
        self.loader: Any = None
        self._latest: Selection | None = None
        self._trackers: list[tuple[int, Tracker, Any]] = []

    def attach(self, selector: Selector) -> Self:
        """Listen to a selector from now on; ``selector.listeners.remove(log)`` ends it."""
        if not isinstance(selector, Selector):
            raise TypeError(f"selector must be a selector that is built, got {shown(selector)}")
        self.loader = selector.loader
        selector.listeners.append(self)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle, without the loader, which may have running workers."""
        return {**vars(self), "loader": None}

    def __call__(self, candidates: Candidates, selection: Selection) -> None:
        """Called by the selector."""
        self.update(selection, already_correct(candidates, self.asks))

    def update(self, selection: Selection, correct: Tensor | None = None) -> None:
        """Add ``selector.last``; ``correct``: which candidates the model classifies correctly before the step, (n_B,) bool."""
        if not isinstance(selection, Selection):
            raise TypeError(f"update takes a selection, as selector.last is after a batch, got {type(selection).__name__}")
        if selection is self._latest:
            raise ValueError("this selection is in the log already; attach the log or call update, not both")
        n_B = len(selection.candidate_index)
        if correct is not None and (correct.dtype != torch.bool or correct.shape != (n_B,)):
            got = f"{correct.dtype} of shape {tuple(correct.shape)}"
            raise ValueError(f"correct must be one bool per candidate, shape ({n_B},), got {got}")
        self._latest = selection
        self._counts.put(selection, correct)
        for steps, tracker, group in self._trackers:
            if (selection.step + 1) % steps == 0:
                metrics = self.metrics(selection.step + 1 - steps, group=group)
                if not is_initialized() or torch.distributed.get_rank(group) == 0:
                    tracker(metrics, selection.step)

    def every(self, steps: int, tracker: Tracker, *, group: Any = None) -> Self:
        """Report to an experiment tracker, such as TensorBoard, after every so many steps from now on.

        Between reports, nothing is read from an accelerator. With several processes, each calls this; the numbers are those of
        all ranks, and the tracker is called on the first one only.

        Args:
            steps: steps between reports, at least 1.
            tracker: called as ``tracker(metrics, step)`` with the ``metrics`` of these steps, and the step of the latest
                batch, counted from 0; ``rholoss.integrations.trackers`` makes one for each known tracker.
            group: the ranks to report on together; None for all processes.

        Examples:
            >>> import torch
            >>> from torch.utils.data import DataLoader, TensorDataset
            >>> from rholoss.diagnostics import SelectionLog
            >>> from rholoss.selectors import UniformSelector
            >>> selector = UniformSelector(DataLoader(TensorDataset(torch.randn(64, 5)), batch_size=8), keep=0.5)
            >>> log = SelectionLog(64).attach(selector)
            >>> log = log.every(2, lambda metrics, step: print(step, metrics["rholoss/selected"]))
            >>> for (x,) in selector:
            ...     pass
            1 16.0
            3 16.0
        """
        steps = whole(steps, "steps", "a number of steps, at least 1")
        self._trackers.append((steps, function(tracker, "tracker", "(metrics, step)"), group_of(group)))
        return self

    def metrics(self, since: int = 0, *, group: Any = None) -> dict[str, float]:
        """The numbers for a tracker: of ``summary``, and quantiles of the scores, without those that are not finite.

        With several processes, every rank has to call this, and gets the numbers of all ranks.

        Args:
            since: count only the batches from this step on; the numbers by example are always over all batches.
            group: the ranks; None for all processes.

        Returns:
            The ``summary`` as ``rholoss/...``, and the quantiles of ``scores_over_time`` as ``rholoss/scores/...``.
        """
        since, group, counts = _since(since), group_of(group), self._counts
        if is_initialized():
            ranks = Ranks(group, "metrics over all ranks", "end the process group before")
            with ranks.sharing_errors():
                counts.rows()  # refuses unknown indices
                asked = {"since": since, "n": counts.n, "flags": ", ".join(counts.names)}
                ranks.agree(asked, "build the log, and call every(), in the same way on each")
            counts = counts.reduced(ranks, since)
        shares, numbers = _summary(counts, since)
        numbers |= {f"scores/{name}": value for name, value in shares.scores(torch.arange(len(shares.step))).items()}
        return {f"rholoss/{name}": value for name, value in numbers.items() if math.isfinite(value)}

    def summary(self, since: int = 0) -> dict[str, float]:
        """The run in numbers; NaN for a fraction of nothing.

        Args:
            since: count only the batches from this step on; the numbers by example are always over all batches.

        Returns:
            ``batches``, ``selected`` and ``candidates``: counts. For each flag, and for ``correct`` (classified correctly before
            the step) if known: ``.../selected`` and ``.../candidates``, fractions, and ``.../ratio``; for a flag also
            ``.../data``. ``repeated``: the fraction of the selected that had been selected before. ``notes/...``: means of the
            method's notes. By example: ``never_selected`` and ``never_drawn``, fractions of the dataset; ``most_selected``, the
            highest count of one example.
        """
        return _summary(self._counts, _since(since))[1]

    def over_time(self, every: int = 50) -> list[dict[str, float]]:
        """The numbers of ``summary``, except those by example, per ``every`` steps, with ``step`` and ``epoch`` of the first."""
        return self._by(_window(every), Shares.record)

    def by_epoch(self) -> list[dict[str, float]]:
        """As ``over_time``, per epoch."""
        return self._by(lambda shares: shares.epoch, Shares.record)

    def scores_over_time(self, every: int = 50) -> list[dict[str, float]]:
        """Quantiles of the finite scores per ``every`` steps, with ``step`` and ``epoch`` of the first; means over batches.

        ``candidates/q50`` is the median over all candidates; likewise ``selected/...``, and a flag's name for the candidates with
        the flag; ``q05``, ``q25``, ``q50``, ``q75`` and ``q95``.
        """
        return self._by(_window(every), Shares.scores)

    def by_class(self, labels: Any) -> dict[str, Tensor]:
        """Fractions of the classes among ``"selected"``, ``"candidates"`` and ``"data"``: each shape (C,), float64.

        ``labels`` are the class of each example of the dataset, shape (N,), integers from 0.
        """
        labels = checked_labels(labels, self._counts.n).long()
        if int(labels.min()) < 0:
            raise ValueError(f"labels must be integers from 0, got {int(labels.min())}")
        of = {"selected": self.selected, "candidates": self.drawn, "data": torch.ones(len(labels))}
        sums = {name: torch.bincount(labels, weights=count.double()) for name, count in of.items()}
        return {name: total / total.sum() for name, total in sums.items()}

    def to_html(
        self,
        path: str | os.PathLike[str],
        dataset: Any = None,
        *,
        comparison: ComparisonLog | None = None,
        every: int | None = None,
        show: Callable[[int], Any] | None = None,
    ) -> None:
        """Write what was selected as one HTML page that needs no network and no server.

        Args:
            path: the file.
            dataset: the whole dataset, or a loader over it, to show the most selected examples and some that never were, by class
                if it shows labels. None: no examples, unless ``show`` is given.
            comparison: a ``ComparisonLog`` of the same run, whose agreement is shown.
            every: steps per point of the lines, at least 1; None for about a hundred points.
            show: ``(index) -> image or text`` to show instead of the dataset's example.

        Raises:
            ValueError: the dataset is not the one that was selected from, as far as labels and a sample show; nothing is written.
        """
        every = optional(whole, every, "every", "a number of steps, at least 1, or None")
        write_run(self, path, dataset, comparison, every, show)

    def _repr_html_(self) -> str | None:
        return fragment(summary_of(self, Examples())) if self.steps else None

    @property
    def steps(self) -> int:
        """Number of selections counted."""
        return len(self._counts.when)

    @property
    def selected(self) -> Tensor:
        """How often each example was selected, shape (N,), int64, on the CPU."""
        return self._counts.by_example("selected").long()

    @property
    def drawn(self) -> Tensor:
        """How often each example was a candidate, shape (N,), int64, on the CPU."""
        return self._counts.by_example("drawn").long()

    @property
    def flags(self) -> dict[str, Tensor]:
        """The flags, by name: each shape (N,), bool, on the CPU."""
        return dict(zip(self._counts.names, self._counts.flags[:, : self._counts.n].cpu(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All counts: tensors, numbers and strings."""
        ids = {} if self._counts.ids is None else {"ids": self._counts.ids}
        return {**self._identity(), **ids, **self._counts.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the counts by those of a state; a ValueError if it is of other data or other flags."""
        self._check(state)
        self._counts.clear()
        self._counts.add(state)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another process, from its ``state_dict``; raises as ``load_state_dict``."""
        self._check(state)
        self._counts.add(state)

    def reduced(self, group: Any = None) -> SelectionLog:
        """A log with the counts of all ranks of a group (None: all processes), on every rank; every rank has to call this."""
        states: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(states, self.state_dict(), group=group)
        whole = SelectionLog(self._counts.n, self.flags, ids=self._counts.ids)
        for state in states:
            whole.merge(state)
        return whole

    def _identity(self) -> dict[str, Any]:
        return {"n": self._counts.n, "flags": described(self.flags)}

    def _check(self, state: Mapping[str, Any]) -> None:
        with restoring():
            for name, mine in self._identity().items():
                if (its := taken(state, name, int, dict)) != mine:
                    what = f"expected {name} = {mine}, got {its}, those of other data"
                    raise ValueError(f"this state cannot be loaded: {what}")
            ids = self._counts.ids
            if (ids is None) != ("ids" not in state) or (ids is not None and not torch.equal(ids, taken(state, "ids", ids))):
                raise ValueError("this state cannot be loaded: it is of examples with other ids")
            self._counts.check_state(state)

    def _by(self, key: Callable[[Shares], Tensor], record: Callable[..., dict[str, float]]) -> list[dict[str, float]]:
        shares = Shares(self._counts)
        keys = key(shares)
        _, sizes = keys.unique(return_counts=True)
        groups = keys.argsort(stable=True).split(sizes.tolist()) if len(keys) else ()
        begins = [{"step": float(shares.step[at].min()), "epoch": float(shares.epoch[at].min())} for at in groups]
        return [{**begin, **record(shares, at)} for begin, at in zip(begins, groups, strict=True)]


def _since(since: Any) -> int:
    return whole(since, "since", "a step, a whole number, at least 0", 0)


def _summary(counts: SelectionCounts, since: int) -> tuple[Shares, dict[str, float]]:
    """The shares of the steps from ``since`` on, and the numbers of ``SelectionLog.summary``."""
    shares, selected, drawn = Shares(counts, since), counts.by_example("selected"), counts.by_example("drawn")
    return shares, {
        **shares.record(torch.arange(len(shares.step))),
        "never_selected": int((selected == 0).sum()) / counts.n,
        "never_drawn": int((drawn == 0).sum()) / counts.n,
        "most_selected": float(selected.max()),
    }


def _window(every: int) -> Callable[[Shares], Tensor]:
    every = whole(every, "every", "a number of steps, at least 1")
    return lambda shares: shares.step // every


def already_correct(candidates: Candidates, ask: bool = False) -> Tensor | None:
    """Which candidates a classifier predicts correctly, shape (n_B,), bool; None if unknown and it may not ``ask`` the model."""
    pair = (candidates.outputs, candidates.targets) if ask else candidates.computed_pair
    if pair is None:
        return None
    outputs, targets = pair
    if not classes_of(outputs, targets):
        return None
    return (outputs.argmax(1) == targets.to(outputs.device).long()).to(candidates.device)
