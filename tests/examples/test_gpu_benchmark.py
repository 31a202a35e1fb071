"""The benchmark for a GPU runs without one on tiny sizes, and says what it could not do."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def gpu():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        spec = importlib.util.spec_from_file_location("gpu_benchmark", BENCHMARKS / "gpu.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


def test_without_a_gpu_it_runs_on_tiny_sizes(gpu, tmp_path, capsys):
    assert gpu.main(["--device", "cpu", "--quick", "--json", str(tmp_path / "out.json")]) == 0
    printed, found = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert list(found["tables"]) == [f"{net}, n_b {n_b}" for n_b in (2, 4) for net in ("ResNet-18", "transformer")]
    for table in found["tables"].values():
        assert list(table) == ["plain", "RHO-LOSS", "bfloat16"]
        assert set(table["plain"]["times plain"]) == {1.0}
        assert min(table["RHO-LOSS"]["ms a step"]) > 0
    assert found["tests"] == "left out"
    assert found["notes"] == []
    assert "makes the host wait: no GPU, not checked." in printed
    assert gpu.LEFT_OUT in printed


def test_a_step_trains_on_some_of_its_candidates_and_the_plain_one_on_as_many(gpu, monkeypatch):
    trained = []
    monkeypatch.setattr(gpu, "learn", lambda model, optimizer, x, y: trained.append((len(x), len(y))))
    for _, case in gpu.cases(torch.device("cpu"), quick=True):
        assert [len(index) for index, _ in case.candidates] == 4 * [10 * case.n_b]
        for step in (case.plain(), case.selecting()):
            step()
            assert trained.pop() == (case.n_b, case.n_b)


def test_a_way_that_fails_or_comes_too_late_is_noted_and_hides_no_other(gpu):
    cpu = torch.device("cpu")
    (name, case), *_ = gpu.cases(cpu, quick=True)
    measured = gpu.Measured(cpu, 0.0, float("inf"), steps=1)
    measured.add(name, case, {"nonsense": lambda n_B: {"chunk_size": -n_B}, **gpu.EAGER})
    assert list(measured.tables[name]) == ["plain", *gpu.EAGER]
    assert measured.notes[0].startswith(f"{name}, nonsense: failed: ValueError: chunk_size must be")
    late = gpu.Measured(cpu, 0.0, 0.0)
    late.add(name, case, gpu.EAGER)
    assert late.tables == {}
    assert late.notes[-1] == f"{name}, bfloat16: left out, the time is up."


def test_without_a_gpu_it_says_so_in_a_sentence(gpu):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="^There is no GPU here .*: --device cpu --quick$"):
        gpu.main([])
    with pytest.raises(SystemExit, match="--device must be cuda or cpu, got meta"):
        gpu.main(["--device", "meta"])


def test_the_tests_that_it_runs_are_those_that_need_a_gpu(gpu, monkeypatch):
    ran = []
    monkeypatch.setattr(
        gpu.subprocess,
        "run",
        lambda command, **_: (
            ran.append(command) or gpu.subprocess.CompletedProcess(command, 0, "...\n== 3 passed, 9 deselected in 2.00s ==\n", "")
        ),
    )
    assert gpu.gpu_tests(1.0) == "3 passed, 9 deselected in 2.00s"
    assert ran[0][ran[0].index("-m", 3) + 1] == "gpu"
