"""A memory-mapped store behaves as one in memory, wherever it goes and whatever becomes of its files."""

import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from forks import fork, status
from torch.utils.data import DataLoader, Dataset

from rholoss import IrreducibleLossStore, RhoLossSelector
from rholoss.store import serialization

N = 100


class Looked(Dataset):
    """What a store knows, looked up in the process that reads."""

    def __init__(self, store):
        self.store = store

    def __len__(self):
        return N

    def __getitem__(self, i):
        return self.store[torch.tensor([i])]


@pytest.fixture(params=[False, True], ids=["positions", "ids"])
def score_in_memory(request):
    generator = torch.Generator().manual_seed(0)
    return IrreducibleLossStore(torch.rand(N, generator=generator), range(N) if request.param else None, meta={"views": 1})


@pytest.fixture
def store(score_in_memory, tmp_path):
    score_in_memory.save(tmp_path / "il", mapped=True)
    return IrreducibleLossStore.load(tmp_path / "il")


def same(one, other):
    ids = torch.equal(one.ids, other.ids) if one.ids is not None and other.ids is not None else one.ids is other.ids
    return ids and torch.equal(one.losses, other.losses) and one.meta == other.meta


def remade(path):
    """Another store in the place of one that is open."""
    IrreducibleLossStore(torch.arange(3.0), meta={"other": 1}).save(path, mapped=True)


class TestPickled:
    def test_is_where_it_lies_and_mapped_again(self, store, tmp_path):
        content = pickle.dumps(store)
        assert len(content) < 2000
        twin = pickle.loads(content)
        assert twin.is_mapped
        assert same(twin, store)

    def test_with_a_fingerprint_of_its_own_keeps_that(self, store):
        twin = pickle.loads(pickle.dumps(store.rebind(make_data(N))))
        assert twin.is_mapped
        assert twin.meta.data["length"] == N
        assert store.meta.data is None

    def test_is_refused_where_another_store_lies_or_none(self, store, tmp_path):
        content = pickle.dumps(store)
        remade(tmp_path / "il")
        with pytest.raises(ValueError, match=r"il holds another store than when this one was pickled; load the"):
            pickle.loads(content)
        os.rename(tmp_path / "il", tmp_path / "elsewhere")
        with pytest.raises(FileNotFoundError, match="il"):
            pickle.loads(content)

    def test_in_memory_is_all_of_it(self, score_in_memory, tmp_path):
        twin = pickle.loads(pickle.dumps(score_in_memory))
        assert same(twin, score_in_memory)
        assert not twin.is_mapped

    @pytest.mark.parametrize("context", ["fork", "spawn"])
    def test_in_workers_gives_the_same_numbers(self, store, score_in_memory, context):
        if context not in torch.multiprocessing.get_all_start_methods():
            pytest.skip(f"no {context}")
        loader = DataLoader(Looked(store), batch_size=None, num_workers=1, multiprocessing_context=context)
        assert torch.equal(torch.cat(list(loader)), score_in_memory.losses)


class TestCopied:
    def test_shares_the_mapping_and_not_the_metadata(self, store, tmp_path):
        store.meta = replace(store.meta, data={"length": N})
        remade(tmp_path / "il")  # a copy needs no files
        for twin in (copy.copy(store), copy.deepcopy(store)):
            assert twin is not store
            assert twin.is_mapped
            assert same(twin, store)
            assert twin.losses.data_ptr() == store.losses.data_ptr()
        assert copy.deepcopy(store).meta.data is not store.meta.data
        assert copy.deepcopy([store, store])[0].losses is store.losses

    def test_in_memory_has_losses_of_its_own(self, score_in_memory):
        assert copy.deepcopy(score_in_memory).losses.data_ptr() != score_in_memory.losses.data_ptr()
        assert same(copy.deepcopy(score_in_memory), score_in_memory)
        pair = copy.deepcopy([score_in_memory, score_in_memory])
        assert pair[0] is pair[1]

    def test_to_another_device_is_in_memory(self, store):
        moved = store.to("meta")
        assert moved.device.type == "meta"
        assert not moved.is_mapped
        assert store.is_mapped
        assert store.to("cpu") is store

    def test_merged_is_in_memory(self, tmp_path):
        for name, ids in (("a", [1, 5]), ("b", [3])):
            IrreducibleLossStore([0.5] * len(ids), ids).save(tmp_path / name, mapped=True)
        merged = IrreducibleLossStore.load(tmp_path / "a").merge(IrreducibleLossStore.load(tmp_path / "b"))
        assert merged.ids.tolist() == [1, 3, 5]
        assert not merged.is_mapped


