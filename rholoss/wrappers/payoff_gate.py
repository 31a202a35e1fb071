"""A gate that uses a method only while its selections are worth their cost."""

import copy
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import map_style, number, optional, whole
from rholoss.batches import Rows, cut, move
from rholoss.candidates import Candidates
from rholoss.cost import break_even
from rholoss.data import DrawRule, LoaderView
from rholoss.isolation import derived_seed, seeded
from rholoss.options import SelectorOptions
from rholoss.selection import Selection
from rholoss.selector import Selector
from rholoss.selectors.uniform import UniformSelector
from rholoss.states import taken
from rholoss.wrappers.base import WrapperSelector


class PayoffGatedSelector(WrapperSelector):
    """Uses a method while its steps are worth their cost, and a cheaper selector otherwise.

    The worth of a step is how much it lowers a validation loss, to first order and for a step of length 1: the product of the
    batch gradient and the validation gradient, divided by the norm of the former. The *gain* is the method's worth divided by
    that of uniform sampling. The run begins with the method. A measurement may replace the selector that decides with another
    one: the method, the cheaper selector or uniform sampling. The other one needs a worth per cost above 0 that is higher by
    more than two standard errors of the difference.

    A measurement takes about as long as ``5 * batches`` steps, at step ``every`` and whenever the steps have doubled. It has no
    side effects, and synchronizes an accelerator. Its outcome depends only on the data, the weights and the seed. With ``keep=``,
    a cheaper selector with ``scores_by_index`` loads only what it chooses: such a step costs as much as a plain step. Resuming
    is exact with ``num_workers=0``. Other arguments: see ``Selector``.

    Args:
        method: the selector to judge, built on the same loader and model. A model that it co-trains is trained in every step.
        validation: examples with trusted labels that no model trains on: a dataset, or a loader or list of batches like the
            loader's. A few hundred are enough.
        otherwise: a cheaper selector on the same loader, such as ``GatedUniformSelector``; None: uniform sampling only.
        cost: duration of a step of the method divided by that of a plain step, above 0, such as ``selector.cost().ratio`` of an
            earlier run. None: 1 + n_B / (3 n_b) if the model itself scores the candidates, otherwise 1.
        every: the step of the first measurement, at least 1.
        batches: candidate batches in a measurement, at least 2.

    Attributes:
        gains: a pair (step, gain) for each measurement so far.
        decides: the selector that decides at present: ``method``, ``otherwise`` or ``uniform``.
        uniform: a ``UniformSelector``.
    """

    def __init__(
        self,
        loader: Any,
        model: nn.Module,
        method: Selector,
        validation: Any,
        *,
        otherwise: Selector | None = None,
        cost: float | None = None,
        every: int = 100,
        batches: int = 6,
        **options: Unpack[SelectorOptions],
    ) -> None:
        super().__init__(loader, model, **options)
        what = "the duration of a step over that of a plain step, above 0, or None"
        self.given_cost = optional(number, cost, "cost", what, lambda cost: 0 < cost < math.inf)
        self.every = whole(every, "every", "the step of the first measurement, at least 1")
        self.batches = whole(batches, "batches", "a number of candidate batches, at least 2", 2)
        self.method, self.otherwise = method, otherwise
        self.uniform = UniformSelector(loader, keep=options.get("keep"), batch_size=options.get("batch_size"))
        self.check_parts()
        self.decides = method
        self.gains: list[tuple[int, float]] = []
        self._validation = _batches_of(validation, loader, 2 * self.n_b)
        self._next = self.every  # the step of the next measurement
        self._worth: list[list[float]] = []  # of each part's choice, for each batch of the current measurement
        self._scored = 0  # candidates that the model scored for the method in the current measurement
        self._decided = -1  # the latest step of ``part_for``

    def part_at(self, step: int, epoch: int) -> Selector:
        return self.decides

    def part_for(self, candidates: Candidates) -> tuple[Selector, Candidates]:
        if self._decided != candidates.step:
            self._decided = candidates.step
            if candidates.step >= self._next and len(candidates) > self.n_b:
                self._measure(candidates)
        return self.decides, candidates

    def draw_rule(self) -> DrawRule:
        rule = super().draw_rule()
        return replace(rule, prefilter=self._prefilter) if self.redraws and self.view.draws_by_index else rule

    def _prefilter(self, index: Tensor, step: int) -> Tensor | None:
        """Of the drawn candidates, those to load: only the choice, if the selector that decides scores by index."""
        loader = self.view.loader
        ahead = loader.num_workers * (loader.prefetch_factor or 0)  # batches drawn before their step
        if step + ahead >= self._next or len(index) <= self.n_b or not self.decides.scores_by_index:
            return self.prefilter_of_part(index, step)
        seed = derived_seed("while it does not pay", self.generator.initial_seed(), self.epoch, int(index[0]), int(index[-1]))
        generator = torch.Generator().manual_seed(seed)  # seeded by the draw: the same after a resume
        unseen = Candidates(index, None, None, self.scorer, torch.device("cpu"), (step, self.epoch), generator)
        return functional.top(self.decides.score(unseen), self.n_b)

    def parts(self) -> list[Selector]:
        return [self.method, *([self.otherwise] if self.otherwise is not None else []), self.uniform]

    def after_select(self, candidates: Candidates, selection: Selection, batch: Any) -> None:
        for part in self.parts():
            part.after_select(candidates, selection, batch)

    def _measure(self, candidates: Candidates) -> None:
        """Add a candidate batch to the current measurement, and decide after the last one."""
        seed = derived_seed("while it pays", self.generator.initial_seed(), candidates.step)
        apart = candidates.apart(seed)
        before, n_B = apart.scored.by_model, len(apart)
        n_b = min(self.n_b, n_B)
        choices = [self.method.choose(apart, self.method.score(apart), n_b)[0]]
        self._scored += apart.scored.by_model - before
        choices += [part.choose(apart, part.score(apart), n_b)[0] for part in self.parts()[1:]]
        target = self._gradient(self._validation[len(self._worth) % len(self._validation)])
        cuts = (cut(candidates.batch, Rows(positions), n_B) for positions in choices)
        self._worth.append([along(self._gradient(batch), target) for batch in cuts])
        if len(self._worth) == self.batches:
            self._decide(candidates.step, n_B, n_b)

    def _decide(self, step: int, n_B: int, n_b: int) -> None:
        scoring = self._scored / (self.batches * n_B)
        cost = self.given_cost or break_even(n_b / n_B, scoring=scoring)
        worth = [list(values) for values in zip(*self._worth, strict=True)]  # of each part's choice
        method, uniform = sum(worth[0]), sum(worth[-1])
        self.gains.append((step, method / uniform if uniform > 0 else math.inf if method > 0 else 0.0))
        rates = [[value / cost for value in worth[0]], *worth[1:]]
        now = self.parts().index(self.decides)
        better = [i for i, rate in enumerate(rates) if clearly_above(rate, rates[now]) and sum(rate) > 0]
        self.decides = self.parts()[max(better, key=lambda i: sum(rates[i]), default=now)]
        self._next = max(2 * self._next, step + 1)
        self._worth.clear()
        self._scored = 0

    def _gradient(self, batch: Any) -> list[Tensor]:
        """The gradient of a batch's mean loss with respect to the weights, in eval mode."""
        wanted = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        cudnn = torch.backends.cudnn.flags(enabled=not any(isinstance(layer, nn.RNNBase) for layer in self.model.modules()))
        with self.scorer.around(self.model, "eval") as device, torch.enable_grad(), cudnn:  # cuDNN's RNNs: none in eval
            outputs, targets = self.scorer.task.forward(self.model, move(batch, device) if device is not None else batch)
            losses = self.scorer.task.loss(outputs, targets)
            gradients = torch.autograd.grad(losses.float().mean(), wanted, allow_unused=True)
        return [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, gradients, strict=True)]

    def extra_state(self) -> dict[str, Any]:
        decides = [part is self.decides for part in self.parts()].index(True)
        names = ("gains", "_next", "_worth", "_scored")
        return {**super().extra_state(), "decides": decides, **{name: copy.copy(getattr(self, name)) for name in names}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.decides = self.parts()[taken(state, "decides", int, least=0)]
        self._next, self._scored = taken(state, "_next", int, least=1), taken(state, "_scored", int, least=0)
        self.gains = [(int(step), float(gain)) for step, gain in taken(state, "gains", list)]
        self._worth = [[float(worth) for worth in each] for each in taken(state, "_worth", list)]
        self._decided = -1


def clearly_above(values: Sequence[float], others: Sequence[float]) -> bool:
    """Whether the mean difference is above two standard errors."""
    more = [value - other for value, other in zip(values, others, strict=True)]
    return statistics.mean(more) > 2 * statistics.stdev(more) / len(more) ** 0.5


def along(gradient: list[Tensor], target: list[Tensor]) -> float:
    """The product of two gradients, divided by the norm of the first; 0 if that is 0."""
    product, square = (sum(float((a * b).sum()) for a, b in zip(gradient, other, strict=True)) for other in (target, gradient))
    return product / square**0.5 if square > 0 else 0.0


def _batches_of(validation: Any, loader: Any, size: int) -> Sequence[Any]:
    """Validation batches: of a dataset, or as given."""
    if isinstance(validation, tuple) or not (hasattr(validation, "__iter__") or hasattr(validation, "__getitem__")):
        raise TypeError(f"validation must be a dataset, a loader or a list of batches, got {type(validation).__name__}")
    if hasattr(validation, "__getitem__") and not isinstance(validation, (list, IterableDataset)):
        size = max(1, min(size, len(map_style(validation, "validation"))))
        collate = getattr(LoaderView(loader).loader, "collate_fn", None)
        validation = DataLoader(validation, size, collate_fn=collate, drop_last=True)
    with seeded(0):  # reading them must not move the user's generators
        batches = list(validation)
    if not batches:
        raise ValueError("validation has no batch; pass examples that nothing is trained on, a dataset or batches")
    return batches
