"""The command line: what it writes, what it refuses, and what is left after a failure."""

import importlib.metadata
import json
import os
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch

import rholoss
from rholoss import IrreducibleLossStore, cli
from rholoss.irreducible import scoring_job

CODE = """
import functools
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from rholoss import Checkpoints, IndexedBatches, IndexedSubset

generator = torch.Generator().manual_seed(0)
x, y = torch.randn(100, 6, generator=generator), torch.randint(4, (100,), generator=generator)
train_set = TensorDataset(x, y)
reordered = TensorDataset(x.flip(0), y.flip(0))
dropped = TensorDataset(x[:99], y[:99])
relabelled = TensorDataset(x, (y + 1) % 4)
transformed = TensorDataset(x + 1, y)
part = IndexedSubset(train_set, range(60))
rest = IndexedSubset(train_set, range(60, 100))
three = IndexedSubset(train_set, [3, 5, 7])
loader = DataLoader(train_set, batch_size=7, shuffle=True, drop_last=True)
floats = TensorDataset(x, x[:, 0])


class Counting(TensorDataset):
    read, stop = 0, None

    def __getitem__(self, i):
        Counting.read += 1
        if Counting.read == Counting.stop:
            raise KeyboardInterrupt
        return super().__getitem__(i)


counting = Counting(x, y)


def seeded(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


il_model = seeded(0)
another = functools.partial(seeded, 1)


def make_data():
    return train_set


def make_model():
    return seeded(0)


def two_models():
    return [seeded(0), seeded(1)]


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(*seeded(0))


def needs_something(n):
    return train_set


def zero_shot(batch):
    return batch @ torch.eye(6)[:, :4]


def doubled(model, batch):
    return model(batch[0]) / 2, batch[1]


def broken():
    raise RuntimeError("no such\\n  disk")


loss = nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)


class Loss(nn.CrossEntropyLoss):
    def __init__(self):
        super().__init__(reduction="none", label_smoothing=0.1)
"""


