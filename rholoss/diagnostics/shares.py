"""Counts of selections, as fractions."""

import torch
from torch import Tensor

from rholoss.diagnostics.counts import NEVER, QUANTILES, SelectionCounts

SHORT = [f"q{round(100 * q):02}" for q in QUANTILES]


class Shares:
    """A copy of counts on the CPU, of the steps from ``since`` on, to summarize any of their S batches.

    ``step`` and ``epoch`` have shape (S,), int64.
    """

    def __init__(self, counts: SelectionCounts, since: int = 0) -> None:
        steps, groups = counts.steps(since), len(counts.names) + 1
        rows = steps["rows"].double()
        self.step, self.epoch, self._n_b, self._n_B, self._known = steps["when"].T
        self._is_known = counts.is_known
        self._names = [*counts.names, "correct"]
        self._selected, self._candidates = rows[:, :groups], rows[:, groups : 2 * groups]
        self._spread = rows[:, 2 * groups :].reshape(len(rows), groups + 1, len(QUANTILES))
        self._in_data = counts.in_data
        first = counts.by_example("first")
        self._first = first[(first >= since) & (first < NEVER)].long().sort().values
        self._notes = {name: _column(note[0], note[1], len(rows)) for name, note in sorted(steps["notes"].items())}

    def record(self, at: Tensor) -> dict[str, float]:
        """Counts and fractions of the batches at some places, int64."""
        n_b, n_B = int(self._n_b[at].sum()), int(self._n_B[at].sum())
        record = {"batches": float(len(at)), "selected": float(n_b), "candidates": float(n_B)}
        for group, name in enumerate(self._names):
            among = at if name != "correct" else at[self._known[at].bool()]
            if name == "correct" and not self._is_known:
                continue
            selected = _ratio(self._selected[among, group].sum(), self._n_b[among].sum())
            candidates = _ratio(self._candidates[among, group].sum(), self._n_B[among].sum())
            record |= {f"{name}/selected": selected, f"{name}/candidates": candidates}
            record[f"{name}/ratio"] = _ratio(selected, candidates)
            if name != "correct":
                record[f"{name}/data"] = self._in_data[group]
        record["repeated"] = _ratio(n_b - self._newly_selected(at), n_b)
        return record | {f"notes/{name}": float(column[at].nanmean()) for name, column in self._notes.items()}

    def scores(self, at: Tensor) -> dict[str, float]:
        """Quantiles of the scores: means over the batches at some places."""
        means = self._spread[at].nanmean(0).tolist()
        names = ["candidates", *self._names[:-1], "selected"]
        return {f"{name}/{q}": mean for name, row in zip(names, means, strict=True) for q, mean in zip(SHORT, row, strict=True)}

    def _newly_selected(self, at: Tensor) -> int:
        """How many examples were selected for the first time between the first and the last of some batches."""
        if not len(at):
            return 0
        begin, end = self.step[at].min(), self.step[at].max()
        return int(torch.searchsorted(self._first, end, right=True) - torch.searchsorted(self._first, begin))


def _ratio(part: Tensor | float, whole: Tensor | float) -> float:
    return float(part) / float(whole) if float(whole) else float("nan")


def _column(places: Tensor, values: Tensor, n: int) -> Tensor:
    column = torch.full((n,), torch.nan, dtype=torch.float64)
    column[places] = values.double()
    return column
