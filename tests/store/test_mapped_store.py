"""A memory-mapped store behaves as one in memory, wherever it goes and whatever becomes of its files."""

import copy
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import make_data, make_net
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
