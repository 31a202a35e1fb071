"""Small classifiers for whatever a model is called with: images, vectors, token ids, columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from rholoss.arguments import shown
from rholoss.losses import classes_of

LEAST_IMAGE, SMALL_IMAGE = 12, 1_024  # pixels of a side, and numbers in all of what may be taken as a vector
LARGEST_VECTOR = 100_000  # numbers
BUCKETS = 1 << 14  # of token ids and categories, which are taken modulo this, so that no vocabulary is needed
CATEGORY_WIDTH, HIDDEN = 16, 128
EDGE = 5  # pixels of a side that an image is pooled to
WINDOW, STRIDE = 8, 4  # of the convolution of small images


class CallRecorder(nn.Module):
    """Stands in for a model: keeps the arguments of its latest call, and returns logits of zero.

    Attributes:
        call: the tensors of the latest call by place, see ``tensors_of``; empty before it.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.call: dict[str, Tensor] = {}

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        self.call = dict(tensors_of({**dict(enumerate(inputs)), **named}))
        n = next((len(tensor) for tensor in self.call.values() if tensor.ndim), 1)
        return torch.zeros(n, self.classes)


class SmallNetwork(nn.Module):
    """A classifier of a few hundred thousand weights, fitted in seconds, that is called as a model was.

    Each input has a branch by its kind, and a linear layer reads them all. Inputs are standardized by what the batches are like.

    Args:
        call: the tensors of such a call, by place, as ``CallRecorder`` keeps them.
        classes: C.
        quick: whether small images are taken as vectors, which is faster and knows less.

    Raises:
        TypeError: nothing among the inputs is known what to do with.
    """

    def __init__(self, call: Mapping[str, Tensor], classes: int, quick: bool = False) -> None:
        super().__init__()
        branches = {place: branch_of(place, tensor, classes, quick) for place, tensor in call.items()}
        self.places = [place for place, branch in branches.items() if branch is not None]
        if not self.places:
            got = ", ".join(f"{place}: {tensor.dtype} {tuple(tensor.shape)}" for place, tensor in call.items()) or "no tensor"
            raise TypeError(f"a small network can be made for images, vectors, token ids and columns, got {got}; pass proxy=")
        self.masks = [place for place in call if is_mask(place, call[place])]
        self.branches = nn.ModuleList(branch for branch in branches.values() if branch is not None)
        self.words = [branch for branch in self.branches if isinstance(branch, TokenBranch)]
        width = sum(branch.width for branch in self.branches)  # type: ignore[misc]
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(width, classes)) if width else None

    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        call = dict(tensors_of({**dict(enumerate(inputs)), **named}))
        missing = [place for place in self.places if place not in call]
        if missing:
            raise ValueError(f"the small network was made for calls with {', '.join(self.places)}, got none at {missing}")
        mask = next((call[place] for place in self.masks if place in call), None)
        found = [branch(call[place], mask) for place, branch in zip(self.places, self.branches, strict=True)]
        features = [each for each, branch in zip(found, self.branches, strict=True) if branch.width]
        logits = [each for each, branch in zip(found, self.branches, strict=True) if not branch.width]
        if self.head is not None:
            logits.append(self.head(torch.cat(features, 1)))
        return torch.stack(logits).sum(0)

    @torch.no_grad()
    def count(self, batches: Iterable[Any], forward: Callable[[nn.Module, Any], tuple[Any, Any]]) -> None:
        """Count the tokens of each class in one pass over the examples to fit on."""
        for branch in self.words:
            branch.counting = True
        for batch in batches:
            _, targets = forward(self, batch)
            for branch in self.words:
                branch.count(targets)
        for branch in self.words:
            branch.finish()


