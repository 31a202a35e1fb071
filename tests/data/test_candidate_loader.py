"""n_b and n_B, the length of an epoch, its end, and the sizes that are refused."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from rholoss import IndexedBatches, IrreducibleLossStore, RhoLossSelector, build_selector
from rholoss.selectors import FilteredUniformSelector


def uniform(loader, **options):
    return build_selector("uniform", loader, **options)


def loader_of(n, batch_size, drop_last=False, **options):
    return DataLoader(range(n), batch_size=batch_size, drop_last=drop_last, **options)


def sizes(selector):
    return [len(batch) for batch in selector]


def pairs(*lengths):
    return [(torch.arange(n), torch.arange(n)) for n in lengths]


# n_b and n_B


@pytest.mark.parametrize(
    ("n_b", "keep", "n_B"),
    [
        (29, 0.29, 100),
        (32, 0.1, 320),
        (32, 1, 32),
        (32, 1.0, 32),
        (7, 0.3, 23),
        (1, 0.07, 14),
        (3, 0.9, 3),
        (10, 0.999, 10),
        (2, 2 / 3, 3),
    ],
)
def test_n_B_is_n_b_over_keep_to_the_nearest_example(n_b, keep, n_B):  # noqa: N802
    selector = uniform(loader_of(400, n_b), keep=keep)
    assert (selector.n_b, selector.n_B, selector.batch_size) == (n_b, n_B, n_b)
    next(iter(selector))
    assert len(selector.last.candidate_index) == n_B
    assert len(selector.last.index) == n_b


def test_a_tenth_is_kept_where_nothing_is_said():
    selector = uniform(loader_of(400, 8))
    assert (selector.n_b, selector.n_B) == (8, 80)


@pytest.mark.filterwarnings("ignore:keep=.* asks for")
@settings(deadline=None)
@given(n_b=st.integers(1, 300), keep=st.floats(1e-6, 1))
def test_there_are_never_fewer_candidates_than_are_kept(n_b, keep):
    selector = uniform(loader_of(10, n_b), keep=keep)
    assert selector.n_B >= selector.n_b == n_b
    assert abs(selector.n_B - n_b / keep) <= 0.5


def test_keep_may_be_a_numpy_float():
    assert uniform(loader_of(400, 8), keep=np.float64(0.25)).n_B == 32
    assert uniform(loader_of(400, 8), keep=np.float32(0.25)).n_B == 32


def test_batch_size_may_be_a_numpy_integer():
    assert uniform(loader_of(400, 8), batch_size=np.int64(2)).n_b == 2


def test_the_loader_s_batches_are_the_candidates_where_a_batch_size_is_said():
    selector = uniform(loader_of(64, 16), batch_size=4)
    assert (selector.n_b, selector.n_B, selector.batch_size) == (4, 16, 4)
    assert sizes(selector) == [4, 4, 4, 4]
    assert len(selector.last.candidate_index) == 16


def test_where_the_loader_does_not_report_n_B_is_unknown():  # noqa: N802
    assert uniform(IndexedBatches(pairs(5, 6)), batch_size=2).n_B is None
    assert uniform(DataLoader(range(9), batch_sampler=[[1, 2], [3, 4]]), batch_size=2).n_B is None


def test_a_batch_sampler_of_the_usual_kind_reports_its_batch_size():
    loader = DataLoader(range(40), batch_sampler=BatchSampler(RandomSampler(range(40)), 8, drop_last=False))
    assert (uniform(loader, keep=0.5).n_b, uniform(loader, keep=0.5).n_B) == (8, 16)
    assert (uniform(loader, batch_size=2).n_b, uniform(loader, batch_size=2).n_B) == (2, 8)


# The length of an epoch and its end


def documented(n, n_B, n_b, drop_last):
    """The sizes of an epoch's batches as the docstring of Selector says, counted one candidate batch at a time."""
    expected, left = [], n
    while left > 0:
        candidates = min(n_B, left)
        left -= candidates
        if candidates >= n_b:
            expected.append(n_b)
        elif not drop_last:
            expected.append(candidates)
    return expected


