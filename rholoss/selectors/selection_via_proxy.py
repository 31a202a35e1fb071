"""Selection via proxy: one fixed subset of the dataset, chosen once by a small model."""

from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss import functional
from rholoss.arguments import fraction, model_of, one_of, optional, shown, whole
from rholoss.candidates import Candidates
from rholoss.data.candidate_loader import DrawRule
from rholoss.dataset_scoring import DatasetScorer
from rholoss.devices import to_device
from rholoss.options import SelectorOptions
from rholoss.progress import Progress, Reporter
from rholoss.registry import register
from rholoss.scoring import Forward
from rholoss.selector import Selector
from rholoss.states import taken

Measure = Literal["entropy", "least_confidence"]
_MEASURES = {
    "entropy": lambda logits: functional.predictive_entropy(logits[None]),
    "least_confidence": functional.least_confidence,
}


def proxy_scores(
    proxy: Any, data: Any, by: Measure = "entropy", *, forward: Forward | None = None, progress: Progress = None
) -> Tensor:
    """How uncertain a proxy is of each example, shape (N,).

    Args:
        proxy: a trained classifier.
        data: the dataset, or a loader over it; examples that the loader does not draw get -inf.
        by: the measure: the entropy of the prediction, in nats, or one minus its highest probability.
        forward: see ``Selector``.
        progress: see ``rholoss.progress.Progress``.
    """
    one_of(by, "by", _MEASURES, "or pass scores=ForgettingCounts(...).scores()")
    model_of(proxy, "proxy")
    scorer, report, seen = DatasetScorer(data, forward=forward), Reporter(progress, what="ranking"), 0

    def count(n: int) -> None:
        nonlocal seen
        seen += n
        report(seen, scorer.total)

    with report:
        index, values = scorer.run(proxy, lambda outputs, targets, _: _MEASURES[by](outputs), seen=count)
    n = scorer.view.dataset_length
    if n is None:
        raise TypeError(f"ranking a dataset needs one of known length, got {type(data).__name__}; pass scores= instead")
    return torch.full((n,), -torch.inf).index_copy_(0, index, values)


class ForgettingCounts:
    """Counts how often each of n examples is forgotten, correct at one visit and wrong at the next, while a proxy trains.

    References:
        Toneva et al., "An Empirical Study of Example Forgetting during Deep Neural Network Learning", ICLR 2019.
    """

    def __init__(self, n: int) -> None:
        n = whole(n, "n", "the number of examples in the dataset, at least 1")
        self.events = torch.zeros(n)
        self.correct = torch.zeros(n, dtype=torch.bool)
        self.learned = torch.zeros(n, dtype=torch.bool)

    def update(self, index: Tensor, correct: Tensor) -> None:
        """Count one visit of distinct examples, index (n,), int64, and whether the proxy was correct on each, (n,), bool."""
        index, correct = index.cpu(), correct.cpu()
        self.events[index] += (self.correct[index] & ~correct).float()
        self.correct[index] = correct
        self.learned[index] |= correct

    def scores(self) -> Tensor:
        """Forgetting events by index, shape (N,); examples that were never learned get one more than the maximum."""
        return torch.where(self.learned, self.events, self.events.max() + 1)


@register("selection_via_proxy")
class SelectionViaProxy(Selector):
    """Trains on one fixed subset of the dataset: the examples that a proxy ranks highest. The others are never read.

    The subset is the fraction ``keep`` of the examples, or n_b / n_B with ``batch_size``. The loader, a ``DataLoader`` over a
    map-style dataset, draws from it with its own sampler. The model in training never scores. Other arguments: see ``Selector``.

    Args:
        proxy: a trained classifier that ranks the dataset once; or
        scores: a ranking by index, shape (N,), higher is kept, such as ``ForgettingCounts.scores``.
        by: what the proxy ranks by: see ``proxy_scores``.

    References:
        Coleman et al., "Selection via Proxy: Efficient Data Selection for Deep Learning", ICLR 2020.
    """

    def __init__(
        self,
        loader: Any,
        model: Any = None,
        proxy: Any = None,
        *,
        scores: Tensor | None = None,
        by: Measure = "entropy",
        **options: Unpack[SelectorOptions],
    ) -> None:
        if (proxy is None) == (scores is None):
            raise ValueError("pass either a proxy that ranks the dataset or scores by index, one of the two")
        one_of(by, "by", _MEASURES)
        keep = optional(fraction, options.get("keep"), "keep", "the fraction of the dataset to keep, in (0, 1]")
        if options.get("batch_size") is None:
            options["keep"] = 1.0  # every drawn example is trained on
        super().__init__(loader, model, **options)
        if not self.view.draws_by_index:
            raise TypeError(f"selection via proxy needs a DataLoader over a map-style dataset, got {type(loader).__name__}")
        if scores is None:
            scores = proxy_scores(proxy, loader, by, forward=self.scorer.task.forward)
        elif not isinstance(scores, Tensor):
            raise TypeError(f"scores must be a tensor of one number per example of the dataset, got {shown(scores)}")
        self.scores = scores.float()
        if self.scores.shape != (self.view.dataset_length,) or bool(self.scores.isnan().any()):
            expected = f"one number per example of the dataset, shape {(self.view.dataset_length,)}, none of them NaN"
            raise ValueError(f"scores must be {expected}, got shape {tuple(self.scores.shape)}")
        share = (keep or 0.1) if options.get("batch_size") is None else self.n_b / (self.n_B or self.n_b)
        self.n_B = self.n_b
        self.members = torch.zeros(len(self.scores), dtype=torch.bool)
        self.members[functional.top(self.scores, max(1, round(int(self.scores.isfinite().sum()) * share)))] = True

    def draw_rule(self) -> DrawRule:
        return DrawRule(members=self.members, n_B=self.n_b)

    def extra_state(self) -> dict[str, Any]:
        return {"members": self.members}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if not torch.equal(taken(state, "members", self.members).cpu(), self.members):
            raise ValueError("this state cannot be loaded: it is of another part of the dataset; pass the scores as they were")

    def score(self, candidates: Candidates) -> Tensor:
        self.scores = to_device(self.scores, candidates.device)
        return self.scores[candidates.index]
