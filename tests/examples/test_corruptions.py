"""Corruptions: as many as said, marked exactly, the same by seed, and nothing else moves."""

import pytest
import torch
from experiments import corruptions
from hypothesis import given, settings, strategies as st

SHARES = st.floats(0, 1)
SEEDS = st.integers(0, 2**40)
LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60).map(torch.tensor)


def is_pure(corrupt, *tensors):
    """The same twice, with what it was given and the global state as they were."""
    before, state = [t.clone() for t in tensors], torch.get_rng_state()
    one, other = corrupt(), corrupt()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    return one


@settings(deadline=None, max_examples=60)
@given(LABELS, SHARES, SEEDS, st.sampled_from(["derived", "plain"]))
def test_wrong_labels_are_as_many_as_said(labels, share, seed, draws):
    changed, mask = is_pure(lambda: corruptions.wrong_labels(labels, share, 5, seed, draws=draws), labels)
    assert torch.equal(mask, changed != labels)
    assert int(mask.sum()) == round(share * len(labels))
    assert 0 <= int(changed.min()) <= int(changed.max()) <= 4


@settings(deadline=None, max_examples=60)
@given(LABELS, SHARES, SEEDS)
def test_redrawn_labels_may_be_right(labels, share, seed):
    changed, mask = is_pure(lambda: corruptions.wrong_labels(labels, share, 5, seed, reading="redrawn"), labels)
    assert torch.equal(mask, changed != labels)
    assert int(mask.sum()) <= round(share * len(labels))


def test_a_tenth_redrawn_over_ten_classes_is_nine_in_a_hundred_wrong():
    labels = torch.arange(200_000) % 10
    _, redrawn = corruptions.wrong_labels(labels, 0.1, 10, seed=0, reading="redrawn")
    _, wrong = corruptions.wrong_labels(labels, 0.1, 10, seed=0)
    assert redrawn.float().mean() == pytest.approx(0.09, abs=0.001)
    assert wrong.float().mean() == pytest.approx(0.1)


def test_wrong_labels_are_drawn_evenly_from_the_other_classes():
    changed, _ = corruptions.wrong_labels(torch.full((30_000,), 3), 1.0, 4, seed=0)
    assert changed.bincount(minlength=4).tolist() == pytest.approx([10_000, 10_000, 10_000, 0], abs=300)


@settings(deadline=None, max_examples=60)
@given(LABELS, SHARES, SEEDS)
def test_similar_labels_change_a_share_of_each_class_that_has_a_similar_one(labels, share, seed):
    similar = {0: 1, 1: 2, 3: 0}
    changed, mask = is_pure(lambda: corruptions.similar_labels(labels, share, similar, seed), labels)
    assert torch.equal(mask, changed != labels)
    for kind in range(5):
        mine = labels == kind
        assert int(mask[mine].sum()) == (round(share * int(mine.sum())) if kind in similar else 0)
        assert set(changed[mine & mask].tolist()) <= {similar.get(kind)}  # not of what was changed already


def test_a_confusion_matrix_says_in_what_proportions():
    labels = torch.tensor([0, 1, 2]).repeat_interleave(20_000)
    confusion = torch.tensor([[90, 3, 1], [0, 50, 0], [5, 5, 0]])
    changed, mask = corruptions.similar_labels(labels, 0.5, confusion, seed=0)
    counts = changed[labels == 0].bincount(minlength=3).tolist()
    assert counts == pytest.approx([10_000, 7_500, 2_500], abs=200)
    assert not mask[labels == 1].any()  # it is taken for no other
    assert int(mask.sum()) == 20_000


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 30), SHARES, SEEDS, st.booleans())
def test_noisy_inputs(n, share, seed, as_bytes):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, 2, 40, generator=generator)
    x = (x * 255).byte() if as_bytes else x
    changed, mask = is_pure(lambda: corruptions.noisy_inputs(x, share, seed), x)
    assert changed.dtype == x.dtype
    assert int(mask.sum()) == round(share * n)
    assert torch.equal((changed != x).flatten(1).any(1), mask)


def test_noise_looks_like_the_data_in_mean_and_deviation():
    x = torch.randn(500, 100) * 3 + 7
    changed, mask = corruptions.noisy_inputs(x, 1.0, seed=0)
    assert mask.all()
    assert changed.mean() == pytest.approx(7, abs=0.1)
    assert changed.std() == pytest.approx(3, abs=0.1)
    with pytest.raises(TypeError, match="noise is of bytes or floats, got torch.int64"):
        corruptions.noisy_inputs(torch.arange(3), 0.5, seed=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), SHARES, SEEDS, st.booleans())
