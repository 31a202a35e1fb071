"""The study of dirty holdouts runs end to end on small files in the published formats, and its tables say what its lines say."""

import gzip
import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from studies.holdout import report, run, tables
from studies.holdout.results import RESULTS, read_lines
from studies.holdout.task import load_task

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "dirty_holdout.md"


@pytest.fixture(autouse=True)
def threads_as_they_were():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def write_fashion_mnist(root, n=600):
    folder = root / "fashion-mnist"
    folder.mkdir()
    generator = np.random.default_rng(0)
    means = generator.integers(0, 200, (10, 28, 28))
    for part, count in (("train", n), ("t10k", n // 2)):
        labels = generator.integers(0, 10, count).astype(np.uint8)
        images = np.clip(means[labels] + generator.integers(0, 40, (count, 28, 28)), 0, 255).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))


def write_cifar10(root, n=40):
    generator = np.random.default_rng(0)
    batches = root / "cifar10" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    (root / "cifar10n").mkdir()
    true = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = generator.integers(0, 10, n).tolist()
        images = generator.integers(0, 256, (n, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels}, protocol=2))
        true += labels if name != "test_batch" else []
    wrong = {"worse_label": 80, "aggre_label": 20, "random_label1": 40, "random_label2": 40, "random_label3": 40}
    labels = {name: np.array([(y + (i < count)) % 10 for i, y in enumerate(true)]) for name, count in wrong.items()}
    torch.save(labels | {"clean_label": np.array(true)}, root / "cifar10n" / "CIFAR-10_human.pt")
    return torch.tensor(true)


