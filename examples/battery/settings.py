"""The settings of the battery: data, what is wrong with them, what is trusted, and the network in training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from experiments import corruptions
from experiments.models import cnn, mlp
from experiments.tasks import load_task
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from battery.texts import LENGTH, WORDS, read_texts
from rholoss.isolation import derived_seed

Pair = tuple[Tensor, Tensor]
FIVE, THREE = (0, 1, 2, 3, 4), (0, 1, 2)


@dataclass(frozen=True)
class Setting:
    """What is compared on.

    Attributes:
        data: the name of the data set.
        trusted: number of trusted examples.
        model: ``"mlp"``, ``"cnn"``, ``"bag"`` or ``"transformer"``.
        steps: of a run.
        seeds: to repeat it with.
        options: of ``load_task``; of texts, ``noise`` alone.
        tail: how many times as many examples the first class has as the last; 1: as they are.
        auto: options of ``rholoss.auto``.
        dirty: whether at least a fifth of the labels is wrong or not asked for.
    """

    data: str
    trusted: int
    model: str = "mlp"
    steps: int = 1500
    seeds: tuple[int, ...] = FIVE
    options: dict[str, Any] = field(default_factory=dict)
    tail: int = 1
    auto: dict[str, Any] = field(default_factory=dict)
    dirty: bool = False


def _noise(share: Any, **options: Any) -> dict[str, Any]:
    return {"options": {"noise": share, **options}, "dirty": share == "worse" or (not isinstance(share, str) and share >= 0.2)}


SETTINGS = {
    "Fashion, clean": Setting("fashion-mnist", 1000),
    "Fashion, 10 % wrong": Setting("fashion-mnist", 1000, **_noise(0.1)),
    "Fashion, 30 % wrong": Setting("fashion-mnist", 300, **_noise(0.3)),
    "Fashion, 30 % wrong, more trusted": Setting("fashion-mnist", 1000, **_noise(0.3)),
    "Fashion, 30 % wrong, nothing trusted": Setting("fashion-mnist", 0, **_noise(0.3)),
    "Fashion, 30 % wrong, CNN": Setting("fashion-mnist", 10_000, "cnn", 1000, THREE, **_noise(0.3)),
    "Fashion, 30 % of similar classes": Setting("fashion-mnist", 1000, **_noise(0.3, noise_kind="similar")),
    "Fashion, half of the classes not asked for": Setting(
        "fashion-mnist", 1000, options={"relevant": 5}, auto={"only_trusted_classes": True}, dirty=True
    ),
    "Fashion, classes 50 to 1": Setting("fashion-mnist", 0, tail=50),
    "Fashion, half are copies": Setting("fashion-mnist", 1000, options={"duplicates": 1.0}),
    "MNIST, 30 % wrong, nothing trusted": Setting("mnist", 0, **_noise(0.3)),
    "CIFAR-10N worse, 40 % wrong": Setting("cifar10", 1000, **_noise("worse", features=True)),
    "CIFAR-10N random1, 17 % wrong, nothing trusted": Setting("cifar10", 0, **_noise("random1", features=True)),
    "CIFAR-10N aggregate, 9 % wrong": Setting("cifar10", 300, **_noise("aggre", features=True)),
    "Newsgroups, clean, nothing trusted": Setting("newsgroups", 0, "bag"),
    "Newsgroups, 30 % wrong": Setting("newsgroups", 300, "bag", **_noise(0.3)),
    "Reuters, 52 classes, 30 % wrong, nothing trusted": Setting("reuters", 0, "bag", **_noise(0.3)),
    "Tweets, as labelled": Setting("tweets", 1000, "bag"),
    "SST-2, clean, transformer": Setting("sst2", 300, "transformer", 1000, THREE),
    "SST-2, 30 % wrong, nothing trusted": Setting("sst2", 0, "bag", **_noise(0.3)),
    "CoLA, clean": Setting("cola", 300, "bag"),
    "Census, clean": Setting("census", 1000),
    "Census, 30 % wrong": Setting("census", 300, **_noise(0.3)),
    "Digits, clean, nothing trusted": Setting("digits", 0, steps=600),
    "Digits, 30 % wrong": Setting("digits", 100, steps=600, **_noise(0.3)),
}


@dataclass(frozen=True)
class Data:
    """The examples of a setting: inputs and labels of each part.

    Attributes:
        train: with the labels to train on.
        trusted: with right labels, never trained on by the model; None if there are none.
        test: to measure on.
        classes: C.
        metric: ``"accuracy"`` or ``"auc"``.
        wrong: share of the training labels that are wrong; NaN if unknown.
    """

    train: Pair
    trusted: Pair | None
    test: Pair
    classes: int
    metric: str
    wrong: float


def load(setting: Setting, root: Path, seed: int) -> Data:
    """Read, divide and corrupt the data of a setting."""
    if setting.data in LENGTH:
        return _texts(setting, root, seed)
    task = load_task(setting.data, root, seed=seed, **setting.options)
    train = _read(task.train)
    held = _read(task.holdout)  # type: ignore[arg-type]
    if setting.tail > 1:
        kept = _long_tail(train[1], task.classes, setting.tail, seed)
        train = (train[0][kept], train[1][kept])
    wrong = task.flags.get("wrong")
    trusted = (held[0][: setting.trusted], held[1][: setting.trusted]) if setting.trusted else None
    if setting.trusted > len(held[1]):
        extra = _read(task.validation)
        trusted = (torch.cat([held[0], extra[0]])[: setting.trusted], torch.cat([held[1], extra[1]])[: setting.trusted])
    share = 0.0 if wrong is None else float(wrong.float().mean())
    return Data(train, trusted, _read(task.test), task.classes, task.metric, share)


def make_model(setting: Setting, data: Data) -> Callable[[], nn.Module]:
    """A function that makes the network of a setting."""
    shape = tuple(data.train[0].shape[1:])
    kinds: dict[str, Callable[[], nn.Module]] = {
        "mlp": lambda: mlp(shape, data.classes, depth=1),
        "cnn": lambda: cnn(shape, data.classes, widths=(16, 32, 64)),
        "bag": lambda: Bag(data.classes),
        "transformer": lambda: Transformer(data.classes, shape[0]),
    }
    return kinds[setting.model]


class Bag(nn.Module):
    """The mean of a text's word embeddings, and one hidden layer."""

    def __init__(self, classes: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(WORDS, width, padding_idx=0, mode="mean")
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.head = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, classes))

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.embedding(ids))
        return logits