@pytest.mark.filterwarnings("ignore:keep=.* asks for")
@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 120),
    n_b=st.integers(1, 40),
    keep=st.floats(0.02, 1),
    drop_last=st.booleans(),
    said=st.sampled_from([None, True, False]),
)
@example(n=29, n_b=29, keep=0.29, drop_last=True, said=None)
@example(n=100, n_b=29, keep=0.29, drop_last=False, said=None)
@example(n=101, n_b=29, keep=0.29, drop_last=True, said=None)
@example(n=3, n_b=4, keep=0.5, drop_last=True, said=None)
def test_an_epoch_has_the_documented_batches_with_keep(n, n_b, keep, drop_last, said):
    selector = uniform(loader_of(n, n_b, drop_last), keep=keep, drop_last=said)
    expected = documented(n, round(n_b / keep), n_b, drop_last if said is None else said)
    assert len(selector) == len(expected)
    assert sizes(selector) == expected
    assert (sizes(selector), selector.step, selector.epoch) == (expected, 2 * len(expected), 1)


@settings(max_examples=200, deadline=None)
@given(
    n=st.integers(1, 120),
    n_B=st.integers(1, 40),
    n_b=st.integers(1, 40),
    drop_last=st.booleans(),
    said=st.sampled_from([None, True, False]),
)
def test_an_epoch_has_the_documented_batches_with_batch_size(n, n_B, n_b, drop_last, said):
    n_b = min(n_b, n_B)
    selector = uniform(loader_of(n, n_B, drop_last), batch_size=n_b, drop_last=said)
    read = n - n % n_B if drop_last else n
    expected = documented(read, n_B, n_b, drop_last if said is None else said)
    assert len(selector) == len(expected)
    assert sizes(selector) == expected


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("keep", [1, 0.5, 0.3])
@pytest.mark.parametrize(
    "sampler",
    [
        SubsetRandomSampler(range(33)),
        WeightedRandomSampler([1.0] * 80, 35),
        RandomSampler(range(80), replacement=True, num_samples=101),
        DistributedSampler(range(80), num_replicas=3, rank=1),
        list(range(34)),
    ],
    ids=["subset", "weighted", "replacement", "distributed", "list"],
)
def test_the_length_is_that_of_the_sampler(sampler, drop_last, keep):
    selector = uniform(loader_of(80, 8, drop_last, sampler=sampler), keep=keep)
    expected = documented(len(sampler), round(8 / keep), 8, drop_last)
    assert len(selector) == len(expected)
    assert sizes(selector) == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"shuffle": True},
        {"sampler": SubsetRandomSampler(range(10, 33))},
        {"sampler": list(range(10, 60))},
        {"sampler": [1, 50, 50, 51, 52]},
        {"sampler": DistributedSampler(range(80), num_replicas=3, rank=1)},
    ],
    ids=["in order", "shuffled", "subset", "list", "repeats", "distributed"],
)
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_length_is_right_where_some_examples_are_never_drawn(options, drop_last):
    loader = loader_of(80, 8, drop_last, **options)
    selector = build_selector("selection_via_proxy", loader, scores=torch.arange(80.0), keep=0.5)
    assert len(selector) == len(sizes(selector))


def test_so_low_a_keep_that_an_epoch_has_one_step_is_warned_of():
    with pytest.warns(
        UserWarning, match=r"keep=1e-06 asks for 8,000,000 candidates, and the loader draws 80 in an epoch"
    ) as caught:
        assert len(RhoLossSelector(loader_of(80, 8), None, IrreducibleLossStore(torch.zeros(80)), keep=1e-6)) == 1
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="keep=0.025 asks for 320 candidates"):
        uniform(loader_of(80, 8), keep=0.025)
    assert len(uniform(loader_of(80, 8), keep=0.026)) == 1
    assert len(uniform(loader_of(80, 80), keep=0.5)) == 1  # one step without a selector too


