"""What several methods would choose from the same candidates, and how far they agree."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from rholoss import functional
from rholoss.candidates import Candidates
from rholoss.data.index import IndexedBatch, as_index
from rholoss.diagnostics.agreement import overlaps, rank_correlations
from rholoss.diagnostics.log import SelectionLog, already_right
from rholoss.isolation import derived_seed
from rholoss.selection import FiniteCheck, Selection, check_score, checked_choice
from rholoss.selector import Selector
from rholoss.wrappers.base import check_part

Method = Selector | Callable[[Candidates], Tensor]
"""A selector, or a function from candidates to scores of which the highest are chosen."""

OWN = "selected"  # what the selector in use is called among the others


def compare(methods: Mapping[str, Method], batch: IndexedBatch | tuple[Any, Any]) -> dict[str, Selection]:
    """What each of several methods would choose from a candidate batch, with the model as it is now.

    Outputs and losses are computed once for all of them, and everything is left as it was: the model, the selectors, the batch
    and all random state. A method that draws does so from a seed of its own.

    Args:
        methods: by name, selectors that were built on the same loader and model, or functions from ``Candidates`` to scores of
            shape (n_B,). The first selector says how many are chosen, and how the model is called.
        batch: an ``IndexedBatch``, as ``selector.candidate_batches`` yields them, or a pair (index, batch).

    Returns:
        The selection of each.

    Raises:
        ValueError: the methods do not go together, or one keeps a state, so that its choice depends on a run of its own.
    """
    selectors = [method for method in methods.values() if isinstance(method, Selector)]
    if not selectors:
        raise ValueError("compare needs a selector, which says how many are chosen and how the model is called, got none")
    whole = next((selector for selector in selectors if selector.model is not None), selectors[0])
    check_methods(methods, whole)
    index = as_index(batch[0])
    seed = derived_seed("compare", whole.generator.initial_seed(), whole.step)
    candidates = whole.candidates_of(index, batch[1], whole.scoring_device).apart(seed)
    finite = FiniteCheck()
    chosen = choices(methods, candidates, min(selectors[0].n_b, len(index)), finite)
    finite.wait()
    return chosen


def check_methods(methods: Mapping[str, Method], whole: Selector) -> None:
    """Refuse what could not score another selector's candidates as it would its own."""
    for name, method in methods.items():
        if isinstance(method, type) or not (isinstance(method, Selector) or callable(method)):
            raise TypeError(f"method {name!r} must be a selector or a function from candidates to scores, got {method!r}")
        if isinstance(method, Selector):
            check_part(method, whole)
            if _moves(method.extra_state()):
                raise ValueError(
                    f"method {name!r} keeps a state from step to step, so its choice would not be that of a run of its own; "
                    "leave it out"
                )


