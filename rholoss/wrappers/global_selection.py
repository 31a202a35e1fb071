"""One selection over the candidates of all ranks of ``torch.distributed``."""

from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from rholoss.candidates import Candidates
from rholoss.data.index import IndexedBatch
from rholoss.devices import to_device
from rholoss.distributed import Ranks, settings_number
from rholoss.isolation import derived_seed
from rholoss.options import SelectorOptions
from rholoss.scoring import Scorer
from rholoss.selection import checked_choice
from rholoss.selector import Selector
from rholoss.states import Settings, shared, taken
from rholoss.wrappers.base import MethodWrapper
from rholoss.wrappers.row_exchange import Exchange, Share


class GlobalSelector(MethodWrapper):
    """Any method, with one selection from the candidates of all ranks instead of one on each rank.

    Each of W ranks scores the n_B candidates of its own loader. All ranks then make the same choice of W n_b of the W n_B
    candidates, as one process with all of them would. Each rank trains on n_b of the chosen: on its own candidates first, and
    on rows from ranks that have more. Only those rows move.

    The epoch ends for all ranks when one has no candidates left. If all ranks together have fewer than W n_b candidates, each
    trains on 1 / W of them, and up to W - 1 of the lowest scores are dropped. An error on one rank is raised on all.

    ``last.positions``, shape (m,), are this rank's candidates that any rank trains on, so logs may be summed over ranks.
    ``last.index``, shape (n_b,), is what this rank trains on. ``last.notes["from_elsewhere"]`` counts rows from other ranks.

    Other arguments: see ``MethodWrapper``; the options are the same on every rank. The ``choose`` of the method may use the
    scores, the indices, the step and ``candidates.rand()``, which is the same on all ranks; no outputs or losses.

    Args:
        group: the process group; None for all processes.

    Attributes:
        ranks: the ranks that choose together.

    Raises:
        RuntimeError: ``torch.distributed`` is not initialized; or, in training, another rank failed.
        ValueError: the method compares candidates (see ``Selector.compares_candidates``); or, in training, the ranks are at
            different steps, or rows differ in dtype or shape, for example padded to different lengths.

    Examples:
        >>> import tempfile, torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from rholoss.selectors import TrainLossSelector
        >>> from rholoss.wrappers import GlobalSelector
        >>> meet = f"file://{tempfile.mkdtemp()}/meet"
        >>> torch.distributed.init_process_group("gloo", init_method=meet, rank=0, world_size=1)  # torchrun sets rank and size
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
        super().__init__(loader, model, method, **options)
        if self.compares_candidates:
            why = f"{type(method).__name__} scores candidates by comparing them with each other, so ranks cannot pool scores"
            raise ValueError(f"{why}; let it choose on each rank from its own candidates")
        self._seed = self.generator.initial_seed()
        if self.ranks.rank:  # random scores, such as those of uniform sampling, must not repeat between ranks
            self.generator.manual_seed(derived_seed("rank", self._seed, self.ranks.rank))

    def settings(self) -> Settings:
        return {**super().settings(), "seed": self._seed, "group": None, "rank": f"{self.ranks.rank} of {self.ranks.size}"}

    def shared_settings(self) -> Settings:
        """The settings that must be the same on every rank: not those of its loader, nor ``forward``, which may name a device."""
        own = {"rank", "loader", "forward"} if self.redraws else {"rank", "loader", "forward", "n_B"}
        return shared(self.settings(), own)

    @cached_property
    def _identity(self) -> int:
        return settings_number(self.shared_settings())

    def select(self, candidates: IndexedBatch | tuple[Any, Any]) -> Any:
        with self.ranks.sharing_errors():
            return super().select(candidates)

    def load_state_dict(self, state: dict[str, Any], *, allow: Collection[str] = ()) -> None:
        mine, its = self.settings()["rank"], taken(taken(state, "settings", dict), "rank", str)
        if its != mine:
            got = f"expected that of rank {mine}, got that of rank {its}"
            raise ValueError(f"this state cannot be loaded: {got}; save the state of every rank, and load each on its own")
        super().load_state_dict(state, allow=allow)

    def draw(self) -> Iterator[IndexedBatch]:
        return _WhileAllHaveOne(self.ranks, super().draw())

    def select_from(self, indexed: IndexedBatch) -> Any:
        with self.ranks.sharing_errors():
            return super().select_from(indexed)

    def take(self, candidates: Candidates, score: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Any]:
        self.finite_check.wait()
        exchange = Exchange(self.ranks, candidates.batch, len(candidates))
        gathered = self.ranks.all_gather_numbers(len(candidates), self.step, self._identity, exchange.digest)
        self._check_alike(gathered)
        exchange.check(gathered[:, 3])
        sizes = gathered[:, 0].tolist()
        everyones = self._everyones(candidates, self.ranks.all_gather(candidates.index, sizes))
        score = self.ranks.all_gather(score if score.dtype == torch.float64 else score.float(), sizes)
        n = min(self.n_b, sum(sizes) // self.ranks.size) * self.ranks.size
        with self.ranks.sharing_errors():
            chosen, weights = checked_choice(self.choose(everyones, score, n), n, sum(sizes))
        digests = self.ranks.all_gather_numbers(derived_seed(*chosen.tolist()))
        if len(digests.unique(dim=0)) > 1:  # otherwise a rank would wait for rows that nobody sends
            cure = "its choose() may use the scores, the indices, the step and candidates.rand()"
            raise ValueError(f"{type(self.method).__name__} does not choose the same on every rank; {cure}")
        share = Share.of(self.ranks.rank, chosen, sizes)
        batch = exchange(share)
        candidates.notes["from_elsewhere"] = torch.tensor(n // self.ranks.size - len(share.sent[self.ranks.rank]))
        device = candidates.device
        index, positions = to_device(everyones.index[chosen[share.mine]], device), to_device(share.own, device)
        return index, positions, None if weights is None else to_device(weights[share.mine], device), batch

    def _check_alike(self, gathered: Tensor) -> None:
        if len(gathered[:, 2].unique()) > 1:
            self.ranks.refuse_different(self.shared_settings(), "build the selector of every rank alike")
        if len(set(steps := gathered[:, 1].tolist())) > 1:
            cure = "build the selector of every rank alike, and resume them from states of the same step"
            raise ValueError(f"step must be the same on every rank, got {steps}; {cure}")

    def _everyones(self, candidates: Candidates, index: Tensor) -> Candidates:
        """The candidates of all ranks, without batches; the generator is in the same state on each rank."""
        generator = torch.Generator().manual_seed(derived_seed("ranks", self._seed, self.step))
        scorer, when = _NoScorer(self.scorer.task), (candidates.step, candidates.epoch)
        everyones = Candidates(index, None, self.model, scorer, torch.device("cpu"), when, generator)
        everyones.notes = candidates.notes
        return everyones


class _NoScorer(Scorer):
    """Refuses to run a model: a rank has no batches of the other ranks."""

    def run(self, *args: Any, **options: Any) -> Any:
        why = "a choice from the candidates of all ranks uses their scores and indices, and cannot run a model on them"
        raise ValueError(f"{why}; remove what else choose() reads, for example compare_every=")


class _WhileAllHaveOne:
    """Candidate batches, until a rank has none left. A rank that fails reports to the others."""

    def __init__(self, ranks: Ranks, candidates: Any) -> None:
        self._ranks, self._candidates, self._ended = ranks, candidates, False

    def __iter__(self) -> Iterator[IndexedBatch]:
        return self

    def __next__(self) -> IndexedBatch:
        if self._ended:
            raise StopIteration
        with self._ranks.sharing_errors():
            indexed: IndexedBatch | None = next(self._candidates, None)
        self._ended = not bool(self._ranks.all_gather_numbers(int(indexed is not None))[:, 0].all())
        if indexed is None or self._ended:
            self.close()
            raise StopIteration
        return indexed

    def close(self) -> None:
        """End the pass of this rank."""
        self._candidates.close()