class TestFiles:
    def test_a_newer_store_in_its_place_leaves_an_open_one_as_it_was(self, store, score_in_memory, tmp_path):
        for _ in range(2):
            remade(tmp_path / "il")
            assert same(store, score_in_memory)
            assert IrreducibleLossStore.load(tmp_path / "il").meta.extra == {"other": 1}
        assert len(list((tmp_path / "il").iterdir())) == 2

    def test_saving_it_onto_itself_changes_nothing(self, store, score_in_memory, tmp_path):
        before = {path.name: path.read_bytes() for path in (tmp_path / "il").iterdir()}
        for _ in range(2):
            store.save(tmp_path / "il", mapped=True)
        assert {path.name: path.read_bytes() for path in (tmp_path / "il").iterdir()} == before
        assert same(store, score_in_memory)

    def test_one_that_is_replaced_while_it_is_opened_is_the_old_or_the_new_one(self, store, tmp_path, monkeypatch):
        read, left = serialization._read_arrays, [1, 2, 3]

        def slowly(path, manifest):
            if left:
                IrreducibleLossStore(torch.full((left.pop(),), 0.5)).save(path, mapped=True)
            return read(path, manifest)

        monkeypatch.setattr(serialization, "_read_arrays", slowly)
        assert len(IrreducibleLossStore.load(tmp_path / "il")) == 1

    def test_what_else_lies_in_the_folder_stays(self, tmp_path):
        mine = ["losses-2024.csv", "ids-of-mine.txt", "ids-0011223.npy", "losses", "notes.md"]
        (tmp_path / "il").mkdir()
        for name in mine:
            (tmp_path / "il" / name).write_text("mine")
        for value in (0.5, 0.25):
            IrreducibleLossStore([value], [3]).save(tmp_path / "il", mapped=True)
        assert {path.name for path in (tmp_path / "il").iterdir()} >= set(mine)
        assert len(list((tmp_path / "il").iterdir())) == len(mine) + 3

    def test_a_relative_path_is_left_behind_with_its_folder(self, score_in_memory, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        score_in_memory.save("il", mapped=True)
        store = IrreducibleLossStore.load("il")
        (tmp_path / "deeper").mkdir()
        monkeypatch.chdir(tmp_path / "deeper")
        assert same(store, score_in_memory)
        assert same(pickle.loads(pickle.dumps(store)), score_in_memory)

    def test_through_a_link_follows_it(self, store, score_in_memory, tmp_path):
        (tmp_path / "link").symlink_to(tmp_path / "il", target_is_directory=True)
        linked = IrreducibleLossStore.load(tmp_path / "link")
        assert same(linked, score_in_memory)
        content = pickle.dumps(linked)
        assert same(pickle.loads(content), score_in_memory)
        linked.save(tmp_path / "link", mapped=True)
        assert (tmp_path / "link").is_symlink()
        remade(tmp_path / "other")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "other", target_is_directory=True)
        with pytest.raises(ValueError, match="link holds another store"):
            pickle.loads(content)

    def test_of_a_folder_that_may_only_be_read_is_read_and_writing_to_it_changes_no_file(self, store, tmp_path):
        before = {path: path.read_bytes() for path in (tmp_path / "il").iterdir()}
        for path in before:
            path.chmod(0o444)
        (tmp_path / "il").chmod(0o555)
        loaded = IrreducibleLossStore.load(tmp_path / "il")
        loaded.losses.add_(1)  # on a copy of the page
        assert {path: path.read_bytes() for path in before} == before
        assert same(store, IrreducibleLossStore.load(tmp_path / "il"))
        (tmp_path / "il").chmod(0o755)

    def test_in_the_place_of_a_file_is_an_os_error(self, tmp_path):
        (tmp_path / "il").write_text("mine")
        with pytest.raises(OSError, match="il"):
            IrreducibleLossStore([0.5]).save(tmp_path / "il", mapped=True)
        assert (tmp_path / "il").read_text() == "mine"


