"""Counts of selections by step and by example, kept on the device and not read back."""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from rholoss.arguments import whole
from rholoss.data.index import as_index, some, tensor_of
from rholoss.devices import to_device
from rholoss.distributed import Ranks
from rholoss.selection import Selection
from rholoss.states import taken

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
NEVER = torch.iinfo(torch.int32).max
_STEPS, _ENTRIES = 64, 1 << 20  # pending selections, and their candidates times groups, that are counted together


@dataclass(frozen=True)
class _Pending:
    """A selection that is not counted yet."""

    index: Tensor  # (n_B,) int64
    positions: Tensor  # (n_b,) int64
    scores: Tensor  # (n_B,) float32
    correct: Tensor | None  # (n_B,) bool
    notes: dict[str, Tensor]  # scalars
    step: int


class SelectionCounts:
    """Counts of selections by step and by example, on the device of the selections; for the arguments see ``SelectionLog``.

    A step is a row: numbers of selected examples and of candidates in each group, and quantiles of scores. The groups are the
    flags and, last, the examples that the model classified correctly.
    """

    def __init__(self, n: int, flags: Mapping[str, Any] | None = None, ids: Any = None) -> None:
        self.n = n = whole(n, "n", "the number of examples in the dataset, at least 1")
        self.names = list(flags or {})
        self.ids = None if ids is None else as_index(ids, "ids").cpu()
        places: tuple[Tensor | None, Tensor | None] = (None, None) if self.ids is None else _places(self.ids, n)
        self._sorted, self._place = places
        masks = [_mask(name, flag, n) for name, flag in (flags or {}).items()]
        self.flags = pad(torch.stack(masks), (0, 2)) if masks else torch.zeros(0, n + 2, dtype=torch.bool)
        self.in_data = [float(mask.double().mean()) for mask in masks]  # fraction of the examples with each flag
        self._quantiles = torch.tensor(QUANTILES)
        self.clear()

    def clear(self) -> None:
        """Start counting again from zero."""
        device = self.flags.device
        # By example, with two more entries for unknown indices and for padding: counts, and the step of the first selection.
        self.selected, self.drawn = (torch.zeros(self.n + 2, dtype=torch.int32, device=device) for _ in range(2))
        self.first = torch.full((self.n + 2,), NEVER, dtype=torch.int32, device=device)
        self.when: list[tuple[int, int, int, int, bool]] = []  # step, epoch, n_b, n_B, and whether correctness is known
        self.is_known = False  # whether correctness is known at any step
        self.notes: dict[str, tuple[list[int], list[Tensor]]] = {}  # which selections left a note, and the values in chunks
        self._rows: list[Tensor] = []
        self._pending: list[_Pending] = []
        self._entries = 0
        self._stray = torch.full((), torch.iinfo(torch.int64).min, device=device)

    def put(self, selection: Selection, correct: Tensor | None) -> None:
        """Add a selection, to be counted with others later."""
        if selection.candidate_index.device != self.selected.device:
            self.settle()
            self._move(selection.candidate_index.device)
        scalars = {name: note for name, note in selection.notes.items() if isinstance(note, Tensor) and note.numel() == 1}
        notes = {name: note.detach().float().reshape(()).clone() for name, note in scalars.items()}
        index, scores = selection.candidate_index.clone(), selection.scores.detach().to(torch.float32, copy=True)
        self._pending.append(_Pending(index, selection.positions, scores, correct, notes, selection.step))
        for name in notes:
            self.notes.setdefault(name, ([], []))[0].append(len(self.when))
        self.when.append((selection.step, selection.epoch, len(selection.positions), len(index), correct is not None))
        self.is_known = self.is_known or correct is not None
        self._entries += len(index) * (len(self.names) + 1)
        if len(self._pending) >= _STEPS or self._entries >= _ENTRIES:
            self.settle()

    def settle(self) -> None:
        """Count the pending selections."""
        pending, self._pending, self._entries = self._pending, [], 0
        if not pending:
            return
        for name in self.notes:
            left = [one.notes[name] for one in pending if name in one.notes]
            self.notes[name][1].extend([torch.stack(left)] if left else [])
        width = max(len(one.index) for one in pending)
        index = torch.cat([one.index for one in pending])
        slots = self.slots(index)
        self._stray = torch.maximum(self._stray, torch.where(slots == self.n, index, self._stray).max())
        slots = _stacked(slots.split([len(one.index) for one in pending]), self.n + 1, width)  # (S, n_B + 1)
        positions = _stacked([one.positions for one in pending], width)
        self._count_examples(slots, slots.gather(1, positions), [one.step for one in pending])
        none = torch.zeros(0, dtype=torch.bool, device=slots.device)
        correct = _stacked([none if one.correct is None else one.correct for one in pending], 0, width)
        scores = _stacked([one.scores for one in pending], torch.nan, width)
        self._rows.append(self._count_groups(self.flags[:, slots], correct, scores, positions))
        if slots.device.type == "cpu":
            self.check()

    def _count_examples(self, slots: Tensor, chosen: Tensor, steps: list[int]) -> None:
        drawn, chosen = slots.flatten(), chosen.T.flatten()
        self.selected.index_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
        self.drawn.index_add_(0, drawn, torch.ones_like(drawn, dtype=torch.int32))
        at = to_device(torch.tensor(steps, dtype=torch.int32), slots.device).repeat(len(chosen) // len(steps))
        self.first.scatter_reduce_(0, chosen, at, "amin")

    def _count_groups(self, flags: Tensor, correct: Tensor, scores: Tensor, positions: Tensor) -> Tensor:
        """The rows of S selections; flags are (F, S, n_B + 1), correct and scores (S, n_B + 1), positions (S, n_b)."""
        groups = torch.cat([flags, correct[None]])
        counts = groups.gather(2, positions.expand(len(groups), -1, -1)).sum(2), groups.sum(2)  # each (F + 1, S)
        scores = torch.where(scores.isfinite(), scores, torch.nan)
        by_flag = torch.cat([scores[None], torch.where(flags, scores, torch.nan)])
        spread = quantiles(by_flag, self._quantiles), quantiles(scores.gather(1, positions), self._quantiles)[None]
        return torch.cat([*(count.T.float() for count in counts), *(part.transpose(0, 1).flatten(1) for part in spread)], dim=1)

    def by_example(self, name: str) -> Tensor:
        """``selected``, ``drawn`` or ``first`` of the examples, shape (N,), int32, on the CPU."""
        self.settle()
        self.check()
        counts: Tensor = getattr(self, name)
        return counts[: self.n].cpu()

    def rows(self) -> Tensor:
        """The row of each selection, on the CPU, shape (S, 2 (F + 1) + Q (F + 2)), float64: numbers of the selected and of the
        candidates in each group; then Q quantiles of the finite scores of all candidates, of each flag's, and of the selected.
        """
        self.settle()
        self._rows = [torch.cat([torch.zeros(0, self._width), *(rows.cpu() for rows in self._rows)])]
        self.check()
        return self._rows[0].double()

    def slots(self, index: Tensor) -> Tensor:
        """The place of each index in the tables; N if it is unknown."""
        if self._sorted is None or self._place is None:
            return torch.where((index >= 0) & (index < self.n), index, self.n)
        place = torch.searchsorted(self._sorted, index).clamp(max=self.n - 1)
        return torch.where(self._sorted[place] == index, self._place[place], self.n)

    def check(self) -> None:
        """Raise a ValueError if a candidate has an unknown index."""
        strays = int(self.drawn[self.n])
        if strays:
            among = f"0 to {self.n - 1}" if self.ids is None else f"the {self.n:,} ids"
            what = f"{strays:,} candidates have an index that is not among {among}, such as {int(self._stray)}"
            raise ValueError(f"{what}; n must be the length of the whole dataset; if indices are ids, pass them all as ids=")

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Refuse what ``state`` cannot have returned, of as many examples and flags."""
        steps = len(taken(state, "when", Tensor))
        taken(state, "when", torch.zeros(steps, 5, dtype=torch.int64))
        taken(state, "rows", torch.zeros(steps, self._width))
        for name in ("selected", "drawn", "first"):
            taken(state, name, torch.zeros(self.n, dtype=torch.int32))
        for name, note in taken(state, "notes", dict).items():
            places, values = (taken(dict(enumerate(note)), i, Tensor) for i in range(2))
            if bool(((places < 0) | (places >= steps)).any()) or values.shape != places.shape:
                raise ValueError(f"this state cannot be loaded: the note {name!r} is not of its {steps} steps")

    @property
    def _width(self) -> int:
        return 2 * (len(self.names) + 1) + len(QUANTILES) * (len(self.names) + 2)

    def add(self, state: Mapping[str, Any]) -> None:
        """Add the counts of a ``state``."""
        self.settle()
        device = self.selected.device
        for name in ("selected", "drawn"):
            getattr(self, name)[: self.n] += state[name].to(device)
        self.first[: self.n] = torch.minimum(self.first[: self.n], state["first"].to(device))
        self.add_steps(state)

    def add_steps(self, state: Mapping[str, Any]) -> None:
        """Add counts by step alone, as ``steps`` returns them."""
        before = len(self.when)
        self._rows.append(state["rows"].float())
        self.when += [(step, epoch, n_b, n_B, bool(known)) for step, epoch, n_b, n_B, known in state["when"].tolist()]
        self.is_known = self.is_known or bool(state["when"][:, -1].any())
        for name, (places, values) in state["notes"].items():
            mine = self.notes.setdefault(name, ([], []))
            mine[0].extend(before + place for place in places.tolist())
            mine[1].append(values)

    def state(self) -> dict[str, Any]:
        """All counts, as tensors on the CPU."""
        return {name: self.by_example(name).clone() for name in ("selected", "drawn", "first")} | self.steps()

    def steps(self, since: int = 0) -> dict[str, Any]:
        """The counts by step, of the S selections from a step on, on the CPU.

        ``when``, shape (S, 5), int64; ``rows``, see there, float32; and of each note the places among the S, and the values.
        """
        at = torch.tensor([place for place, when in enumerate(self.when) if when[0] >= since], dtype=torch.int64)
        rows, when = self.rows()[at].float(), torch.tensor([self.when[place] for place in at.tolist()], dtype=torch.int64)
        notes = {}
        for name, (places, values) in self.notes.items():
            values[:] = [torch.cat([value.cpu() for value in values])]
            left = torch.isin(there := torch.tensor(places), at)
            notes[name] = [torch.searchsorted(at, there[left]), values[0][left]]
        return {"rows": rows, "when": when.reshape(-1, 5), "notes": notes}

    def reduced(self, ranks: Ranks, since: int = 0) -> "SelectionCounts":
        """The counts of all ranks, on the CPU: by example of the whole run, and by step from a step on."""
        whole = copy.copy(self)
        whole._move(torch.device("cpu"))
        whole.clear()
        for name, operation in (("selected", "SUM"), ("drawn", "SUM"), ("first", "MIN")):
            setattr(whole, name, ranks.all_reduce(getattr(self, name), operation))
        for state in ranks.all_gather_objects(self.steps(since)):
            whole.add_steps(state)
        return whole

    def _move(self, device: torch.device) -> None:
        for name in ("selected", "drawn", "first", "flags", "_quantiles", "_stray", "_sorted", "_place"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else to_device(value, device))


def _mask(name: str, flag: Any, n: int) -> Tensor:
    mask = tensor_of(flag, f"flags[{name!r}]").cpu()
    if mask.dtype != torch.bool or mask.shape != (n,):
        got = f"{mask.dtype} of shape {tuple(mask.shape)}"
        raise ValueError(f"flags: flag {name!r} must be one bool per example of the dataset, shape ({n},), got {got}")
    return mask


def _places(ids: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The ids in ascending order, and the example of each."""
    if ids.shape != (n,):
        raise ValueError(f"ids must be one per example of the dataset, shape ({n},), got {tuple(ids.shape)}")
    ordered, place = ids.sort(stable=True)
    repeated = ordered[1:][ordered[1:] == ordered[:-1]].unique()
    if len(repeated):
        raise ValueError(f"{len(repeated):,} ids appear more than once: {some(repeated.tolist())}")
    return ordered, place


def _stacked(rows: Iterable[Tensor], padding: float, width: int | None = None) -> Tensor:
    """Rows of different lengths as one tensor; a width adds a last column, which padded positions point to."""
    stacked = pad_sequence(list(rows), batch_first=True, padding_value=padding)
    return stacked if width is None else pad(stacked, (0, width + 1 - stacked.shape[1]), value=padding)


def quantiles(values: Tensor, q: Tensor) -> Tensor:
    """Quantiles of values (..., n) along the last dimension, without NaN: shape (..., Q); NaN if no value is left."""
    return torch.nanquantile(pad(values, (0, 1), value=torch.nan), q, dim=-1).movedim(0, -1)