class Transformer(nn.Module):
    """Two layers of a transformer, from scratch, and the mean over a text's words."""

    def __init__(self, classes: int, length: int, width: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.position = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        ids = ids[:, : int((ids != 0).sum(1).max())]
        no_word = ids == 0
        hidden = self.layers(self.embedding(ids) + self.position[: ids.shape[1]], src_key_padding_mask=no_word)
        mean = hidden.masked_fill(no_word[..., None], 0).sum(1) / (~no_word).sum(1, keepdim=True)
        logits: Tensor = self.head(mean)
        return logits


def _texts(setting: Setting, root: Path, seed: int) -> Data:
    texts = read_texts(setting.data, root)
    classes = int(texts.y.max()) + 1
    order = torch.randperm(len(texts.y), generator=torch.Generator().manual_seed(derived_seed("texts", seed)))
    test = texts.test
    if test is None:
        test, order = (texts.x[order[:4000]], texts.y[order[:4000]]), order[4000:]
    held, order = order[: setting.trusted], order[max(setting.trusted, len(order) // 10) :]  # a tenth is nobody's, or trusted
    y, wrong = corruptions.wrong_labels(texts.y[order], setting.options.get("noise", 0.0), classes, seed)
    trusted = (texts.x[held], texts.y[held]) if setting.trusted else None
    return Data((texts.x[order], y), trusted, test, classes, "accuracy", float(wrong.float().mean()))


def _read(dataset: Dataset[Any]) -> Pair:
    batches = list(DataLoader(dataset, batch_size=1000))
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def _long_tail(labels: Tensor, classes: int, ratio: int, seed: int) -> Tensor:
    """Positions of examples such that class c has ratio ** (-c / (C - 1)) as many as class 0."""
    generator = torch.Generator().manual_seed(derived_seed("tail", seed))
    most = int(torch.bincount(labels).max())
    kept = []
    for c in range(classes):
        mine = (labels == c).nonzero().flatten()
        count = round(most * ratio ** (-c / (classes - 1)))
        kept.append(mine[torch.randperm(len(mine), generator=generator)[:count]])
    return torch.cat(kept).sort().values