@pytest.fixture
def things(tmp_path, monkeypatch):
    """A folder with a module of data and models; the module, as the command line imports it."""
    (tmp_path / "things.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "things", raising=False)
    before = list(sys.path)
    sys.path.insert(0, str(tmp_path))
    import things

    sys.path[:] = before
    yield things
    assert sys.path == before
    del sys.modules["things"]


@pytest.fixture
def run(things, capsys):
    """Runs a command line; returns its exit code, what it printed, and its errors."""

    def run(line):
        code = cli.main(shlex.split(line))
        return code, *capsys.readouterr()

    return run


def files():
    return sorted(name for name in os.listdir() if name not in ("things.py", "__pycache__"))


def one_line(error):
    return error.count("\n") == 1 and error.endswith("\n") and "Traceback" not in error


SCORE = "score --no-progress --out il.npz --data things:train_set --model things:il_model"


class TestScore:
    def test_writes_the_store_that_from_model_makes(self, run, things):
        code, out, err = run(SCORE)
        expected = IrreducibleLossStore.from_model(things.il_model, things.train_set)
        stored = IrreducibleLossStore.load("il.npz")
        assert (code, err) == (0, "")
        first, verdict = out.split("\n", 1)
        assert first == f"il.npz: 100 examples, mean irreducible loss {expected.losses.mean():.4f} nats"
        assert verdict == f"{expected.report().verdict}\n"
        assert torch.equal(stored.losses, expected.losses)
        assert stored.meta == expected.meta
        assert files() == ["il.npz"]

    @pytest.mark.parametrize(
        ("data", "model"),
        [("make_data", "make_model"), ("loader", "Net"), ("train_set", "Net"), ("make_data", "il_model")],
    )
    def test_calls_functions_and_classes(self, run, things, data, model):
        assert run(f"score --no-progress --out il.npz --data things:{data} --model things:{model}")[0] == 0
        expected = IrreducibleLossStore.from_model(things.il_model, things.train_set).losses
        torch.testing.assert_close(IrreducibleLossStore.load("il.npz").losses, expected)

    def test_a_function_of_a_batch_is_a_model(self, run, things):
        assert run("score --no-progress --out il.npz --data things:train_set --model things:zero_shot")[0] == 0
        expected = IrreducibleLossStore.from_model(things.zero_shot, things.train_set).losses
        assert torch.equal(IrreducibleLossStore.load("il.npz").losses, expected)

    @pytest.mark.parametrize("models", ["--model things:two_models", "--model things:il_model --model things:another"])
    def test_takes_the_mean_of_several_models(self, run, things, models):
        assert run(f"score --no-progress --out il.npz --data things:train_set {models}")[0] == 0
        expected = IrreducibleLossStore.from_model(things.two_models(), things.train_set).losses
        assert torch.equal(IrreducibleLossStore.load("il.npz").losses, expected)

    @pytest.mark.parametrize("loss", ["loss", "Loss"])
    def test_hands_every_option_on(self, run, things, loss):
        code, _, err = run(f"{SCORE} --forward things:doubled --loss things:{loss} --batch-size 9 --views 2 --mapped")
        assert (code, err) == (0, "")
        stored = IrreducibleLossStore.load("il.npz")
        expected = IrreducibleLossStore.from_model(
            things.il_model, things.train_set, forward=things.doubled, loss=things.loss, batch_size=9, views=2
        )
        assert torch.equal(stored.losses, expected.losses)
        assert stored.is_mapped
        assert (stored.meta.views, stored.meta.scoring["batch_size"]) == (2, 9)

    def test_draws_a_bar_if_asked(self, run):
        code, out, err = run(SCORE.replace("--no-progress", "--progress"))
        assert code == 0
        assert "irreducible losses: 100%" in err
        assert "irreducible losses:" not in out

    def test_stopped_by_ctrl_c_says_how_to_resume_and_resumes(self, run, things, monkeypatch):
        monkeypatch.setattr(scoring_job, "CHUNK", 20)
        monkeypatch.setattr(scoring_job, "PIECES", 1)
        line = "score --no-progress --out il.npz --data things:counting --model things:il_model --batch-size 10"
        things.Counting.stop = 64 + 55  # two readings of the 32 of the fingerprint, then three chunks and a half
        code, out, err = run(line)
        assert (code, out) == (130, "")
        assert err.endswith("stopped; finished work is in il.npz.parts: run the same command again to resume\n")
        assert one_line(err)
        assert files() == ["il.npz.parts"]
        things.Counting.read, things.Counting.stop = 0, None
        assert run(line)[0] == 0
        assert things.Counting.read == 64 + 60
        assert files() == ["il.npz"]
        expected = IrreducibleLossStore.from_model(things.il_model, things.train_set, batch_size=10).losses
        assert torch.equal(IrreducibleLossStore.load("il.npz").losses, expected)

    def test_stopped_before_anything_is_done_leaves_nothing(self, run, things):
        things.Counting.stop = 64 + 30
        code, _, err = run("score --no-progress --out il.npz --data things:counting --model things:il_model")
        assert (code, files()) == (130, [])
        assert err.endswith("stopped; nothing was written\n")

    def test_two_processes_share_the_work(self, run, monkeypatch):
        monkeypatch.setattr(scoring_job, "CHUNK", 20)
        monkeypatch.setattr(scoring_job, "PIECES", 1)
        assert run(SCORE.replace("il.npz", "whole.npz") + " --batch-size 10")[0] == 0
        code, out, _ = run(f"{SCORE} --batch-size 10 --process 1 --processes 2")
        assert (code, out) == (0, "this share is done; il.npz will be written when the other processes are\n")
        assert files() == ["il.npz.parts", "whole.npz"]
        code, out, _ = run(f"{SCORE} --batch-size 10 --process 0 --processes 2")
        assert (code, out[:20]) == (0, "il.npz: 100 examples")
        with open("il.npz", "rb") as one, open("whole.npz", "rb") as other:
            assert one.read() == other.read()

    def test_ranks_of_torchrun_share_the_work(self, run, monkeypatch):
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
            monkeypatch.setenv(name, value)
        code, out, _ = run(f"{SCORE} --distributed")
        assert (code, out[:20]) == (0, "il.npz: 100 examples")
        assert not torch.distributed.is_initialized()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("--data things", "--data must be module:name, such as my_code:thing, got 'things'"),
            ("--data :train_set", "--data must be module:name, such as my_code:thing, got ':train_set'"),
            ("--data nowhere:x", "--data: there is no module 'nowhere' in this folder or among the installed ones"),
            ("--data things.inner:x", "--data: there is no module 'things.inner'"),
            ("--data things:train_sett", "--data: things has no 'train_sett'; did you mean 'train_set'?"),
            (
                "--data things:needs_something",
                "--data things:needs_something is called without arguments, but missing a",
            ),
            ("--data builtins:int", "--data builtins:int is called without arguments, but no signature found"),
            ("--process 0", "--process and --processes go together"),
            ("--process 0 --processes 2 --distributed", "--distributed takes its processes from torchrun"),
            ("--distributed", "--distributed is for torchrun"),
            ("--batch-size many", "argument --batch-size: invalid int value: 'many'; see rholoss score --help"),
            ("--model things:two_models", "each --model of several must be one model"),
            ("--nonsense", "unrecognized arguments: --nonsense"),
        ],
    )
    def test_a_wrong_command_line_is_one_line_and_writes_nothing(self, run, change, message):
        code, out, err = run(f"{SCORE} {change}")
        assert (code, out) == (2, "")
        assert message in err
        assert one_line(err)
        assert files() == []

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("--data things:broken", "RuntimeError: no such disk"),
            (
                "--data things:generator",
                "TypeError: data must be a map-style dataset, a DataLoader or IndexedBatches, got <torch._C.Generator",
            ),
            ("--data things:floats --loss things:loss", "RuntimeError: "),
            ("--views 0", "views must be a number of passes over the data, at least 1, got 0"),
            ("--process 2 --processes 2", "process must be from 0 to processes - 1 = 1, got 2"),
        ],
    )
    def test_a_failure_is_one_line_and_leaves_no_store(self, run, change, message):
        code, out, err = run(f"{SCORE} {change}")
        assert (code, out) == (1, "")
        assert message in err
        assert one_line(err)
        assert files() == []

    def test_a_module_that_cannot_be_imported_says_why(self, run, tmp_path):
        (tmp_path / "needy.py").write_text("import not_installed_anywhere")
        (tmp_path / "wrong.py").write_text("1 / 0")
        code, _, err = run(SCORE.replace("things:train_set", "needy:train_set"))
        assert (code, "No module named 'not_installed_anywhere'" in err, one_line(err)) == (1, True, True)
        code, _, err = run(SCORE.replace("things:train_set", "wrong:train_set"))
        assert (code, one_line(err)) == (1, True)
        assert "--data: wrong cannot be imported: ZeroDivisionError: division by zero" in err

    def test_another_store_at_the_same_place_is_left_as_it_is(self, run):
        run(SCORE)
        with open("il.npz", "rb") as file:
            before = file.read()
        code, _, err = run(SCORE.replace("il_model", "another"))
        assert (code, one_line(err)) == (1, True)
        assert "il.npz exists already, made with other models" in err
        with open("il.npz", "rb") as file:
            assert file.read() == before

    def test_traceback_shows_where(self, things):
        with pytest.raises(RuntimeError, match="no such"):
            cli.main(shlex.split(f"--traceback {SCORE} --data things:broken"))