class TestSelecting:
    @pytest.mark.parametrize("workers", [0, 1])
    def test_selects_what_the_same_store_in_memory_selects(self, store, score_in_memory, workers):
        steps = []
        for each in (score_in_memory, store, pickle.loads(pickle.dumps(store))):
            generator = torch.Generator().manual_seed(1)
            loader = DataLoader(make_data(N), batch_size=4, shuffle=True, generator=generator, num_workers=workers)
            selector = RhoLossSelector(loader, make_net(0), each, keep=0.2)
            steps.append([(selector.last.index.tolist(), selector.last.scores.tolist()) for _ in selector])
        assert steps[0] == steps[1] == steps[2]

    def test_a_gap_is_found_and_named(self, tmp_path):
        losses = torch.zeros(N)
        losses[[3, 77]] = torch.nan
        IrreducibleLossStore(losses).save(tmp_path / "il", mapped=True)
        with pytest.raises(ValueError, match=r"2 of 100 examples have no finite .*indices 3, 77"):
            RhoLossSelector(DataLoader(make_data(N), batch_size=4), make_net(0), IrreducibleLossStore.load(tmp_path / "il"))

    @pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
    def test_a_large_one_stays_on_the_disk_and_a_selector_over_it_is_there_at_once(self, tmp_path):
        code = """
import sys, time, torch
from torch.utils.data import DataLoader, Dataset
from rholoss import IrreducibleLossStore, RhoLossSelector

class Large(Dataset):
    def __len__(self):
        return 20_000_000
    def __getitem__(self, i):
        return torch.zeros(6), i % 4

def anonymous():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("RssAnon"))

def select(data, store, **loader):
    RhoLossSelector(DataLoader(data, batch_size=32, **loader), torch.nn.Linear(6, 4), store, keep=0.1)

select(torch.utils.data.TensorDataset(torch.zeros(9, 6)), IrreducibleLossStore(torch.zeros(9)))
before = anonymous()
store = IrreducibleLossStore.load(sys.argv[1])
opened = anonymous()
for index in torch.randint(len(store), (1000, 320)):
    store[index]
looked = anonymous()
began = time.process_time()
for loader in ({"shuffle": True}, {}):
    select(Large(), store, **loader)
print(opened - before, looked - before, anonymous() - before, time.process_time() - began)
"""
        IrreducibleLossStore(torch.zeros(20_000_000)).save(tmp_path / "il", mapped=True)  # 80 MB
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what is freed is given back, and does not count
        call = [sys.executable, "-c", code, tmp_path / "il"]
        done = subprocess.run(call, capture_output=True, text=True, check=True, env=env)
        opened, looked, selecting, seconds = map(float, done.stdout.split())
        assert opened < 8
        assert looked < 16
        assert selecting < 16
        assert seconds < 5


def test_the_measurements_of_a_large_store_run(tmp_path):
    script = Path(__file__).parents[2] / "examples" / "benchmarks" / "large_store.py"
    call = [sys.executable, script, "--examples", "20000", "--rounds", "20"]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(call, capture_output=True, text=True, check=True, env=env)
    assert done.stdout.count("ratio") == 3
    assert "million names/s" in done.stdout
    assert list(tmp_path.iterdir()) == []


class TestNeverSaved:
    @pytest.mark.parametrize(
        ("losses", "ids", "message"),
        [
            ([0.5, 0.25, 1.0], [1, 3, 2], "its ids do not ascend, or appear more than once"),
            ([0.5, 0.25, 1.0], [1, 2, 2], "its ids do not ascend, or appear more than once"),
            ([0.5, -0.25, 1.0], [1, 2, 3], "irreducible losses must be at least 0, got negative ones"),
            ([0.5, -0.25, 1.0], None, "irreducible losses must be at least 0, got negative ones"),
        ],
    )
    @pytest.mark.parametrize("block", [2, 1 << 20])
    def test_order_repeats_or_sign_are_refused_though_the_checksums_fit(self, tmp_path, monkeypatch, losses, ids, message, block):
        monkeypatch.setattr("rholoss.store.arrays._BLOCK", block)
        columns = {"losses": np.array(losses), **({} if ids is None else {"ids": np.array(ids)})}
        serialization.write_mapped(tmp_path / "il", 3, [columns], {})
        with pytest.raises(ValueError, match=f"il is damaged: {message}; make the store again"):
            IrreducibleLossStore.load(tmp_path / "il")

    def test_metadata_of_no_store_are_refused_by_name(self, tmp_path):
        for save in (serialization.write_store, lambda path, arrays, meta: serialization.write_mapped(path, 1, [arrays], meta)):
            save(tmp_path / f"il{save.__name__}", {"losses": np.zeros(1)}, {"cross_fit": {"folds": 3}})
            with pytest.raises(ValueError, match=r"il.* is damaged: .*plan.*; make the store again"):
                IrreducibleLossStore.load(tmp_path / f"il{save.__name__}")


