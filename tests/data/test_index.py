"""The index and the example agree, whatever lies between the sampler and the batch; the user's loader is left unchanged."""

import multiprocessing
import time
import traceback
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from rholoss import IndexedBatch, IndexedBatches, IndexedSubset, build_selector, hash_ids
from rholoss.data.indexed_dataset import attach_index

N = 40


class Numbers(Dataset):
    """Example i holds the number 1000 + i."""

    def __init__(self, n=N):
        self.n = n
        self.offset = 1000

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return torch.as_tensor(self.offset + i), -int(self.offset + i)


class NumbersAtOnce(Numbers):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


class SortsItsIndices(Numbers):
    """Reads in the order of the file, answers in the order asked for, and sorts the very list it was asked with."""

    def __getitems__(self, indices):
        asked = list(indices)
        indices.sort()
        read = {i: self[i] for i in indices}
        return [read[i] for i in asked]


class FirstIsSlow(Numbers):
    def __getitem__(self, i):
        time.sleep(0.3 if i == 0 else 0)
        return super().__getitem__(i)


class Broken(Numbers):
    def __getitem__(self, i):
        raise RuntimeError(f"no file for {i}")


class WholeBatches(Numbers):
    """Returns whole batches: for a list of indices with batch_size=None, or at once to be collated by the identity."""

    def __getitem__(self, indices):
        x = torch.as_tensor(indices) + self.offset
        return x, -x

    __getitems__ = __getitem__


class InSlices(Sampler):
    """A batch sampler that draws everything as soon as it is iterated."""

    def __init__(self, shuffle, size=8, n=N):
        self.shuffle, self.size, self.n = shuffle, size, n

    def __iter__(self):
        order = torch.randperm(self.n) if self.shuffle else torch.arange(self.n)
        return iter([part.tolist() for part in order.split(self.size)])

    def __len__(self):
        return -(-self.n // self.size)


class Lazily(InSlices):
    """A batch sampler that draws as it goes."""

    def __iter__(self):
        yield from super().__iter__()


def as_dict(examples):
    return {"x": torch.stack([x for x, _ in examples]), "y": [y for _, y in examples]}


def as_tuple(examples):
    return torch.stack([x for x, _ in examples]), torch.tensor([y for _, y in examples])


def identity(examples):
    return examples


def numbers_in(batch):
    """The indices of the examples that a batch really holds."""
    if isinstance(batch, (list, tuple)) and isinstance(batch[0], tuple):
        batch = as_tuple(batch)
    x, y = (batch["x"], torch.as_tensor(batch["y"])) if isinstance(batch, dict) else batch
    assert torch.equal(x, -y)
    return (x - 1000).tolist()


def agreeing(selector, stop=None):
    """The indices of all candidates of an epoch, or of its first batches; every selected batch agrees with its indices."""
    drawn = []
    for step, batch in enumerate(selector, 1):
        assert numbers_in(batch) == selector.last.index.tolist()
        assert selector.last.index.tolist() == selector.last.candidate_index[selector.last.positions].tolist()
        drawn += selector.last.candidate_index.tolist()
        if step == stop:
            break
    return drawn


def uniform(loader, **options):
    options = options or {"batch_size": 4}
    return build_selector("uniform", loader, **options)


def loader_of(batching, shuffle, **options):
    if batching == "batch_size":
        return DataLoader(Numbers(), batch_size=8, shuffle=shuffle, **options)
    if batching == "BatchSampler":
        sampler = RandomSampler(range(N)) if shuffle else SequentialSampler(range(N))
        return DataLoader(Numbers(), batch_sampler=BatchSampler(sampler, 8, drop_last=False), **options)
    return DataLoader(Numbers(), batch_sampler=InSlices(shuffle), **options)


WORKERS = [{}, {"num_workers": 2}, {"num_workers": 2, "persistent_workers": True}]


@pytest.mark.parametrize("workers", WORKERS, ids=["no workers", "workers", "persistent workers"])
@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("collate", [None, as_dict], ids=["default collate", "own collate"])
@pytest.mark.parametrize("batching", ["batch_size", "BatchSampler", "own batch sampler"])
def test_the_index_is_that_of_the_example_after_an_early_break_and_in_the_next_epoch(workers, shuffle, collate, batching):
    selector = uniform(loader_of(batching, shuffle, collate_fn=collate, **workers))
    assert len(agreeing(selector, stop=2)) == 16
    drawn = agreeing(selector)
    assert sorted(drawn) == list(range(N))
    assert (drawn == sorted(drawn)) == (not shuffle)


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
@pytest.mark.parametrize("batching", ["batch_size", "BatchSampler"])
def test_the_index_is_that_of_the_example_in_redrawn_candidate_batches(shuffle, batching):
    selector = uniform(loader_of(batching, shuffle, num_workers=1, collate_fn=as_tuple), keep=0.5)
    assert len(agreeing(selector, stop=1)) == 16
    assert sorted(agreeing(selector)) == list(range(N))


def test_every_epoch_of_a_shuffled_loader_is_another():
    selector = uniform(DataLoader(Numbers(), batch_size=8, shuffle=True))
    assert agreeing(selector) != agreeing(selector)


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"keep": 0.5}], ids=["batch_size", "keep"])
@pytest.mark.parametrize(
    ("sampler", "members"),
    [
        (SubsetRandomSampler(range(5, 35)), range(5, 35)),
        (WeightedRandomSampler([0.0] * 20 + [1.0] * 20, 30, replacement=True), range(20, 40)),
        (RandomSampler(range(N), replacement=True, num_samples=70), range(N)),
        ([7, 3, 3, 9, 11, 12, 0, 39, 5], [7, 3, 9, 11, 12, 0, 39, 5]),
        (np.arange(N)[::-1].tolist(), range(N)),
        (list(np.arange(N)), range(N)),
        (list(torch.arange(N)), range(N)),
    ],
    ids=["subset", "weighted", "replacement", "a list", "reversed", "numpy integers", "tensors"],
)
def test_any_sampler_agrees(sampler, members, options):
    drawn = agreeing(uniform(DataLoader(Numbers(), batch_size=8, sampler=sampler), **options))
    assert set(drawn) <= set(members)


