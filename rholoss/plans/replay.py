"""Replaying a plan: a batch sampler over its steps, and the user's own loader over that."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Sampler, SequentialSampler

from rholoss.arguments import whole
from rholoss.data import IndexedBatch, IndexedSubset, LoaderView
from rholoss.data.index import copy_loader
from rholoss.data.samplers import CandidateBatchSampler, chain
from rholoss.isolation import derived_seed, seeded
from rholoss.states import taken

if TYPE_CHECKING:
    from rholoss.plans.plan import SelectionPlan


class Steps:
    """The steps of a plan, as recorded or cut to another size, as positions in a dataset."""

    def __init__(self, plan: SelectionPlan, size: int | None, view: LoaderView) -> None:
        self.plan = plan
        self.size = size
        self.view = view
        self.n = len(view.dataset)
        self.part = view.dataset.indices.numpy() if isinstance(view.dataset, IndexedSubset) else None
        self.order = None if self.part is None else np.argsort(self.part, kind="stable")

    def __len__(self) -> int:
        return self.plan.steps if self.size is None else -(-self.plan.selections // self.size)

    def bounds(self, step: int) -> tuple[int, int]:
        """The rows of a step in the plan."""
        if self.size is None:
            return self.plan.bounds(step)
        return step * self.size, min((step + 1) * self.size, self.plan.selections)

    def positions(self, step: int) -> list[int]:
        """The positions of a step's examples in the dataset."""
        index = self.plan.indices(*self.bounds(step))
        if self.part is None or self.order is None:
            is_there, positions = index < self.n, index
        else:
            at = np.searchsorted(self.part, index, sorter=self.order).clip(max=self.n - 1)
            positions = self.order[at]
            is_there = self.part[positions] == index
        if not is_there.all():
            missing = index[~is_there][:5].tolist()
            what = f"step {step} of the plan has examples that these data lack: {missing}"
            raise ValueError(f"{what}; replay it over the data that it was recorded over")
        return positions.tolist()