def test_ambiguous_inputs_are_half_of_another_class(n, share, seed, as_bytes):
    labels = torch.arange(n) % 3
    x = (2 ** labels.float()).mul(20).view(n, 1).expand(n, 4).clone()  # 20, 40, 80: each sum of two tells which
    x = x.byte() if as_bytes else x
    changed, mask = is_pure(lambda: corruptions.ambiguous_inputs(x, labels, share, seed), x, labels)
    assert int(mask.sum()) == round(share * n)
    assert torch.equal((changed != x).any(1), mask)
    others = 2 * changed[mask].float()[:, 0] - x[mask].float()[:, 0]
    assert set(others.tolist()) <= {20, 40, 80}


def test_ambiguous_inputs_need_two_classes():
    with pytest.raises(ValueError, match="at least two classes"):
        corruptions.ambiguous_inputs(torch.rand(4, 2), torch.zeros(4, dtype=torch.long), 0.5, seed=0)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.floats(0, 3), SEEDS)
def test_duplicates_come_last_and_are_marked(n, share, seed):
    indices, mask = is_pure(lambda: corruptions.duplicates(n, share, seed))
    assert indices[:n].tolist() == list(range(n))
    assert len(indices) == n + round(share * n) == len(mask)
    assert torch.equal(mask, torch.arange(len(mask)) >= n)
    assert 0 <= int(indices.min()) <= int(indices.max()) < n


@settings(deadline=None, max_examples=40)
@given(LABELS, st.integers(0, 5))
def test_less_relevant_classes(labels, relevant):
    kept, mask = corruptions.less_relevant(labels, relevant)
    assert torch.equal(mask, labels >= relevant)
    assert (labels[kept] < relevant).all()
    assert len(kept) + int(mask.sum()) == len(labels)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.floats(0.5, 0.95), SEEDS)
def test_rare_classes_leave_most_to_the_common_ones_and_are_even_among_themselves(common, share, seed):
    labels = torch.arange(500) % 5
    kept, mask = is_pure(lambda: corruptions.rare_classes(labels, common, share, seed), labels)
    assert torch.equal(mask, labels[kept] >= common)
    assert torch.equal(kept, kept.sort().values)
    assert int((~mask).sum()) == 100 * common
    counts = labels[kept].bincount(minlength=5)[common:]
    assert int(counts.max() - counts.min()) <= 1
    if 100 * common * (1 - share) / share <= 100 * (5 - common):
        assert int(mask.sum()) == round(100 * common * (1 - share) / share)


def test_other_seeds_and_other_corruptions_choose_others():
    labels = torch.zeros(200, dtype=torch.long)
    masks = [corruptions.wrong_labels(labels, 0.5, 3, seed=seed)[1] for seed in (0, 1)]
    masks.append(corruptions.noisy_inputs(torch.rand(200, 3), 0.5, seed=0)[1])
    masks.append(torch.randperm(200, generator=torch.Generator().manual_seed(0)) < 100)
    shared = [(a & b).sum().item() for i, a in enumerate(masks) for b in masks[i + 1 :]]
    assert all(30 < count < 70 for count in shared)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y: corruptions.wrong_labels(y, 1.1, 3, 0), r"share must be in \[0, 1\], got 1.1"),
        (lambda y: corruptions.wrong_labels(y, 0.1, 1, 0), "at least 2 classes, got 1"),
        (lambda y: corruptions.wrong_labels(y, 0.1, 3, 0, reading="drawn"), "reading must be 'wrong' or 'redrawn', got 'drawn'"),
        (lambda y: corruptions.wrong_labels(y, 0.1, 3, 0, draws="own"), "draws must be 'derived' or 'plain', got 'own'"),
        (
            lambda y: corruptions.similar_labels(y, 0.1, torch.ones(2, 3), 0),
            r"must be \(C, C\), none of it negative, got \(2, 3\)",
        ),
        (lambda y: corruptions.similar_labels(y, 0.1, -torch.ones(2, 2), 0), "none of it negative"),
        (lambda y: corruptions.duplicates(3, -1, 0), "share must be at least 0, got -1"),
        (lambda y: corruptions.rare_classes(y, 1, 1.0, 0), r"share must be in \(0, 1\), got 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.arange(3))
