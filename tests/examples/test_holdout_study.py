"""The study of dirty holdouts runs end to end on small files in the published formats, and its tables say what its lines say."""

import gzip
import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    for name in ("holdout_study", "noisy_data"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import holdout_study

    yield holdout_study
    for name in ("holdout_study", "noisy_data"):
        sys.modules.pop(name, None)


def write_fashion_mnist(folder, n=600):
    generator = np.random.default_rng(0)
    means = generator.integers(0, 200, (10, 28, 28))
    for part, count in (("train", n), ("t10k", n // 2)):
        labels = generator.integers(0, 10, count).astype(np.uint8)
        images = np.clip(means[labels] + generator.integers(0, 40, (count, 28, 28)), 0, 255).astype(np.uint8)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(head + values.tobytes()))


def write_cifar10(folder, n=40):
    generator = np.random.default_rng(0)
    batches = folder / "cifar-10-batches-py"
    batches.mkdir()
    true = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        labels = generator.integers(0, 10, n).tolist()
        images = generator.integers(0, 256, (n, 3072), dtype=np.uint8)
        (batches / name).write_bytes(pickle.dumps({b"data": images, b"labels": labels}, protocol=2))
        true += labels if name != "test_batch" else []
    wrong = {"worse_label": 80, "aggre_label": 20, "random_label1": 40, "random_label2": 40, "random_label3": 40}
    labels = {name: np.array([(y + (i < count)) % 10 for i, y in enumerate(true)]) for name, count in wrong.items()}
    torch.save(labels | {"clean_label": np.array(true)}, folder / "CIFAR-10_human.pt")
    return batches, folder / "CIFAR-10_human.pt", torch.tensor(true)


def test_it_runs_resumes_and_reports(study, tmp_path, capsys):
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
    options = ["--fashion-mnist", str(tmp_path), "--noise", "0.3", "--hidden", "16", "--evaluate-every", "4"]
    options += ["--steps", "20", "--uniform-steps", "40", "--work", str(tmp_path / "work"), "--results", str(results)]
    study.main(["run", *options, "--seeds", "0", "--only", *rows[:3]])
    study.main(["run", *options, "--seeds", "0", "1", "--only", *rows])
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(line["seed"], line["variant"]) for line in lines] == [(seed, name) for seed in (0, 1) for name in rows]
    assert all(line["rate"] == 0.3 and line["trained"] == 32 * line["steps"] for line in lines)
    assert {line["variant"]: line["scored"] for line in lines} == dict.fromkeys(rows, 0) | dict.fromkeys(rows[1:5], 20 * 320)
    assert all(len(line["accuracy"]) == line["steps"] // 4 for line in lines)
    assert [line["indicators"]["agreement"] > 0.5 for line in lines if "making" in line] == [True] * 10
    capsys.readouterr()
    study.main(["report", "--results", str(results), "--plots", str(plots)])
    printed = capsys.readouterr().out
    assert "Fashion-MNIST, 30 % wrong: 30.0 % of the labels are wrong" in printed
    assert all(f"| {name} |" in printed for name in rows)
    assert all((plots / f"dirty_holdout_{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("accuracy", "mechanism"))


def test_human_labels_are_read_as_they_are_published(study, tmp_path):
    batches, labels, true = write_cifar10(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    options = study.argparse.Namespace(cifar10=batches, cifar10n=labels, work=work)
    task = study.load_task(options, "CIFAR-10", "worse", seed=0)
    assert task.data.true.equal(true)
    assert task.is_wrong.nonzero().flatten().tolist() == list(range(80))
    assert task.data.x.shape == (200, 640)
    assert task.data.x.mean(0).abs().max() < 1e-4
    again = study.load_task(options, "CIFAR-10", "aggre", seed=0)
    assert again.data.x.equal(task.data.x)
    assert int(again.is_wrong.sum()) == 20


def test_wrong_labels_are_another_class_and_as_many_as_said(study):
    true = torch.randint(10, (1000,), generator=torch.Generator().manual_seed(0))
    given = sys.modules["noisy_data"].wrong_labels(true, 0.3, seed=1)
    assert int((given != true).sum()) == 300
    assert given.min() >= 0
    assert given.max() <= 9


def line(variant, seed, accuracy, **more):
    made = {"data": "Fashion-MNIST", "noise": "0.3", "rate": 0.3, "variant": variant, "seed": seed, "evaluate_every": 10}
    made |= {"accuracy": accuracy, "wrong": [0.2, 0.4], "steps": 10 * len(accuracy), "seconds": 1.0 * len(accuracy), "scored": 0}
    return made | more


def test_the_tables_count_from_the_lines(study):
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
    printed = study.tables(lines).splitlines()
    table = printed[next(i for i, text in enumerate(printed) if "30.0 % of the labels" in text) :]
    uniform, gate, dirty = (
        next(text for text in table if text.startswith(f"| {name} |"))[2:-2].split(" | ")
        for name in ("uniform", "cross-fit, gate", "dirty holdout")
    )
    assert uniform == ["uniform", "40", "1.0", "0", "4.0", "4.0", "80.0 (79.0 to 81.0)", "66.0 (65.8 to 66.2)", "30.0", "3"]
    assert gate[:4] == ["cross-fit, gate", "10 (10 to 20)", "4.0 (2.0 to 4.0)", "3,200"]
    assert gate[4:7] == ["1.0", "8.0", "90.0"]
    assert dirty[1:6] == ["never", "0.0", "never", "never", "never"]
    assert any(text.startswith("| cross-fit, gate | 4.0 x; +23.8 |") for text in printed)
    assert any(text.startswith("| dirty holdout | never; -16.0 |") for text in printed)
    assert any(text.endswith("| dirty holdout | 52.0 | 50.0 |  |  | 66.0 |") for text in printed)
    assert any("| cross-fit | 1.50 | 1.40 | 30.0 | 60.0 | -2.0 | 0.97 | 30 |" in text for text in printed)


@pytest.mark.parametrize("wrong", [[], ["--cifar10", "x"], ["--fashion-mnist", "x", "--evaluate-every", "0"]])
def test_it_says_what_it_needs(study, wrong, capsys):
    with pytest.raises(SystemExit):
        study.main(["run", *wrong])
    assert "expected --" in capsys.readouterr().err