class PlanBatchSampler(Sampler[list[int]]):
    """Yields the positions of each step of a plan; made by ``SelectionPlan.batch_sampler``.

    Epoch e has the steps from ``e * steps_per_epoch`` on. Iterating to its end counts it, or ``set_epoch`` announces it. As
    with a loader, an epoch that a loop left early begins from its start again, unless a state is loaded.

    Attributes:
        batch_size: examples in a step, over all ranks.
        drop_last: False.
        epoch: the epoch that the next iteration yields, or the rest of it.
    """

    drop_last = False

    def __init__(
        self, steps: Steps, steps_per_epoch: int | None, start: int, then: Any, share: tuple[int, int], seed: int
    ) -> None:
        self.steps, self._per_epoch, self._then, self._seed = steps, steps_per_epoch, then, seed
        self._rank, self._world_size = share
        self.batch_size = steps.size or steps.plan.n_b
        self._followed: tuple[int, list[list[int]]] = (-1, [])  # a pass over what follows, and its batches
        self.epoch = 0
        while start >= self._span(self.epoch)[1] > self._span(self.epoch)[0]:
            self.epoch += 1
        if start > self._span(self.epoch)[1]:
            raise ValueError(f"start must be at most the {len(steps):,} steps of the plan, got {start}")
        self._at = self.epoch, start  # the step that comes next
        self._resumes = True  # whether the next iteration begins there

    sampler = property(lambda self: self, doc="This object: frameworks call ``batch_sampler.sampler.set_epoch``.")

    def __iter__(self) -> Iterator[list[int]]:
        epoch, first = self._at = self.next_step
        self._resumes = False
        end = self._span(epoch)[1]
        if self._then == "stop" and self._span(epoch)[0] == len(self.steps):
            n = f"{len(self.steps):,} steps"
            raise ValueError(
                f"the plan ended after its {n}; train for {n}, or say what follows: then='repeat', then=another loader"
            )
        for step in range(first, end):
            batch = self._batch(step)
            self._at = epoch, step + 1
            yield batch[self._rank :: self._world_size] or [batch[self._rank % len(batch)]]
        self._begin(epoch + 1)

    def __len__(self) -> int:
        """Steps of the epoch, also where its rest is left."""
        first, end = self._span(self.epoch)
        return end - first

    @property
    def next_step(self) -> tuple[int, int]:
        """The epoch and the step that the next iteration begins with."""
        return self._at if self._resumes else (self.epoch, self._span(self.epoch)[0])

    def set_epoch(self, epoch: int) -> None:
        """Announce the next epoch; the one in progress when a state was saved resumes."""
        epoch = whole(epoch, "epoch", "a whole number, at least 0", 0)
        if epoch != self.epoch:
            self._begin(epoch)

    def state_dict(self) -> dict[str, int]:
        """The epoch in progress, and the step after those that were yielded."""
        return {"epoch": self._at[0], "step": self._at[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration yield the rest of an epoch; a ValueError, and no change, if the state is of another plan."""
        epoch, step = taken(state, "epoch", int, least=0), taken(state, "step", int, least=0)
        first, end = self._span(epoch)
        if not first <= step <= end:
            what = f"step {step} is not in epoch {epoch}, which has the steps {first} to {end}"
            raise ValueError(f"this state cannot be loaded: {what}; resume with the same plan, batch size and steps_per_epoch")
        self.epoch, self._at, self._resumes = epoch, (epoch, step), True

    def _begin(self, epoch: int) -> None:
        self.epoch, self._at, self._resumes = epoch, (epoch, self._span(epoch)[0]), False

    def _span(self, epoch: int) -> tuple[int, int]:
        """The steps of an epoch: the first one, and the one after the last."""
        n, each = len(self.steps), self._per_epoch
        if each is None:
            later = n if self._then == "repeat" else 0 if self._then == "stop" else len(self._then)
            return (0, n) if epoch == 0 else (n + (epoch - 1) * later, n + epoch * later)
        first, end = epoch * each, (epoch + 1) * each
        return (min(first, n), min(end, n)) if self._then == "stop" else (first, end)

    def _batch(self, step: int) -> list[int]:
        n = len(self.steps)
        if step < n or self._then == "repeat":
            return self.steps.positions(step % n)
        which, step = divmod(step - n, len(self._then))
        if self._followed[0] != which:
            self._followed = which, self._pass_over(which)
        return self._followed[1][step]

    def _pass_over(self, which: int) -> list[list[int]]:
        """The batches of one pass over what follows the plan, the same ones whenever it is asked for."""
        generators = {id(g): g for each in chain(self._then) for g in vars(each).values() if isinstance(g, torch.Generator)}
        states = [(generator, generator.get_state()) for generator in generators.values()]
        try:
            for generator, _ in states:
                generator.manual_seed(derived_seed("after the plan", self._seed, which))
            with seeded(self._seed, which):
                return [list(batch) for batch in self._then]
        finally:
            for generator, state in states:
                generator.set_state(state)


class SelectedPositions:
    """What a selector that goes by the index alone selects, as batches of positions; nothing is read. One pass an iteration."""

    def __init__(self, selector: Any) -> None:
        self.generator = torch.Generator()
        self.selector = copy.copy(selector)
        self.selector.generator, self.selector.timer = self.generator, type(selector.timer)()
        self.selector.listeners = []  # these batches are sampled ahead of their steps, in one pass
        view = selector.view
        self.sampler = CandidateBatchSampler(view.batching.sampler, selector.n_B, least=selector.n_b if view.drop_last else 1)

    def __iter__(self) -> Iterator[list[int]]:
        for drawn in map(torch.tensor, self.sampler):
            index = self.selector.view.index_of(drawn)
            yield self.selector.select_from(IndexedBatch(index, drawn)).tolist()

    def __len__(self) -> int:
        return len(self.sampler)


def sampler_after(then: Any, data: Any) -> Any:
    """The batches of positions that follow a plan: a loader's, or those of a selector that goes by the index alone."""
    loader = getattr(then, "loader", then)
    if not isinstance(loader, DataLoader):
        expected = "'stop', 'repeat', a DataLoader over the same dataset, or a selector around one"
        raise TypeError(f"then must be {expected}, got {then!r}")
    view = LoaderView(loader)
    if view.dataset is not data and len(view.dataset) != len(data):
        got = f"a dataset of {len(view.dataset):,}"
        raise ValueError(f"then must draw from the data of the plan, {len(data):,} examples, got {got}")
    if view.batching is None:
        raise TypeError("then must draw single indices in batches: give it a DataLoader with a batch_size and a sampler")
    if loader is not then and (not then.scores_by_index or then.draw_rule().members is not None):
        what = f"{type(then).__name__} scores candidates or draws from a part of the data, which a batch sampler cannot"
        raise TypeError(f"{what}: iterate it in a loop of its own after the plan, or pass one that goes by the index alone")
    plain = BatchSampler(view.batching.sampler, view.batching.batch_size, view.drop_last)
    after = plain if loader is then else SelectedPositions(then)
    if not len(after):
        raise ValueError("then must yield batches, got a loader without any; give it more examples than a batch has")
    return after


def replaying(loader: DataLoader[Any], batches: PlanBatchSampler) -> DataLoader[Any]:
    """A copy of a loader that reads the batches of a plan, with the state of a replay unless it keeps its own."""
    changes = {
        "batch_sampler": batches,
        "sampler": SequentialSampler(batches.steps.view.dataset),
        "batch_size": None,
        "drop_last": False,
    }
    twin = copy_loader(loader, **changes)
    if hasattr(type(loader), "state_dict"):
        return twin
    resumable: DataLoader[Any] = object.__new__(type(type(loader).__name__, (_Resumable, type(loader)), {}))
    vars(resumable).update(vars(twin))
    return resumable


class _Resumable:
    """Counts the batches that the loop received, which with workers are fewer than those that were sampled."""

    batch_sampler: Any

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self.batch_sampler, PlanBatchSampler):  # a copy, inside a selector
            yield from super().__iter__()  # type: ignore[misc]
            return
        epoch, step = self.batch_sampler.next_step
        for batch in super().__iter__():  # type: ignore[misc]
            step += 1
            vars(self)["received"] = {"epoch": epoch, "step": step}
            yield batch
        vars(self).pop("received", None)

    def state_dict(self) -> dict[str, int]:
        """The epoch in progress, and the step after those that the loop received."""
        return vars(self).get("received") or self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Make the next iteration yield the rest of an epoch."""
        self.batch_sampler.load_state_dict(state)
        vars(self).pop("received", None)

    def set_epoch(self, epoch: int) -> None:
        """Announce the next epoch."""
        self.batch_sampler.set_epoch(epoch)
