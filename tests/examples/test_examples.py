"""The examples run, the demo's numbers come from its runs, and adopting rholoss is three lines."""

import difflib
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(path, *arguments, cwd):
    return subprocess.run([sys.executable, str(path), *arguments], capture_output=True, text=True, cwd=cwd)


def module(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


def code_of(name):
    """An example's lines of code, without its docstring and blank lines."""
    text = re.sub(r'^""".*?"""\n', "", (EXAMPLES / name).read_text(), flags=re.DOTALL)
    return [line for line in text.splitlines() if line.strip()]


def added_lines():
    difference = list(difflib.ndiff(code_of("plain_loop.py"), code_of("rholoss_loop.py")))
    assert not [line for line in difference if line.startswith("- ")], "a line of the plain loop had to change"
    return [line[2:] for line in difference if line.startswith("+ ")]


def test_adopting_rholoss_is_three_lines():
    added = added_lines()
    assert len(added) == 3
    assert [line.split("(")[0].split(" =")[0] for line in added] == [
        "from rholoss import IrreducibleLossStore, RhoLossSelector",
        "store",
        "loader",
    ]


def test_the_readme_shows_those_three_lines():
    shown = re.search(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    assert [line[2:] for line in shown.splitlines() if line.startswith("+ ")] == added_lines()
    rest = [line[2:] for line in shown.splitlines() if not line.startswith("+ ") and line.strip()]
    assert not [line for line in rest if line not in code_of("plain_loop.py")]


def test_the_loops_run_and_fewer_steps_go_as_far(tmp_path):
    outcomes = []
    for name in ("plain_loop.py", "rholoss_loop.py"):
        done = run(EXAMPLES / name, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        accuracy, steps = re.findall(r"([\d.]+)% of the test digits are right after ([\d,]+) steps", done.stdout)[-1]
        outcomes.append((float(accuracy), int(steps.replace(",", ""))))
    (plain, plain_steps), (selected, selected_steps) = outcomes
    assert plain_steps / selected_steps == 8
    assert selected > plain


def test_the_demo_prints_what_its_runs_did(tmp_path):
    done = run(EXAMPLES / "quickstart.py", "--seeds", "2", "--steps", "60", "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [(r["method"], r["seed"]) for r in runs] == [("uniform", 0), ("rho_loss", 0), ("uniform", 1), ("rho_loss", 1)]
    assert all(r["steps"] == list(range(5, 61, 5)) for r in runs)
    assert all(r["seconds"] == sorted(r["seconds"]) and r["seconds"][0] > 0 for r in runs)
    assert [r["examples_trained"] for r in runs] == [60 * 32] * 4
    assert [r["examples_scored"] for r in runs] == [0, 60 * 320, 0, 60 * 320]
    best = [f"{100 * max(r['accuracy']):.1f}" for r in runs if r["method"] == "uniform"]
    line = next(line for line in done.stdout.splitlines() if line.startswith("best test accuracy"))
    assert f"({min(best)} to {max(best)})" in line
    assert (tmp_path / "out" / "accuracy.png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_counts_steps_to_a_target_from_the_evaluations():
    quickstart = module("quickstart")
    uniform = quickstart.Run("uniform", 0, [5, 10, 15], [1.0, 2.0, 3.0], [0.5, 0.9, 0.91], 96, 0, 0.3, 0.0)
    rho = quickstart.Run("rho_loss", 0, [5, 10, 15], [2.0, 4.0, 6.0], [0.92, 0.95, 0.99], 96, 960, 0.1, 7.0)
    text = quickstart.table([uniform, rho], 0.3)
    assert re.search(r"steps to uniform's best accuracy - 2 points +10 \(10 to 10\) +5 \(5 to 5\)", text)
    assert re.search(r"examples scored until then +0 \(0 to 0\) +320 \(320 to 320\)", text)
    assert re.search(r"model included +2.00 \(2.00 to 2.00\) +9.00", text)
    assert "needs 2.0 (2.0 to 2.0) times fewer steps; each costs 2.0" in text


def test_the_demos_wrong_labels_are_another_class_and_as_many_as_said():
    digits = module("quickstart").split_digits(noise=0.3, seed=0)
    clean = module("quickstart").split_digits(noise=0.0, seed=0)
    differ = digits.training.tensors[1] != clean.training.tensors[1]
    assert differ.equal(digits.is_wrong)
    assert int(differ.sum()) == round(0.3 * len(digits.training))
    everything = [
        tuple(x.tolist()) for part in (digits.holdout, digits.validation, digits.training, digits.test) for x in part.tensors[0]
    ]
    assert len(everything) == 1797


@pytest.mark.parametrize("wrong", [("--seeds", "0"), ("--noise", "1.5"), ("--steps", "1"), ("--keep", "2")])
def test_the_demo_refuses_options_that_make_no_sense(wrong, tmp_path):
    done = run(EXAMPLES / "quickstart.py", *wrong, cwd=tmp_path)
    assert done.returncode != 0
    assert "expected" in done.stderr or "must be" in done.stderr
    assert not (tmp_path / "results" / "quickstart" / "results.json").exists()
