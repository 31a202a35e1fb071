"""A run that was killed and resumed selects the very examples that the uninterrupted run selects."""

import copy
import io
import pickle
import random
import warnings
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
    get_worker_info,
)

from rholoss import IndexedBatches, build_selector

N, EPOCHS = 50, 3


class Points(Dataset):
    """Counts what is read of it."""

    def __init__(self, n=N):
        generator = torch.Generator().manual_seed(n)
        self.x = torch.randn(n, 3, generator=generator)
        self.y = torch.randint(4, (n,), generator=generator)
        self.read = []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        self.read.append(i)
        return self.x[i], self.y[i]


class Stream(IterableDataset):
    """Yields (id, x, y), sharded over the workers."""

    def __iter__(self):
        points, info = Points(48), get_worker_info()
        ids = range(48) if info is None else range(info.id, 48, info.num_workers)
        return ((100 + i, *points[i]) for i in ids)


class ShuffledStream(Stream):
    """Shuffles with the global generator."""

    def __iter__(self):
        points = Points(48)
        return ((100 + i, *points[i]) for i in torch.randperm(48).tolist())


def pair_up(examples):
    ids, x, y = zip(*examples, strict=True)
    return torch.tensor(ids), (torch.stack(x), torch.stack(y))


class DrawsAtOnce(Sampler):
    """A batch sampler that draws everything from the global generator as soon as it is iterated."""

    def __iter__(self):
        return iter([part.tolist() for part in torch.randperm(N).split(10)])

    def __len__(self):
        return 5


class DrawsAsItGoes(DrawsAtOnce):
    """A batch sampler that draws each batch when it is asked for it."""

    def __iter__(self):
        for _ in range(5):
            yield torch.randint(N, (10,)).tolist()


class KeepsItsGenerator(Sampler):
    """A sampler with a generator of its own, under a name of its own."""

    def __init__(self):
        self.rng = torch.Generator().manual_seed(8)

    def __iter__(self):
        return iter(torch.randperm(N, generator=self.rng).tolist())

    def __len__(self):
        return N


