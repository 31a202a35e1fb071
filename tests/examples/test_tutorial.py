"""The tutorial notebook runs from top to bottom, shows what its text says, and is committed as it was run."""

import gzip
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "examples" / "tutorial.ipynb"
BEFORE = "import warnings; warnings.simplefilter('error')"
AFTER = """
import json
warnings.simplefilter("default")  # the kernel's own, when it is shut down
is_wrong_among = {name: of.float().mean().item() for name, of in {
    "never selected": is_wrong[log.selected == 0], "selected most": is_wrong[log.selected.topk(100).indices],
    "highest irreducible loss": is_wrong[irreducible_loss.topk(100).indices],
}.items()}
runs = {name: [{run.method: vars(run) for run in seed} for seed in results]
        for name, results in {"noisy": noisy, "clean": clean, "dirty": dirty}.items()}
print(json.dumps({"shares": shares, "is_wrong_among": is_wrong_among, "ratios": ratios, "runs": runs, "same": same,
                  "options": [SEEDS, KEEP, N_B, STEPS]}))
"""


def cells(notebook, kind="code"):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def text_of(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def kinds(notebook):
    """What each code cell has put out: text to which stream, pictures, or errors."""
    found = {}
    for cell in cells(notebook):
        types = [output.get("name") or output["output_type"] for output in cell["outputs"]]
        found[cell["id"]] = types, ["image/png" in output.get("data", {}) for output in cell["outputs"]]
    return found


@pytest.fixture(scope="module")
def committed():
    return json.loads(TUTORIAL.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook as it comes out of a folder with nothing in it, with every warning an error; and its facts."""
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    folder = tmp_path_factory.mktemp("tutorial")
    work = folder / "work"
    work.mkdir()
    own = {name: str(folder / name.lower()) for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")}
    environment = {name: value for name, value in os.environ.items() if name not in ("FASHION_MNIST", "MPLBACKEND")}
    command = [sys.executable, str(ROOT / "tests" / "execute_notebook.py"), str(TUTORIAL), "--out", str(folder / "out.ipynb")]
    done = subprocess.run(
        [*command, "--timeout", "300", "--before", BEFORE, "--after", AFTER],
        capture_output=True,
        text=True,
        cwd=work,
        env=environment | own,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert not list(work.iterdir()), "the notebook left files where it ran"
    notebook = json.loads((folder / "out.ipynb").read_text(encoding="utf-8"))
    facts = json.loads(text_of(notebook["cells"].pop()))
    del notebook["cells"][0]
    return notebook, facts


@pytest.fixture(scope="module")
def facts(executed):
    return executed[1]


def over_seeds(facts, name, method, what):
    return statistics.median(what(seed[method]) for seed in facts["runs"][name])


def best(run):
    return max(run["right"])


def test_it_runs_without_an_error_or_a_warning(executed):
    outputs = [output for cell in cells(executed[0]) for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} == {"stream", "display_data", "execute_result"}
    assert {output["name"] for output in outputs if output["output_type"] == "stream"} == {"stdout"}


def test_few_wrong_labels_are_selected(facts):
    shares = facts["shares"]
    assert shares["wrong/data"] == pytest.approx(0.3, abs=0.001)
    assert shares["wrong/selected"] < 0.1
    for seed in facts["runs"]["noisy"]:
        assert seed["uniform"]["wrong"] == pytest.approx(30, abs=0.1)
        assert seed["RHO-LOSS"]["wrong"] < 10


def test_the_pictures_are_of_what_their_titles_say(facts):
    among = facts["is_wrong_among"]
    assert among["highest irreducible loss"] > 0.9
    assert among["never selected"] > 0.5
    assert among["selected most"] < 0.05


def test_three_seeds_or_more_are_compared_at_the_same_schedule(facts):
    seeds, keep, n_b, steps = facts["options"]
    assert (keep, n_b) == (0.1, 32)
    for runs in facts["runs"].values():
        assert len(runs) == seeds >= 3
        assert {run["steps"][-1] for seed in runs for run in seed.values()} == {steps}


def test_fewer_steps_are_needed_with_wrong_labels_and_the_ratio_is_printed(executed, facts):
    assert min(facts["ratios"]) > 1
    assert statistics.median(facts["ratios"]) > 1.5
    printed = next(text_of(cell) for cell in cells(executed[0]) if cell["id"] == "noisy")
    low, mid, high = (f"{of(facts['ratios']):.1f}" for of in (min, statistics.median, max))
    assert f"RHO-LOSS needs {mid} ({low} to {high}) times fewer steps to the target." in printed


def test_what_got_worse_is_printed(executed, facts):
    for seed in facts["runs"]["noisy"]:
        assert seed["RHO-LOSS"]["seconds"][-1] > seed["uniform"]["seconds"][-1]
    for name in ("noisy", "clean", "dirty"):
        printed = next(text_of(cell) for cell in cells(executed[0]) if cell["id"] == name)
        assert "seconds to target" in printed
        assert re.search(r"a step takes \d.* times the seconds of a uniform step", printed)


def test_on_clean_data_the_end_is_no_higher(facts):
    assert over_seeds(facts, "clean", "RHO-LOSS", best) < over_seeds(facts, "clean", "uniform", best) + 0.5


def test_a_dirty_holdout_does_harm_and_cross_fit_with_a_gate_mends_it(facts):
    uniform, plain, gated = (over_seeds(facts, "dirty", name, best) for name in ("uniform", "dirty holdout", "cross-fit, gate"))
    assert plain < uniform - 1
    assert gated > plain + 1
    assert gated > uniform - 2
    for seed in facts["runs"]["dirty"]:
        assert seed["cross-fit, gate"]["wrong"] < seed["dirty holdout"]["wrong"] < 35


def test_the_resumed_run_selects_the_same(facts):
    assert facts["same"] == [True] * 2


def test_it_is_committed_as_it_was_run(executed, committed):
    assert [cell["execution_count"] for cell in cells(committed)] == list(range(1, len(cells(committed)) + 1))
    assert kinds(committed) == kinds(executed[0])


def test_every_cell_that_shows_something_is_committed_with_it():
    committed = json.loads(TUTORIAL.read_text(encoding="utf-8"))
    for cell in cells(committed):
        assert cell["execution_count"], f"{cell['id']} was not run; make tutorial runs the notebook"
        source = "".join(cell["source"])
        shows = re.search(r"^(for .*\n +)?(print|show|plot_\w+|plt\.show|report\.plot)\(", source, re.MULTILINE)
        assert bool(shows) == bool(cell["outputs"]), cell["id"]
    assert sum("image/png" in output.get("data", {}) for cell in cells(committed) for output in cell["outputs"]) >= 10


def test_what_is_committed_is_small_and_says_nothing_of_the_machine(committed):
    text = TUTORIAL.read_text(encoding="utf-8")
    assert len(text) < 1_500_000
    assert committed["metadata"]["language_info"] == {"name": "python"}
    words = re.sub(r'"image/png": "[^"]+"', "", text)
    assert "image/png" not in words
    assert not re.search(r"/(home|root|tmp|usr|work|Users)/|[A-Z]:\\\\|site-packages|[Ww]arning|Traceback|TODO", words)


def test_its_cells_are_short(committed):
    for cell in cells(committed):
        assert len(cell["source"]) <= 22, cell["id"]


def test_its_links_lead_somewhere(committed):
    links = re.findall(r"\]\(([^)]+)\)", "".join("".join(cell["source"]) for cell in cells(committed, "markdown")))
    assert links
    for link in links:
        assert link.startswith("https://") or (TUTORIAL.parent / link).exists(), link


def test_it_reads_fashion_mnist_from_a_folder(committed, tmp_path):
    images, labels = bytes(range(2 * 28)) * 28, bytes([3, 9])
    header = bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 28, 0, 0, 0, 28])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(header + images)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2]) + labels))
    names = {"gzip": gzip, "torch": torch, "Path": Path, "FASHION_MNIST": str(tmp_path)}
    for cell in cells(committed):
        if cell["id"] in ("read-fashion-mnist", "read-images"):
            exec("".join(cell["source"]), names)
    assert names["images"].shape == (2, 28, 28)
    assert names["labels"].tolist() == [3, 9]
    assert names["images"].flatten().tolist() == pytest.approx([value / 255 for value in images])