def test_the_sampler_decides_the_order():
    sampler = [7, 3, 3, 9, 11, 12, 0, 39]
    assert agreeing(uniform(DataLoader(Numbers(), batch_size=4, sampler=sampler))) == sampler


def test_a_distributed_sampler_gives_its_rank_and_hears_of_the_epoch():
    def draw(through_the_selector):
        sampler = DistributedSampler(range(N), num_replicas=2, rank=1, seed=3)
        selector = uniform(DataLoader(Numbers(), batch_size=8, sampler=sampler))
        epochs = []
        for epoch in range(3):
            (selector if through_the_selector else sampler).set_epoch(epoch)
            assert sampler.epoch == epoch
            epochs.append(agreeing(selector))
        return epochs

    plain = DistributedSampler(range(N), num_replicas=2, rank=1, seed=3)
    expected = []
    for epoch in range(3):
        plain.set_epoch(epoch)
        expected.append(list(plain))
    assert draw(through_the_selector=True) == draw(through_the_selector=False) == expected


def test_a_batch_sampler_and_a_dataset_hear_of_the_epoch():
    class Told:
        def set_epoch(self, epoch):
            self.epoch = epoch

    class ToldNumbers(Told, Numbers):
        pass

    class ToldBatches(Told, InSlices):
        pass

    loader = DataLoader(ToldNumbers(), batch_sampler=ToldBatches(shuffle=True))
    uniform(loader).set_epoch(5)
    assert (loader.dataset.epoch, loader.batch_sampler.epoch) == (5, 5)


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"keep": 0.5}], ids=["batch_size", "keep"])
def test_drop_last_drops_what_the_loader_would_drop(options):
    selector = uniform(DataLoader(Numbers(35), batch_size=8, drop_last=True), **options)
    assert agreeing(selector) == list(range(32))


def test_a_generator_of_the_loader_is_the_one_drawn_from():
    loader = DataLoader(Numbers(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))
    drawn = agreeing(uniform(loader))
    loader.generator.manual_seed(1)
    assert drawn == [i for batch in loader for i in numbers_in(batch)]


