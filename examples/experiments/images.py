"""Datasets of images that are kept small and become floats when they are read. Each shows its labels as ``targets``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset

from experiments.packages import imported
from rholoss.isolation import derived_seed

Example = tuple[Tensor, Tensor]


def normalised(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Bytes (..., c, h, w) as floats of about zero mean and unit variance by channel."""
    columns = [torch.tensor(values).view(-1, 1, 1) for values in (mean, std)]
    return (images.float() / 255 - columns[0]) / columns[1]


class ByteImages(Dataset[Example]):
    """Images in memory, a byte a pixel.

    Args:
        images: (N, c, h, w), uint8.
        targets: labels (N,), int64.
        mean: by channel, in [0, 1].
        std: likewise.
    """

    def __init__(self, images: Tensor, targets: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        self.images, self.targets, self.mean, self.std = images, targets, mean, std

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Example:
        return normalised(self.images[index], self.mean, self.std), self.targets[index]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        return list(zip(normalised(self.images[indices], self.mean, self.std), self.targets[indices], strict=True))


class ImageFiles(Dataset[Example]):
    """Pictures that are opened when they are read.

    Args:
        paths: (N,) of str.
        targets: labels (N,), int64.
        mean: by channel, in [0, 1].
        std: likewise.
        resize: pixels of the square that each is brought to; None for as they are.
        crop: pixels of the square that is then cut from the middle.
    """

    def __init__(
        self,
        paths: np.ndarray,
        targets: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        resize: int | None = None,
        crop: int | None = None,
    ) -> None:
        self.paths, self.targets, self.mean, self.std, self.resize, self.crop = paths, targets, mean, std, resize, crop

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Example:
        image = read_picture(str(self.paths[index]), self.resize)
        if self.crop is not None:
            top, left = ((side - self.crop) // 2 for side in image.shape[1:])
            image = image[:, top : top + self.crop, left : left + self.crop]
        return normalised(image, self.mean, self.std), self.targets[index]


def read_picture(path: str, resize: int | None = None) -> Tensor:
    """A picture as bytes (3, h, w).

    Raises:
        ValueError: it cannot be read; the message names it.
    """
    pillow: Any = imported("PIL.Image", "pictures in files", "pillow")
    try:
        with pillow.open(path) as picture:
            image = picture.convert("RGB")
            if resize is not None:
                image = image.resize((resize, resize), pillow.Resampling.BILINEAR)
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"expected the picture {path}, which is in the data set's lists") from None
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} is damaged: expected a picture, got {error}") from error


class Augmented(Dataset[Example]):
    """Images of a dataset, each shifted by up to some pixels and mirrored at random, each time that it is read.

    The draws come from PyTorch's global generator, as in torchvision's transforms, so each worker has its own.

    Args:
        plain: the dataset as it is, to score by.
        shift: pixels.
        mirror: whether half of the images are mirrored.
    """

    def __init__(self, plain: Dataset[Example], shift: int = 4, mirror: bool = True) -> None:
        self.plain, self.shift, self.mirror = plain, shift, mirror
        self.targets: Tensor = plain.targets  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Example:
        x, y = self.plain[index]
        down, right = torch.randint(-self.shift, self.shift + 1, (2,)).tolist()
        flipped = x.flip(-1) if self.mirror and torch.rand(()) < 0.5 else x
        return moved(flipped, down, right, fill=0.0), y


def plain(dataset: Any) -> Any:
    """A dataset without its augmentation: what to make irreducible losses of, and to score by."""
    return dataset.plain if isinstance(dataset, Augmented) else dataset


def moved(image: Tensor, down: int, right: int, fill: float) -> Tensor:
    """An image (c, h, w) moved by some pixels, of the same size."""
    h, w = image.shape[-2:]
    size = max(abs(down), abs(right))
    padded = F.pad(image, (size,) * 4, value=fill)
    return padded[:, size - down : size - down + h, size - right : size - right + w]


class Translated(Dataset[Example]):
    """Images on a larger canvas, at as many places as one asks for; none is stored.

    Index ``i`` is always the same example: image ``which[i]`` at a place that is drawn from ``i`` and the seed.

    Args:
        images: (n, c, h, w), uint8.
        which: the image of each example: positions in ``images``, (N,), int64.
        targets: labels (N,), int64.
        mean: by channel, in [0, 1], of the canvas.
        std: likewise.
        canvas: pixels of its side.
        seed: of the places; None for the middle.
    """

    def __init__(
        self,
        images: Tensor,
        which: Tensor,
        targets: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        canvas: int = 40,
        seed: int | None = 0,
    ) -> None:
        self.images, self.which, self.targets = images, which, targets
        self.mean, self.std, self.canvas, self.seed = mean, std, canvas, seed

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Example:
        image = self.images[self.which[index]]
        top, left = self.place(index)
        on_canvas = image.new_zeros(image.shape[0], self.canvas, self.canvas)
        on_canvas[:, top : top + image.shape[1], left : left + image.shape[2]] = image
        return normalised(on_canvas, self.mean, self.std), self.targets[index]

    def place(self, index: int) -> tuple[int, int]:
        """Where the image's upper left corner is."""
        rows, columns = (self.canvas - side + 1 for side in self.images.shape[2:])
        if self.seed is None:
            return (rows - 1) // 2, (columns - 1) // 2
        return divmod(derived_seed("places", self.seed, int(index)) % (rows * columns), columns)