class Sharded(Sampler):
    """Every other batch of a batch sampler, as accelerate's BatchSamplerShard."""

    def __init__(self, batch_sampler):
        self.batch_sampler = batch_sampler

    def __iter__(self):
        return (batch for place, batch in enumerate(self.batch_sampler) if place % 2 == 0)

    def __len__(self):
        return -(-len(self.batch_sampler) // 2)


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def stateful(**options):
    loader = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")
        return loader(Points(), batch_size=10, shuffle=True, **options)


LOADERS = {
    "in order": lambda **o: DataLoader(Points(), batch_size=10, **o),
    "shuffled": lambda **o: DataLoader(Points(), batch_size=10, shuffle=True, **o),
    "own generator": lambda **o: DataLoader(Points(), batch_size=10, shuffle=True, generator=seeded(), **o),
    "short end": lambda **o: DataLoader(Points(53), batch_size=10, shuffle=True, generator=seeded(), **o),
    "short end dropped": lambda **o: DataLoader(Points(53), batch_size=10, shuffle=True, drop_last=True, generator=seeded(), **o),
    "subset": lambda **o: DataLoader(Points(), batch_size=10, sampler=SubsetRandomSampler(range(5, 45)), **o),
    "subset, own generator": lambda **o: DataLoader(
        Points(), batch_size=10, sampler=SubsetRandomSampler(range(5, 45), generator=seeded()), **o
    ),
    "two generators": lambda **o: DataLoader(
        Points(), batch_size=10, sampler=RandomSampler(range(N), generator=seeded(6)), generator=seeded(7), **o
    ),
    "replacement": lambda **o: DataLoader(
        Points(), batch_size=10, sampler=RandomSampler(range(N), replacement=True, num_samples=90, generator=seeded()), **o
    ),
    "weighted": lambda **o: DataLoader(Points(), batch_size=10, sampler=WeightedRandomSampler([1.0] * N, 60), **o),
    "BatchSampler": lambda **o: DataLoader(
        Points(), batch_sampler=BatchSampler(RandomSampler(range(N), generator=seeded()), 10, False), **o
    ),
    "sampler with its own generator": lambda **o: DataLoader(Points(), batch_size=10, sampler=KeepsItsGenerator(), **o),
    "stateful": stateful,
    "door": lambda **o: IndexedBatches(
        DataLoader([(100 + i, *Points()[i]) for i in range(N)], batch_size=10, shuffle=True, collate_fn=pair_up, **o)
    ),
    "shuffled stream": lambda **o: IndexedBatches(DataLoader(ShuffledStream(), batch_size=8, collate_fn=pair_up, **o)),
    "stream": lambda **o: IndexedBatches(DataLoader(Stream(), batch_size=8, collate_fn=pair_up, **o)),
}
OWN_BATCHES = {
    "draws at once": lambda **o: DataLoader(Points(), batch_sampler=DrawsAtOnce(), **o),
    "sharded": lambda **o: DataLoader(
        Points(), batch_sampler=Sharded(BatchSampler(RandomSampler(range(N), generator=seeded()), 10, False)), **o
    ),
    "draws as it goes": lambda **o: DataLoader(Points(), batch_sampler=DrawsAsItGoes(), **o),
    "pairs": lambda: IndexedBatches(
        [(torch.arange(i, i + 10), (Points().x[i : i + 10], Points().y[i : i + 10])) for i in (0, 20, 40)]
    ),
}
WORKERS = {"no workers": {}, "workers": {"num_workers": 2}, "persistent workers": {"num_workers": 2, "persistent_workers": True}}
MODES = {"keep": {"keep": 0.5}, "batch_size": {"batch_size": 4}}


@dataclass
class Run:
    """A training run: what it selected by epoch, and a checkpoint by step, as bytes; the last one of an epoch is in `ended`."""

    selected: list[list[list[int]]] = field(default_factory=lambda: [[] for _ in range(EPOCHS)])
    saved: dict[int, bytes] = field(default_factory=dict)
    ended: dict[int, bytes] = field(default_factory=dict)
    rng: Any = None

    def flat(self):
        return [step for epoch in self.selected for step in epoch]


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(equal(p, q) for p, q in zip(a, b, strict=True))
    return a == b


def new(loader, method="uniform", **mode):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(3, 4)
    return build_selector(method, loader, model, **mode)


def checkpoint(selector, epoch):
    file = io.BytesIO()
    state = {
        "selector": selector.state_dict(),
        "model": selector.model.state_dict(),
        "rng": torch.get_rng_state(),
        "epoch": epoch,
    }
    torch.save(state, file)
    return file.getvalue()


def train(selector, resume=None, say_epoch=False, leave=None):
    """Train for three epochs, or what is left of them after a checkpoint; leave an epoch after `leave[epoch]` steps."""
    run, first, steps = Run(), 0, 0
    if resume is None:
        torch.manual_seed(1)
    else:
        torch.manual_seed(999)  # another process, until its state is restored
        state = torch.load(io.BytesIO(resume), weights_only=True)
        selector.load_state_dict(state["selector"])
        selector.model.load_state_dict(state["model"])
        torch.set_rng_state(state["rng"])
        first = state["epoch"]
    for epoch in range(first, EPOCHS):
        if say_epoch:
            selector.set_epoch(epoch)
        for x, y in selector:
            selector.model.zero_grad()
            nn.functional.cross_entropy(selector.model(x + 0.1 * torch.randn(3)), y).backward()
            with torch.no_grad():
                for parameter in selector.model.parameters():
                    parameter -= 0.3 * parameter.grad
            run.selected[epoch].append(selector.last.index.tolist())
            run.saved[steps := steps + 1] = checkpoint(selector, epoch)
            if leave and len(run.selected[epoch]) == leave.get(epoch):
                break
        run.ended[epoch] = checkpoint(selector, epoch + 1)
    run.rng = [torch.get_rng_state(), *(g.get_state() for g in [getattr(selector.loader, "generator", None)] if g is not None)]
    return run


def check_resume(make, whole, steps, **options):
    """Resume after each of some steps, in a new selector over a new loader, and compare with the uninterrupted run."""
    for step in steps:
        resumed = train(make(), whole.saved[step], **options)
        assert resumed.flat() == whole.flat()[step:], f"resumed after step {step}"
        before = sum(len(epoch) for epoch in whole.selected[:1])
        assert resumed.selected[2] == whole.selected[2] or step > before, f"resumed after step {step}: epochs are shifted"
        assert equal(resumed.rng, whole.rng), f"resumed after step {step}: the generators are elsewhere"


def some(whole, k=3, seed=0):
    steps = sorted(whole.saved)
    return sorted({*random.Random(seed).sample(steps, min(k, len(steps))), len(whole.selected[0]), len(whole.selected[0]) + 1})


@pytest.mark.parametrize("method", ["uniform", "train_loss"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loader", LOADERS)
def test_a_resumed_run_selects_what_the_uninterrupted_run_selects(loader, mode, method):
    def make():
        return new(LOADERS[loader](), method, **MODES[mode])

    whole = train(make())
    assert whole.selected[0] != whole.selected[1] or loader in ("in order", "stream")
    check_resume(make, whole, whole.saved)


@pytest.mark.parametrize("loader", OWN_BATCHES)
def test_a_resumed_run_over_batches_of_their_own_selects_what_the_uninterrupted_run_selects(loader):
    def make():
        return new(OWN_BATCHES[loader](), "train_loss", batch_size=4)

    whole = train(make())
    check_resume(make, whole, whole.saved)


@pytest.mark.parametrize("workers", ["workers", "persistent workers"])
@pytest.mark.parametrize(
    ("loader", "mode"),
    [
        ("in order", "keep"),
        ("shuffled", "batch_size"),
        ("own generator", "keep"),
        ("replacement", "batch_size"),
        ("stream", "keep"),
    ],
)
def test_a_resumed_run_with_workers_selects_what_the_uninterrupted_run_selects(loader, mode, workers):
    def make():
        return new(LOADERS[loader](**WORKERS[workers]), "train_loss", **MODES[mode])

    whole = train(make())
    check_resume(make, whole, some(whole, k=2))


def test_a_run_can_be_killed_again_and_again():
    def make():
        return new(LOADERS["own generator"](), "train_loss", keep=0.5)

    whole = train(make())
    selected, saved = [], None
    while len(selected) < len(whole.flat()):
        run = train(make(), saved)
        saved = run.saved[1]
        selected.append(run.flat()[0])
    assert selected == whole.flat()


# Between epochs, and where an epoch is left early.


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    "loader", ["shuffled", "own generator", "subset, own generator", "two generators", "replacement", "stateful"]
)
def test_a_run_resumed_between_epochs_selects_what_the_uninterrupted_run_selects(loader, workers):
    def make():
        return new(LOADERS[loader](**WORKERS[workers]), "train_loss", keep=0.5)

    whole = train(make())
    for epoch in (0, 1):
        resumed = train(make(), whole.ended[epoch])
        assert resumed.selected[epoch + 1 :] == whole.selected[epoch + 1 :], f"resumed after epoch {epoch}"
        assert equal(resumed.rng, whole.rng)


@pytest.mark.parametrize("loader", ["shuffled", "own generator", "stream"])
def test_after_an_epoch_left_early_the_next_ones_are_resumed(loader):
    def make():
        return new(LOADERS[loader](), "train_loss", keep=0.5)

    leave = {0: 2, 1: 1}
    whole = train(make(), leave=leave)
    assert [len(epoch) for epoch in whole.selected] == [2, 1, 3]
    for step in (4, 5):
        assert train(make(), whole.saved[step]).selected[2] == whole.selected[2][step - 3 :]
    for epoch in (0, 1):
        resumed = train(make(), whole.ended[epoch], leave=leave)
        assert resumed.flat() == [step for selected in whole.selected[epoch + 1 :] for step in selected]


@pytest.mark.parametrize("loader", ["in order", "own generator", "short end", "short end dropped", "stream"])
@pytest.mark.parametrize("mode", MODES)
def test_the_state_at_the_last_batch_of_an_epoch_leaves_nothing_of_it(loader, mode):
    selector = new(LOADERS[loader](), **MODES[mode])
    for _ in selector:
        state = selector.state_dict()
    resumed = new(LOADERS[loader](), **MODES[mode])
    resumed.load_state_dict(state)
    assert (resumed.epoch, [resumed.last for _ in resumed]) == (0, [])
    assert (len(list(resumed)), resumed.epoch) == (selector.step, 1)


@pytest.mark.parametrize("mode", MODES)
def test_an_epoch_that_has_nothing_left_is_not_begun_again_when_it_is_said(mode):
    selector = new(LOADERS["short end"](), **MODES[mode])
    selector.set_epoch(4)
    for _ in selector:
        state = selector.state_dict()
    resumed = new(LOADERS["short end"](), **MODES[mode])
    resumed.load_state_dict(state)
    resumed.set_epoch(4)
    assert list(resumed) == []


# Epochs that are said.


def distributed(**options):
    points = Points()
    return DataLoader(points, batch_size=5, sampler=DistributedSampler(points, num_replicas=2, rank=1, seed=3), **options)


@pytest.mark.parametrize("mode", MODES)
def test_a_distributed_run_that_says_its_epochs_is_resumed(mode):
    def make():
        return new(distributed(), "train_loss", **MODES[mode])

    whole = train(make(), say_epoch=True)
    assert len(whole.selected[0]) > 2
    check_resume(make, whole, whole.saved, say_epoch=True)
    for epoch in (0, 1):
        assert train(make(), whole.ended[epoch], say_epoch=True).selected[epoch + 1 :] == whole.selected[epoch + 1 :]


def test_a_distributed_run_with_workers_is_resumed():
    def make():
        return new(distributed(num_workers=2), "train_loss", batch_size=2)

    whole = train(make(), say_epoch=True)
    check_resume(make, whole, some(whole, k=1), say_epoch=True)


def test_the_epoch_in_progress_is_resumed_though_nobody_says_it_again():
    selector = new(distributed(), batch_size=2)
    selector.set_epoch(2)
    chosen = []
    for _ in selector:
        chosen.append(selector.last.index.tolist())
        if len(chosen) == 2:
            state = selector.state_dict()
    resumed = new(distributed(), batch_size=2)
    resumed.load_state_dict(state)
    assert [resumed.last.index.tolist() for _ in resumed] == chosen[2:]


def test_saying_another_epoch_after_loading_begins_that_epoch():
    selector = new(distributed(), batch_size=2)
    selector.set_epoch(1)
    for _ in selector:
        state = selector.state_dict()
        break
    resumed = new(distributed(), batch_size=2)
    resumed.load_state_dict(state)
    resumed.set_epoch(2)
    drawn = [i for _ in resumed for i in resumed.last.candidate_index.tolist()]
    resumed.loader.sampler.set_epoch(2)
    assert drawn == list(resumed.loader.sampler)
    assert resumed.epoch == 2


@pytest.mark.parametrize("said", [True, False], ids=["said", "counted"])
def test_the_epochs_that_are_left_are_those_from_the_next_one_on_wherever_the_state_was_saved(said):
    def run(state=None):
        selector, chosen, states = new(distributed(), "train_loss", batch_size=2), [], []
        if state is not None:
            selector.load_state_dict(state)
        for epoch in range(selector.next_epoch, EPOCHS):
            if said:
                selector.set_epoch(epoch)
            for _ in selector:
                chosen.append((selector.epoch, selector.last.index.tolist()))
                states.append((len(chosen), selector.state_dict()))
            states.append((len(chosen), selector.state_dict()))
        return chosen, states

    whole, states = run()
    assert {epoch for epoch, _ in whole} == set(range(EPOCHS))
    for done, state in states:
        assert run(state)[0] == whole[done:]


# What a resume leaves alone.


@pytest.mark.parametrize("loader", ["shuffled", "own generator", "short end", "stream"])
def test_saving_right_after_loading_gives_the_same_state(loader):
    selector = new(LOADERS[loader](), keep=0.5)
    states = [selector.state_dict()]
    for _ in range(2):
        states += [selector.state_dict() for _ in selector]
        states.append(selector.state_dict())
    for state in states:
        resumed = new(LOADERS[loader](), keep=0.5)
        resumed.load_state_dict(state)
        assert equal(resumed.state_dict(), state)


@pytest.mark.parametrize("workers", ["no workers", "workers"])
def test_resuming_an_epoch_moves_no_global_generator(workers):
    selector = new(LOADERS["shuffled"](**WORKERS[workers]), keep=0.5)
    for _ in selector:
        state = selector.state_dict()
        break
    resumed = new(LOADERS["shuffled"](**WORKERS[workers]), keep=0.5)
    before = torch.get_rng_state()
    resumed.load_state_dict(state)
    for _ in resumed:
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_rest_of_an_epoch_needs_no_restored_global_generator():
    selector = new(LOADERS["shuffled"](), keep=0.5)
    chosen, states = [], []
    for _ in selector:
        chosen.append(selector.last.index.tolist())
        states.append(selector.state_dict())
    resumed = new(LOADERS["shuffled"](), keep=0.5)
    resumed.load_state_dict(states[0])
    torch.manual_seed(12345)
    assert [resumed.last.index.tolist() for _ in resumed] == chosen[1:]


@pytest.mark.parametrize("door", [False, True], ids=["loader", "behind the door"])
@pytest.mark.parametrize("mode", MODES)
def test_examples_that_are_skipped_are_not_read(mode, door):
    class Ids(Points):
        def __getitem__(self, i):
            return (i, *super().__getitem__(i))

    def make():
        loader = DataLoader(Ids(), batch_size=10, shuffle=True, collate_fn=pair_up) if door else LOADERS["shuffled"]()
        return new(IndexedBatches(loader) if door else loader, **MODES[mode])

    selector, drawn = make(), []
    for _ in selector:
        drawn.append(selector.last.candidate_index.tolist())
        if len(drawn) == 2:
            state = selector.state_dict()
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.dataset.read == []
    list(resumed)
    assert resumed.dataset.read == [i for candidates in drawn[2:] for i in candidates]


def test_a_state_holds_nothing_of_the_data_and_stays_small():
    loader = DataLoader(Points(20_000), batch_size=10, shuffle=True)
    selector = new(loader, keep=0.5)
    next(iter(selector))
    assert len(checkpoint(selector, 0)) < 50_000


def test_a_state_that_was_saved_does_not_change_as_the_run_goes_on():
    selector = new(LOADERS["own generator"](), keep=0.5)
    iterator = iter(selector)
    next(iterator)
    state = selector.state_dict()
    kept = copy.deepcopy(state)
    list(iterator)
    list(selector)
    assert equal(state, kept)


# Selectors in use.


@pytest.mark.parametrize("workers", ["no workers", "persistent workers"])
def test_a_selector_in_use_can_be_set_back(workers):
    selector = new(LOADERS["own generator"](**WORKERS[workers]), keep=0.5)
    chosen = []
    for _ in range(2):
        for _ in selector:
            chosen.append(selector.last.index.tolist())
            if len(chosen) == 2:
                state = selector.state_dict()
    selector.load_state_dict(state)
    assert [selector.last.index.tolist() for _ in range(2) for _ in selector] == chosen[2:]


def test_a_selector_can_be_set_back_from_within_its_loop():
    selector = new(LOADERS["own generator"](), keep=0.5)
    chosen = []
    for _ in selector:
        chosen.append(selector.last.index.tolist())
        if len(chosen) == 1:
            state = selector.state_dict()
        if len(chosen) == 2:  # the loss is NaN: back to the checkpoint
            selector.load_state_dict(state)
            break
    assert equal(selector.state_dict(), state)
    assert selector.last is not None
    again = [selector.last.index.tolist() for _ in selector]
    assert again[0] == chosen[1]
    assert len(again) == 2


def test_an_iteration_that_was_given_up_does_not_move_the_one_in_progress():
    selector = new(LOADERS["own generator"](), keep=0.5)
    given_up = iter(selector)
    next(given_up)
    in_progress = iter(selector)
    next(in_progress)
    state = selector.state_dict()
    next(given_up)
    assert selector.state_dict()["loader"]["position"] == state["loader"]["position"] == 1
    given_up.close()
    assert selector.state_dict()["loader"]["position"] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("loader", ["shuffled", "own generator", "two generators", "stream", "door"])
def test_a_copy_of_a_selector_in_use_goes_on_where_it_is(loader, copied):
    selector = new(LOADERS[loader](), "train_loss", keep=0.5)
    iterator = iter(selector)
    next(iterator)
    twin = copied(selector)
    assert equal(twin.state_dict(), selector.state_dict())
    rest = [selector.last.index.tolist() for _ in iterator]
    assert [twin.last.index.tolist() for _ in twin] == rest
    assert (twin.epoch, twin.step) == (selector.epoch, selector.step)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda s: pickle.loads(pickle.dumps(s))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("door", [False, True], ids=["loader", "behind the door"])
def test_a_selector_with_running_workers_can_be_copied_and_its_choices_are_the_same(copied, door):
    loader = LOADERS["door" if door else "own generator"](num_workers=1, persistent_workers=True)
    selector = new(loader, "uniform", keep=0.5)
    list(selector)
    twin = copied(selector)
    candidates = [(torch.arange(20), (torch.randn(20, 3), torch.zeros(20).long())) for _ in range(3)]
    for pair in candidates:
        selector.select(pair)
        twin.select(pair)
        assert torch.equal(twin.last.index, selector.last.index)


# States that do not fit.


def saved_state(**changes):
    selector = new(LOADERS["own generator"](), keep=0.5)
    for step, _ in enumerate(selector):
        if step == 1:
            state = selector.state_dict()
            return {**state, "settings": {**state["settings"], **changes}}
    raise AssertionError


def test_the_state_of_another_selector_is_refused():
    with pytest.raises(
        ValueError, match="expected selector = 'TrainLossSelector', got 'UniformSelector'; build the selector as it"
    ):
        new(LOADERS["own generator"](), "train_loss", keep=0.5).load_state_dict(saved_state())


@pytest.mark.parametrize(
    ("mode", "message"),
    [({"keep": 0.25}, "expected n_B = 40, got 20"), ({"batch_size": 4}, "expected n_b = 4, got 10")],
)
def test_the_state_of_other_batch_sizes_is_refused(mode, message):
    with pytest.raises(ValueError, match=message):
        new(LOADERS["own generator"](), **mode).load_state_dict(saved_state())


@pytest.mark.parametrize("state", [{}, {"selector": "UniformSelector"}, {"settings": {}}, None, []])
def test_what_is_no_state_is_refused(state):
    with pytest.raises(ValueError, match="this state cannot be loaded: expected"):
        new(LOADERS["own generator"](), keep=0.5).load_state_dict(state)


def test_a_refused_state_leaves_the_selector_as_it_was():
    selector = new(LOADERS["own generator"](), keep=0.5)
    before = selector.state_dict()
    with pytest.raises(ValueError, match="n_B"):
        selector.load_state_dict(saved_state(n_B=7))
    assert equal(selector.state_dict(), before)


def go_on(selector, state):
    selector.load_state_dict(state)
    list(selector)


@pytest.mark.parametrize("workers", ["no workers", "workers"])
def test_a_loader_with_other_generators_is_refused(workers):
    selector = new(LOADERS["shuffled"](**WORKERS[workers]), keep=0.5)
    with pytest.raises(ValueError, match="saved with a loader that has another set of generators; resume with the same loader"):
        go_on(selector, saved_state())


@pytest.mark.parametrize("n", [20, 70], ids=["fewer", "more"])
def test_a_dataset_of_another_length_is_refused_in_mid_epoch(n):
    selector = new(DataLoader(Points(n), batch_size=10, shuffle=True, generator=seeded()), keep=0.5)
    with pytest.raises(ValueError, match=f"saved .* over a dataset of 50 examples, got {n}"):
        go_on(selector, saved_state())


def test_a_dataset_may_grow_between_epochs():
    selector = new(LOADERS["own generator"](), keep=0.5)
    list(selector)
    grown = new(DataLoader(Points(70), batch_size=10, shuffle=True, generator=seeded()), keep=0.5)
    grown.load_state_dict(selector.state_dict())
    assert len(list(grown)) == 4


def test_a_sampler_that_ends_before_the_position_is_refused():
    selector = new(DataLoader(Points(), batch_size=10, sampler=SubsetRandomSampler(range(20), generator=seeded())), keep=0.5)
    for _ in selector:
        state = selector.state_dict()
    state["loader"]["position"] = 2
    with pytest.raises(ValueError, match="saved after 2 candidate batches, but the loader has 1; resume with the same data"):
        go_on(selector, state)


def test_a_stream_that_ends_before_the_position_is_refused():
    def make(n):
        return new(IndexedBatches([(torch.arange(10), (torch.zeros(10, 3), torch.zeros(10).long()))] * n), batch_size=4)

    selector = make(5)
    iterator = iter(selector)
    for _ in range(4):
        next(iterator)
    shorter = make(2)
    with pytest.raises(ValueError, match="saved after 4 candidate batches, but the loader has 2"):
        go_on(shorter, selector.state_dict())
