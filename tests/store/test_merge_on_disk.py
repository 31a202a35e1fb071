"""Stores that are merged on the disk are those that are merged in memory."""

import numpy as np
import pytest
import torch

from rholoss import IrreducibleLossStore
from rholoss.store import merging, sorting

N = 300


def halves(kind):
    rng = np.random.default_rng(0)
    losses, which = rng.random(N).astype(np.float32), rng.random(N) < 0.5
    if kind == "positions":
        return [IrreducibleLossStore(np.where(mine, losses, np.nan)) for mine in (which, ~which)]
    ids = np.arange(N) if kind == "a whole dataset" else np.sort(rng.integers(-(2**63), 2**63 - 1, N))
    meta = {"data": {"length": N, "labels": None, "sample": {}}} if kind == "a whole dataset" else None
    made = [IrreducibleLossStore(losses[mine], ids[mine], meta=meta) for mine in (which, ~which)]
    if kind == "unknown in both":  # and in one of them
        extra = [np.append(losses[which], [np.nan, 0.5]), np.append(losses[~which], [np.nan, np.nan])]
        made = [
            IrreducibleLossStore(each, np.append(ids[mine], [7, 9])) for each, mine in zip(extra, (which, ~which), strict=True)
        ]
    return made


@pytest.mark.parametrize("kind", ["positions", "ids", "a whole dataset", "unknown in both"])
@pytest.mark.parametrize("mapped", [False, True])
def test_the_store_is_that_of_all_losses(tmp_path, monkeypatch, kind, mapped):
    monkeypatch.setattr(sorting, "_WINDOW", 20)
    monkeypatch.setattr(merging, "_PIECE", 11)
    one, other = halves(kind)
    store = one.merge(other, path=tmp_path / "il" if mapped else None)
    assert (store.is_mapped, store.ids is None) == (mapped, kind in ("positions", "a whole dataset"))
    for each in (one, other):
        ids = torch.arange(N) if each.ids is None else each.ids
        known = torch.isfinite(each[ids])
        assert torch.equal(store[ids][known], each[ids][known])
    assert int(torch.isfinite(store.losses).sum()) == N + (kind == "unknown in both")


@pytest.mark.parametrize("kind", ["positions", "ids"])
def test_what_is_known_twice_is_named_and_nothing_is_written(tmp_path, kind):
    one, other = halves(kind)
    with pytest.raises(ValueError, match=r"\d+ examples have an irreducible loss in both stores: indices .* more"):
        one.merge(other, one, path=tmp_path / "il")
    assert list(tmp_path.iterdir()) == []
