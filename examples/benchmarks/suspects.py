"""How well wrong labels are found: ``store.suspects`` beside other rankings of the same predictions, on labels known to be wrong.

    python examples/benchmarks/suspects.py --data FOLDER [SETTING ...] [--seeds 3] [--mnist-errors FILE] --json FILE
    python examples/benchmarks/suspects.py --report FILE

Models fitted on two thirds of the training examples predict the rest; all rankings see these predictions and the labels. cleanlab
is not a dependency of rholoss: its rankings are left out where it is not installed. The data are those of
examples/experiments/README.md. ``--mnist-errors`` is the list of labelerrors.com: of each doubtful test image, its ``id`` and in
``mturk`` how many of five people gave it its label; it is wrong if fewer than three did.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # the folder of examples, rather than this folder

from battery.settings import Bag
from battery.texts import read_texts
from experiments import corruptions
from experiments.models import mlp
from experiments.tasks import load_task

from rholoss import IrreducibleLossStore, cross_fit, fit_irreducible_model, split

SETTINGS: dict[str, tuple[str, Any]] = {
    "CIFAR-10N aggregate": ("cifar10", "aggre"),
    "CIFAR-10N random1": ("cifar10", "random1"),
    "CIFAR-10N worse": ("cifar10", "worse"),
    "MNIST test errors": ("mnist", 0.0),
    "Fashion-MNIST, 10 % wrong": ("fashion-mnist", 0.1),
    "Fashion-MNIST, 30 % wrong": ("fashion-mnist", 0.3),
    "Newsgroups, 10 % wrong": ("newsgroups", 0.1),
    "SST-2, 10 % wrong": ("sst2", 0.1),
}
LIMIT, STEPS = 20_000, 600  # examples to rank, or to fit on for the test set; optimizer steps of a fit
RANKINGS = {  # by what they are called in the results: in the table
    "suspects": "`suspects`",
    "self_confidence": "cleanlab, self-confidence",
    "normalized_margin": "cleanlab, normalized margin",
    "confidence_weighted_entropy": "cleanlab, weighted entropy",
}
FOUND = {"suspects": "`suspects`", "find_label_issues": "cleanlab, `find_label_issues`"}


def predicted(name: str, root: Path, seed: int, errors: Path | None) -> tuple[IrreducibleLossStore, Tensor, Tensor | None]:
    """A store with all classes' predictions, which labels are wrong, (N,) bool, and the right ones, (N,), if they are known."""
    source, noise = SETTINGS[name]
    if source in ("newsgroups", "sst2"):
        texts = read_texts(source, root)
        classes = int(texts.y.max()) + 1
        some = torch.randperm(len(texts.y), generator=torch.Generator().manual_seed(seed))[:LIMIT]
        y, wrong = corruptions.wrong_labels(texts.y[some], noise, classes, seed)
        return _cross_fitted(texts.x[some], y, lambda: Bag(classes), classes, seed), wrong, texts.y[some]
    options = {"features": True} if source == "cifar10" else {}
    task = load_task(source, root, seed=seed, noise=noise, limit=LIMIT, **options)
    x, y = _read(task.train)
    make = lambda: mlp(tuple(x.shape[1:]), task.classes, depth=1)  # noqa: E731
    if noise:
        right = _read(load_task(source, root, seed=seed, limit=LIMIT, **options).train)[1]
        return _cross_fitted(x, y, make, task.classes, seed), task.flags["wrong"], right
    if errors is None:
        raise SystemExit(f"{name} needs --mnist-errors, the list of labelerrors.com")
    test = TensorDataset(*_read(task.test))
    wrong = torch.zeros(len(test), dtype=torch.bool)
    wrong[[int(each["id"]) for each in json.loads(errors.read_text()) if each["mturk"]["given"] < 3]] = True  # of five people
    fit = _fit(TensorDataset(x, y), make, seed)
    return IrreducibleLossStore.from_model(fit, test, top_classes=task.classes, progress=False), wrong, None


def _read(dataset: Any) -> tuple[Tensor, Tensor]:
    batches = list(DataLoader(dataset, batch_size=1000))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _fit(part: Any, make: Callable[[], nn.Module], seed: int) -> Any:
    torch.manual_seed(seed)
    _rest, training, validation = split(part, holdout=0.89, validation=0.1, seed=seed)
    how = {"steps": STEPS, "batch_size": 128, "on_duplicates": "ignore", "seed": seed, "progress": False}
    return fit_irreducible_model(make(), training, validation, **how)


def _cross_fitted(x: Tensor, y: Tensor, make: Callable[[], nn.Module], classes: int, seed: int) -> IrreducibleLossStore:
    data = TensorDataset(x, y)
    return cross_fit(data, lambda part: _fit(part, make, seed), 3, seed=seed, top_classes=classes, progress=False)


