"""keep=1 is plain training: what is read, what is drawn, when it begins, and what an error does, as over the loader itself."""

import copy
import gc
import itertools
import multiprocessing
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SubsetRandomSampler, WeightedRandomSampler

from rholoss import IndexedBatches, build_selector

N = 23


class Augmented(Dataset):
    """Draws from the global generator whenever an example is read, and counts."""

    def __init__(self, broken=()):
        self.read, self.broken = [], broken

    def __len__(self):
        return N

    def __getitem__(self, i):
        self.read.append(i)
        if i in self.broken:
            raise OSError(f"example {i} is broken")
        return i + torch.rand(())


def wrapped(loader, **options):
    return build_selector("uniform", loader, None, **{"keep": 1.0, **options})


SAMPLERS = {
    "in order": {},
    "shuffled": {"shuffle": True},
    "shuffled by a generator": {"shuffle": True, "generator": 5},
    "with replacement": {"sampler": lambda: RandomSampler(range(N), replacement=True, num_samples=17)},
    "a subset": {"sampler": lambda: SubsetRandomSampler(range(3, 20))},
    "weighted": {"sampler": lambda: WeightedRandomSampler([1.0] * N, 19)},
}


def made(kind, **options):
    given = dict(SAMPLERS[kind])
    if "sampler" in given:
        given["sampler"] = given["sampler"]()
    if "generator" in given:
        given["generator"] = torch.Generator().manual_seed(given["generator"])
    return DataLoader(Augmented(), **given, **options)


@pytest.mark.parametrize("kind", SAMPLERS)
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("size", [4, 23, 24, 1])
def test_the_same_is_read_and_drawn(kind, drop_last, size):
    runs = []
    for wrap in (lambda loader: loader, wrapped):
        torch.manual_seed(0)
        base = made(kind, batch_size=size, drop_last=drop_last)
        loader = wrap(base)
        batches = [batch.tolist() for _ in range(3) for batch in loader]
        runs.append((len(loader), batches, base.dataset.read, torch.get_rng_state().tolist()))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("persistent", [True, False])
def test_the_same_with_workers(persistent):
    runs = []
    for wrap in (lambda loader: loader, wrapped):
        torch.manual_seed(0)
        loader = wrap(made("shuffled", batch_size=4, drop_last=True, num_workers=2, persistent_workers=persistent))
        runs.append([batch.tolist() for _ in range(3) for batch in loader])
        runs[-1].append(torch.get_rng_state().tolist())
    assert runs[0] == runs[1]


def broken_off(loader):
    return [*itertools.islice(loader, 2), *loader]


def nested(loader):
    return [batch for outer in loader for batch in (outer, *itertools.islice(loader, 2))]


def zipped_with_itself(loader):
    return [batch for both in zip(loader, loader, strict=True) for batch in both]


def begun_again_and_again(loader):
    return [next(iter(loader)) for _ in range(3)]


def used_in_another_order(loader):
    first, second, third = iter(loader), iter(loader), iter(loader)
    return [*third, *first, *second]


def used_after_other_draws(loader):
    iterator = iter(loader)
    return [torch.rand(3), *iterator]


def used_after_the_next_epoch(loader):
    iterator = iter(loader)
    return [*loader, *iterator]


def exhausted(loader):
    iterator = iter(loader)
    return [*iterator, *iterator, *loader]


def given_up(loader):
    iter(loader)
    return []


