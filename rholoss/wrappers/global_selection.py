"""One choice over the candidates of all ranks of ``torch.distributed``."""

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.data.index import IndexedBatch
from rholoss.distributed import Ranks
from rholoss.isolation import Mode, derived_seed
from rholoss.options import SelectorOptions
from rholoss.selection import checked_choice
from rholoss.selector import Selector
from rholoss.wrappers.base import WrapperSelector
from rholoss.wrappers.row_exchange import Exchange, Share


class GlobalSelector(WrapperSelector):
    """Any method, choosing from the candidates of all ranks together rather than on each rank from its own.

    Every rank scores the candidates that its loader gives it. All then make the same choice from the W times n_B candidates of W
    ranks: W n_b of them, those that one process would choose that had them all, rank 0's first. Every rank trains on n_b of
    these, so that DDP's mean stays right: on its own as far as there are enough, and the others come from the ranks that have
    more. Only the rows that have to change ranks do.

    An epoch is over for all ranks as soon as one has no candidates left; what others still have is not read. Where all ranks
    together have fewer than W n_b candidates, each trains on the W-th part, and up to W - 1 of the lowest scores are left out. A
    rank that fails in its data or in scoring tells the others, which raise an error as well.

    ``last.positions`` are those of this rank's own candidates that any rank trains on, shape (m,), so logs that are added up over
    the ranks are right; ``last.index`` says what this rank trains on, shape (n_b,), and ``last.notes["from_elsewhere"]`` how many
    of them were other ranks' candidates.

    A method that draws does so from a seed that all ranks share, with weights or without. A method that scores its candidates
    by comparing them with each other, see ``Selector.compares_candidates``, is refused.

    Args:
        loader: this rank's loader, see ``Selector``.
        model: see ``Selector``.
        method: the selector that scores and chooses, built on the same loader and model. Its ``choose`` may go by the scores,
            the indices, the step and ``candidates.rand()``; outputs and losses are not at hand there.
        group: the process group; None for all processes.
        **options: see ``Selector``; the same on every rank.

    Attributes:
        ranks: the ranks that choose together.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized, or, in training, another rank failed.
        ValueError: the method compares candidates, or draws its own; in training, the ranks are at different steps, or rows of
            their batches differ in dtype or in shape, as padding to the longest makes them.

    Examples:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.selectors import TrainLossSelector
        >>> from rholoss.wrappers import GlobalSelector
        >>> meet = f"file://{tempfile.mkdtemp()}/meet"
        >>> torch.distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)  # torchrun says rank and size
        >>> data, model = TensorDataset(torch.randn(64, 5), torch.randint(3, (64,))), torch.nn.Linear(5, 3)
        >>> loader = DataLoader(data, batch_size=8, sampler=torch.utils.data.DistributedSampler(data))
        >>> selector = GlobalSelector(loader, model, TrainLossSelector(loader, model), keep=0.25)
        >>> [len(y) for x, y in selector]
        [8, 8]
        >>> torch.distributed.destroy_process_group()
    """

    def __init__(
        self, loader: Any, model: Any, method: Selector, *, group: Any = None, **options: Unpack[SelectorOptions]
    ) -> None:
        self.ranks = Ranks(group)
        super().__init__(loader, model, **options)
        self.method = method
        self.check_parts()
        if self.compares_candidates:
            raise ValueError(
                f"{type(method).__name__} scores candidates by comparing them with each other, so the scores of several ranks "
                "cannot be ranked together; let it choose on each rank from its own candidates"
            )
        self._seed = self.generator.initial_seed()
        if self.ranks.rank:  # what is drawn in scoring, such as the scores of uniform selection, must not repeat between ranks
            self.generator.manual_seed(derived_seed("rank", self._seed, self.ranks.rank))

    def part_at(self, step: int, epoch: int) -> Selector:
        return self.method

    def parts(self) -> list[Selector]:
        return [self.method]

    def select(self, candidates: IndexedBatch | tuple[Any, Any]) -> Any:
        with self.ranks.sharing_errors():
            return super().select(candidates)

    def extra_state(self) -> dict[str, Any]:
        return {**super().extra_state(), "rank": self.ranks.rank, "ranks": self.ranks.size}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        mine, saved = (self.ranks.rank, self.ranks.size), (state["rank"], state["ranks"])
        if saved != mine:
            raise ValueError(
                f"this state cannot be loaded: expected that of rank {mine[0]} of {mine[1]}, got that of rank {saved[0]} of "
                f"{saved[1]}; save the state of every rank, and load each on its own"
            )
        super().load_extra_state(state)

    def draw(self) -> Iterator[IndexedBatch]:
        items: Any = super().draw()
        with closing(items):
            while True:
                with self.ranks.sharing_errors():
                    item = next(items, None)
                if not bool(self.ranks.all_gather_numbers(int(item is not None))[:, 0].all()):
                    return
                assert item is not None
                yield item

    def select_from(self, indexed: IndexedBatch) -> Any:
        with self.ranks.sharing_errors():
            return super().select_from(indexed)

    def take(self, candidates: Candidates, score: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        self.finite_check.wait()
        exchange = Exchange(self.ranks, candidates.batch, len(candidates))
        told = self.ranks.all_gather_numbers(len(candidates), self.step, self.n_b, self._seed % 2**63, exchange.digest)
        self._check_alike(told)
        exchange.check(told[:, 4])
        sizes = told[:, 0].tolist()
        everyones = self._everyones(candidates, self.ranks.all_gather(candidates.index, sizes))
        score = self.ranks.all_gather(score if score.dtype == torch.float64 else score.float(), sizes)
        n = min(self.n_b, sum(sizes) // self.ranks.size) * self.ranks.size
        with self.ranks.sharing_errors():
            chosen, weights = checked_choice(self.choose(everyones, score, n), n, sum(sizes))
        if (
            len(self.ranks.all_gather_numbers(derived_seed(*chosen.tolist())).unique(dim=0)) > 1
        ):  # rows would be waited for in vain
            raise ValueError(
                f"{type(self.method).__name__} does not choose the same on every rank; its choose() may go by the scores, the "
                "indices, the step and candidates.rand()"
            )
        share = Share.of(self.ranks.rank, chosen, sizes)
        batch = exchange(share)
        candidates.notes["from_elsewhere"] = torch.tensor(n // self.ranks.size - len(share.sent[self.ranks.rank]))
        index, positions = everyones.index[chosen[share.mine]].to(candidates.device), share.own.to(candidates.device)
        return index, positions, None if weights is None else weights[share.mine].to(candidates.device), batch

    def _check_alike(self, told: Tensor) -> None:
        for name, values in zip(("step", "n_b", "seed"), told.T[1:4].tolist(), strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"{name} must be the same on every rank, got {values}; build the selector of every rank alike, and resume "
                    "them from states of the same step"
                )

    def _everyones(self, candidates: Candidates, index: Tensor) -> Candidates:
        """The candidates of all ranks, with a generator that is in the same state on each."""
        generator = torch.Generator().manual_seed(derived_seed("ranks", self._seed, self.step))
        when = candidates.step, candidates.epoch
        everyones = _Everyones(index, None, self.model, self.scorer, torch.device("cpu"), when, generator)
        everyones.notes = candidates.notes
        return everyones


class _Everyones(Candidates):
    """The candidates of all ranks, of which indices are known and batches are not."""

    def _run(self, fn: Callable[[Any, Any, int], Any], mode: Mode | None = None) -> Any:
        raise ValueError(
            "choosing from the candidates of all ranks goes by their scores and indices, and cannot run a model on them; leave "
            "out what choose() reads besides, such as by compare_every"
        )