class TestMerge:
    @pytest.fixture
    def halves(self, run, things):
        for name in ("part", "rest"):
            store = IrreducibleLossStore.from_model(things.il_model, getattr(things, name))
            store.save(f"{name}.npz")
        return IrreducibleLossStore.from_model(things.il_model, things.train_set).losses

    @pytest.mark.parametrize("mapped", ["", "--mapped"])
    def test_two_parts_are_the_whole(self, run, halves, mapped):
        code, out, err = run(f"merge part.npz rest.npz --out il.npz --examples 100 {mapped}")
        assert (code, out, err) == (0, "il.npz: 100 examples, 100.0% known\n", "")
        store = IrreducibleLossStore.load("il.npz")
        assert torch.equal(store.losses, halves)
        assert (store.ids, store.is_mapped) == (None, bool(mapped))

    def test_ids_without_metadata_are_told_to_be_all(self, run):
        IrreducibleLossStore([0.5, 0.25], ids=[2, 0]).save("a.npz")
        IrreducibleLossStore([1.0], ids=[1]).save("b.npz")
        assert run("merge a.npz b.npz --out some.npz")[0] == 0
        assert IrreducibleLossStore.load("some.npz").ids.tolist() == [0, 1, 2]
        assert run("merge a.npz b.npz --out all.npz --examples 3")[0] == 0
        assert IrreducibleLossStore.load("all.npz").ids is None
        assert IrreducibleLossStore.load("all.npz").losses.tolist() == [0.25, 1.0, 0.5]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("merge part.npz part.npz", "60 examples have an irreducible loss in both stores: indices 0, 1, 2, 3, 4 and 55 more"),
            ("merge part.npz stranger.npz", "made by different models"),
            ("merge part.npz elsewhere.npz", "these stores are of different data"),
            (
                "merge part.npz --examples 100",
                "40 of 100 examples have no finite irreducible loss (missing, NaN or infinite): indices 60",
            ),
            ("merge part.npz rest.npz --examples 99", "expected the examples 0 to 98, got 1 others"),
            (
                "merge gap.npz --examples 3",
                "1 of 3 examples have no finite irreducible loss (missing, NaN or infinite): indices 1",
            ),
            ("merge gap.npz --examples 4", "expected the examples 0 to 3, got only 3"),
            ("merge gap.npz --examples 2", "expected the examples 0 to 1, got 1 others"),
            ("merge part.npz nowhere.npz", "nowhere.npz"),
            ("merge part.npz things.py", "things.py is not a store that can be read"),
        ],
    )
    def test_what_does_not_belong_together_is_refused_and_nothing_is_written(self, run, things, halves, line, message):
        IrreducibleLossStore.from_model(things.another(), things.rest).save("stranger.npz")
        IrreducibleLossStore.from_model(things.il_model, rholoss.IndexedSubset(things.reordered, range(60, 100))).save(
            "elsewhere.npz"
        )
        IrreducibleLossStore([0.5, float("nan"), 0.25]).save("gap.npz")
        before = files()
        code, out, err = run(f"{line} --out il.npz")
        assert (code, out) == (1, "")
        assert message in err
        assert one_line(err)
        assert files() == before

    def test_a_store_that_is_there_is_not_written_over_unless_told_to(self, run, halves):
        IrreducibleLossStore([0.5]).save("il.npz")
        code, _, err = run("merge part.npz rest.npz --out il.npz")
        assert (code, one_line(err)) == (1, True)
        assert "il.npz exists already; choose another path, or overwrite it with --force" in err
        assert len(IrreducibleLossStore.load("il.npz")) == 1
        code, _, err = run("merge part.npz rest.npz --out il.npz --force --mapped")
        assert (code, "il.npz is a file" in err, one_line(err)) == (1, True, True)
        assert run("merge part.npz rest.npz --out il.npz --force")[0] == 0
        assert len(IrreducibleLossStore.load("il.npz")) == 100

    def test_into_a_folder_that_is_not_there_fails(self, run, halves):
        code, _, err = run("merge part.npz rest.npz --out nowhere/il.npz")
        assert (code, one_line(err)) == (1, True)
        assert "nowhere" in err
        assert files() == ["part.npz", "rest.npz"]

    def test_a_mapped_store_that_cannot_be_written_leaves_nothing(self, run, halves, monkeypatch):
        def full(*_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        code, _, err = run("merge part.npz rest.npz --out il --mapped")
        assert (code, "No space left" in err) == (1, True)
        assert files() == ["part.npz", "rest.npz"]


class TestReport:
    def test_prints_and_draws(self, run, things):
        store = IrreducibleLossStore.from_predictions(things.x[:, :4] + 3 * torch.eye(4)[things.y], things.y)
        store.save("il.npz")
        code, out, err = run("report il.npz --data things:train_set --plot il.png --top 2 --plain-accuracy 1.0")
        assert (code, err) == (0, "")
        assert out == f"{store.report(things.train_set, top=2, plain_accuracy=1.0)}\n"
        assert "too weak" in out
        with open("il.png", "rb") as file:
            assert file.read(4) == b"\x89PNG"

    def test_compares_with_another_store(self, run):
        run(SCORE)
        run(SCORE.replace("il_model", "another").replace("il.npz", "other.npz"))
        out = run("report il.npz --other other.npz --classes 7 --validation-loss 1.0")[1]
        assert "100 examples in common" in out
        assert "log(7)" in out

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("report nowhere.npz", "nowhere.npz"),
            ("report il.npz --data things:relabelled", "its labels, in their order, are not those"),
            ("report il.npz --plot il.nonsense", "nonsense"),
            ("report il.npz --classes 1", "classes must be the number of classes, at least 2"),
            ("report il.npz --other things.py", "things.py is not a store"),
        ],
    )
    def test_a_failure_is_one_line(self, run, line, message):
        run(SCORE)
        code, out, err = run(line)
        assert (code, out) == (1, "")
        assert message in err
        assert one_line(err)
        assert files() == ["il.npz"]