class ImageBranch(nn.Module):
    """Two convolutions of images (n, c, h, w) or (n, h, w), of any size from 12 x 12."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(channels, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2))
        layers = (nn.BatchNorm2d(channels, affine=False), *convolutions, nn.AdaptiveAvgPool2d(EDGE), nn.Flatten())
        self.layers = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.width = 32 * EDGE**2

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        found: Tensor = self.layers((x.unsqueeze(1) if x.ndim == 3 else x).float())
        return found


class SmallImageBranch(nn.Module):
    """One wide convolution and a hidden layer, for small images: half the time, and at 28 x 28 more is known after few steps."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.size = (height - WINDOW) // STRIDE + 1, (width - WINDOW) // STRIDE + 1
        self.layers = nn.Sequential(nn.BatchNorm2d(channels, affine=False), nn.Conv2d(channels, 16, WINDOW, STRIDE), nn.ReLU())
        self.hidden = nn.Linear(16 * self.size[0] * self.size[1], HIDDEN)
        self.width = HIDDEN

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        maps = self.layers((x.unsqueeze(1) if x.ndim == 3 else x).float())
        if maps.shape[-2:] != self.size:  # pooling to the same size takes time, too
            maps = functional.adaptive_avg_pool2d(maps, self.size)
        return self.hidden(maps.flatten(1)).relu()


class VectorBranch(nn.Module):
    """One hidden layer over all numbers of an example."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.layers = nn.Sequential(nn.BatchNorm1d(size, affine=False), nn.Linear(size, HIDDEN), nn.ReLU())
        self.width = HIDDEN

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        rows = x.reshape(len(x), -1)
        if rows.shape[1] != self.size:
            cure = (
                "bring all to one shape in the dataset or collate_fn, or pass proxy=, which makes a small network for any length"
            )
            raise ValueError(
                f"inputs must have one shape in all batches, got {self.size} numbers an example, and {rows.shape[1]}; {cure}"
            )
        found: Tensor = self.layers(rows.float())
        return found


class TokenBranch(nn.Module):
    """Naive Bayes over the distinct token ids (n, l), without those under the mask; without a mask, without ids 0.

    The counts are taken in one pass, see ``SmallNetwork.count``; then a scale and a bias for each class are fitted. On texts this
    knows more than embeddings that are learned in so few steps, and wrong labels disturb it less.

    Args:
        classes: C.

    References:
        Rennie et al., "Tackling the Poor Assumptions of Naive Bayes Text Classifiers", ICML 2003, sections 4.1 to 4.3.
    """

    width = 0  # of the features; it returns logits
    weights: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.buckets = max(1 << 10, min(BUCKETS, (1 << 24) // classes))
        self.register_buffer("weights", torch.zeros(self.buckets + 1, classes))  # the last row is of what does not count
        self.log_scale = nn.Parameter(torch.tensor(-0.35))
        self.bias = nn.Parameter(torch.zeros(classes))
        self.counting = False

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        ids = x.reshape(len(x), -1)
        kept = mask.reshape(ids.shape) != 0 if mask is not None and mask.numel() == ids.numel() else ids != 0
        tokens = (ids.long() % self.buckets).masked_fill(~kept, self.buckets).sort(1).values
        repeated = functional.pad(tokens[:, 1:] == tokens[:, :-1], (1, 0))
        tokens = tokens.masked_fill(repeated, self.buckets)
        if self.counting:
            self.latest = tokens
        total = functional.embedding_bag(tokens, self.weights, mode="sum", padding_idx=self.buckets)
        length = (tokens != self.buckets).sum(1, keepdim=True).clamp(min=1).sqrt()
        return total / length * self.log_scale.exp() + self.bias

    def count(self, targets: Tensor) -> None:
        """Add the tokens of the latest call to the counts of their classes."""
        classes = self.weights.shape[1]
        known = (targets >= 0) & (targets < classes)
        places = self.latest[known] * classes + targets[known].long()[:, None]
        self.weights.view(-1).index_add_(0, places.flatten(), torch.ones_like(places, dtype=self.weights.dtype).flatten())

    def finish(self) -> None:
        """Turn the counts into the logarithms of smoothed frequencies, centered over the classes."""
        self.counting = False
        self.weights[-1] = 0
        frequencies = (self.weights + 0.5) / (self.weights + 0.5).sum(0)
        self.weights.copy_(frequencies.log() - frequencies.log().mean(1, keepdim=True))
        self.weights[-1] = 0


class CategoryBranch(nn.Module):
    """An embedding of one whole number per example, such as a column of a table."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(BUCKETS, CATEGORY_WIDTH)
        self.width = CATEGORY_WIDTH

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        found: Tensor = self.embedding(x.reshape(-1).long() % BUCKETS)
        return found