@pytest.mark.parametrize(
    "dataset", [NumbersAtOnce(), Subset(Numbers(), range(N)), SortsItsIndices()], ids=lambda d: type(d).__name__
)
@pytest.mark.parametrize("workers", [0, 1])
def test_datasets_that_read_many_examples_at_once_agree(dataset, workers):
    selector = uniform(DataLoader(dataset, batch_size=8, shuffle=True, num_workers=workers))
    assert sorted(agreeing(selector)) == list(range(N))


def test_many_examples_are_read_at_once_where_the_dataset_can():
    asked = []

    class Asked(NumbersAtOnce):
        def __getitems__(self, indices):
            asked.append(len(indices))
            return super().__getitems__(indices)

    agreeing(uniform(DataLoader(Asked(), batch_size=8)))
    assert asked == [8] * 5


def test_of_a_subset_the_index_is_the_place_in_the_subset():
    selector = uniform(DataLoader(Subset(Numbers(), range(20, 40)), batch_size=8))
    for x, _ in selector:
        assert (x - 1020).tolist() == selector.last.index.tolist()


def test_a_dataset_that_returns_a_whole_batch_at_once_agrees():
    selector = uniform(DataLoader(WholeBatches(), batch_size=8, shuffle=True, collate_fn=identity))
    assert sorted(agreeing(selector)) == list(range(N))


def test_a_list_of_examples_that_nobody_collates_is_cut_as_rows():
    selector = uniform(DataLoader(Numbers(), batch_size=8, shuffle=True, collate_fn=identity))
    assert sorted(agreeing(selector)) == list(range(N))


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_a_sampler_of_lists_with_batch_size_none_agrees(kind):
    lists = [kind([3, 1, 2, 9, 4]), kind([39, 0, 5, 6])]
    drawn = agreeing(uniform(DataLoader(WholeBatches(), batch_size=None, sampler=lists), batch_size=2))
    assert drawn == [3, 1, 2, 9, 4, 39, 0, 5, 6]


def test_a_sampler_that_yields_one_index_with_batch_size_none_is_refused():
    selector = uniform(DataLoader(Numbers(), batch_size=None), batch_size=1)
    with pytest.raises(ValueError, match=r"indices must be one per example, shape \(n,\), got shape \(\).*IndexedBatches"):
        next(iter(selector))


def test_keys_that_are_neither_integers_nor_names_are_refused():
    selector = uniform(DataLoader({(0, "a"): 1, (0, "b"): 2}, batch_size=2, sampler=[(0, "a"), (0, "b")]), batch_size=1)
    with pytest.raises(TypeError, match=r"indices must be integers, one per example, got list.*IndexedBatches"):
        next(iter(selector))


def test_names_are_hashed():
    selector = uniform(DataLoader({"a": 1, "b": 2}, batch_size=2, sampler=["a", "b"]), batch_size=1)
    next(iter(selector))
    assert selector.last.candidate_index.tolist() == hash_ids(["a", "b"]).tolist()


def test_batches_come_out_of_order_with_their_own_indices():
    try:
        loader = DataLoader(FirstIsSlow(), batch_size=8, num_workers=2, in_order=False)
    except TypeError:
        pytest.skip("this PyTorch has no in_order")
    drawn = agreeing(uniform(loader))
    assert sorted(drawn) == list(range(N))
    assert drawn[0] != 0


def shift_by_worker(worker_id):
    """What users do in a worker_init_fn: change their own dataset."""
    info = get_worker_info()
    assert info.id == worker_id
    assert type(info.dataset).__name__ == "Numbers", f"expected the user's own dataset, got {type(info.dataset)}"
    info.dataset.offset = 1000
    info.dataset.n = 0


class SeesItself(Numbers):
    def __getitem__(self, i):
        info = get_worker_info()
        assert info is None or info.dataset is self
        return super().__getitem__(i)


def test_a_worker_init_fn_sees_and_changes_the_user_s_own_dataset():
    dataset = Numbers()
    dataset.offset = 0  # the workers put it right
    selector = uniform(DataLoader(dataset, batch_size=8, num_workers=1, worker_init_fn=shift_by_worker))
    assert sorted(agreeing(selector)) == list(range(N))


def test_a_dataset_sees_itself_in_a_worker():
    assert sorted(agreeing(uniform(DataLoader(SeesItself(), batch_size=8, num_workers=1)))) == list(range(N))