class TestSuspects:
    def test_a_store_with_predictions_is_listed_shown_and_written(self, run):
        assert run("score --data things:train_set --model things:il_model --out il.npz --top-classes 2")[0] == 0
        code, out, _ = run("suspects il.npz --data things:part --top 3 --csv suspects.csv")
        found = IrreducibleLossStore.load("il.npz").suspects()
        assert code == 0
        assert "of 60 labels are probably wrong" in out
        with open("suspects.csv", encoding="utf-8") as file:
            rows = file.read().splitlines()
        worst = found.label_quality["label_quality"][:60].argsort(kind="stable")[:3].tolist()
        assert [int(row.split(",")[0]) for row in rows[1:]] == worst
        assert run("report il.npz --data things:train_set --html il.html")[0] == 0
        with open("il.html", encoding="utf-8") as file:
            assert "Labels that are probably wrong" in file.read()

    def test_merging_keeps_the_predictions(self, run):
        for name in ("train_set", "part", "rest"):
            run(f"score --data things:{name} --model things:il_model --out {name}.npz --top-classes 2")
        assert run("merge part.npz rest.npz --out both.npz --examples 100")[0] == 0
        whole, both = (IrreducibleLossStore.load(f"{name}.npz").predictions for name in ("train_set", "both"))
        assert torch.equal(whole.classes, both.classes)

    def test_a_store_without_says_how_to_make_one(self, run):
        IrreducibleLossStore([0.5]).save("il.npz")
        code, _, err = run("suspects il.npz --csv suspects.csv")
        assert (code, "made with top_classes=2 or more" in err, os.path.exists("suspects.csv")) == (1, True, False)


