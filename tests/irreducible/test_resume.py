"""Scoring in chunks: killed, failing, shared, and among foreign files."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_data, make_net
from shard_runs import content
from torch import nn
from torch.utils.data import DataLoader

from rholoss import IndexedBatches, IrreducibleLossStore
from rholoss.irreducible import scoring_job
from rholoss.store import serialization

forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its processes")
RUNS = Path(__file__).parents[1] / "shard_runs.py"


def runs(folder, *commands):
    """What runs of shard_runs.py saw, in one process."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, RUNS, folder, *commands], capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def short(monkeypatch):
    """Stretches of 8 examples."""
    monkeypatch.setattr(scoring_job, "CHUNK", 8)
    monkeypatch.setattr(scoring_job, "PIECES", 1)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")


@forks
class TestKilled:
    @pytest.mark.parametrize(
        "commands",
        [
            ["kills npz 30", "kills mapped 30"],
            ["kills views 4", "kills mapped-views 2", "kills mapped-part 2", "kills workers 2 16"],
        ],
        ids=["plain", "augmented"],
    )
    def test_at_random_moments_the_next_run_resumes_to_the_very_same_file_and_nothing_else(self, tmp_path, commands):
        seen = runs(tmp_path, *commands)
        assert [run["wrong"] for run in seen] == [[] for _ in commands]
        assert len({done for run in seen for done in run["at"]}) > 2  # the moments were all over the run

    @pytest.mark.parametrize("case", ["npz", "mapped"])
    def test_before_any_change_of_files_or_at_an_error_there_or_where_another_does_it_all_meanwhile(self, tmp_path, case):
        seen = runs(tmp_path, f"points {case} exit", f"points {case} raise", f"points {case} meet")
        assert [run["wrong"] for run in seen] == [[], [], []]
        assert seen[1]["errors"] == [28]
        assert min(run["changes"] for run in seen) > 20


@forks
class TestShared:
    @pytest.mark.parametrize("case", ["npz", "mapped", "views"])
    def test_plain_processes_in_any_order_or_at_once_write_what_one_writes(self, tmp_path, case):
        [seen] = runs(tmp_path, f"shares {case}")
        assert seen["wrong"] == []

    def test_ranks_write_what_one_writes_with_and_without_a_path_and_also_where_one_has_no_chunk(self, tmp_path):
        if not torch.distributed.is_available():
            pytest.skip("no torch.distributed")
        commands = ["ranks npz 2", "ranks mapped-part 2", "ranks mapped-views 3", "ranks npz 4 24"]
        assert runs(tmp_path, *commands) == [{"failed": [], "wrong": []} for _ in commands]


def test_a_share_without_a_chunk_is_done_at_once(tmp_path, short, net):
    data = make_data(24)
    assert IrreducibleLossStore.score_share(net, data, tmp_path / "il", process=5, processes=6, batch_size=8) is None
    store = IrreducibleLossStore.score_share(net, data, tmp_path / "il", process=0, processes=1, batch_size=8)
    assert len(store) == 24
    again = IrreducibleLossStore.score_share(net, data, tmp_path / "il", process=5, processes=6, batch_size=8)
    assert torch.equal(again.losses, store.losses)


def killed_after(k, path, *args, **options):
    """Score until k chunks are written."""
    with pytest.MonkeyPatch.context() as patch:
        score, left = scoring_job.ScoringJob.score, list(range(k))

        def stopping(self, rows):
            if not left:
                raise KeyboardInterrupt
            left.pop()
            return score(self, rows)

        patch.setattr(scoring_job.ScoringJob, "score", stopping)
        with pytest.raises(KeyboardInterrupt):
            IrreducibleLossStore.from_model(*args, path=path, **options)


def half_squared(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets, reduction="none") ** 2 / 2


