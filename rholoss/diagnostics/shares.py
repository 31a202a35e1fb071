"""Counts of selections, as fractions."""

import torch
from torch import Tensor

from rholoss.diagnostics.counts import NEVER, QUANTILES, SelectionCounts

SHORT = [f"q{round(100 * q):02}" for q in QUANTILES]


class Shares:
    """A copy of counts on the CPU, to summarize any set of S batches; ``step`` and ``epoch`` have shape (S,), int64."""

    def __init__(self, counts: SelectionCounts) -> None:
        rows, groups = counts.rows(), len(counts.names) + 1
        self.step, self.epoch, self._n_b, self._n_B, self._known = torch.tensor(counts.when, dtype=torch.int64).reshape(-1, 5).T
        self._names = [*counts.names, "correct"]
        self._selected, self._candidates = rows[:, :groups], rows[:, groups : 2 * groups]
        self._spread = rows[:, 2 * groups :].reshape(len(rows), groups + 1, len(QUANTILES))
        self._in_data = counts.flags[:, : counts.n].cpu().double().mean(1).tolist()
        first = counts.by_example("first")
        self._first = first[first < NEVER].long().sort().values
        self._notes = {name: _column(places, values, len(rows)) for name, (places, values) in sorted(counts.notes.items())}

    def record(self, at: Tensor) -> dict[str, float]:
        """Counts and fractions of the batches at some places, int64."""
        n_b, n_B = int(self._n_b[at].sum()), int(self._n_B[at].sum())
        record = {"batches": float(len(at)), "selected": float(n_b), "candidates": float(n_B)}
        for group, name in enumerate(self._names):
            among = at if name != "correct" else at[self._known[at].bool()]
            if name == "correct" and not self._known.any():
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


def _column(places: list[int], values: list[Tensor], n: int) -> Tensor:
    column = torch.full((n,), torch.nan, dtype=torch.float64)
    column[places] = torch.cat([value.cpu() for value in values]).double()
    return column