def branch_of(place: str, tensor: Tensor, classes: int, quick: bool) -> nn.Module | None:
    """The branch for one input of a batch, shape (n, ...); None if it is none of the known kinds."""
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    if tensor.is_complex() or tensor.is_nested or not tensor.ndim or is_mask(place, tensor):
        return None
    small = bool(tensor[0].numel() <= SMALL_IMAGE)
    if tensor.ndim in (3, 4) and min(tensor.shape[-2:]) >= LEAST_IMAGE and not (small and quick):
        channels = tensor.shape[1] if tensor.ndim == 4 else 1
        return SmallImageBranch(channels, *tensor.shape[-2:]) if small else ImageBranch(channels)
    if whole and tensor.ndim == 1:
        return CategoryBranch()
    if whole and tensor.ndim == 2 and tensor.dtype not in (torch.uint8, torch.bool):
        return TokenBranch(classes)
    size = tensor[0].numel()
    return VectorBranch(size) if 1 <= size <= LARGEST_VECTOR else None


def is_mask(place: str, tensor: Tensor) -> bool:
    """Whether an input says which tokens count, by its name."""
    return "mask" in place.rpartition(".")[2] and tensor.ndim == 2


def tensors_of(inputs: Any, place: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors among a model's arguments, with where they are, such as ``input_ids`` or ``0.image``."""
    if isinstance(inputs, Tensor):
        yield place, inputs
    elif isinstance(inputs, Mapping) or (isinstance(inputs, (tuple, list)) and len(inputs) <= 1_000):
        named = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
        for name, value in named:
            yield from tensors_of(value, f"{place}.{name}" if place else str(name))


def check_classifier(outputs: Any, targets: Any) -> int:
    """C, from what a forward pass returned: logits (n, C) and classes (n,); a TypeError for anything else."""
    classes = classes_of(outputs, targets)
    if classes:
        return classes
    got = " and ".join(f"{v.dtype} {tuple(v.shape)}" if isinstance(v, Tensor) else _kind(v) for v in (outputs, targets))
    expected = "auto looks at classifiers only, with outputs logits (n, C) and targets classes (n,), integer"
    raise TypeError(f"{expected}, got {got}; {_cure(outputs, targets)}")


def _kind(value: Any) -> str:
    inside = (
        [str(name) for name in value]
        if isinstance(value, Mapping)
        else [type(each).__name__ for each in value]
        if isinstance(value, (tuple, list))
        else []
    )
    return f"{type(value).__name__} of {', '.join(inside[:8])}" if inside else shown(value)


def _cure(outputs: Any, targets: Any) -> str:
    """What to do about outputs or targets that are not a classifier's."""
    if not isinstance(outputs, Tensor):
        taken = "model(batch[0])[0]" if isinstance(outputs, (tuple, list)) else "model(batch[0])['logits']"
        return f"pass forward=, such as lambda model, batch: ({taken}, batch[1]), and proxy=, which makes a small such model"
    target = "pass forward=lambda model, batch: (model(batch[0]), {})"
    if not isinstance(targets, Tensor):
        return "number the classes from 0 in the dataset" + ", or in forward=" * isinstance(targets, (tuple, list))
    if outputs.ndim == 2 and outputs.shape[1] > 1:
        if targets.ndim == 2 and targets.shape == outputs.shape:
            return f"for rows with a single 1, {target.format('batch[1].argmax(1)')}"
        if targets.shape == (len(outputs), 1):
            return target.format("batch[1].squeeze(1).long()")
        if targets.ndim == 1 and targets.is_floating_point():
            return f"if these are classes, {target.format('batch[1].long()')}; for values, train as usual"
    if outputs.ndim == 1 or outputs.shape[-1] == 1:
        return "for two classes, give the model two outputs; for values, train as usual"
    return "train as usual, or choose by irreducible losses, with RhoLossSelector"
