"""What several methods would choose from the same candidates, and how far they agree."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rholoss import functional
from rholoss.arguments import function, mapping, optional, shown, whole
from rholoss.candidates import Candidates
from rholoss.data.index import IndexedBatch, as_index
from rholoss.devices import to_device
from rholoss.diagnostics.agreement import overlaps, rank_correlations
from rholoss.diagnostics.log import SelectionLog, already_correct
from rholoss.isolation import derived_seed
from rholoss.selection import FiniteCheck, Selection, check_score, checked_choice
from rholoss.selector import Selector
from rholoss.states import restoring, taken
from rholoss.wrappers.base import check_part

Method = Selector | Callable[[Candidates], Tensor]
"""A selector, or a function from candidates to scores (n_B,), of which the highest are chosen."""

OWN = "own"  # the name of the selector that a log is attached to


def compare(methods: Mapping[str, Method], batch: IndexedBatch | tuple[Any, Any]) -> dict[str, Selection]:
    """What each of several methods would choose from a candidate batch, with the model as it is now.

    Outputs and losses are computed once for all methods. The model, the selectors, the batch and all random state stay as they
    were; methods that draw have seeds of their own.

    Args:
        methods: by name, selectors built on the same loader and model, or functions from ``Candidates`` to scores of shape
            (n_B,). The first selector decides n_b, and how the model is called.
        batch: an ``IndexedBatch`` from ``selector.candidate_batches``, or a pair (index, batch).

    Returns:
        The selection of each method, by name.

    Raises:
        ValueError: the methods differ in loader, model or way of scoring, or a method keeps a state.
    """
    _refuse_no_methods(methods)
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise TypeError(f"batch must be an IndexedBatch, or a pair (index, batch), got {shown(batch)}")
    selectors = [method for method in methods.values() if isinstance(method, Selector)]
    if not selectors:
        raise ValueError("methods must have a selector, which decides how many are chosen and how the model is called, got none")
    whole = next((selector for selector in selectors if selector.model is not None), selectors[0])
    check_methods(methods, whole)
    index = as_index(batch[0])
    seed = derived_seed("compare", whole.generator.initial_seed(), whole.step)
    candidates = whole.candidates_of(index, batch[1], whole.scoring_device).apart(seed)
    finite = FiniteCheck()
    chosen = choices(methods, candidates, min(selectors[0].n_b, len(index)), finite)
    finite.wait()
    return chosen


def _refuse_no_methods(methods: Any) -> None:
    mapping(methods, "methods", "a mapping of selectors by name, such as {'uniform': selector}")
    for name, method in methods.items():
        if isinstance(method, type) or not (isinstance(method, Selector) or callable(method)):
            what = "must be a selector or a function from candidates to scores"
            raise TypeError(f"methods: method {name!r} {what}, got {shown(method)}")


def check_methods(methods: Mapping[str, Method], whole: Selector) -> None:
    """Refuse methods that cannot score the candidates of a selector as they would score their own."""
    for name, method in methods.items():
        if isinstance(method, Selector):
            check_part(method, whole)
            if _moves(method.extra_state()):
                why = "keeps a state from step to step, so its choice would not be that of a run of its own"
                raise ValueError(f"method {name!r} {why}; remove it")


def choices(methods: Mapping[str, Method], candidates: Candidates, n_b: int, finite: FiniteCheck) -> dict[str, Selection]:
    """The choice of each method from candidates that ``Candidates.apart`` returned."""
    seed, index, chosen = candidates.generator.initial_seed(), candidates.index, {}
    for name, method in methods.items():
        candidates.generator.manual_seed(derived_seed(seed, name))
        candidates.notes.clear()
        given = method.score(candidates) if isinstance(method, Selector) else method(candidates)
        score = finite(name, check_score(given, len(index), candidates.device), candidates)
        choice = method.choose(candidates, score, n_b) if isinstance(method, Selector) else (functional.top(score, n_b), None)
        positions, weights = checked_choice(choice, n_b, len(index))
        when, notes = (candidates.step, candidates.epoch), dict(candidates.notes)
        chosen[name] = Selection(index[positions], positions, weights, score, index, *when, notes)
    return chosen


class ComparisonLog:
    """What other methods would have chosen from the same candidates during a run.

    Attach it to the selector that trains, called ``"own"`` here. The model runs once for all methods, and the run itself does not
    change. Methods that keep a state, such as a co-trained model, are refused.

    Args:
        methods: by name, selectors built on the same loader and model, or functions from ``Candidates`` to scores, (n_B,).
        log: makes a ``SelectionLog`` for each method, such as ``lambda: SelectionLog(N, flags)``; None keeps agreement only.
        every: steps between comparisons, at least 1.

    Attributes:
        names: ``"own"`` and the methods, M in all.
        logs: the log of each, by name, over the compared steps.
        last: the selections of the latest comparison, by name, or None.
        batches: number of comparisons.
    """

    def __init__(self, methods: Mapping[str, Method], log: Callable[[], SelectionLog] | None = None, *, every: int = 10) -> None:
        _refuse_no_methods(methods)
        optional(function, log, "log", "() -> SelectionLog")
        if OWN in methods:
            raise ValueError(f"{OWN!r} is the name of the selector that the log is attached to; give the method another name")
        self.methods, self.every = dict(methods), whole(every, "every", "a number of steps, at least 1")
        self.names = [OWN, *methods]
        self.logs = {} if log is None else {name: log() for name in self.names}
        self.last: dict[str, Selection] | None = None
        self._finite = FiniteCheck()
        self.clear()

    def clear(self) -> None:
        """Start counting again from zero; the logs stay as they are."""
        M = len(self.names)
        self.batches = 0
        self._sums = {name: torch.zeros(M, M, dtype=torch.float64) for name in ("overlap", "correlation", "known")}
        self._uniform_overlap = 0.0

    def attach(self, selector: Selector) -> Self:
        """As ``SelectionLog.attach``; raises as ``compare``."""
        check_methods(self.methods, selector)
        selector.listeners.append(self)
        return self

    def __call__(self, candidates: Candidates, selection: Selection) -> None:
        """Called by the selector."""
        n_b = len(selection.positions)  # of these candidates, on any rank
        if candidates.step % self.every or not n_b:
            return
        self.last = {OWN: selection, **choices(self.methods, candidates, n_b, self._finite)}
        correlation = rank_correlations(self.last)
        found = {"overlap": overlaps(self.last), "correlation": correlation.nan_to_num(0), "known": ~correlation.isnan()}
        self._add(found, 1, n_b / len(candidates))
        for name, log in self.logs.items():
            log.update(self.last[name], already_correct(candidates, log.asks))

    @property
    def uniform_overlap(self) -> float:
        """Expected overlap with uniform sampling: the mean of n_b / n_B; NaN before the first comparison."""
        return self._uniform_overlap / self.batches if self.batches else float("nan")

    def overlap(self) -> Tensor:
        """Mean ``overlaps``, shape (M, M), float64, on the CPU; NaN before the first comparison."""
        self._finite.wait()
        return self._sums["overlap"].cpu() / self.batches

    def correlation(self) -> Tensor:
        """Mean ``rank_correlations`` over the batches where they are defined, shape (M, M), float64, on the CPU."""
        self._finite.wait()
        return (self._sums["correlation"] / self._sums["known"]).cpu()

    def summary(self) -> dict[str, float]:
        """How each method agrees with the selector, and the summaries of the logs.

        Returns:
            ``batches`` compared; ``uniform_overlap``; for each method ``overlap/...``, the fraction of the selected examples that
            it would have chosen too, and ``correlation/...`` of the scores; and each log's summary as ``method/...``.
        """
        numbers = {"batches": float(self.batches), "uniform_overlap": self.uniform_overlap}
        overlap, correlation = self.overlap()[0].tolist(), self.correlation()[0].tolist()
        for i, name in enumerate(self.names[1:], 1):
            numbers |= {f"overlap/{name}": overlap[i], f"correlation/{name}": correlation[i]}
        logs = {f"{name}/{key}": value for name, log in self.logs.items() for key, value in log.summary().items()}
        return numbers | logs

    def state_dict(self) -> dict[str, Any]:
        """All counts: tensors, numbers and strings."""
        sums = {name: total.cpu() for name, total in self._sums.items()}
        logs = {name: log.state_dict() for name, log in self.logs.items()}
        return {"names": self.names, "batches": self.batches, "uniform_overlap": self._uniform_overlap, **sums, "logs": logs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the counts by those of a state."""
        with restoring(partial(self._put, self.state_dict())):
            self._check(state)
            self._put(state)

    def _put(self, state: Mapping[str, Any]) -> None:
        for name, log in self.logs.items():
            log.load_state_dict(state["logs"][name])
        self.clear()
        self._add(state, state["batches"], state["uniform_overlap"])

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the counts of another process, from its ``state_dict``."""
        with restoring(partial(self._put, self.state_dict())):
            self._check(state)
            for name, log in self.logs.items():
                log.merge(state["logs"][name])
            self._add(state, state["batches"], state["uniform_overlap"])

    def _check(self, state: Mapping[str, Any]) -> None:
        names, logs = taken(state, "names", list), taken(state, "logs", dict)
        if names != self.names or list(logs) != list(self.logs):
            expected = f"expected methods {self.names} and logs {list(self.logs)}"
            raise ValueError(f"this state cannot be loaded: {expected}, got {names} and {list(logs)}")
        taken(state, "batches", int, least=0)
        taken(state, "uniform_overlap", float)
        for name, total in self._sums.items():
            taken(state, name, total)

    def _add(self, sums: Mapping[str, Tensor], batches: int, uniform_overlap: float) -> None:
        self._sums = {name: to_device(total, sums[name].device) + sums[name] for name, total in self._sums.items()}
        self.batches += batches
        self._uniform_overlap += uniform_overlap


def _moves(state: Mapping[str, Any]) -> bool:
    """Whether a selector, or a part of it, keeps a state."""
    return bool(set(state) - {"parts"}) or any(map(_moves, state.get("parts", ())))
