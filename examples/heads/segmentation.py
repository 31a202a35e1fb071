"""Semantic segmentation: the ink of a handwritten digit, to be found in noise; 30 % of the masks are shifted.

    python examples/heads/segmentation.py [--steps 300] [--seeds 3]

The loss of an image is the mean cross-entropy of its pixels, without those at the edge of the ink, which nobody can label.
"""

import torch
from compare import HOLDOUT, TEST, TRAINING, VALIDATION, Task, draw_wrong, main
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from rholoss.tokens import sequence_loss

SIZE, IGNORE = 14, 255  # pixels of a side; the label of a pixel that is not counted


def canvases(seed: int) -> tuple[list[TensorDataset], Tensor]:
    """Images (n, 1, SIZE, SIZE) with masks (n, SIZE, SIZE): 1 is ink, 0 is not."""
    generator = torch.Generator().manual_seed(seed)
    digits = torch.tensor(load_digits().images, dtype=torch.float32)
    sizes = [HOLDOUT, VALIDATION, TRAINING, TEST]
    # Each part has digits of its own; those of the larger parts come several times, at other places.
    owner = torch.randperm(len(digits), generator=generator).tensor_split(4)
    parts = []
    for own, n in zip(owner, sizes, strict=True):
        x, y = 1.2 * torch.rand(n, 1, SIZE, SIZE, generator=generator), torch.zeros(n, SIZE, SIZE, dtype=torch.int64)
        for i in range(n):
            digit, (top, left) = digits[own[i % len(own)]], torch.randint(SIZE - 8, (2,), generator=generator).tolist()
            x[i, 0, top : top + 8, left : left + 8] += digit / 16
            y[i, top : top + 8, left : left + 8] = torch.where(digit > 6, 1, torch.where(digit > 2, IGNORE, 0))
        parts.append((x, y))
    is_wrong = draw_wrong(generator)
    masks = parts[2][1]
    masks[is_wrong] = masks[is_wrong].roll((5, 5), (1, 2))
    return [TensorDataset(*part) for part in parts], is_wrong


def network() -> nn.Module:
    def layer(n_in: int, dilation: int) -> list[nn.Module]:
        return [nn.Conv2d(n_in, 16, 3, padding=dilation, dilation=dilation), nn.ReLU()]

    return nn.Sequential(*layer(1, 1), *layer(16, 2), *layer(16, 2), *layer(16, 1), nn.Conv2d(16, 2, 1))


def forward(model: nn.Module, batch: list[Tensor]) -> tuple[Tensor, Tensor]:
    return model(batch[0]), batch[1]


def loss(logits: Tensor, masks: Tensor) -> Tensor:
    """The mean over the pixels that count, shape (n,), in nats."""
    losses = F.cross_entropy(logits, masks, reduction="none", ignore_index=IGNORE)
    return sequence_loss(losses.flatten(1), (masks != IGNORE).flatten(1))


def intersection_over_union(model: nn.Module, batch: list[Tensor]) -> float:
    """Of the ink, over all images."""
    images, masks = batch
    found, ink = (model(images).argmax(1) == 1) & (masks != IGNORE), masks == 1
    return float((found & ink).sum() / (found | ink).sum())


def task(seed: int) -> Task:
    return Task("segmentation", "IoU", *canvases(seed), network, forward, loss, intersection_over_union)


if __name__ == "__main__":
    main(task)
