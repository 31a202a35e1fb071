"""Models: small ones that are here, and others by name from torchvision, timm and transformers."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.packages import imported

if TYPE_CHECKING:
    from experiments.tasks import Task

BLOCKS = {"resnet8": (1, 1, 1), "resnet18": (2, 2, 2, 2), "resnet34": (3, 4, 6, 3), "resnet50": (3, 4, 6, 3)}
TORCHVISION = {"vgg11_bn": 32, "googlenet": 32, "inception_v3": 75, "mobilenet_v2": 32, "densenet121": 32}  # least pixels
HERE = ("linear", "mlp", "small", "cnn", "vgg", "coarse", "shifted", *BLOCKS)
TOGETHER = 8  # sentences that go through a transformer together, on a CPU
IMAGES = (*HERE, *(f"torchvision/{name}" for name in TORCHVISION), "timm/NAME")


def linear(shape: tuple[int, ...], classes: int) -> nn.Module:
    """One layer."""
    return nn.Sequential(nn.Flatten(), nn.Linear(_size(shape), classes))


def mlp(shape: tuple[int, ...], classes: int, width: int = 512, depth: int = 3, dropout: float = 0.0) -> nn.Module:
    """Layers of one width, three of 512 as in the paper."""
    sizes = [_size(shape)] + [width] * depth
    layers = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise(sizes)]
    return nn.Sequential(nn.Flatten(), *(module for layer in layers for module in layer), nn.Linear(sizes[-1], classes))


def cnn(shape: tuple[int, ...], classes: int, widths: tuple[int, int, int] = (64, 128, 256), dropout: float = 0.0) -> nn.Module:
    """Three convolutions and three layers: the paper's code's small network for images, for any size from 22 pixels."""
    layers: list[nn.Module] = []
    for before, after in pairwise((shape[0], *widths)):
        layers += [nn.Conv2d(before, after, 3), nn.Dropout2d(dropout), nn.MaxPool2d(2), nn.ReLU()]
    head = [nn.Linear(4 * widths[-1], 128), nn.Dropout(dropout), nn.ReLU(), nn.Linear(128, 256), nn.Dropout(dropout), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(2), nn.Flatten(), *head, nn.Linear(256, classes))


def vgg(shape: tuple[int, ...], classes: int, widths: tuple[int, int] = (48, 64)) -> nn.Module:
    """Two pairs of convolutions of 3 x 3, a pooling after each, and two layers: 59 MFLOPs for an image of 28 x 28."""
    layers: list[nn.Module] = []
    for before, after in pairwise((shape[0], *widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.Conv2d(after, after, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    inputs = widths[-1] * (shape[1] // 4) * (shape[2] // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 128), nn.ReLU(), nn.Linear(128, classes))


def small_network(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A cheap classifier for inputs of a shape: (c, h, w), images of at least 12 x 12, or (d,), vectors."""
    if len(shape) == 1:
        return nn.Sequential(nn.Linear(shape[0], 256), nn.ReLU(), nn.Dropout(0.3), nn.Linear(256, classes))
    convolutions = (nn.Conv2d(shape[0], 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(5), nn.Flatten(), nn.Dropout(0.3), nn.Linear(800, classes))


class Coarse(nn.Module):
    """A model of images at a lower resolution.

    Args:
        model: takes (n, c, h / pool, w / pool).
        pool: pixels of a side whose mean is taken.
    """

    def __init__(self, model: nn.Module, pool: int) -> None:
        super().__init__()
        self.model, self.pool = model, pool

    def forward(self, x: Tensor) -> Tensor:
        return self.model(F.avg_pool2d(x, self.pool))


class Shifted(nn.Module):
    """A model whose training images are shifted, each by some pixels; the augmentation is the model's own.

    Args:
        model: takes (n, c, h, w).
        pixels: at most so many, to each side.
        mirror: whether half of the images are mirrored too.
    """

    def __init__(self, model: nn.Module, pixels: int, mirror: bool = False) -> None:
        super().__init__()
        self.model, self.pixels, self.mirror = model, pixels, mirror

    def forward(self, x: Tensor) -> Tensor:
        return self.model(self._shifted(x) if self.training else x)

    def _shifted(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        padded = F.pad(x, [self.pixels] * 4).transpose(0, 1)  # (c, n, h + 2 pixels, w + 2 pixels)
        down, right = torch.randint(2 * self.pixels + 1, (2, n, 1, 1))
        rows, columns = torch.arange(h)[:, None] + down, torch.arange(w) + right
        if self.mirror:
            columns = torch.where(torch.rand(n, 1, 1) < 0.5, columns.flip(-1), columns)
        return padded[:, torch.arange(n)[:, None, None], rows, columns].transpose(0, 1)


def coarse(shape: tuple[int, ...], classes: int, of: str = "mlp", pool: int = 2, **options: Any) -> nn.Module:
    """Another model, which gets the images at a lower resolution."""
    return Coarse(built(of, (shape[0], shape[1] // pool, shape[2] // pool), classes, **options), pool)


def shifted(
    shape: tuple[int, ...], classes: int, of: str = "mlp", pixels: int = 2, mirror: bool = False, **options: Any
) -> nn.Module:
    """Another model, whose training images are shifted, and perhaps mirrored."""
    return Shifted(built(of, shape, classes, **options), pixels, mirror)


class Residual(nn.Module):
    """What a path makes of its input, plus the input, brought to the same size."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            self.path = nn.Sequential(
                *_convolution(inputs, width, 1), nn.ReLU(), *_convolution(width, width, 3, stride), nn.ReLU(),
                *_convolution(width, outputs, 1),
            )  # fmt: skip
        else:
            self.path = nn.Sequential(*_convolution(inputs, width, 3, stride), nn.ReLU(), *_convolution(width, outputs, 3))
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_convolution(inputs, outputs, 1, stride))
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.shortcut(x))


def _convolution(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


def resnet(shape: tuple[int, ...], classes: int, name: str = "resnet18", width: int = 64) -> nn.Module:
    """A residual network (He et al., 2016), with a first layer of 3 x 3 and stride 1 for images up to 64 pixels.

    The weights of the smallest are in channels-last order, in which a CPU computes faster. With those of
    the large ones too, PyTorch 2.13 crashed in the backward pass of small batches on a CPU.
    """
    small = shape[-1] <= 64
    stem: list[nn.Module] = [*_convolution(shape[0], width, 3 if small else 7, 1 if small else 2), nn.ReLU()]
    layers = stem if small else [*stem, nn.MaxPool2d(3, 2, 1)]
    inputs = width
    for stage, blocks in enumerate(BLOCKS[name]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            layers.append(Residual(inputs, width << stage, stride, bottleneck=name == "resnet50"))
            inputs = layers[-1].outputs  # type: ignore[assignment]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes))
    order = torch.channels_last if name == "resnet8" else torch.preserve_format
    return network.to(memory_format=order)  # type: ignore[call-overload, no-any-return]


class Sized(nn.Module):
    """A model of coloured images of at least some size, given grey ones or smaller ones too.

    Args:
        model: takes (n, 3, h, w).
        least: pixels of a side, at least; smaller images are enlarged.
    """

    def __init__(self, model: nn.Module, least: int) -> None:
        super().__init__()
        self.model, self.least = model, least

    def forward(self, x: Tensor) -> Tensor:
        x = x.expand(-1, 3, -1, -1)
        if x.shape[-1] < self.least:
            x = F.interpolate(x, size=(self.least, self.least), mode="bilinear", align_corners=False)
        outputs = self.model(x)
        return getattr(outputs, "logits", outputs)  # Inception gives two in train mode, where it has a second head


def from_torchvision(shape: tuple[int, ...], classes: int, name: str, weights: Path | None = None, **options: Any) -> nn.Module:
    """A network from torchvision.

    Args:
        shape: of an image, (c, h, w).
        classes: how many.
        name: torchvision's.
        weights: a file of a state dict, such as torchvision publishes; what does not fit in shape, as the last layer, stays new.
        **options: of the network.
    """
    models: Any = imported("torchvision.models", f"the model torchvision/{name}", "torchvision")
    if name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True} | options
    model = models.get_model(name, weights=None, num_classes=classes, **options)
    return Sized(_with_weights(model, weights), TORCHVISION.get(name, 32))


def from_timm(shape: tuple[int, ...], classes: int, name: str, weights: Path | None = None, **options: Any) -> nn.Module:
    """A network from timm; the arguments are those of ``from_torchvision``."""
    timm: Any = imported("timm", f"the model timm/{name}")
    model = timm.create_model(name, pretrained=False, num_classes=classes, in_chans=shape[0], **options)
    return _with_weights(model, weights)


def _with_weights(model: nn.Module, file: Path | None) -> nn.Module:
    if file is not None:
        own, saved = model.state_dict(), torch.load(file, map_location="cpu", weights_only=True)
        fitting = {name: value for name, value in saved.items() if name in own and own[name].shape == value.shape}
        if len(fitting) < len(own) // 2:
            raise ValueError(f"{file} holds other weights: {len(fitting)} of the {len(own)} that the model has are in it")
        model.load_state_dict(own | fitting)
    return model


class TransformerClassifier(nn.Module):
    """A classifier of sentences from transformers: takes a dict of token ids and attention mask, gives logits (n, C).

    Padding at the end that no sentence of a batch needs is cut off first. On a CPU, sentences of about the same length go through
    the model together, which is twice as fast: there is less padding.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        lengths = tokens["attention_mask"].sum(1)
        if lengths.device.type != "cpu":
            return self._logits(tokens, slice(None))
        order = lengths.argsort(stable=True)
        logits = torch.cat([self._logits(tokens, rows) for rows in order.split(TOGETHER)])
        return logits[order.argsort()]

    def _logits(self, tokens: Mapping[str, Tensor], rows: Tensor | slice) -> Tensor:
        length = int(tokens["attention_mask"][rows].sum(1).max())
        return self.model(**{name: values[rows, :length] for name, values in tokens.items()}).logits


class Bag(nn.Module):
    """A small classifier of sentences, called as a transformer is: the mean of the tokens' embeddings, and one hidden layer.

    Args:
        embedding: of token ids.
        classes: C.
        dropout: before each layer.
    """

    def __init__(self, embedding: nn.Embedding, classes: int, dropout: float) -> None:
        super().__init__()
        layers = (nn.Dropout(dropout), nn.Linear(embedding.embedding_dim, 128), nn.ReLU(), nn.Dropout(dropout))
        self.embedding, self.head = embedding, nn.Sequential(*layers, nn.Linear(128, classes))

    def forward(self, tokens: Mapping[str, Tensor]) -> Tensor:
        mask = tokens["attention_mask"]
        length = int(mask.sum(1).max())
        ids, mask = tokens["input_ids"][:, :length], mask[:, :length, None]
        return self.head((self.embedding(ids) * mask).sum(1) / mask.sum(1))


def bag(classes: int, path: Path | None = None, words: int = 30_522, dropout: float = 0.3, **options: Any) -> nn.Module:
    """A bag of words, whose embeddings are learned, or those of a transformer, which stay as they are.

    Args:
        classes: how many.
        path: the folder of the transformer; None: to learn embeddings of 64.
        words: of new embeddings; by default the token ids of BERT.
        dropout: before each layer.
        **options: of ``transformer``.
    """
    if path is None:
        return Bag(nn.Embedding.from_pretrained(torch.randn(words, 64) / 10, freeze=False), classes, dropout)
    whole: Any = transformer(classes, path, **options)
    weight = whole.model.get_input_embeddings().weight.detach()
    return Bag(nn.Embedding.from_pretrained((weight - weight.mean(0)) / weight.std(0)), classes, dropout)


def transformer(classes: int, path: Path, pretrained: bool = True, frozen: int | None = None, **options: Any) -> nn.Module:
    """A transformer with a new head: BERT, MiniLM, ALBERT, or what else is in the folder.

    Args:
        classes: how many.
        path: a folder with a model as ``save_pretrained`` writes it.
        pretrained: False for new weights, by ``config.json`` alone.
        frozen: layers, from the lowest, that stay as they are, and the embedding with them; None: all is trained.
        **options: settings of the model, such as ``hidden_dropout_prob``.
    """
    transformers: Any = imported("transformers", "a transformer")
    auto = transformers.AutoModelForSequenceClassification
    if pretrained:
        model = auto.from_pretrained(path, num_labels=classes, local_files_only=True, **options)
    else:
        model = auto.from_config(
            transformers.AutoConfig.from_pretrained(path, num_labels=classes, local_files_only=True, **options)
        )
    if frozen is not None:
        for part in (model.base_model.embeddings, *model.base_model.encoder.layer[:frozen]):
            part.requires_grad_(False)
    return TransformerClassifier(model)


BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "vgg": vgg,
    "small": small_network,
    "coarse": coarse,
    "shifted": shifted,
}


def make_model(name: str, task: Task, **options: Any) -> nn.Module:
    """A new model for a task, drawn from the global random state, as all PyTorch's are.

    Args:
        name: one of ``model_names(task)``; ``timm/NAME`` and ``torchvision/NAME`` for any of theirs.
        task: what it is for.
        **options: of the model.

    Raises:
        ValueError: no model of that name fits the task.
        ImportError: it comes from a package that is not there.
    """
    shape = shape_of(task)
    package, _, rest = name.partition("/")
    if shape is not None and len(shape) == 3 and package in ("timm", "torchvision") and rest:
        return (from_timm if package == "timm" else from_torchvision)(shape, task.classes, rest, **options)
    if name not in model_names(task):
        close = difflib.get_close_matches(name, model_names(task), n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ValueError(f"no model {name!r} for {task.name}; {hint}there are {', '.join(model_names(task))}")
    if shape is None:
        return (bag if name == "bag" else transformer)(task.classes, **options)
    return built(name, shape, task.classes, **options)


def built(name: str, shape: tuple[int, ...], classes: int, **options: Any) -> nn.Module:
    """A model that is here, by its name alone."""
    return resnet(shape, classes, name, **options) if name in BLOCKS else BUILDERS[name](shape, classes, **options)


def model_names(task: Task) -> list[str]:
    """The models that fit a task's examples."""
    shape = shape_of(task)
    if shape is None:
        return ["transformer", "bag"]
    return list(IMAGES) if len(shape) == 3 else ["linear", "mlp", "small"]


def shape_of(task: Task) -> tuple[int, ...] | None:
    """Of an input: (d,) or (c, h, w); None for tokens."""
    x = task.train[0][0]
    return None if isinstance(x, Mapping) else tuple(x.shape)


def _size(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()