class TestCheck:
    @pytest.mark.parametrize("data", ["train_set", "loader", "make_data", "three"])
    def test_says_what_matches(self, run, data):
        run(SCORE)
        code, out, err = run(f"check il.npz --data things:{data}")
        assert (code, err) == (0, "")
        n = {"three": 3}.get(data, 100)
        assert out.splitlines() == [
            "length: the same, 100 examples",
            "labels: the same, in the same order",
            "field [0], float32 (6,): the same in 32 sampled examples",
            "field [1], int64 (): the same in 32 sampled examples",
            f"gaps: none in the {n} examples that may be drawn",
            f"il.npz fits things:{data}, as far as it can be compared",
        ]

    @pytest.mark.parametrize(
        ("data", "message", "differ"),
        [
            ("reordered", "its labels, in their order, are not those (it was reordered or relabelled)", ["labels", "[0]", "[1]"]),
            ("relabelled", "its labels, in their order, are not those (it was reordered or relabelled)", ["labels", "[1]"]),
            ("dropped", "it has 99 examples, and that had 100", ["length", "labels", "[0]", "[1]"]),
            ("transformed", "32 of 32 sampled examples differ in [0]", ["[0]"]),
        ],
    )
    def test_catches_data_that_changed_and_says_what_did_not(self, run, data, message, differ):
        run(SCORE)
        code, out, err = run(f"check il.npz --data things:{data}")
        assert code == 1
        assert f"il.npz was made from other data than things:{data}: {message}" in err
        assert one_line(err)
        found = [line for line in out.splitlines() if "different" in line]
        assert [line.split(":")[0].removeprefix("field ").split(",")[0] for line in found] == differ
        assert len(out.splitlines()) == 4
        assert "fits" not in out

    def test_catches_gaps(self, run, things):
        IrreducibleLossStore.from_model(things.il_model, things.part).save("part.npz")
        code, _, err = run("check part.npz --data things:train_set")
        assert (code, one_line(err)) == (1, True)
        assert "40 of 100 examples have no finite irreducible loss" in err
        assert run("check part.npz --data things:part")[0] == 0

    def test_a_store_without_a_fingerprint_is_checked_for_gaps_only(self, run):
        IrreducibleLossStore(np.full(100, 0.5)).save("il.npz")
        code, out, _ = run("check il.npz --data things:reordered")
        assert (code, out.splitlines()[0]) == (0, "data: not compared, as the store has no fingerprint")
        code, _, err = run("check il.npz --data things:dropped")
        assert (code, "100 examples, but the loader's dataset has 99" in err) == (1, True)

    def test_labels_that_are_not_shown_are_not_compared(self, run, things):
        meta = {"data": rholoss.data.fingerprint.fingerprint(things.floats)}
        IrreducibleLossStore(np.full(100, 0.5), meta=meta).save("il.npz")
        out = run("check il.npz --data things:floats")[1]
        assert "labels: not compared, as the data do not show them" in out


