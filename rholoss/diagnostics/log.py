"""The stream of selections as shares: of what is known of the examples, of what was right already, of what came again."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rholoss.candidates import Candidates
from rholoss.diagnostics.counts import SelectionCounts
from rholoss.diagnostics.shares import Shares
from rholoss.selection import Selection
from rholoss.selector import Selector


class SelectionLog:
    """Counts what was selected, by step and by example.

    Attach it to a selector, or call ``update(selector.last)`` after each batch. Counting happens on the device of the
    selections, many steps at one go, and nothing is read back before a number is asked for. All shares are of examples: a batch
    in which there are none counts as much as the others, and an example that is drawn twice counts twice, whatever its weight.

    Takes 12 bytes an example and 1 for each flag, and 48 bytes a step and 28 more for each flag.

    Args:
        n: N, examples in the whole dataset.
        flags: what you know of the examples, by name: each shape (N,), bool.
        ids: the ids of the examples, shape (N,), integers or names, where the loader's indices are ids rather than 0 to N-1.
        right: let the model classify the candidates where the selector did not need its outputs, to know what it has right
            already. Costs a forward pass per candidate there. Only an attached log can.

    Attributes:
        asks: whether it lets the model classify.

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

    def __init__(self, n: int, flags: Mapping[str, Any] | None = None, *, ids: Any = None, right: bool = False) -> None:
        for name in flags or {}:
            if name in ("right", "candidates", "selected"):
                raise ValueError(f"a flag cannot be called {name!r}, which the log has a meaning for; choose another name")
        self._counts = SelectionCounts(n, flags, ids)
        self.asks = right
        self._latest: Selection | None = None

    def attach(self, selector: Selector) -> Self:
        """Listen to a selector from now on, however it is called. ``selector.listeners.remove(log)`` ends it."""
        selector.listeners.append(self)
        return self

    def __call__(self, candidates: Candidates, selection: Selection) -> None:
        """What the selector calls."""
        self.update(selection, already_right(candidates, self.asks))

    def update(self, selection: Selection, right: Tensor | None = None) -> None:
        """Add a selection.

        Args:
            selection: ``selector.last``.
            right: which candidates the model classifies rightly before the step, shape (n_B,), bool; None if that is not known.
        """
        if not isinstance(selection, Selection):
            raise TypeError(f"update takes a selection, as selector.last is after a batch, got {type(selection).__name__}")
        if selection is self._latest:
            raise ValueError("this selection is in the log already; attach the log or call update, not both")
        n_B = len(selection.candidate_index)
        if right is not None and (right.dtype != torch.bool or right.shape != (n_B,)):
            raise ValueError(
                f"right must be one bool per candidate, shape ({n_B},), got {right.dtype} of shape {tuple(right.shape)}"
            )
        self._latest = selection
        self._counts.put(selection, right)

    def summary(self, since: int = 0) -> dict[str, float]:
        """The run in numbers; NaN for a share of nothing.

        Args:
            since: only the batches from this step on. The numbers by example are of all.

        Returns:
            ``batches``, ``selected`` and ``candidates``, how many there were. For each flag and, where known, for ``right``, the
            examples that the model had right before the step: ``.../selected`` and ``.../candidates``, the shares, and
            ``.../ratio`` of the two; for a flag also ``.../data``. ``repeated``, the share of the selected that had been
            selected before; ``notes/...``, the means of what the method left in the notes. By example: ``never_selected`` and
            ``never_drawn``, the shares of the dataset, and ``most_selected``, how often one example was at most.
        """
        shares, selected, drawn = Shares(self._counts), self.selected, self.drawn
        return {
            **shares.record(torch.nonzero(shares.step >= since).flatten()),
            "never_selected": float((selected == 0).double().mean()),
            "never_drawn": float((drawn == 0).double().mean()),
            "most_selected": float(selected.max()),
        }

    def over_time(self, every: int = 50) -> list[dict[str, float]]:
        """The numbers of ``summary`` that are not by example, for each so many steps in turn.

        With ``step`` and ``epoch`` of the first of them.
        """
        return self._by(_window(every), Shares.record)

    def by_epoch(self) -> list[dict[str, float]]:
        """The same for each epoch in turn."""
        return self._by(lambda shares: shares.epoch, Shares.record)

    def scores_over_time(self, every: int = 50) -> list[dict[str, float]]:
        """Quantiles of the scores, for each so many steps in turn, with ``step`` and ``epoch`` of the first of them.

        Each is a mean, over the batches that have any, of the batch's quantile among the finite scores:
        ``candidates/q50`` for the median of all candidates, likewise ``selected/...`` and, of the candidates with a flag, its
        name; ``q05``, ``q25``, ``q50``, ``q75`` and ``q95``.
        """
        return self._by(_window(every), Shares.scores)

    def by_class(self, labels: Any) -> dict[str, Tensor]:
        """Shares of the classes among ``"selected"``, ``"candidates"`` and ``"data"``: each shape (C,), float64.

        Args:
            labels: the class of each example of the dataset, shape (N,), integers from 0.
        """
        labels = torch.as_tensor(labels).cpu()
        if labels.shape != (self._counts.n,) or labels.is_floating_point() or int(labels.min()) < 0:
            raise ValueError(
                f"labels must be one class per example of the dataset, shape ({self._counts.n},), integers from 0, "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        of = {"selected": self.selected, "candidates": self.drawn, "data": torch.ones(len(labels))}
        sums = {name: torch.bincount(labels, weights=count.double()) for name, count in of.items()}
        return {name: total / total.sum() for name, total in sums.items()}

    @property
    def selected(self) -> Tensor:
        """How often each example was selected, shape (N,), int64, on the CPU."""
        return self._settled().selected[: self._counts.n].cpu().long()

    @property
    def drawn(self) -> Tensor:
        """How often each example was a candidate, shape (N,), int64, on the CPU."""
        return self._settled().drawn[: self._counts.n].cpu().long()

    @property
    def flags(self) -> dict[str, Tensor]:
        """The flags, by name: each shape (N,), bool, on the CPU."""
        return dict(zip(self._counts.names, self._counts.flags[:, : self._counts.n].cpu(), strict=True))

    def state_dict(self) -> dict[str, Any]:
        """All that was counted: tensors, numbers and strings."""
        ids = {} if self._counts.ids is None else {"ids": self._counts.ids}
        return {**self._identity(), **ids, **self._counts.state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, in place of what was counted.

        Raises:
            ValueError: the state is of other data or other flags.
        """
        self._check(state)
        self._counts.clear()
        self._counts.add(state)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another process counted, as its ``state_dict`` says.

        Raises:
            ValueError: the state is of other data or other flags.
        """
        self._check(state)
        self._counts.add(state)

    def reduced(self, group: Any = None) -> "SelectionLog":
        """A log of what all ranks counted, on every rank; all of them have to call this. Batches count once for each rank.

        Args:
            group: the process group; None for all processes.
        """
        states: list[Any] = [None] * torch.distributed.get_world_size(group)
        torch.distributed.all_gather_object(states, self.state_dict(), group=group)
        whole = SelectionLog(self._counts.n, self.flags, ids=self._counts.ids)
        for state in states:
            whole.merge(state)
        return whole

    def _identity(self) -> dict[str, Any]:
        counts = self._counts
        return {"n": counts.n, "flags": {name: int(flag.sum()) for name, flag in self.flags.items()}}

    def _check(self, state: Mapping[str, Any]) -> None:
        for name, mine in self._identity().items():
            if state[name] != mine:
                raise ValueError(
                    f"this state cannot be loaded: expected {name} = {mine}, got {state[name]}; they are of other data"
                )
        ids = self._counts.ids
        if (ids is None) != ("ids" not in state) or (ids is not None and not torch.equal(ids, state["ids"])):
            raise ValueError("this state cannot be loaded: it is of examples with other ids")

    def _settled(self) -> SelectionCounts:
        self._counts.settle()
        self._counts.check()
        return self._counts

    def _by(
        self, key: Callable[[Shares], Tensor], record: Callable[[Shares, Tensor], dict[str, float]]
    ) -> list[dict[str, float]]:
        shares = Shares(self._counts)
        keys = key(shares)
        _, sizes = keys.unique(return_counts=True)
        groups = keys.argsort(stable=True).split(sizes.tolist()) if len(keys) else ()
        return [
            {"step": float(shares.step[at].min()), "epoch": float(shares.epoch[at].min()), **record(shares, at)} for at in groups
        ]


def _window(every: int) -> Callable[[Shares], Tensor]:
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")
    return lambda shares: shares.step // every


def already_right(candidates: Candidates, ask: bool = False) -> Tensor | None:
    """Which candidates a classifier has right before the step, shape (n_B,), bool; None where that is not known.

    Args:
        candidates: what the selector scored.
        ask: whether to run the model where its outputs were not computed.
    """
    pair = (candidates.outputs, candidates.targets) if ask else candidates.computed_pair
    if pair is None:
        return None
    outputs, targets = pair
    if not (isinstance(outputs, Tensor) and isinstance(targets, Tensor)) or targets.is_floating_point():
        return None
    if outputs.ndim != 2 or outputs.shape[1] < 2 or targets.shape != outputs.shape[:1]:
        return None
    return (outputs.argmax(1) == targets.to(outputs.device)).to(candidates.device)