OTHERS = {
    "models": lambda: ((make_net(1), make_data(40)), {}),
    "data": lambda: ((make_net(0), make_data(40, seed=1)), {}),
    "data, examples, chunks": lambda: ((make_net(0), make_data(48)), {}),
    "data, examples": lambda: ((make_net(0), make_data(39)), {}),
    "examples, chunks": lambda: ((make_net(0), DataLoader(make_data(40), batch_size=4, sampler=range(30))), {}),
    "loss": lambda: ((make_net(0), make_data(40)), {"loss": half_squared}),
    "views": lambda: ((make_net(0), make_data(40)), {"views": 2}),
    "scoring": lambda: ((make_net(0), make_data(40)), {"seed": 1}),
    "scoring of batches": lambda: ((make_net(0), make_data(40)), {"batch_size": 8}),
    "scoring in bfloat16": lambda: ((make_net(0), make_data(40)), {"dtype": torch.bfloat16}),
}


class TestForeign:
    @pytest.mark.parametrize("difference", OTHERS)
    @pytest.mark.parametrize("mapped", [False, True])
    def test_work_that_was_begun_otherwise_is_refused_by_what_differs_and_stays(self, tmp_path, short, difference, mapped):
        killed_after(2, tmp_path / "il", make_net(0), make_data(40), batch_size=4, mapped=mapped)
        before = content(tmp_path)
        args, options = OTHERS[difference]()
        with pytest.raises(
            ValueError, match=rf"il\.parts holds an unfinished scoring with other {difference.split(' ')[0]}.*; resume"
        ):
            IrreducibleLossStore.from_model(*args, path=tmp_path / "il", mapped=mapped, **{"batch_size": 4, **options})
        assert content(tmp_path) == before
        store = IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4, mapped=mapped, path=tmp_path / "il")
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4).losses)

    @pytest.mark.parametrize("difference", OTHERS)
    @pytest.mark.parametrize("mapped", [False, True])
    def test_a_finished_store_of_something_else_is_refused_and_stays(self, tmp_path, short, difference, mapped):
        IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4).save(tmp_path / "il", mapped=mapped)
        before = content(tmp_path)
        args, options = OTHERS[difference]()
        named = difference.split(" of ")[0].split(" in ")[0].replace(", chunks", "")
        match = rf"il exists already, made with other {named}.*; choose another path"
        with pytest.raises(ValueError, match=match):
            IrreducibleLossStore.from_model(*args, path=tmp_path / "il", **{"batch_size": 4, **options})
        assert content(tmp_path) == before

    @pytest.mark.parametrize("what", [b"a file of mine", b"", None])
    def test_what_is_no_store_is_refused_and_stays(self, tmp_path, short, net, data, what):
        path = tmp_path / "il"
        path.mkdir() if what is None else path.write_bytes(what)
        with pytest.raises(ValueError, match="il is (not a store|a folder without)"):
            IrreducibleLossStore.from_model(net, data, path=path)
        assert content(tmp_path) == ({} if what is None else {"il": what})

    def test_work_begun_otherwise_beside_a_finished_store_is_left_alone(self, tmp_path, short):
        killed_after(2, tmp_path / "il", make_net(1), make_data(40), batch_size=4)
        begun = content(tmp_path)
        IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4).save(tmp_path / "il")
        IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4, path=tmp_path / "il")
        assert begun.items() <= content(tmp_path).items()

    def test_the_finished_store_is_read_and_not_made_again(self, tmp_path, short, net, data, monkeypatch):
        IrreducibleLossStore.from_model(net, data, path=tmp_path / "il")
        monkeypatch.setattr(scoring_job.ScoringJob, "score", None)
        assert len(IrreducibleLossStore.from_model(net, data, path=tmp_path / "il")) == 100

    def test_chunks_of_another_scoring_that_began_at_the_same_moment_are_scored_again(self, tmp_path, short):
        other, mine = tmp_path / "other", tmp_path / "mine"
        killed_after(4, other, make_net(1), make_data(40), batch_size=4)
        killed_after(1, mine, make_net(0), make_data(40), batch_size=4)
        for i in (0, 2, 3):
            shutil.copy(f"{other}.parts/00000{i}.npz", f"{mine}.parts")
        store = IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4, path=mine)
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(make_net(0), make_data(40), batch_size=4).losses)


