"""A plan: the examples that a run selected, step by step, to be replayed by any number of later runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rholoss.arguments import optional, path_of, seed_of, whole
from rholoss.data import LoaderView
from rholoss.data.fingerprint import difference, fingerprint
from rholoss.files import StrPath
from rholoss.plans.plan_file import BLOCK, Column, read_plan
from rholoss.plans.plots import draw_plan
from rholoss.plans.replay import PlanBatchSampler, Steps, replaying, sampler_after
from rholoss.plans.table import write_parquet


class SelectionPlan:
    """The selected indices of a recorded run, in the order of its steps; memory-mapped, so that any size opens at once.

    Make one with ``record_plan`` or ``PlanRecorder``. A replayed step loads and trains on the selected examples alone, so it
    costs what a plain step costs.

    Attributes:
        meta: what made the plan: the fingerprint of the data, the method with its options, digests, versions.
        steps: steps recorded.
        selections: examples selected over all steps, repetitions included.
        n_b: most examples in a step.
        n: N, examples in the dataset.

    Examples:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss import IrreducibleLossStore, SelectionPlan, record_plan
        >>> data = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,)))
        >>> store = IrreducibleLossStore.from_model(torch.nn.Linear(5, 3), data)
        >>> loader = DataLoader(data, batch_size=8, shuffle=True)
        >>> path = tempfile.mkdtemp() + "/run.plan"
        >>> plan = record_plan(loader, torch.nn.Linear(5, 3), store, steps=6, path=path, keep=0.5)
        >>> plan
        SelectionPlan(6 steps of 8, 48 selections from 64 examples)
        >>> [len(y) for x, y in SelectionPlan.load(path).loader(loader)]
        [8, 8, 8, 8, 8, 8]
    """

    def __init__(self, columns: Mapping[str, Column], meta: Mapping[str, Any]) -> None:
        self._columns = columns
        self.meta = dict(meta)
        self.steps = len(columns["ends"])
        self.selections = len(columns["index"])
        self.n_b: int = self.meta["n_b"]
        self.n: int = self.meta["data"]["length"]

    @classmethod
    def load(cls, path: StrPath) -> SelectionPlan:
        """Open a plan; its rows are checked as they are read.

        Raises:
            ValueError: the file is damaged, or is no plan.
            OSError: it cannot be opened.
        """
        return cls(*read_plan(path_of(path)))

    def __len__(self) -> int:
        return self.steps

    def __repr__(self) -> str:
        return f"SelectionPlan({self.steps:,} steps of {self.n_b}, {self.selections:,} selections from {self.n:,} examples)"

    def __getitem__(self, step: int) -> Tensor:
        """The indices selected at a step, shape (n_b,), int64."""
        return torch.from_numpy(self.indices(*self.bounds(step)))

    def __iter__(self) -> Iterator[Tensor]:
        return (self[step] for step in range(self.steps))

    def weights(self, step: int) -> Tensor | None:
        """The factors of the losses at a step, shape (n_b,), float32; None if the plan has no weights."""
        return self._floats("weights", step)

    def scores(self, step: int) -> Tensor | None:
        """The scores of the examples selected at a step, shape (n_b,), float32; None if they were not recorded."""
        return self._floats("scores", step)

    def bounds(self, step: int) -> tuple[int, int]:
        """The rows of a step: the first one, and the one after the last; an IndexError beyond the end."""
        if not 0 <= step < self.steps:
            raise IndexError(f"expected a step from 0 to {self.steps - 1}, got {step}")
        start = int(self._columns["ends"].read(step - 1, step)[0]) if step else 0
        return start, int(self._columns["ends"].read(step, step + 1)[0])

    def indices(self, start: int, stop: int) -> np.ndarray:
        """The selected indices from one row to another, in order, shape (stop - start,), int64."""
        return self._columns["index"].read(start, stop).astype(np.int64)

    def batch_sampler(
        self,
        data: Any,
        *,
        batch_size: int | None = None,
        steps_per_epoch: int | None = None,
        start: int = 0,
        then: Literal["stop", "repeat"] | Any = "stop",
        rank: int | None = None,
        world_size: int | None = None,
        seed: int = 0,
        check: bool = True,
    ) -> PlanBatchSampler:
        """The plan as a batch sampler, for whatever builds its own ``DataLoader``.

        Args:
            data: the dataset that the sampler is for, or a part of it as an ``IndexedSubset``.
            batch_size: examples in a step, over all ranks, cut from the recorded order; None for the recorded steps.
            steps_per_epoch: steps in an epoch, at least 1; None: the first epoch is the whole plan.
            start: steps that were trained on already, at least 0: the next epoch resumes there.
            then: what follows the end of the plan: ``"stop"``; ``"repeat"``; or a ``DataLoader`` or a selector that goes by the
                index alone, such as ``GatedUniformSelector``, whose batches follow.
            rank: which process this is, from 0.
            world_size: deal the examples of each step out to so many processes; None for one process.
            seed: seed of the batches that follow.
            check: refuse data that differ from the recorded ones, by the fingerprint.

        Raises:
            ValueError: the data differ, or an argument is not what it has to be.
        """
        if check:
            self.check(data)
        steps = Steps(self, optional(whole, batch_size, "batch_size"), LoaderView.of_data(data))
        each, begin = optional(whole, steps_per_epoch, "steps_per_epoch"), whole(start, "start", "a whole number, at least 0", 0)
        after = then if then in ("stop", "repeat") else sampler_after(then, data)
        return PlanBatchSampler(steps, each, begin, after, _share(rank, world_size), seed_of(seed))

    def loader(self, loader: DataLoader[Any], **how: Any) -> DataLoader[Any]:
        """The user's own loader, with its workers, collate function and class, over the examples of the plan.

        Iterate it in place of the loader. Its ``state_dict`` and ``load_state_dict`` resume at any step, with workers too; or
        pass ``start``.

        Args:
            loader: a ``DataLoader`` over the dataset of the plan, map-style. Its batch size is that of a step on each rank.
            **how: see ``batch_sampler``.

        Raises:
            TypeError: the loader has no map-style dataset.
            ValueError: the data differ, or an argument is not what it has to be.
        """
        view = LoaderView(loader)
        if not (view.draws_by_index and isinstance(loader, DataLoader)):
            raise TypeError(f"a plan replays a DataLoader over a map-style dataset, got {type(loader).__name__}: it has no index")
        if how.get("batch_size") is None and view.batch_size is not None:
            size = view.batch_size * (optional(whole, how.get("world_size"), "world_size") or 1)
            how["batch_size"] = None if size == self.n_b else size
        if how.pop("check", True):
            self.check(loader)
        return replaying(loader, self.batch_sampler(view.dataset, check=False, **how))

    def check(self, data: Any) -> None:
        """Raise a ValueError unless data are those of the plan, as far as their fingerprints tell."""
        how = self.difference(data)
        if how:
            what = f"this plan was recorded over other data: of these, {how}"
            raise ValueError(f"{what}; record a plan of these, or pass check=False if that is intended")

    def difference(self, data: Any) -> str | None:
        """How data differ from those of the plan, in words; None where no difference is found."""
        now = fingerprint(data)
        if now is None:
            raise ValueError("a plan needs a map-style dataset: nothing says which example an index is in these data")
        return difference(self.meta["data"], now)

    def counts(self) -> Tensor:
        """How often each example was selected, shape (N,), int64."""
        counts = torch.zeros(self.n, dtype=torch.int64)
        for start in range(0, self.selections, BLOCK):
            rows = self.indices(start, min(start + BLOCK, self.selections))
            counts += torch.from_numpy(np.bincount(rows, minlength=self.n))
        return counts

    def summary(self) -> dict[str, float]:
        """The plan in numbers.

        Returns:
            ``steps``; ``selections``; ``used``, the share of the data; ``repeats``, selections per example used; ``most``, the
            selections of one example.
        """
        counts = self.counts()
        used = int((counts > 0).sum())
        repeats = self.selections / max(used, 1)
        return {
            "steps": float(self.steps),
            "selections": float(self.selections),
            "used": used / max(self.n, 1),
            "repeats": repeats,
            "most": float(counts.max()),
        }

    def over_time(self, flags: Mapping[str, Any] | None = None, every: int = 50) -> list[dict[str, float]]:
        """Shares of the selections per ``every`` steps.

        Args:
            flags: known properties of the examples, by name: each shape (N,), bool.
            every: steps per record, at least 1.

        Returns:
            Records with ``step``, the first one; ``repeated``, the share that had been selected before; the share of each flag.
        """
        flags, every = {name: torch.as_tensor(flag) for name, flag in (flags or {}).items()}, whole(every, "every")
        for name, flag in flags.items():
            if flag.shape != (self.n,):
                raise ValueError(f"flag {name!r} must be one bool per example, shape ({self.n},), got {tuple(flag.shape)}")
        records, before = [], torch.zeros(self.n, dtype=torch.bool)
        for first in range(0, self.steps, every):
            start, stop = self.bounds(first)[0], self.bounds(min(first + every, self.steps) - 1)[1]
            index = torch.from_numpy(self.indices(start, stop))
            fresh = int((~before[index.unique()]).sum())
            before[index] = True
            shares = {name: float(flag[index].double().mean()) for name, flag in flags.items()}
            records.append({"step": float(first), "repeated": 1 - fresh / len(index), **shares})
        return records

    def plot(self, path: StrPath | None = None, flags: Mapping[str, Any] | None = None, every: int = 50) -> Any:
        """Draw how often examples are selected, and the shares of ``over_time``. Needs ``pip install 'rholoss[plot]'``.

        Args:
            path: an image file to save the figure to, in the format of its suffix; None saves nothing.
            flags: see ``over_time``.
            every: see ``over_time``.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        return draw_plan(self, path, flags or {}, every)

    def agreement(self, other: SelectionPlan) -> dict[str, float]:
        """How far two plans of the same data agree, as fractions.

        Returns:
            ``selections`` in common: 1 minus the total variation distance of how often they select each example; and ``examples``
            in common, of those that either selects.
        """
        how = difference(self.meta["data"], other.meta["data"])
        if how:
            raise ValueError(f"these plans are of different data: of the second one's, {how}")
        mine, theirs = self.counts().double(), other.counts().double()
        either = int(((mine > 0) | (theirs > 0)).sum())
        return {
            "selections": float(torch.minimum(mine / mine.sum(), theirs / theirs.sum()).sum()),
            "examples": int(((mine > 0) & (theirs > 0)).sum()) / max(either, 1),
        }

    def subset(self, size: int | None = None) -> tuple[Tensor, Tensor]:
        """The examples of the plan without their order: the ``size`` most selected ones, or all that were selected.

        Returns:
            Their indices, shape (m,), int64, ascending, and weights in proportion to how often they were selected, shape (m,),
            float32, with mean 1.
        """
        counts = self.counts()
        used = int((counts > 0).sum())
        chosen = counts.argsort(descending=True, stable=True)[: min(optional(whole, size, "size") or used, used)].sort().values
        weights = counts[chosen].float()
        return chosen, weights / weights.mean()

    def to_parquet(self, path: StrPath) -> None:
        """Write the columns step, position, index and, if recorded, weight and score. Needs ``pip install 'rholoss[tables]'``."""
        write_parquet(self, path)

    def rows(self, first: int, last: int) -> dict[str, np.ndarray]:
        """The columns of the steps from first to last, exclusive: step, position, index, and weights and scores if recorded."""
        ends = self._columns["ends"].read(first, last)
        start = self.bounds(first)[0]
        sizes = np.diff(ends, prepend=start)
        found = {
            "step": np.repeat(np.arange(first, last), sizes),
            "position": np.arange(start, ends[-1]) - np.repeat(ends - sizes, sizes),
            "index": self.indices(start, int(ends[-1])),
        }
        extra = [name for name in ("weights", "scores") if name in self._columns]
        return {**found, **{name: self._columns[name].read(start, int(ends[-1])) for name in extra}}

    def _floats(self, name: str, step: int) -> Tensor | None:
        column = self._columns.get(name)
        return None if column is None else torch.from_numpy(column.read(*self.bounds(step)).copy())


def _share(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """The rank and the number of processes that the plan is dealt out to."""
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            n = torch.distributed.get_world_size()
            cure = "pass rank= and world_size=, or world_size=1 where the framework deals the batches out"
            raise ValueError(f"there are {n} processes, and the plan has to know who deals the examples out; {cure}")
        return 0, 1
    size = 1 if world_size is None else whole(world_size, "world_size")
    return whole(rank or 0, "rank", f"from 0 to world_size - 1 = {size - 1}", 0, size - 1), size