WAYS = [
    broken_off,
    nested,
    zipped_with_itself,
    begun_again_and_again,
    used_in_another_order,
    used_after_other_draws,
    used_after_the_next_epoch,
    exhausted,
    given_up,
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", SAMPLERS)
def test_whatever_way_it_is_iterated_the_same_is_read_and_drawn(way, kind):
    runs = []
    for wrap in (lambda loader: loader, wrapped):
        torch.manual_seed(0)
        base = made(kind, batch_size=4)
        batches = [batch.tolist() for batch in way(wrap(base))]
        own = None if base.generator is None else base.generator.get_state().tolist()
        runs.append((batches, base.dataset.read, torch.get_rng_state().tolist(), own))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("wrap", [lambda loader: loader, wrapped], ids=["loader", "selector"])
def test_the_workers_read_as_soon_as_there_is_an_iterator_and_end_with_it(wrap):
    read = multiprocessing.get_context("fork").Value("i", 0)
    loader = wrap(DataLoader(Counted(read), batch_size=4, num_workers=1))
    iterator = iter(loader)
    waited = time.monotonic() + 60
    while not read.value and time.monotonic() < waited:
        time.sleep(0.01)
    assert read.value
    running = multiprocessing.active_children()
    assert running
    del iterator
    gc.collect()
    assert not set(multiprocessing.active_children()) & set(running)


class Counted(Augmented):
    def __init__(self, count):
        super().__init__()
        self.count = count

    def __getitem__(self, i):
        with self.count.get_lock():
            self.count.value += 1
        return i


@pytest.mark.parametrize("options", [{}, {"num_workers": 1}, {"num_workers": 1, "persistent_workers": True}], ids=str)
def test_an_iterator_that_is_given_up_unused_draws_nothing_once_another_is_made(options):
    torch.manual_seed(0)
    expected = [batch.long().tolist() for batch in made("shuffled", batch_size=4, **options)]
    torch.manual_seed(0)
    selector = wrapped(made("shuffled", batch_size=4, **options))
    iter(selector)
    assert [batch.long().tolist() for batch in selector] == expected
    assert selector.epoch == 0


def test_an_iteration_of_which_nothing_was_asked_counts_no_epoch():
    selector = wrapped(made("shuffled", batch_size=4))
    iterators = [iter(selector) for _ in range(3)]
    assert (selector.epoch, selector.next_epoch) == (0, 0)
    for epoch, iterator in enumerate(iterators):
        next(iterator)
        assert (selector.epoch, selector.next_epoch) == (epoch, epoch + 1)


def test_an_unused_iteration_leaves_the_one_in_progress_alone():
    selector = wrapped(made("shuffled by a generator", batch_size=4))
    iterator = iter(selector)
    seen = [next(iterator).long().tolist()]
    unused = iter(selector)
    seen.append(next(iterator).long().tolist())
    state = copy.deepcopy(selector.state_dict())
    del unused
    rest = [batch.long().tolist() for batch in iterator]
    assert state["loader"]["position"] == 2
    resumed = wrapped(made("shuffled by a generator", batch_size=4))
    resumed.load_state_dict(state)
    assert [batch.long().tolist() for batch in resumed] == rest


@pytest.mark.parametrize("keep", [1.0, 0.5])
@pytest.mark.parametrize("generator", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_a_state_of_an_iteration_that_has_taken_nothing_begins_it_again(generator, held, keep):
    def make():
        own = torch.Generator().manual_seed(1) if generator else None
        return wrapped(DataLoader(range(N), batch_size=4, shuffle=True, generator=own), keep=keep)

    torch.manual_seed(0)
    selector = make()
    list(selector)
    iterator = iter(selector)
    if not held:
        del iterator
    state, drawn = copy.deepcopy(selector.state_dict()), torch.get_rng_state()
    expected = [batch.tolist() for batch in (iterator if held else selector)]
    ended = torch.get_rng_state()
    resumed = make()
    resumed.load_state_dict(state)
    again = copy.deepcopy(resumed.state_dict())
    assert again["loader"]["position"] == 0
    assert resumed.next_epoch == 1
    torch.set_rng_state(drawn)
    assert [batch.tolist() for batch in resumed] == expected
    assert resumed.epoch == 1
    assert torch.equal(torch.get_rng_state(), ended)


def test_an_iterator_made_before_a_state_is_loaded_resumes_from_it():
    def make():
        return wrapped(made("shuffled by a generator", batch_size=4))

    selector = make()
    list(selector)
    iterator = iter(selector)
    next(iterator)
    next(iterator)
    state = copy.deepcopy(selector.state_dict())
    rest = [batch.long().tolist() for batch in iterator]
    resumed = make()
    made_before = iter(resumed)
    resumed.load_state_dict(state)
    assert [batch.long().tolist() for batch in made_before] == rest
    assert resumed.epoch == 1


def test_the_position_of_a_state_stays_when_an_iterator_is_made_for_nothing():
    def make():
        return wrapped(made("shuffled by a generator", batch_size=4))

    selector = make()
    iterator = iter(selector)
    next(iterator)
    state = copy.deepcopy(selector.state_dict())
    rest = [batch.long().tolist() for batch in iterator]
    resumed = make()
    resumed.load_state_dict(state)
    iter(resumed)
    unused = iter(resumed)
    assert [batch.long().tolist() for batch in resumed] == rest
    another = torch.cat(list(unused)).long()  # what it was made for is over
    assert another.sort().values.tolist() == list(range(N))
    assert resumed.epoch == 1


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_that_is_announced_after_the_iterator_was_made_is_the_one_that_is_drawn(workers):
    """Methods that choose what an epoch trains on choose for the announced one."""
    selector = build_selector(
        "repeated_random_subset", DataLoader(range(N), batch_size=4, num_workers=workers), None, keep=0.5, seed=1
    )
    expected = build_selector("repeated_random_subset", DataLoader(range(N), batch_size=4), None, keep=0.5, seed=1)
    iterator = iter(selector)
    selector.set_epoch(3)
    expected.set_epoch(3)
    assert [batch.tolist() for batch in iterator] == [batch.tolist() for batch in expected]
    assert selector.epoch == 3


class SlowAtFirst(Dataset):
    def __len__(self):
        return 16

    def __getitem__(self, i):
        time.sleep(i == 0)
        return i


def test_a_state_in_mid_epoch_of_a_loader_that_keeps_no_order_is_refused_and_in_order_is_the_cure():
    def make(**options):
        return wrapped(DataLoader(SlowAtFirst(), batch_size=2, num_workers=2, **options))

    selector = make(in_order=False)
    for taken, _ in enumerate(selector, 1):
        if taken == 3:
            with pytest.raises(ValueError, match=r"in_order=False and num_workers=2; pass in_order=True, or save at the end"):
                selector.state_dict()
        elif taken == len(selector):
            at_the_last = copy.deepcopy(selector.state_dict())
    at_the_end = selector.state_dict()
    for state, rest in ((at_the_last, 0), (at_the_end, 8)):
        resumed = make(in_order=False)
        resumed.load_state_dict(state)
        assert len(list(resumed)) == rest
    selector = make(in_order=True)
    iterator = iter(selector)
    seen = [i for _ in range(3) for i in next(iterator).tolist()]
    resumed = make(in_order=False)
    resumed.load_state_dict(selector.state_dict())
    assert sorted(seen + [i for batch in resumed for i in batch.tolist()]) == list(range(16))


def test_without_workers_no_order_is_lost():
    selector = wrapped(DataLoader(range(16), batch_size=2, in_order=False))
    next(iter_ := iter(selector))
    assert selector.state_dict()["loader"]["position"] == 1
    assert len(list(iter_)) == 7


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_an_error_of_one_batch_does_not_end_the_epoch(workers, keep):
    def read(loader):
        iterator, good, bad = iter(loader), [], 0
        while True:
            try:
                good.append(next(iterator).long().tolist())
            except StopIteration:  # noqa: PERF203
                return good, bad
            except OSError:
                bad += 1

    loader = DataLoader(Augmented(broken=(9,)), batch_size=4, num_workers=workers)
    selector = wrapped(loader, keep=keep)
    if keep == 1:
        assert read(selector) == read(loader)
    else:  # of 3 candidate batches
        good, bad = read(selector)
        assert (len(good), bad) == (2, 1)
    assert selector.epoch == 0
    read(selector)
    assert selector.epoch == 1


def test_a_run_that_resumes_after_an_error_skips_the_broken_batch_as_well():
    def follow(selector, steps, chosen):
        iterator = iter(selector)
        while len(chosen) < steps:
            try:
                next(iterator)
            except StopIteration:
                break
            except OSError:
                continue
            chosen.append(selector.last.index.tolist())
        return iterator

    def make():
        loader = DataLoader(Augmented(broken=(9,)), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(0))
        return wrapped(loader)

    whole, part, rest = [], [], []
    follow(make(), 99, whole)
    selector = make()
    iterator = follow(selector, 4, part)
    state = copy.deepcopy(selector.state_dict())
    assert iterator is not None
    resumed = make()
    resumed.load_state_dict(state)
    follow(resumed, 99, rest)
    assert part + rest == whole


class Sized(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))

    def __len__(self):
        return self.n


@pytest.mark.parametrize("n", [16, 17, 19, 20, 23])
@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("keep", [1.0, 0.5])
def test_the_length_of_a_sized_stream_is_right(n, drop_last, keep):
    loader = DataLoader(Sized(n), batch_size=4, drop_last=drop_last)
    selector = wrapped(IndexedBatches(loader, index=lambda batch: batch), keep=keep)
    assert len(selector) == len(list(selector))


@pytest.mark.parametrize("keep", [0.5, 0.3])
def test_a_short_end_that_is_dropped_is_not_read(keep):
    data = Augmented()
    selector = wrapped(DataLoader(data, batch_size=4, drop_last=True), keep=keep)
    n_B = selector.n_B
    for _ in range(2):
        assert len(list(selector)) == len(selector)
    kept = N - N % n_B if N % n_B < 4 else N
    assert data.read == [*range(kept)] * 2