def test_it_runs_resumes_and_reports(tmp_path, capsys):
    write_fashion_mnist(tmp_path)
    results, plots = tmp_path / "lines.jsonl", tmp_path / "plots"
    rows = [
        "uniform",
        "dirty holdout",
        "cross-fit",
        "cross-fit, gate",
        "cross-fit, gate, bounded",
        "cross-fit, gate, no selection",
    ]
    options = ["--data", str(tmp_path), "--noise", "0.3", "--hidden", "16", "--evaluate-every", "4"]
    options += ["--steps", "20", "--uniform-steps", "40", "--work", str(tmp_path / "work"), "--results", str(results)]
    run.main([*options, "--seeds", "0", "--only", *rows[:3]])
    run.main([*options, "--seeds", "0", "1", "--only", *rows])
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["seed"], line["variant"]) for line in lines] == [(seed, name) for seed in (0, 1) for name in rows]
    assert all(line["rate"] == 0.3 and line["trained"] == 32 * line["steps"] for line in lines)
    assert {line["variant"]: line["scored"] for line in lines} == dict.fromkeys(rows, 0) | dict.fromkeys(rows[1:5], 20 * 320)
    assert all(len(line["accuracy"]) == line["steps"] // 4 for line in lines)
    assert [line["indicators"]["agreement"] > 0.5 for line in lines if "making" in line] == [True] * 10
    capsys.readouterr()
    report.main(["--results", str(results), "--plots", str(plots)])
    printed = capsys.readouterr().out
    assert "## Fashion-MNIST, 30 % wrong\n" in printed
    assert "30.0 % of the labels are wrong." in printed
    assert all(f"| {name} |" in printed for name in rows)
    assert all((plots / f"dirty_holdout_{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("accuracy", "mechanism"))


def test_human_labels_are_read_as_they_are_published(tmp_path):
    true = write_cifar10(tmp_path)
    work = tmp_path / "work"
    task = load_task(tmp_path, work, "CIFAR-10", "worse", seed=0)
    assert task.true.equal(true)
    assert task.is_wrong.nonzero().flatten().tolist() == list(range(80))
    assert task.x.shape == (200, 640)
    assert task.x.mean(0).abs().max() < 1e-4
    again = load_task(tmp_path, work, "CIFAR-10", "aggre", seed=0)
    assert again.x.equal(task.x)
    assert int(again.is_wrong.sum()) == 20


def test_the_noise_is_that_of_the_committed_lines(tmp_path):
    """As drawn when the lines were made: a permutation says which labels are wrong, then each example draws another class."""
    write_fashion_mnist(tmp_path)
    task = load_task(tmp_path, tmp_path, "Fashion-MNIST", "0.3", seed=2)
    generator = torch.Generator().manual_seed(10_002)
    is_wrong = torch.zeros(600, dtype=torch.bool)
    is_wrong[torch.randperm(600, generator=generator)[:180]] = True
    other = (task.true + torch.randint(1, 10, (600,), generator=generator)) % 10
    assert task.is_wrong.equal(is_wrong)
    assert task.given.equal(torch.where(is_wrong, other, task.true))


def line(variant, seed, accuracy, **more):
    made = {"data": "Fashion-MNIST", "noise": "0.3", "rate": 0.3, "variant": variant, "seed": seed, "evaluate_every": 10}
    made |= {"accuracy": accuracy, "wrong": [0.2, 0.4], "steps": 10 * len(accuracy), "seconds": 1.0 * len(accuracy), "scored": 0}
    return made | more


def test_the_tables_count_from_the_lines():
    lines = []
    for seed, shift in ((0, 0.0), (1, 0.01), (2, -0.01)):
        best = 0.8 + shift
        lines.append(line("uniform", seed, [0.5, 0.6, 0.7, best, 0.7]))
        made = {"scored": 6400, "making": "cross-fit", "irreducible_seconds": 7.0, "irreducible_accuracy": 0.52}
        made["indicators"] = {
            "mean": 1.5,
            "validation_loss": 1.4,
            "worse_than_a_guess": 0.3,
            "accuracy": 0.6,
            "confidence_minus_accuracy": -0.02,
            "agreement": 0.97,
        }
        lines.append(line("cross-fit, gate", seed, [0.9 if seed else 0.5, 0.9], **made))
        lines.append(line("dirty holdout", seed, [0.5, 0.5], **made | {"making": "dirty holdout"}))
    parts = tables.by_name(lines)
    rows = [text[2:-2].split(" | ") for text in parts["Fashion-MNIST, 30 % wrong"].splitlines() if text.startswith("| ")]

    def cells(name):
        return [cell for row in rows if row[0] == name for cell in row[1:]]

    assert cells("uniform") == ["40", "1.0", "0", "4.0", "4.0", "80.0 (79.0 to 81.0)", "66.0 (65.8 to 66.2)", "30.0", "3"]
    assert cells("cross-fit, gate")[:6] == ["10 (10 to 20)", "4.0 (2.0 to 4.0)", "3,200", "1.0", "8.0", "90.0"]
    assert cells("dirty holdout")[:5] == ["never", "never", "never", "never", "never"]
    steps, points = parts["against uniform"].split("\n\n")
    assert "| cross-fit, gate | 4.0 |" in steps
    assert "| dirty holdout | never |" in steps
    assert "| cross-fit, gate | +23.8 |" in points
    assert "| dirty holdout | -16.0 |" in points
    assert "wrong: dirty holdout | 52.0 | 50.0 |  |  | 66.0 |" in parts["where selection ends"]
    assert "wrong: cross-fit | 1.50 (1.40) | 30.0 | 60.0 | -2.0 | 0.97 |" in parts["signs"]
    assert "wrong: cross-fit |  | 4.0 |  |" in parts["signs"]
    assert "wrong: cross-fit | 30 |  | 30 |  |" in parts["signs"]


def test_the_page_shows_the_tables_of_the_committed_results():
    page = PAGE.read_text()
    parts = tables.by_name(read_lines(RESULTS))
    assert {"against uniform", "where selection ends", "signs"} <= set(re.findall(r"<!-- study (.+?) -->", page))
    assert tables.updated(page, parts) == page, "run examples/studies/holdout/report.py --update docs/pages/dirty_holdout.md"