def cut(content, rng):
    return content[: rng.integers(len(content))]


def flipped(content, rng):
    place = rng.integers(len(content))
    return content[:place] + bytes([content[place] ^ (1 << rng.integers(8))]) + content[place + 1 :]


class TestDamaged:
    @pytest.mark.parametrize("damage", [cut, flipped, lambda content, rng: b"", lambda content, rng: content + b"more"])
    @pytest.mark.parametrize("shares", [1, 2])
    def test_a_chunk_is_scored_again_whoever_scored_it(self, tmp_path, short, damage, shares):
        rng, data, net = np.random.default_rng(0), make_data(40), make_net(0)
        right = IrreducibleLossStore.from_model(net, data, batch_size=8)
        right.save(tmp_path / "right")
        for trial in range(8):
            path = tmp_path / f"il{trial}"
            killed_after(3, path, net, data, batch_size=8)
            for i in range(3):
                file = Path(f"{path}.parts/00000{i}.npz")
                file.write_bytes(damage(file.read_bytes(), rng))
            done = []
            for process in reversed(range(shares)):
                share = {"process": process, "processes": shares}
                done.append(IrreducibleLossStore.score_share(net, data, path, batch_size=8, **share))
            assert path.read_bytes() == (tmp_path / "right").read_bytes()
            assert not os.path.exists(f"{path}.parts")

    def test_chunks_under_each_others_names_are_scored_again(self, tmp_path, short, net):
        killed_after(3, tmp_path / "il", net, make_data(40), batch_size=8)
        one, other, spare = (tmp_path / "il.parts" / name for name in ("000000.npz", "000001.npz", "spare"))
        one.rename(spare), other.rename(one), spare.rename(other)
        store = IrreducibleLossStore.from_model(net, make_data(40), batch_size=8, path=tmp_path / "il", mapped=True)
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(net, make_data(40), batch_size=8).losses)

    @pytest.mark.parametrize("content", [b"", b"[]", b'{"data": ', b"\xff\xfe", b"5"])
    def test_settings_are_refused_by_name(self, tmp_path, short, net, data, content):
        killed_after(1, tmp_path / "il", net, data, batch_size=8)
        (tmp_path / "il.parts" / "scoring.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"il\.parts.scoring\.json is damaged .*; delete its folder to start from scratch"):
            IrreducibleLossStore.from_model(net, data, path=tmp_path / "il")

    def test_progress_never_passes_the_end(self, tmp_path, short, net):
        IrreducibleLossStore.score_share(net, make_data(40), tmp_path / "il", process=1, processes=2, batch_size=8)
        (tmp_path / "il.parts" / "000001.npz").write_bytes(b"")
        seen = []
        options = {"process": 0, "processes": 2, "batch_size": 8, "progress": lambda done, total: seen.append((done, total))}
        IrreducibleLossStore.score_share(net, make_data(40), tmp_path / "il", **options)
        assert max(seen) <= (40, 40)


class TestFullDisk:
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of a ZipFile under Python 3.10
    @pytest.mark.parametrize("mapped", [False, True])
    def test_is_an_os_error_and_the_run_goes_on_when_there_is_room(self, tmp_path, monkeypatch, mapped):
        monkeypatch.setattr(scoring_job, "PIECES", 1)
        args = (make_net(0), make_data(3000))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        failed = 0
        for limit in (100, 1000, 5000, 11_000, 20_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
            try:
                with pytest.raises(OSError, match="File too large"):
                    IrreducibleLossStore.from_model(*args, path=tmp_path / "il", mapped=mapped)
                failed += 1
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, before)
            assert not (tmp_path / "il").exists()
        signal.signal(signal.SIGXFSZ, handler)
        store = IrreducibleLossStore.from_model(*args, path=tmp_path / "il", mapped=mapped)
        assert torch.equal(store.losses, IrreducibleLossStore.from_model(*args).losses)
        assert [entry.name for entry in tmp_path.iterdir()] == ["il"]
        assert failed == 5

    @pytest.mark.parametrize("old", [False, True])
    def test_leaves_the_old_mapped_store_and_nothing_of_the_new(self, tmp_path, monkeypatch, old):
        path = tmp_path / "il"
        if old:
            IrreducibleLossStore([0.5, 0.25], ids=[3, 4]).save(path, mapped=True)
        before = content(tmp_path)
        replace, sync, calls = os.replace, os.fsync, []
        for k in range(1, 20):
            calls.clear()

            def failing(function, k=k):
                def failing(*args):
                    calls.append(args)
                    if len(calls) == k:
                        raise OSError(28, "No space left on device")
                    return function(*args)

                return failing

            monkeypatch.setattr(serialization.os, "replace", failing(replace))
            monkeypatch.setattr(serialization.os, "fsync", failing(sync))
            try:
                IrreducibleLossStore([1.5, 0.25], ids=[3, 5]).save(path, mapped=True)
            except OSError:
                assert content(tmp_path) == before
                assert path.exists() == old
            else:
                break
        assert k == 7  # three files, each synced and renamed, and no more
        assert IrreducibleLossStore.load(path).ids.tolist() == [3, 5]
        assert len(content(path)) == 3


class TestWhere:
    @pytest.mark.parametrize("mapped", [False, True])
    @pytest.mark.parametrize("form", [str, lambda path: f"{path}/", lambda path: str(path).encode(), Path])
    def test_a_path_of_any_form_leads_to_the_same_place(self, tmp_path, short, net, mapped, form):
        if mapped is False and form(tmp_path) == f"{tmp_path}/":
            pytest.skip("a folder's name")
        killed_after(2, form(tmp_path / "il"), net, make_data(40), batch_size=8, mapped=mapped)
        assert [entry.name for entry in tmp_path.iterdir()] == ["il.parts"]
        store = IrreducibleLossStore.from_model(net, make_data(40), batch_size=8, mapped=mapped, path=form(tmp_path / "il"))
        assert [entry.name for entry in tmp_path.iterdir()] == ["il"]
        assert store.is_mapped == mapped

    def test_a_part_of_the_data_is_kept_with_its_indices(self, tmp_path, short, net):
        loader = DataLoader(make_data(100), batch_size=4, sampler=range(7, 90, 3))
        store = IrreducibleLossStore.from_model(net, loader, path=tmp_path / "il", mapped=True)
        assert store.ids.tolist() == list(range(7, 90, 3))
        assert store.is_mapped

    def test_data_that_are_not_read_by_index_are_one_chunk(self, tmp_path, net):
        x, y = make_data(40).tensors
        batches = IndexedBatches([(torch.arange(i, i + 10) + 5, (x[i : i + 10], y[i : i + 10])) for i in range(0, 40, 10)])
        store = IrreducibleLossStore.from_model(net, batches, path=tmp_path / "il")
        assert store.ids.tolist() == list(range(5, 45))
        with pytest.raises(TypeError, match="only a map-style dataset can be scored in shares"):
            scoring_job.ScoringJob(net, batches).scorer.batches(range(3))

    def test_a_process_that_is_none_of_them_is_refused(self, tmp_path, net, data):
        with pytest.raises(ValueError, match=r"process must be from 0 to processes - 1 = 1, got 2"):
            IrreducibleLossStore.score_share(net, data, tmp_path / "il", process=2, processes=2)

    def test_ranks_without_a_process_group_are_refused(self, net, data):
        with pytest.raises(RuntimeError, match="call init_process_group first"):
            IrreducibleLossStore.from_model(net, data, distributed=True)