REPLACING = {
    "weighted": lambda: WeightedRandomSampler([1.0] * 80, 203),
    "weighted, own generator": lambda: WeightedRandomSampler([1.0] * 80, 203, generator=torch.Generator().manual_seed(1)),
    "uniform": lambda: RandomSampler(range(80), replacement=True, num_samples=203),
}


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("name", REPLACING)
def test_with_replacement_members_are_drawn_for_as_long_as_the_loader(name, drop_last):
    def build():
        loader = loader_of(80, 8, drop_last, sampler=REPLACING[name]())
        return FilteredUniformSelector(loader, None, IrreducibleLossStore(torch.arange(80.0)), max_irreducible_loss=19.5)

    selector = build()
    assert len(selector) == len(selector.loader) == 25 + (not drop_last)
    drawn = [selector.last.index.tolist() for _ in selector]
    assert [len(index) for index in drawn] == [8] * 25 + [3] * (not drop_last)
    assert {index for batch in drawn for index in batch} == set(range(20))
    first = iter(selector)
    before = [next(first).tolist() for _ in range(9)]
    state = selector.state_dict()
    torch.rand(7)  # the training draws too
    rest = [batch.tolist() for batch in first]
    again = build()
    again.load_state_dict(state)
    assert [batch.tolist() for batch in again] == rest
    assert len(before) + len(rest) == len(selector)


def test_weights_that_leave_hardly_a_member_are_refused():
    loader = loader_of(80, 8, sampler=WeightedRandomSampler([0.0] * 20 + [1.0] * 60, 200))
    selector = FilteredUniformSelector(loader, None, IrreducibleLossStore(torch.arange(80.0)), max_irreducible_loss=19.5)
    assert len(selector) == 25
    with pytest.raises(ValueError, match="WeightedRandomSampler draws hardly any example that the selector trains on, 0 in 100"):
        next(iter(selector))


def test_examples_of_weight_0_need_no_irreducible_loss():
    losses = torch.zeros(80).index_fill(0, torch.arange(20), torch.nan)
    loader = loader_of(80, 8, sampler=WeightedRandomSampler([0.0] * 20 + [1.0] * 60, 80))
    assert len(RhoLossSelector(loader, None, IrreducibleLossStore(losses), keep=1)) == 10  # else it is refused


def test_weights_without_replacement_draw_each_example_once():
    loader = loader_of(80, 8, sampler=WeightedRandomSampler([1.0, 2.0] * 40, 80, replacement=False))
    selector = FilteredUniformSelector(loader, None, IrreducibleLossStore(torch.arange(80.0)), max_irreducible_loss=19.5)
    assert len(selector) == 3
    assert sorted(index for batch in selector for index in batch.tolist()) == list(range(20))


def test_the_length_is_not_told_where_the_draws_decide_it():
    loader = loader_of(80, 8, sampler=RandomSampler(range(80), num_samples=33))
    with pytest.raises(TypeError, match=r"has no len|unknown until sampled"):
        len(build_selector("selection_via_proxy", loader, scores=torch.arange(80.0), keep=0.5))


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("shuffle", [False, True])
def test_keeping_everything_gives_the_batches_of_the_plain_loop(drop_last, shuffle):
    loader = loader_of(45, 8, drop_last, shuffle=shuffle)
    assert sizes(uniform(loader, keep=1)) == [len(batch) for batch in loader]
    assert len(uniform(loader, keep=1)) == len(loader)


@pytest.mark.parametrize("options", [{"keep": 1}, {"keep": 0.5}, {"batch_size": 4}, {"batch_size": 8}])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_rule_of_a_batch_sampler_is_kept_as_well(drop_last, options):
    batch_sampler = BatchSampler(SequentialSampler(range(45)), 8, drop_last)
    selector = uniform(DataLoader(range(45), batch_sampler=batch_sampler), **options)
    same = uniform(loader_of(45, 8, drop_last), **options)
    assert sizes(selector) == sizes(same)
    assert len(selector) == len(same)


class InGroups(BatchSampler):
    """A batch sampler that is a BatchSampler by name only, like torchvision's GroupedBatchSampler."""

    def __init__(self, *groups):
        self.groups = groups

    def __iter__(self):
        return iter(self.groups)

    def __len__(self):
        return len(self.groups)


