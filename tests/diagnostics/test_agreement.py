"""Rank correlations and overlaps, against plain Python."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from watched_runs import Batch, slow_spearman

from rholoss.diagnostics import overlaps, spearman

pairs_of_scores = st.integers(1, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.sampled_from([-math.inf, -1.5, 0.0, 0.25, 3.0, 7.0]), min_size=n, max_size=n)] * 2)
)


@given(pairs_of_scores)
def test_rank_correlation_with_ties_is_that_of_the_slow_way(pair):
    assert spearman(*map(torch.tensor, pair)).item() == pytest.approx(slow_spearman(*pair), abs=1e-12, nan_ok=True)


def test_rank_correlation_is_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    for ties in (2, 5, 1000):
        a, b = torch.randint(ties, (2, 300), generator=generator)
        assert spearman(a, b).item() == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert spearman(a.bfloat16(), a > 500).item() == pytest.approx(stats.spearmanr(a.bfloat16().float(), a > 500).statistic)


def test_rank_correlation_of_a_constant_is_undefined_and_nan_is_an_error():
    assert math.isnan(spearman(torch.ones(5), torch.arange(5.0)))
    assert math.isnan(spearman(torch.ones(1), torch.ones(1)))
    with pytest.raises(ValueError, match="NaN has no rank: 1 of 3 scores are NaN"):
        spearman(torch.tensor([1.0, torch.nan, 2.0]), torch.arange(3.0))
    with pytest.raises(ValueError, match=r"twice shape \(n,\), got \(3,\) and \(2,\)"):
        spearman(torch.ones(3), torch.ones(2))


def test_the_order_of_equal_scores_does_not_matter():
    a, b = torch.tensor([1.0, 1, 1, 2, 3]), torch.tensor([5.0, 1, 3, 2, 4])
    for order in (torch.tensor([2, 1, 0, 3, 4]), torch.tensor([4, 3, 2, 1, 0])):
        assert spearman(a[order], b[order]) == pytest.approx(spearman(a, b).item(), abs=1e-15)


def test_overlaps_are_shares_of_what_the_row_selected():
    of = {
        "a": Batch(list(range(6)), [0, 1, 2], [0.0] * 6, 0),
        "b": Batch(list(range(6)), [1, 2, 5], [0.0] * 6, 0),
        "twice": Batch(list(range(6)), [0, 0, 5], [0.0] * 6, 0),
        "more": Batch(list(range(6)), [0, 1, 2, 3], [0.0] * 6, 0),
    }
    expected = [
        [sum(i in other.positions for i in one.positions) / len(one.positions) for other in of.values()] for one in of.values()
    ]
    got = overlaps({name: batch.selection() for name, batch in of.items()})
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64))
    assert got[0].tolist() == pytest.approx([1, 2 / 3, 1 / 3, 1])
