"""keep=1 is plain training: what is read, what is drawn, and what an error does, as over the loader itself."""

import copy

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