def test_workers_can_be_spawned():
    loader = DataLoader(
        Numbers(),
        batch_size=8,
        num_workers=1,
        multiprocessing_context="spawn",
        worker_init_fn=shift_by_worker,
        collate_fn=as_dict,
    )
    assert sorted(agreeing(uniform(loader))) == list(range(N))


def test_an_error_in_a_worker_reaches_the_loop():
    with pytest.raises(RuntimeError, match="no file for 0") as error:
        agreeing(uniform(DataLoader(Broken(), batch_size=8, num_workers=1)))
    traceback.clear_frames(error.tb)  # PyTorch waits 5 s for workers that only the garbage collector finds


class PlainLoader(DataLoader):
    """A subclass with a constructor of its own."""

    def __init__(self, only):
        super().__init__(Numbers(), batch_size=only)


class PassingOn(DataLoader):
    def __iter__(self):
        yield from super().__iter__()


class TakingApart(DataLoader):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x.float(), y


class OneIterator(DataLoader):
    """Keeps one iterator for all epochs, made in the constructor, as timm's MultiEpochsDataLoader does."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.iterator = super().__iter__()

    def __iter__(self):
        for _ in range(len(self)):
            yield next(self.iterator)


def test_subclasses_of_a_loader_agree_and_stay_subclasses():
    selector = uniform(PlainLoader(8))
    assert agreeing(selector) == list(range(N))
    assert type(selector.candidate_batches) is PlainLoader
    assert agreeing(uniform(PassingOn(Numbers(), batch_size=8))) == list(range(N))
    assert sorted(agreeing(uniform(PassingOn(Numbers(), batch_size=8, shuffle=True), keep=0.5))) == list(range(N))


@pytest.mark.parametrize("loader", [TakingApart, OneIterator])
def test_a_subclass_that_loses_the_index_is_refused_by_name(loader):
    with pytest.raises(
        TypeError, match=f"{loader.__name__} overrides how batches are yielded and lost the index.*IndexedBatches"
    ):
        next(iter(uniform(loader(Numbers(), batch_size=8))))


def stateful_loader(**options):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'set_vital' is deprecated")
        return stateful(Numbers(), batch_size=8, **options)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_a_stateful_loader_agrees(workers, shuffle):
    loader = stateful_loader(shuffle=shuffle, num_workers=workers)
    selector = uniform(loader)
    agreeing(selector, stop=2)
    assert sorted(agreeing(selector)) == list(range(N))
    assert sorted(agreeing(uniform(loader, keep=0.5))) == list(range(N))


def test_a_stateful_loader_that_was_asked_for_its_state_agrees():
    loader = stateful_loader()
    loader.state_dict()
    assert agreeing(uniform(loader)) == list(range(N))


# The user's loader is left as it is.


@pytest.mark.parametrize("options", [{"batch_size": 4}, {"keep": 0.5}], ids=["batch_size", "keep"])
@pytest.mark.parametrize("persistent", [False, True])
def test_the_loader_itself_stays_as_it_was(options, persistent):
    workers = {"num_workers": 1, "persistent_workers": True, "worker_init_fn": shift_by_worker} if persistent else {}
    loader = DataLoader(Numbers(), batch_size=8, shuffle=True, collate_fn=as_dict, **workers)
    before = dict(vars(loader))
    selector = uniform(loader, **options)
    agreeing(selector)
    assert vars(loader) == before
    assert selector.loader is loader
    assert selector.dataset is loader.dataset
    assert sorted(i for batch in loader for i in numbers_in(batch)) == list(range(N))
    agreeing(selector)
    assert [type(batch) for batch in loader] == [dict] * 5


def test_the_loader_and_the_selector_can_be_iterated_side_by_side():
    loader = DataLoader(Numbers(), batch_size=8, num_workers=1, persistent_workers=True)
    selector = uniform(loader)
    for plain, selected in zip(loader, selector, strict=True):
        assert isinstance(plain, list)
        assert set(numbers_in(selected)) <= set(numbers_in(plain))


DRAWING = {
    "sequential": lambda **o: DataLoader(Numbers(), batch_size=8, **o),
    "shuffled": lambda **o: DataLoader(Numbers(), batch_size=8, shuffle=True, **o),
    "replacement": lambda **o: DataLoader(Numbers(), batch_size=8, sampler=RandomSampler(range(N), replacement=True), **o),
    "weighted": lambda **o: DataLoader(Numbers(), batch_size=8, sampler=WeightedRandomSampler([1.0] * N, N), **o),
    "lazy batch sampler": lambda **o: DataLoader(Numbers(), batch_sampler=Lazily(True), **o),
    "eager batch sampler": lambda **o: DataLoader(Numbers(), batch_sampler=InSlices(True), **o),
    "eager sampler of lists": lambda **o: DataLoader(WholeBatches(), batch_size=None, sampler=InSlices(True), **o),
    "stateful": lambda **o: stateful_loader(shuffle=True, **o),
    "own generator": lambda **o: DataLoader(
        Numbers(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5), **o
    ),
    "stateful, own generator": lambda **o: stateful_loader(shuffle=True, generator=torch.Generator().manual_seed(5), **o),
}


@pytest.mark.parametrize("workers", [{}, WORKERS[2]], ids=["no workers", "persistent workers"])
@pytest.mark.parametrize("drawing", DRAWING)
def test_the_selector_draws_the_very_batches_of_the_loader_and_the_same_random_numbers(drawing, workers):
    def two_epochs(wrap):
        torch.manual_seed(11)
        loader = wrap(DRAWING[drawing](**workers))
        drawn, numbers = [], []
        for _ in range(2):
            for batch in loader:
                drawn.append(numbers_in(batch) if isinstance(loader, DataLoader) else loader.last.candidate_index.tolist())
                numbers.append(torch.rand(()).item())  # the loop draws too
        return drawn, numbers

    assert two_epochs(uniform) == two_epochs(lambda loader: loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_of_larger_candidate_batches_takes_the_random_numbers_of_an_epoch(workers):
    def after(wrap):
        torch.manual_seed(3)
        for _ in wrap(DataLoader(Numbers(), batch_size=4, shuffle=True, num_workers=workers)):
            pass
        return torch.rand(2).tolist()

    assert after(lambda loader: uniform(loader, keep=0.25)) == after(lambda loader: loader)


class Augmented(Numbers):
    def __getitem__(self, i):
        return torch.rand(3), i


def test_random_augmentation_in_the_workers_is_what_it_would_have_been():
    def batches(wrap):
        torch.manual_seed(4)
        return [x for x, _ in wrap(DataLoader(Augmented(), batch_size=8, shuffle=True, num_workers=2))]

    plain = batches(lambda loader: loader)
    mine = batches(lambda loader: uniform(loader, batch_size=8))
    assert all(torch.equal(a, b) for a, b in zip(plain, mine, strict=True))


def test_building_a_selector_reads_nothing_draws_nothing_and_starts_no_worker():
    class Unread(Numbers):
        def __getitem__(self, i):
            raise AssertionError("read")

    state = torch.get_rng_state()
    selector = uniform(DataLoader(Unread(), batch_size=8, shuffle=True, num_workers=2, persistent_workers=True))
    assert len(selector) == 5
    selector.state_dict()
    assert torch.equal(torch.get_rng_state(), state)
    assert multiprocessing.active_children() == []


# The door for everything else.


class Stream(IterableDataset):
    """Yields (id, number), sharded over the workers."""

    def __init__(self, ids):
        self.ids = list(ids)

    def __iter__(self):
        info = get_worker_info()
        ids = self.ids if info is None else self.ids[info.id :: info.num_workers]
        return ((i, torch.tensor(1000 + i), -(1000 + i)) for i in ids)


def pair_up(examples):
    ids, x, y = zip(*examples, strict=True)
    return list(ids), (torch.stack(x), torch.tensor(y))


def keyed(examples):
    ids, (x, y) = pair_up(examples)
    return {"x": x, "y": y, "id": torch.tensor(ids)}


IDS = [901, 7, 350, 12, 99, 3, 40, 41, 55, 56, 57, 58]


@pytest.mark.parametrize("options", [{"batch_size": 2}, {"keep": 0.5}], ids=["batch_size", "keep"])
@pytest.mark.parametrize(("collate", "index"), [(pair_up, None), (keyed, "id"), (keyed, lambda batch: batch["id"])])
def test_a_stream_that_says_its_ids_agrees(collate, index, options):
    loader = DataLoader(Stream(IDS), batch_size=4 if "batch_size" in options else 2, collate_fn=collate)
    assert agreeing(uniform(IndexedBatches(loader, index), **options)) == IDS


def test_a_stream_with_workers_agrees():
    loader = DataLoader(Stream(IDS), batch_size=2, collate_fn=pair_up, num_workers=2)
    selector = uniform(IndexedBatches(loader), batch_size=1)
    agreeing(selector, stop=1)
    assert sorted(agreeing(selector)) == sorted(IDS)


def test_the_index_may_lie_at_a_position_and_stays_in_the_batch():
    batches = [(torch.tensor([5, 9, 7]), torch.tensor([50, 90, 70]))]
    selector = uniform(IndexedBatches(batches, index=0), batch_size=2)
    (ids, x), *_ = list(selector)
    assert torch.equal(ids, selector.last.index)
    assert torch.equal(x, ids * 10)


@pytest.mark.parametrize("ids", [[5, 9], (5, 9), np.array([5, 9], dtype=np.uint16), torch.tensor([5, 9], dtype=torch.int32)])
def test_ids_of_any_integer_kind_become_int64(ids):
    (indexed,) = IndexedBatches([(ids, "batch")])
    assert isinstance(indexed, IndexedBatch)
    assert indexed.index.dtype == torch.int64
    assert indexed.index.tolist() == [5, 9]


def test_a_shuffled_map_style_loader_behind_indexed_batches_agrees():
    loader = DataLoader([(i, torch.tensor(1000 + i), -(1000 + i)) for i in IDS], batch_size=4, shuffle=True, collate_fn=pair_up)
    assert sorted(agreeing(uniform(IndexedBatches(loader), keep=0.5))) == sorted(IDS)
    assert type(next(iter(loader))) is tuple


def test_negative_and_huge_ids_are_kept():
    (indexed,) = IndexedBatches([([-1, 2**62], None)])
    assert indexed.index.tolist() == [-1, 2**62]


def test_indexed_batches_report_the_length_of_what_is_behind_it():
    assert len(IndexedBatches([([1], None)] * 3)) == 3
    assert len(uniform(IndexedBatches([([1], torch.zeros(1))] * 3), batch_size=1)) == 3


def test_a_bare_stream_is_refused_with_the_cure():
    with pytest.raises(TypeError, match=r"IterableDataset Stream does not say which examples it yields.*IndexedBatches.*index="):
        uniform(DataLoader(Stream(IDS), batch_size=4))


@pytest.mark.parametrize("thing", [[torch.zeros(4)], (batch for batch in [1]), Numbers()], ids=["list", "generator", "dataset"])
def test_what_is_no_loader_is_refused_by_its_name(thing):
    with pytest.raises(TypeError, match=f"expected a DataLoader.*got {type(thing).__name__}"):
        uniform(thing, batch_size=1)


def test_none_is_refused():
    with pytest.raises(TypeError, match="expected a DataLoader as the first argument, got NoneType"):
        uniform(None, batch_size=1)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        ([0.5, 1.0], TypeError, "indices must be integers, got dtype torch.float32"),
        (torch.tensor([1.0, 2.0]), TypeError, "indices must be integers, got dtype torch.float32"),
        ([True, False], TypeError, "indices must be integers, got dtype torch.bool"),
        (np.array([1j]), TypeError, "indices must be integers, got dtype torch.complex128"),
        ("ab", TypeError, "indices must be integers, one per example, got str: ab"),
        (None, TypeError, "indices must be integers, one per example, got NoneType"),
        ({"id": 1}, TypeError, "indices must be integers, one per example, got dict"),
        ([2**70], TypeError, "indices must be integers, one per example, got list"),
        (3, ValueError, r"one per example, shape \(n,\), got shape \(\)"),
        ([[1, 2], [3, 4]], ValueError, r"one per example, shape \(n,\), got shape \(2, 2\)"),
    ],
)
def test_indices_that_are_none_are_refused(ids, error, message):
    with pytest.raises(error, match=f"{message}.*"):
        list(IndexedBatches([(ids, torch.zeros(2))]))


@pytest.mark.parametrize("item", [torch.zeros(2), {"x": 1, "y": 2}, (1, 2, 3), "ab"])
def test_items_that_are_no_pairs_are_refused(item):
    with pytest.raises(TypeError, match=rf"expected pairs \(index, batch\), got {type(item).__name__}; pass index="):
        list(IndexedBatches([item]))


@pytest.mark.parametrize(
    ("batch", "index", "error", "message"),
    [
        ({"x": 1, "ids": 2}, "id", KeyError, r"at 'id', got the keys \['x', 'ids'\]"),
        ((1, 2), 5, IndexError, "at 5, got tuple"),
        ((1, 2), "id", TypeError, "at 'id', got tuple"),
        (object(), "id", TypeError, "at 'id', got object"),
    ],
)
def test_a_wrong_place_for_the_index_is_named(batch, index, error, message):
    with pytest.raises(error, match=message):
        list(IndexedBatches([batch], index=index))


def test_an_index_for_another_number_of_rows_is_refused():
    selector = uniform(IndexedBatches([([1, 2, 3, 4], (torch.zeros(5), torch.zeros(5)))]), batch_size=2)
    with pytest.raises(ValueError, match=r"expected one row per index, 4, got 5 rows in a batch; let index= of IndexedBatches"):
        next(iter(selector))


def test_a_collate_function_that_sorts_its_examples_is_refused():
    def longest_first(examples):
        examples.sort(key=lambda example: example[1])
        return as_tuple(examples)

    selector = uniform(DataLoader(Numbers(), batch_size=8, collate_fn=longest_first))
    with pytest.raises(ValueError, match="collate_fn"):
        agreeing(selector)


@pytest.mark.parametrize(
    "index", [[4, 5, 6, 7], np.array([4, 5, 6, 7]), torch.tensor([4, 5, 6, 7])], ids=["list", "array", "tensor"]
)
def test_select_takes_pairs_of_an_index_and_a_batch(index):
    selector = uniform(DataLoader(Numbers(), batch_size=8), batch_size=2)
    x = selector.select((index, torch.tensor([4, 5, 6, 7])))
    assert torch.equal(x, selector.last.index)


def test_candidate_batches_can_be_fetched_and_selected_from_one_ahead():
    selector = uniform(DataLoader(Numbers(), batch_size=8, shuffle=True))
    ahead = list(selector.candidate_batches)
    assert all(isinstance(candidates, IndexedBatch) for candidates in ahead)
    for candidates in ahead:
        batch = selector.select(candidates)
        assert numbers_in(batch) == selector.last.index.tolist()
        assert torch.equal(selector.last.candidate_index, candidates.index)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("of_part", [False, True])
def test_tensors_in_memory_are_read_at_once_and_come_out_as_they_do_from_a_plain_loader(workers, of_part):
    x, y, z = torch.randn(50, 3, 4), torch.arange(50), torch.rand(50) > 0.5
    data = TensorDataset(x, y, z)
    data = IndexedSubset(data, torch.randperm(50)[:37]) if of_part else data
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    plain, indexed = (
        DataLoader(data, batch_size=8, shuffle=True, num_workers=workers, generator=generator) for generator in generators
    )
    assert attach_index(indexed).dataset.columns is not None
    for batch, (index, mine) in zip(plain, attach_index(indexed), strict=True):
        assert type(mine) is type(batch) is list
        assert index.dtype == torch.int64
        assert index.tolist() == batch[1].tolist()
        for one, other in zip(mine, batch, strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
            assert one.is_contiguous()


def test_what_may_do_more_than_stack_is_read_one_by_one():
    class Own(TensorDataset):
        pass

    x = torch.randn(10, 2)
    for data, options in (
        (Own(x), {}),
        (TensorDataset(x), {"collate_fn": lambda examples: torch.stack([e[0] for e in examples])}),
        (TensorDataset(x.clone().requires_grad_()), {}),
        (TensorDataset(x.to_sparse()), {}),
    ):
        assert attach_index(DataLoader(data, batch_size=2, **options)).dataset.columns is None
