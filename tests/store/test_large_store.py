"""A large mapped store: opened at once, each block checked before its first number is returned, ids found by a table."""

import mmap
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import fork, status

from rholoss import IrreducibleLossStore
from rholoss.store import serialization
from rholoss.store.blocks import ROWS, Blocks
from rholoss.store.id_index import IdIndex, Intervals

N = 4 * ROWS + 1000
RNG = np.random.default_rng(0)
SPREADS = {
    "uniform": np.unique(RNG.integers(-(2**63), 2**63 - 1, N)),
    "consecutive": np.arange(N) - 700,
    "a part": np.flatnonzero(RNG.random(3 * N) < 0.3),
    "ranges": np.unique(np.concatenate([(part << 48) + np.arange(4 * ROWS + 99 * part) for part in range(4)])),
    "hashes among small ones": np.unique(np.concatenate([RNG.integers(-(2**63), 2**63 - 1, N // 2), np.arange(N // 2)])),
    "crowded": np.unique((RNG.lognormal(0, 4, N) * 1e9).astype(np.int64)),
    "both ends": np.array([-(2**63), 0, 2**63 - 1]),
    "one": np.array([5]),
    **{f"{n:,}": np.unique(RNG.integers(-(2**63), 2**63 - 1, n)) for n in (2, 3, ROWS, ROWS + 1)},
}


class TestIdIndex:
    @pytest.mark.parametrize("spread", SPREADS)
    def test_finds_the_rows_that_a_search_finds(self, spread):
        ids = SPREADS[spread]
        index = IdIndex(ids)
        rows, found = index.rows(ids)
        assert rows.tolist() == list(range(len(ids)))
        assert found.all()
        near = np.concatenate([ids + 1, ids - 1, RNG.integers(-(2**63), 2**63 - 1, 100), [2**63 - 1, -(2**63)]])
        rows, found = index.rows(near)
        assert found.tolist() == np.isin(near, ids).tolist()
        assert (ids[rows[found]] == near[found]).all()

    def test_is_small_where_ids_come_in_ranges(self):
        intervals = Intervals.of(SPREADS["ranges"])
        assert len(intervals.starts) == 4
        assert intervals.bases[-1] <= 2 * len(SPREADS["ranges"])
        assert Intervals.from_json(intervals.to_json()).to_json() == intervals.to_json()

    def test_finds_ids_of_a_store_in_memory(self):
        ids = torch.from_numpy(np.unique(RNG.integers(-(2**63), 2**63 - 1, (1 << 20) + 9)))
        store = IrreducibleLossStore(torch.arange(len(ids)).float(), ids)
        where = torch.randint(len(ids), (3, 100))
        assert torch.equal(store[ids[where]], where.float())
        assert torch.isnan(store[ids[:5] + 1]).all()


@pytest.fixture(params=["positions", "ids", "crowded ids"])
def large(request, tmp_path, monkeypatch):
    """A store in memory, and the same one as a folder that counts as large."""
    monkeypatch.setattr(serialization, "SMALL", 1000)
    monkeypatch.setattr(serialization, "LEAST", 1000)
    ids = {"positions": None, "ids": torch.from_numpy(SPREADS["uniform"]), "crowded ids": torch.from_numpy(SPREADS["crowded"])}
    ids = ids[request.param]
    n = N if ids is None else len(ids)
    store = IrreducibleLossStore(torch.rand(n, generator=torch.Generator().manual_seed(0)), ids)
    store.save(tmp_path / "il", mapped=True)
    return store, tmp_path / "il"


def keys(store, rows):
    return rows if store.ids is None else store.ids[rows]


class TestBlocks:
    def test_give_what_the_store_in_memory_gives(self, large):
        store, path = large
        index = keys(store, torch.randint(len(store), (50, 64), generator=torch.Generator().manual_seed(0)))
        loaded = IrreducibleLossStore.load(path)
        assert all(torch.equal(loaded[each], store[each]) for each in index)
        for each in (loaded, pickle.loads(pickle.dumps(IrreducibleLossStore.load(path)))):
            assert str(each) == f"IrreducibleLossStore({store.size}, mapped, device=cpu)"
            assert (each.digest, each.coverage) == (store.digest, 1.0)
        if store.ids is not None:
            near = store.ids[:2000] + 1
            assert torch.equal(IrreducibleLossStore.load(path)[near].nan_to_num(-1), store[near].nan_to_num(-1))

    def test_are_not_read_ahead_until_all_are_asked_for(self, large, monkeypatch):
        store, path = large
        advised, advise = [], Blocks._advise
        monkeypatch.setattr(Blocks, "_advise", lambda self, advice, *rows: (advised.append(advice), advise(self, advice, *rows)))
        loaded = IrreducibleLossStore.load(path)
        assert set(advised) == {"MADV_RANDOM"}
        loaded[keys(store, torch.tensor([5, N // 2, len(store) - 1]).clamp(max=len(store) - 1))]
        assert set(advised) == {"MADV_RANDOM", "MADV_WILLNEED"}
        assert torch.equal(loaded.losses, store.losses)
        assert "MADV_NORMAL" in advised

    def test_are_the_same_where_the_system_takes_no_advice(self, large, monkeypatch):
        store, path = large
        for name in ("MADV_RANDOM", "MADV_WILLNEED", "MADV_NORMAL"):
            monkeypatch.delattr(mmap, name, raising=False)
        loaded = IrreducibleLossStore.load(path)
        index = keys(store, torch.randint(len(store), (64,)))
        assert torch.equal(loaded[index], store[index])

    @pytest.mark.parametrize("name", ["losses", "ids", "table"])
    @pytest.mark.parametrize("block", [0, 2, 4])
    def test_a_damaged_one_is_named_when_it_is_read_and_the_others_are_right(self, large, name, block):
        store, path = large
        files = list(path.glob(f"{name}-*.npy"))
        if not files:
            pytest.skip(f"it has no {name}")
        array = np.load(files[0], mmap_mode="r+")
        rows = slice(block * ROWS, (block + 1) * ROWS)
        if len(array) <= block * ROWS:
            pytest.skip(f"its {name} have fewer blocks")
        array[rows].view(np.uint8)[array[rows].nbytes // 2] ^= 1
        array.flush()
        loaded = IrreducibleLossStore.load(path)
        refused = 0
        for part in torch.randperm(len(store), generator=torch.Generator().manual_seed(0)).split(64):
            part = part.sort().values
            index = keys(store, part)
            try:
                found = loaded[index]
            except ValueError as error:
                assert f"{files[0].name} is damaged in rows {block * ROWS:,} to" in str(error)  # noqa: PT017
                refused += 1
            else:
                assert torch.equal(found, store[index])
        assert refused > 1
        for attribute in ("losses", "ids") if name != "table" else ():
            with pytest.raises(ValueError, match=r"is damaged in rows .*: its checksum does not fit; copy the store again"):
                getattr(loaded, attribute)

    @pytest.mark.parametrize(
        ("field", "fault"),
        [("losses", "at least 0, got negative ones"), ("ids", "its ids do not ascend, or appear more than once")],
    )
    def test_what_a_store_never_has_is_named_though_the_checksums_fit(self, tmp_path, monkeypatch, field, fault):
        monkeypatch.setattr(serialization, "SMALL", 1000)
        arrays = {"losses": np.ones(N, np.float32), "ids": np.arange(N)}
        arrays[field][2 * ROWS + 5] = -1
        serialization.write_mapped(tmp_path / "il", N, [arrays], {})
        store = IrreducibleLossStore.load(tmp_path / "il")
        assert store[torch.tensor([3])].tolist() == [1.0]
        with pytest.raises(ValueError, match=f"{field}.*is damaged in rows .*{fault}"):
            store.losses  # noqa: B018

    def test_one_that_is_cut_is_refused_at_once(self, large):
        _, path = large
        [file] = path.glob("losses-*.npy")
        os.truncate(file, file.stat().st_size - 1)
        with pytest.raises(ValueError, match="il is not a store that can be read .*is not of the length that its header says"):
            IrreducibleLossStore.load(path)

    def test_a_folder_without_checksums_of_blocks_is_checked_whole(self, large):
        store, path = large
        manifest = serialization.read_json(path / "store.json")
        for name in ("checksums", "intervals"):
            manifest.pop(name, None)
        manifest["arrays"].pop("table", None)
        serialization.write_json(path / "store.json", manifest)
        assert torch.equal(IrreducibleLossStore.load(path).losses, store.losses)
        [file] = path.glob("losses-*.npy")
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(ValueError, match="the checksum of losses-.* does not fit"):
            IrreducibleLossStore.load(path)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads /proc")
def test_readers_in_several_processes_take_the_memory_of_one(tmp_path, monkeypatch):
    """Of what four processes read from one store, the system counts each page once."""
    n = 6_000_000
    monkeypatch.setattr(serialization, "SMALL", 1000)
    IrreducibleLossStore(torch.zeros(n), torch.arange(n) * 5).save(tmp_path / "il", mapped=True)
    size = sum(file.stat().st_size for file in (tmp_path / "il").iterdir()) / 1e6

    def read(i):
        store = IrreducibleLossStore.load(tmp_path / "il")
        store.losses.sum(), store.ids.sum()
        store[torch.arange(0, n, 640) * 5]
        (tmp_path / f"read{i}").touch()
        while len(list(tmp_path.glob("read?"))) < 4:
            pass
        lines = dict(line.split(":", 1) for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
        (tmp_path / f"memory{i}").write_text(str([int(lines[name].split()[0]) / 1e3 for name in ("Pss_File", "Private_Dirty")]))
        while len(list(tmp_path.glob("memory?"))) < 4:
            pass

    assert [status(pid) for pid in [fork(read, i) for i in range(4)]] == [0] * 4
    found = [eval((tmp_path / f"memory{i}").read_text()) for i in range(4)]
    assert sum(pss for pss, _ in found) < 1.3 * size + 150
    assert max(private for _, private in found) < 0.5 * size