@pytest.mark.parametrize("name", ["", "score", "merge", "report", "suspects", "check"])
def test_help_shows_an_example_on_one_line(name, capsys):
    assert cli.main([*name.split(), "--help"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("example: rholoss ")
    arguments = shlex.split(last.removeprefix("example: rholoss "))
    assert cli.parser().parse_args(arguments).command == (name or "score")


def test_as_a_program():
    call = [sys.executable, "-W", "error", "-m", "rholoss", "--help"]
    done = subprocess.run(call, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: rholoss")
    assert all(f"    {name}" in done.stdout for name in ("score", "merge", "report", "check"))


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rholoss {rholoss.__version__}\n"


def test_without_a_command_is_one_line(capsys):
    assert cli.main([]) == 2
    err = capsys.readouterr().err
    assert "the following arguments are required: command; see rholoss --help" in err
    assert one_line(err)


class TestJson:
    def json(self, run, line, code=0):
        got, out, err = run(f"{line} --json")
        assert (got, out.count("\n")) == (code, 1), err
        return json.loads(out, parse_constant=pytest.fail)

    def test_every_command_that_prints_prints_one_object(self, run, things, tmp_path):
        scored = self.json(run, SCORE)
        store = IrreducibleLossStore.load("il.npz")
        assert (scored["store"], scored["finished"], scored["examples"]) == ("il.npz", True, 100)
        assert scored["mean"] == pytest.approx(float(store.losses.mean()))
        assert scored["verdict"]["helps"] == store.report().verdict.helps
        found = self.json(run, "report il.npz --data things:train_set --top 2")
        expected = store.report(things.train_set, top=2)
        assert found["median"] == expected.median
        assert found["highest"] == [list(pair) for pair in expected.highest]
        assert found["verdict"]["sentences"] == list(expected.verdict.sentences)
        assert self.json(run, "merge il.npz --out same.npz") == {"store": "same.npz", "examples": 100, "known": 1.0}
        found = self.json(run, "check il.npz --data things:train_set")
        assert (found["fits"], found["why"]) == (True, None)
        assert found["compared"]["field [0], float32 (6,)"] == "the same in 32 sampled examples"
        rholoss.record_plan(things.loader, things.seeded(2), store, steps=3, path="run.plan", progress=False)
        found = self.json(run, "plan run.plan --other run.plan")
        assert (found["steps"], found["n_b"], found["examples"], found["in_common"]["selections"]) == (3, 7, 100, 1.0)

    def test_a_failed_check_says_why(self, run):
        run(SCORE)
        found = self.json(run, "check il.npz --data things:relabelled", 1)
        assert (found["fits"], found["compared"]["length"]) == (False, "the same, 100 examples")
        assert "its labels, in their order, are not those" in found["why"]

    def test_a_share_says_that_it_is_not_the_whole(self, run, monkeypatch):
        monkeypatch.setattr(scoring_job, "CHUNK", 20)
        monkeypatch.setattr(scoring_job, "PIECES", 1)
        found = self.json(run, f"{SCORE} --batch-size 10 --process 1 --processes 2")
        assert found == {"store": "il.npz", "finished": False}

    def test_a_number_that_is_not_known_is_null(self, run):
        IrreducibleLossStore(np.full(3, np.nan)).save("il.npz")
        assert self.json(run, "report il.npz")["mean"] is None

    def test_an_error_is_the_same_line_and_prints_no_object(self, run):
        assert run("report nowhere.npz --json") == (1, "", "rholoss: error: nowhere.npz: no such file or directory\n")


READS = {
    "report": "report {}",
    "report, other": "report il.npz --other {}",
    "merge": "merge il.npz {} --out out.npz",
    "check": "check {} --data things:train_set",
    "plan": "plan {}",
    "plan, other": "plan run.plan --other {}",
}


@pytest.mark.parametrize("line", READS)
def test_a_file_that_cannot_be_read_is_told_in_words(line, run, things):
    run(SCORE)
    rholoss.record_plan(things.loader, things.seeded(2), IrreducibleLossStore.load("il.npz"), steps=3, path="run.plan")
    os.mkdir("folder")
    with open("damaged.npz", "wb") as damaged, open("il.npz" if "plan" not in line else "run.plan", "rb") as whole:
        damaged.write(whole.read()[:-300])
    with open("notes.txt", "w") as notes:
        notes.write("no store")
    before = files()
    other = "il.npz" if "plan" in line else "run.plan"
    expected = {
        "nowhere.npz": "nowhere.npz: no such file or directory",
        "folder": "folder: is a directory" if "plan" in line else "folder is a folder without a store.json",
        "damaged.npz": f"damaged.npz is not a {'plan' if 'plan' in line else 'store'} that can be read",
        "notes.txt": f"notes.txt is not a {'plan' if 'plan' in line else 'store'} that can be read",
        other: f"{other} is not a plan that can be read (it is a store of irreducible losses)"
        if "plan" in line
        else f"{other} is not a store that can be read (it is a plan)",
    }
    for file, message in expected.items():
        code, out, err = run(READS[line].format(file))
        assert (code, out, one_line(err)) == (1, "", True), (file, err)
        assert err.startswith(f"rholoss: error: {message}"), file
    assert files() == before


@pytest.mark.parametrize("line", ["report il.npz --plot {}", "plan run.plan --plot {}", "plan run.plan --parquet {}"])
def test_a_path_that_no_file_can_be_written_to_is_refused_before_anything_is_done(line, run):
    os.mkdir("folder")
    option = line.split()[-2]
    for path, message in {
        "no/such/file.png": f"{option}: there is no folder no/such; make it, or choose another one",
        "folder": f"{option} must be a file to write, got the folder folder",
    }.items():
        code, out, err = run(line.format(path))
        assert (code, out, one_line(err), message in err) == (2, "", True, True), err
    assert files() == ["folder"]


def test_a_module_that_ends_the_program_is_an_error(run, tmp_path):
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)")
    code, out, err = run("check il.npz --data script:x")
    assert (code, out) == (1, "")
    run(SCORE)
    code, out, err = run("check il.npz --data script:x")
    assert (code, out, one_line(err)) == (1, "", True)
    assert "--data: script cannot be imported: SystemExit: 0" in err


def test_it_is_installed_as_a_program():
    scripts = importlib.metadata.entry_points(group="console_scripts", name="rholoss")
    if not scripts:
        pytest.skip("this checkout is not installed")
    assert [script.load() for script in scripts] == [cli.main]