class TestSavers:
    """Of one folder, at the same time."""

    def test_wait_for_each_other_so_that_none_removes_what_another_has_just_named(self, tmp_path, monkeypatch):
        old, new = IrreducibleLossStore([0.5, 0.25], [3, 4]), IrreducibleLossStore([1.5, 0.75], [3, 4])
        old.save(tmp_path / "il", mapped=True)
        unlink, other = os.unlink, threading.Thread(target=old.save, args=(tmp_path / "il",), kwargs={"mapped": True})

        def late(path):  # another saves the old store again, just before its arrays are removed
            monkeypatch.undo()
            other.start()
            other.join(0.3)
            unlink(path)

        monkeypatch.setattr(os, "unlink", late)
        new.save(tmp_path / "il", mapped=True)
        other.join()
        assert IrreducibleLossStore.load(tmp_path / "il").losses.tolist() == [0.5, 0.25]
        assert len(list((tmp_path / "il").iterdir())) == 3

    def test_where_a_folder_cannot_be_locked_leave_what_they_replace(self, tmp_path, monkeypatch):
        def refused(*_):
            raise OSError(37, "No locks available")

        IrreducibleLossStore([0.5]).save(tmp_path / "il", mapped=True)
        with monkeypatch.context() as patch:
            patch.setattr("fcntl.flock", refused)
            IrreducibleLossStore([0.25]).save(tmp_path / "il", mapped=True)
        assert len(list((tmp_path / "il").iterdir())) == 3
        assert IrreducibleLossStore.load(tmp_path / "il").losses.tolist() == [0.25]
        IrreducibleLossStore([0.125]).save(tmp_path / "il", mapped=True)  # removes what was left
        assert len(list((tmp_path / "il").iterdir())) == 2

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
    @pytest.mark.parametrize("mapped", [False, True])
    def test_let_a_reader_see_one_store_whole_at_any_time(self, tmp_path, mapped):
        made = {value: IrreducibleLossStore(torch.full((50_000,), value), torch.arange(50_000)) for value in (0.5, 0.25)}
        made[0.5].save(tmp_path / "il", mapped=mapped)
        until = time.monotonic() + 1.5

        def save(own):
            while time.monotonic() < until:
                made[own].save(tmp_path / "il", mapped=mapped)

        savers = [fork(save, own) for own in (0.5, 0.25, 0.25)]
        seen = set()
        while time.monotonic() < until:
            losses = IrreducibleLossStore.load(tmp_path / "il").losses
            seen.add((len(losses), float(losses.min()), float(losses.max())))
        assert [status(pid) for pid in savers] == [0, 0, 0]
        assert seen <= {(50_000, 0.5, 0.5), (50_000, 0.25, 0.25)}
        assert len(IrreducibleLossStore.load(tmp_path / "il")) == 50_000
        assert not mapped or len(list((tmp_path / "il").iterdir())) == 3

    @pytest.mark.parametrize("after", range(1, 7))
    def test_interrupted_just_after_a_change_leave_the_old_store_or_the_new_one_whole(self, tmp_path, monkeypatch, after):
        IrreducibleLossStore([0.5, 0.25], [3, 4]).save(tmp_path / "il", mapped=True)
        done = []

        def then_interrupted(function):
            def changed(*args):
                function(*args)
                done.append(args)
                if len(done) == after:
                    raise KeyboardInterrupt

            return changed

        for name in ("replace", "fsync"):
            monkeypatch.setattr(os, name, then_interrupted(getattr(os, name)))
        with pytest.raises(KeyboardInterrupt):
            IrreducibleLossStore([1.5, 0.75], [3, 5]).save(tmp_path / "il", mapped=True)
        monkeypatch.undo()
        assert IrreducibleLossStore.load(tmp_path / "il").losses.tolist() == ([1.5, 0.75] if after == 6 else [0.5, 0.25])
        assert after == 6 or len(list((tmp_path / "il").iterdir())) == 3

    def test_leave_what_killed_ones_left_where_no_reader_looks(self, tmp_path):
        IrreducibleLossStore([0.5], [3]).save(tmp_path / "il", mapped=True)
        (tmp_path / "il" / "losses.0011223344556677.partial").write_bytes(b"\x93NUMPY")
        (tmp_path / "il" / "losses-00112233.npy").write_bytes(b"\x93NUMPY")  # named, and never in a manifest
        assert len(IrreducibleLossStore.load(tmp_path / "il")) == 1
        IrreducibleLossStore([0.25], [3]).save(tmp_path / "il", mapped=True)
        assert len(IrreducibleLossStore.load(tmp_path / "il")) == 1
        assert not (tmp_path / "il" / "losses-00112233.npy").exists()