@pytest.mark.parametrize("drop_last", [None, True, False])
def test_a_batch_sampler_of_another_kind_has_a_length(drop_last):
    selector = uniform(DataLoader(range(9), batch_sampler=InGroups([1, 2, 3], [4, 5, 6])), batch_size=2, drop_last=drop_last)
    assert len(selector) == 2
    assert sizes(selector) == [2, 2]


def test_batches_of_many_sizes_give_batches_of_one_size():
    selector = uniform(IndexedBatches(pairs(5, 9, 4, 30)), batch_size=4)
    assert sizes(selector) == [4, 4, 4, 4]
    assert len(selector) == 4


@pytest.mark.parametrize(("drop_last", "expected"), [(None, [4, 4, 3]), (False, [4, 4, 3]), (True, [4, 4])])
def test_a_short_batch_at_the_end_of_other_iterables_is_given_or_dropped(drop_last, expected):
    selector = uniform(IndexedBatches(pairs(5, 9, 3)), batch_size=4, drop_last=drop_last)
    assert sizes(selector) == expected
    assert sizes(selector) == expected


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("lengths", [(5, 3, 9), (3, 5), (3, 3)])
def test_a_short_batch_before_the_end_is_refused(lengths, drop_last):
    selector = uniform(IndexedBatches(pairs(*lengths)), batch_size=4, drop_last=drop_last)
    with pytest.raises(
        ValueError, match=r"a candidate batch has 3 examples, fewer than n_b = 4, and it is not the last; pass a smaller"
    ):
        list(selector)


def test_the_batches_up_to_a_short_one_are_given():
    iterator = iter(uniform(IndexedBatches(pairs(5, 3, 9)), batch_size=4))
    assert [len(next(iterator)) for _ in range(2)] == [4, 3]
    with pytest.raises(ValueError, match="a candidate batch has 3 examples"):
        next(iterator)


class Numbers(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))


def with_ids(examples):
    return examples, torch.tensor(examples)


@pytest.mark.parametrize(
    ("n", "drop_last", "expected"), [(64, False, [4] * 8), (67, False, [4] * 8 + [3]), (67, True, [4] * 8), (68, True, [4] * 9)]
)
def test_a_stream_is_drawn_in_larger_candidate_batches(n, drop_last, expected):
    loader = DataLoader(Numbers(n), batch_size=4, drop_last=drop_last, collate_fn=with_ids)
    assert sizes(uniform(IndexedBatches(loader), keep=0.5)) == expected


@pytest.mark.parametrize(("n", "drop_last", "expected"), [(16, False, [2, 2]), (17, False, [2, 2, 1]), (17, True, [2, 2])])
def test_the_batches_of_a_stream_are_the_candidates_where_a_batch_size_is_said(n, drop_last, expected):
    loader = DataLoader(Numbers(n), batch_size=8, drop_last=drop_last, collate_fn=with_ids)
    assert sizes(uniform(IndexedBatches(loader), batch_size=2)) == expected


def test_a_generator_of_batches_is_taken_once_and_its_second_epoch_is_an_error_rather_than_empty():
    selector = uniform(IndexedBatches(pair for pair in pairs(5, 6)), batch_size=2)
    assert sizes(selector) == [2, 2]
    with pytest.raises(ValueError, match="nothing to iterate: expected batches that can be iterated again"):
        sizes(selector)


def test_the_length_of_what_has_none_is_an_error():
    with pytest.raises(TypeError, match="has no len"):
        len(uniform(IndexedBatches(pair for pair in pairs(5, 6)), batch_size=2))
    with pytest.raises(TypeError, match="has no len"):
        len(uniform(IndexedBatches(DataLoader(Numbers(9), batch_size=2, collate_fn=with_ids)), keep=0.5))


def test_a_sampler_that_draws_nothing_gives_an_epoch_of_none():
    empty = loader_of(9, 4, sampler=[])
    assert (len(uniform(empty, keep=0.5)), sizes(uniform(empty, keep=0.5))) == (0, [])


def test_fewer_examples_than_one_batch_are_given_or_dropped():
    assert sizes(uniform(loader_of(3, 8), keep=0.1)) == [3]
    assert sizes(uniform(loader_of(3, 8, drop_last=True), keep=0.1)) == []
    assert len(uniform(loader_of(3, 8, drop_last=True), keep=0.1)) == 0