def measure(store: IrreducibleLossStore, wrong: Tensor, right: Tensor | None) -> dict[str, Any]:
    """Average precision and precision at the number of errors of each ranking; what is flagged, and how much of it is wrong.

    ``suggested``: of the wrong labels that ``suspects`` flags, how many there are, and for how many it suggests the right class.
    """
    assert store.predictions is not None
    quality = store.suspects().label_quality
    scores = {"suspects": quality["label_quality"]}
    flagged = {"suspects": quality["is_label_issue"]}
    labels = store.predictions.classes[:, 0].long().numpy()
    probabilities = np.zeros((len(labels), store.predictions.classes.shape[1] - 1), np.float64)
    np.put_along_axis(probabilities, store.predictions.classes[:, 1:].long().numpy(), store.predictions.probabilities[:, 1:], 1)
    probabilities /= probabilities.sum(1, keepdims=True)
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores

        for method in RANKINGS:
            if method != "suspects":
                scores[method] = get_label_quality_scores(labels, probabilities, method=method)
        flagged["find_label_issues"] = find_label_issues(labels, probabilities, n_jobs=1)
    except ImportError:
        pass
    bad = wrong.numpy()
    return {
        "examples": len(bad),
        "wrong": int(bad.sum()),
        "accuracy": float((probabilities.argmax(1) == labels).mean()),
        "ranking": {method: ranked(score, bad) for method, score in scores.items()},
        "flagged": {method: [int(flag.sum()), int((flag & bad).sum())] for method, flag in flagged.items()},
        "suggested": None if right is None else _suggested(quality["predicted_label"], flagged["suspects"] & bad, right.numpy()),
    }


def _suggested(suggested: np.ndarray, found: np.ndarray, right: np.ndarray) -> list[int]:
    return [int(found.sum()), int((suggested == right)[found].sum())]


def ranked(quality: np.ndarray, bad: np.ndarray) -> list[float]:
    """Average precision, and precision at the number of errors, of the ranking by ascending quality."""
    hits = bad[np.argsort(quality, kind="stable")]
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    return [float(precision[hits].mean()), float(precision[hits.sum() - 1])]


def report(path: Path) -> str:
    """The tables of results, as Markdown: medians over the seeds."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    by_setting = {name: [row for row in rows if row["setting"] == name] for name in SETTINGS}
    by_setting = {name: mine for name, mine in by_setting.items() if mine}
    tables = []
    for title, place in (("average precision, %", 0), ("precision among the first k, %", 1)):
        lines = [f"| {title} | wrong | {' | '.join(RANKINGS.values())} |", "|---|" + "---:|" * (1 + len(RANKINGS))]
        for name, mine in by_setting.items():
            cells = [
                _median([100 * row["ranking"][method][place] for row in mine if method in row["ranking"]]) for method in RANKINGS
            ]
            lines.append(f"| {name} | {_share(mine)} | {' | '.join(cells)} |")
        tables.append("\n".join(lines))
    columns = [f"{what}, {name}" for name in FOUND.values() for what in ("precision", "recall")]
    lines = [f"| flagged as wrong, % | {' | '.join(columns)} | suggestion right |", "|---|" + "---:|" * (len(columns) + 1)]
    for name, mine in by_setting.items():
        cells = []
        for method in FOUND:
            pairs = [(row["flagged"][method], row["wrong"]) for row in mine if method in row["flagged"]]
            cells.append(_median([100 * right / max(found, 1) for (found, right), _ in pairs]))
            cells.append(_median([100 * right / wrong for (_, right), wrong in pairs]))
        cells.append(
            _median([100 * right / max(found, 1) for found, right in (row["suggested"] for row in mine if row["suggested"])])
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n\n".join([*tables, "\n".join(lines)])


def _share(rows: list[dict[str, Any]]) -> str:
    return f"{rows[0]['wrong']:,} of {rows[0]['examples']:,}"


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.1f}" if values else ""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="How well wrong labels are found.")
    parser.add_argument("settings", nargs="*", help=f"of {', '.join(SETTINGS)} (default: all)")
    parser.add_argument("--data", type=Path, help="the folder of the data")
    parser.add_argument("--mnist-errors", type=Path, help="the list of doubtful MNIST test images of labelerrors.com")
    parser.add_argument("--seeds", type=int, default=3, help="of the corruption and the models (default: 3)")
    parser.add_argument("--json", type=Path, help="file to append the results to, a line for each")
    parser.add_argument("--report", type=Path, help="print the tables of such a file")
    options = parser.parse_args(arguments)
    if options.report:
        print(report(options.report))
        return
    if options.data is None or options.json is None or set(options.settings) - set(SETTINGS):
        parser.error(f"expected --data, --json, and settings among {', '.join(SETTINGS)}")
    torch.set_num_threads(1)
    for seed in range(options.seeds):
        for name in options.settings or SETTINGS:
            result = measure(*predicted(name, options.data, seed, options.mnist_errors))
            with options.json.open("a") as file:
                print(json.dumps({"setting": name, "seed": seed, **result}), file=file)
            print(name, seed, json.dumps(result["ranking"]["suspects"]), flush=True)


if __name__ == "__main__":
    main()
