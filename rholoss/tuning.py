"""Which options make scoring faster on this machine, measured on a copy of the model."""

import copy
import statistics
import time
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from rholoss import forwards
from rholoss.data import IndexedBatch
from rholoss.dataset_scoring import DatasetScorer
from rholoss.isolation import device_of, module_of, own_generators_kept, seeded, undistributed
from rholoss.scoring import Scorer, Task, weight_dimensions

_ROUNDS = 5
_CHANNELS_LAST = "forward=forwards.channels_last()"


@dataclass(frozen=True)
class Tuning:
    """What scoring a candidate batch takes under each option: print it, or pass ``options`` to the selector.

    Attributes:
        n: candidates in the batch.
        seconds: the median by option; the first is the selector as it is.
        same: of the n_b largest losses, the fraction that is the same as with the selector as it is, by option.
        choices: keyword arguments for the selector, by option.
    """

    n: int
    seconds: dict[str, float]
    same: dict[str, float]
    choices: dict[str, dict[str, Any]]

    @property
    def best(self) -> str:
        """The fastest option; the selector as it is if none is 5 % faster."""
        own, fastest = next(iter(self.seconds)), min(self.seconds, key=self.seconds.__getitem__)
        return fastest if self.seconds[fastest] < 0.95 * self.seconds[own] else own

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for the selector, of the fastest option; empty if no option is 5 % faster."""
        return self.choices[self.best]

    def __str__(self) -> str:
        own, width = next(iter(self.seconds.values())), max(map(len, self.seconds))
        rows = [
            f"{name:{width}}  {1000 * each:8.3g} ms  {each / own:5.2f}x  {self.same[name]:4.0%}"
            for name, each in self.seconds.items()
        ]
        order = ", after model.to(memory_format=torch.channels_last)" if _CHANNELS_LAST in self.best else ""
        advice = f"pass {self.best} to the selector{order}" if self.options else "no option is 5 % faster"
        return "\n".join([f"time to score {self.n:,} candidates, and the share of the largest losses that stays:", *rows, advice])


def tune(selector: Any, candidates: IndexedBatch | tuple[Any, Any] | None = None, *, compiled: bool = False) -> Tuning:
    """Time scoring under other chunk sizes; then, with the fastest, in bfloat16 and, for convolutions, in channels-last order.

    A copy of the model is timed, and the selector stays as it is.

    Args:
        selector: a selector with a model.
        candidates: an ``IndexedBatch`` or a pair (index, batch); None to read n_B examples of the dataset.
        compiled: whether to time ``forwards.compiled()`` too, which compiles for about half a minute.
    """
    if selector.model is None:
        raise ValueError("tune() times the model's scoring, and this selector has no model; pass it as the second argument")
    index, batch = _read(selector) if candidates is None else candidates
    n, model, own = len(index), copy.deepcopy(undistributed(selector.model)), selector.scorer
    times: dict[str, list[float]] = {}
    losses: dict[str, Tensor] = {}

    def measured(ways: dict[str, dict[str, Any]]) -> dict[str, float]:
        """Times the ways in turn, and returns the medians of all so far."""
        hooks = {name: {"forward": own.task.forward, "dtype": own.task.dtype} | way for name, way in ways.items()}
        sizes = {name: way.pop("chunk_size", own.chunk_size) for name, way in hooks.items()}
        scorers = {name: Scorer(Task(loss=own.task.loss, **way), own.mode, sizes[name]) for name, way in hooks.items()}
        ordered = {name: copy.deepcopy(model) for name in ways if _CHANNELS_LAST in name}
        for each in ordered.values():
            cast(Any, module_of(each)).to(memory_format=torch.channels_last)
        for name in list(ways) * (_ROUNDS + 1):
            began, scorer = time.perf_counter(), scorers[name]
            losses[name] = scorer.run(ordered.get(name, model), batch, n, scorer.losses, None, 0).cpu()  # waits for the device
            times.setdefault(name, []).append(time.perf_counter() - began)
        return {name: statistics.median(each[1:]) for name, each in times.items()}  # the first one warms up

    sizes = [size for size in (None, 16, 64, 256) if size != own.chunk_size and n > (size or 0)]
    choices: dict[str, dict[str, Any]] = {"as it is": {}, **{f"chunk_size={size}": {"chunk_size": size} for size in sizes}}
    fastest = Tuning(n, measured(choices), {}, choices).best
    ways: dict[str, dict[str, Any]] = {"dtype=torch.bfloat16": {"dtype": torch.bfloat16}}
    if weight_dimensions(model) == 4:
        ways[_CHANNELS_LAST] = {"forward": forwards.channels_last(own.task.forward)}
        ways[f"{_CHANNELS_LAST}, dtype=torch.bfloat16"] = ways[_CHANNELS_LAST] | ways["dtype=torch.bfloat16"]
    if compiled:
        ways["forward=forwards.compiled()"] = {"forward": forwards.compiled(own.task.forward)}
    ways = {f"{name}, {fastest}" if choices[fastest] else name: way | choices[fastest] for name, way in ways.items()}
    seconds = measured(ways)
    largest = {name: mine.topk(min(selector.n_b, n)).indices for name, mine in losses.items()}
    same = {name: torch.isin(mine, largest["as it is"]).float().mean().item() for name, mine in largest.items()}
    return Tuning(n, seconds, same, choices | ways)


def _read(selector: Any) -> IndexedBatch:
    """n_B examples of the dataset, at positions apart from the run's random numbers."""
    with own_generators_kept(selector.dataset), seeded(0, device=device_of(selector.model)):
        data = DatasetScorer(selector.loader, batch_size=selector.n_B)
        if data.total is None:
            raise TypeError(
                "tune() cannot read a stream twice; pass it a candidate batch, such as next(iter(selector.candidate_batches))"
            )
        return next(iter(data.batches(range(min(data.total, data.batch_size or data.total)))))