def test_a_subset_is_as_long_as_it_is():
    loader = DataLoader(Subset(range(100), range(20)), batch_size=4)
    assert sizes(uniform(loader, keep=0.5)) == [4, 4, 4]


# What is refused


@pytest.mark.parametrize("keep", [0, 0.0, -0.1, 1.0001, 2, 10, math.nan, math.inf, -math.inf, True, False, "0.1", [0.1], 1j])
def test_a_keep_that_is_no_fraction_is_refused(keep):
    with pytest.raises(ValueError, match=r"keep must be the fraction of each candidate batch to keep, in \(0, 1\], got "):
        uniform(loader_of(40, 8), keep=keep)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, 0.5, True, False, "2", math.nan, [2]])
def test_a_batch_size_that_is_no_number_of_examples_is_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size must be a whole number of examples, at least 1, got "):
        uniform(loader_of(40, 8), batch_size=batch_size)


def test_keep_and_batch_size_together_are_refused():
    with pytest.raises(ValueError, match=r"pass keep or batch_size, not both, got keep=0.5 and batch_size=4"):
        uniform(loader_of(40, 8), keep=0.5, batch_size=4)


def test_a_batch_size_above_the_loader_s_is_refused():
    with pytest.raises(
        ValueError, match=r"batch_size = 9 examples cannot be chosen of the loader's batches of 8; give the loader a larger"
    ):
        uniform(loader_of(40, 8), batch_size=9)
    loader = DataLoader(range(40), batch_sampler=BatchSampler(SequentialSampler(range(40)), 8, False))
    with pytest.raises(ValueError, match="batch_size = 9 examples cannot be chosen"):
        uniform(loader, batch_size=9)
    with pytest.raises(ValueError, match="batch_size = 9 examples cannot be chosen"):
        uniform(IndexedBatches(DataLoader(Numbers(40), batch_size=8)), batch_size=9)


@pytest.mark.parametrize("keep", [{}, {"keep": 0.5}], ids=["nothing said", "keep"])
@pytest.mark.parametrize(
    ("loader", "why"),
    [
        (lambda: DataLoader(range(9), batch_sampler=[[1, 2], [3, 4]]), "this loader has a batch_sampler of its own, list"),
        (lambda: DataLoader(range(9), batch_sampler=InGroups([1, 2])), "this loader has a batch_sampler of its own, InGroups"),
        (lambda: DataLoader(range(9), batch_size=None), "this loader has batch_size=None: its dataset returns whole batches"),
        (lambda: IndexedBatches(DataLoader(Numbers(9), batch_size=None)), "this loader has batch_size=None"),
        (lambda: IndexedBatches(pairs(5, 6)), "has no sampler of single indices and no batch_size"),
        (lambda: IndexedBatches([]), "has no sampler of single indices and no batch_size"),
    ],
)
def test_where_keep_cannot_be_batch_size_is_pointed_to(loader, why, keep):
    with pytest.raises(ValueError, match=rf"{why}.*; pass batch_size= to select from the batches that come"):
        uniform(loader(), **keep)


def test_an_iterable_with_a_batch_size_but_no_sampler_is_pointed_to_batch_size():
    class Batches(list):
        batch_size = 4

    with pytest.raises(ValueError, match=r"Batches has no sampler of single indices.*pass batch_size="):
        uniform(IndexedBatches(Batches(pairs(4, 4))), keep=0.5)
    assert sizes(uniform(IndexedBatches(Batches(pairs(4, 4))), batch_size=2)) == [2, 2]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_select_refuses_too_few_candidates(n):
    selector = uniform(loader_of(40, 8), batch_size=4)
    with pytest.raises(ValueError, match=f"cannot choose n_b = 4 of {n} candidates; pass more of them, or a smaller batch_size"):
        selector.select((torch.arange(n), torch.arange(n)))
    assert selector.step == 0
    assert selector.last is None


def test_select_takes_as_many_candidates_as_come():
    selector = uniform(loader_of(40, 8), batch_size=4)
    for n in (4, 5, 100):
        assert len(selector.select((torch.arange(n), torch.arange(n)))) == 4
