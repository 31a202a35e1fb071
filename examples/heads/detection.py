"""Object detection: one to three handwritten digits, 0 to 3, on a canvas; 30 % of the images have the boxes of another one.

    python examples/heads/detection.py [--steps 300] [--seeds 3]

Targets are a list of dicts of boxes and labels, one per image, of any number of objects. The small detector predicts for every
cell of a grid whether the centre of an object is in it, of which class, and where its box is. The loss of an image is the sum of
the three losses that it is trained on, each kept per image.
"""

from itertools import pairwise

import torch
from compare import HOLDOUT, TEST, TRAINING, VALIDATION, Task, draw_wrong, main
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

CELL, CELLS = 8, 4  # pixels of a cell's side, and cells of a canvas's side
SIZE, CLASSES = CELL * CELLS, 4
Target = dict[str, Tensor]  # "boxes" (k, 4): left, top, right, bottom, in pixels; "labels" (k,)


def canvases(seed: int) -> tuple[list[list[tuple[Tensor, Target]]], Tensor]:
    """The parts of the data, and which training images have the boxes of another one."""
    generator = torch.Generator().manual_seed(seed)
    digits, classes = (torch.tensor(values) for values in load_digits(n_class=CLASSES, return_X_y=True))
    digits = digits.float().reshape(-1, 8, 8) / 16
    owner = torch.randperm(len(digits), generator=generator).tensor_split(4)

    def example(own: Tensor) -> tuple[Tensor, Target]:
        x = 0.3 * torch.rand(1, SIZE, SIZE, generator=generator)
        boxes, labels = [], []
        places = torch.randperm(4, generator=generator)[: int(torch.randint(1, 4, (), generator=generator))]  # a quarter each
        for place in places.tolist():
            which = own[int(torch.randint(len(own), (), generator=generator))]
            side = int(torch.randint(8, 15, (), generator=generator))
            digit = F.interpolate(digits[which][None, None], size=(side, side), mode="bilinear")[0, 0]
            corner = torch.randint(SIZE // 2 - side + 1, (2,), generator=generator)
            top, left = (corner + SIZE // 2 * torch.tensor([place // 2, place % 2])).tolist()
            x[0, top : top + side, left : left + side] += digit
            boxes.append([left, top, left + side, top + side])
            labels.append(classes[which])
        return x, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.stack(labels)}

    parts = [[example(own) for _ in range(n)] for own, n in zip(owner, [HOLDOUT, VALIDATION, TRAINING, TEST], strict=True)]
    is_wrong = draw_wrong(generator)
    wrong, before = torch.nonzero(is_wrong).flatten().tolist(), list(parts[2])
    for i, other in zip(wrong, wrong[1:] + wrong[:1], strict=True):
        parts[2][i] = before[i][0], before[other][1]
    return parts, is_wrong


class Detector(nn.Module):
    """Says of each cell: a logit that an object is centred in it, logits of its classes, its box in cells from the centre."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [1, 16, 32, 32]
        layers = [(nn.Conv2d(a, b, 3, 2, 1), nn.ReLU()) for a, b in pairwise(sizes)]
        wide = (nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 5 + CLASSES, 1))
        self.layers = nn.Sequential(*(module for layer in layers for module in layer), *wide)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).flatten(2).mT  # (n, CELLS * CELLS, 5 + CLASSES)


def collate(examples: list[tuple[Tensor, Target]]) -> tuple[Tensor, list[Target]]:
    return torch.stack([image for image, _ in examples]), [target for _, target in examples]


def forward(model: nn.Module, batch: tuple[Tensor, list[Target]]) -> tuple[Tensor, list[Target]]:
    return model(batch[0]), batch[1]


def loss(outputs: Tensor, targets: list[Target]) -> Tensor:
    """One loss per image, shape (n,): where objects are, plus the mean over its objects of their class and box losses."""
    counts = torch.tensor([len(target["labels"]) for target in targets])
    image = torch.arange(len(targets)).repeat_interleave(counts)  # which image each object of the batch is in
    boxes = torch.cat([target["boxes"] for target in targets]) / CELL
    cell = ((boxes[:, :2] + boxes[:, 2:]) / 2).long().clamp(max=CELLS - 1)  # column and row of the centre
    place = cell[:, 1] * CELLS + cell[:, 0]
    is_object = torch.zeros(outputs.shape[:2])
    is_object[image, place] = 1
    own = outputs[image, place]
    what = F.cross_entropy(own[:, 1:-4], torch.cat([target["labels"] for target in targets]), reduction="none")
    box = F.smooth_l1_loss(own[:, -4:], boxes - (cell + 0.5).repeat(1, 2), reduction="none").sum(1)
    where = F.binary_cross_entropy_with_logits(outputs[:, :, 0], is_object, reduction="none").sum(1)
    of_objects = torch.zeros(len(targets)).index_add(0, image, what + box)
    return where + of_objects / counts.clamp(min=1)  # an image without an object has the first alone


def found(model: nn.Module, batch: tuple[Tensor, list[Target]]) -> float:
    """Recall at an IoU of 0.5: share of the objects found with their class, among as many predictions as objects."""
    right, count = 0, 0
    corner = torch.stack(torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="xy"), -1).reshape(-1, 2)
    for cells, target in zip(model(batch[0]), batch[1], strict=True):
        predicted = cells[:, 0].topk(len(target["labels"])).indices
        boxes = (cells[predicted, -4:] + (corner[predicted] + 0.5).repeat(1, 2)) * CELL
        same = cells[predicted, 1:-4].argmax(1)[:, None] == target["labels"]
        right += int((same & (box_iou(boxes, target["boxes"]) >= 0.5)).any(0).sum())
        count += len(target["labels"])
    return right / count


def box_iou(one: Tensor, other: Tensor) -> Tensor:
    """Shape (k, m)."""
    low, high = torch.maximum(one[:, None, :2], other[:, :2]), torch.minimum(one[:, None, 2:], other[:, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(-1) for boxes in (one, other)]
    return shared / (areas[0][:, None] + areas[1] - shared)


def task(seed: int) -> Task:
    return Task("detection", "objects found", *canvases(seed), Detector, forward, loss, found, collate)


if __name__ == "__main__":
    main(task)