def choices(methods: Mapping[str, Method], candidates: Candidates, n_b: int, finite: FiniteCheck) -> dict[str, Selection]:
    """What each method chooses of candidates that are apart from the run."""
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
    """What other methods would have chosen from the very candidates that a selector chose from, all along a run.

    Attach it to the selector. The model is run once for all methods, with what the selector has computed already; the run itself
    goes on as it would without. A method that learns along, or that keeps a state, is refused.

    Args:
        methods: by name, selectors built on the same loader and model, or functions from ``Candidates`` to scores, (n_B,).
        log: makes a ``SelectionLog`` for each method, such as ``lambda: SelectionLog(N, flags)``; None: only agreement is kept.
        every: compare at each so many steps, at least 1.

    Attributes:
        names: ``"selected"``, the selector that it is attached to, and the methods: M in all.
        logs: the log of what each would have chosen, by name, of the steps that were compared.
        last: the selections of the latest comparison, by name, or None.
        batches: how many comparisons there were.
    """

    def __init__(self, methods: Mapping[str, Method], log: Callable[[], SelectionLog] | None = None, *, every: int = 10) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every must be a number of steps, at least 1, got {every!r}")
        if OWN in methods:
            raise ValueError(f"{OWN!r} is what the selector in use is called; give the method another name")
        self.methods = dict(methods)
        self.every = every
        self.names = [OWN, *methods]
        self.logs = {} if log is None else {name: log() for name in self.names}
        self.last: dict[str, Selection] | None = None
        self._finite = FiniteCheck()
        self.clear()

    def clear(self) -> None:
        """Count from nothing; the logs stay as they are."""
        M = len(self.names)
        self.batches = 0
        self._overlap, self._correlation, self._known = (torch.zeros(M, M, dtype=torch.float64) for _ in range(3))
        self._chance = 0.0

    def attach(self, selector: Selector) -> Self:
        """Listen to a selector from now on. ``selector.listeners.remove(log)`` ends it.

        Raises:
            ValueError: a method does not go together with the selector, or keeps a state.
        """
        check_methods(self.methods, selector)
        selector.listeners.append(self)
        return self

    def __call__(self, candidates: Candidates, selection: Selection) -> None:
        """What the selector calls."""
        n_b = len(selection.positions)  # of these candidates, whoever trains on them
        if candidates.step % self.every or not n_b:
            return
        self.last = {OWN: selection, **choices(self.methods, candidates, n_b, self._finite)}
        correlation = rank_correlations(self.last)
        device = correlation.device
        self._overlap = self._overlap.to(device) + overlaps(self.last)
        self._correlation = self._correlation.to(device) + correlation.nan_to_num(0)
        self._known = self._known.to(device) + ~correlation.isnan()
        self._chance += n_b / len(candidates)
        self.batches += 1
        for name, log in self.logs.items():
            log.update(self.last[name], already_right(candidates, log.asks))

    @property
    def chance(self) -> float:
        """The share in common to be expected of choices at random: the mean of n_b / n_B, NaN before the first comparison."""
        return self._chance / self.batches if self.batches else float("nan")

    def overlap(self) -> Tensor:
        """Mean shares in common, shape (M, M), float64, on the CPU, as ``overlaps`` gives them; NaN before the first."""
        self._finite.wait()
        return self._overlap.cpu() / self.batches

    def correlation(self) -> Tensor:
        """Mean rank correlations of the scores, over the batches where they are defined, shape (M, M), float64, on the CPU."""
        self._finite.wait()
        return (self._correlation / self._known).cpu()

    def summary(self) -> dict[str, float]:
        """How each method agrees with the selector, and what its log says.

        Returns:
            ``batches`` compared; ``chance``, the share in common that is to be expected of a choice at random; for each method
            ``overlap/...``, the share of the selected that it would have chosen too, and ``correlation/...`` of the scores; and
            the summaries of the logs, each name after that of the method.
        """
        numbers = {"batches": float(self.batches), "chance": self.chance}
        overlap, correlation = self.overlap()[0].tolist(), self.correlation()[0].tolist()
        for i, name in enumerate(self.names[1:], 1):
            numbers |= {f"overlap/{name}": overlap[i], f"correlation/{name}": correlation[i]}
        logs = {f"{name}/{key}": value for name, log in self.logs.items() for key, value in log.summary().items()}
        return numbers | logs

    def state_dict(self) -> dict[str, Any]:
        """All that was counted: tensors, numbers and strings."""
        sums = {name: getattr(self, f"_{name}").cpu() for name in ("overlap", "correlation", "known")}
        logs = {name: log.state_dict() for name, log in self.logs.items()}
        return {"names": self.names, "batches": self.batches, "chance": self._chance, **sums, "logs": logs}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, in place of what was counted."""
        self._check(state)
        for name, log in self.logs.items():
            log.load_state_dict(state["logs"][name])
        self.clear()
        self._add(state)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add what another process counted, as its ``state_dict`` says."""
        self._check(state)
        for name, log in self.logs.items():
            log.merge(state["logs"][name])
        self._add(state)

    def _check(self, state: Mapping[str, Any]) -> None:
        if state["names"] != self.names or list(state["logs"]) != list(self.logs):
            raise ValueError(
                f"this state cannot be loaded: expected methods {self.names} and logs {list(self.logs)}, got {state['names']} "
                f"and {list(state['logs'])}"
            )

    def _add(self, state: Mapping[str, Any]) -> None:
        for name in ("overlap", "correlation", "known"):
            mine = getattr(self, f"_{name}")
            setattr(self, f"_{name}", mine + state[name].to(mine.device))
        self.batches += state["batches"]
        self._chance += state["chance"]


def _moves(state: Mapping[str, Any]) -> bool:
    """Whether a selector's state is more than that of parts that keep none."""
    return bool(set(state) - {"parts"}) or any(_moves(its) for _, its in state.get("parts", ()))
