"""Galleries of examples: images and texts as small tiles, by class."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rholoss.arguments import function, map_style, optional
from rholoss.data.fingerprint import difference, fingerprint, is_same_but_transformed
from rholoss.data.subset import class_names_of, dataset_of, whole_of

TOP, OF_CLASS, CLASSES = 24, 12, 24  # tiles in sight at first, tiles of a class, classes to choose from
SIDE, CHARACTERS = 96, 400  # pixels of a thumbnail, and of a text, at most


@dataclass(frozen=True, eq=False)
class Examples:
    """The examples of a dataset, to be shown; ``labels`` are by index, shape (N,), integer, negative for none."""

    dataset: Any = None
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] | None = None
    show: Callable[[int], Any] | None = None  # index -> image or text, instead of the dataset's example

    @classmethod
    def of(
        cls, data: Any, labels: np.ndarray | None, names: tuple[str, ...] | None, show: Any, made_from: Mapping[str, Any] | None
    ) -> Examples:
        """Examples of a dataset or a loader over it, None for none; a ValueError if it has not the fingerprint ``made_from``."""
        optional(function, show, "show", "(index) -> image or text")
        whole = None if data is None else map_style(whole_of(dataset_of(data)), "dataset")  # a Subset numbers its own
        now = fingerprint(data) if made_from and whole is not None else None
        how = difference(made_from, now) if made_from and now and not is_same_but_transformed(made_from, now) else None
        if how:
            cure = "pass the data that they are of; to show the same examples in another form, pass show= without a dataset"
            raise ValueError(f"the numbers on this page are of other data than this dataset: {how}; {cure}")
        return cls(whole, labels, names or class_names_of(data), show)

    def class_of(self, index: int) -> int | None:
        """The class of an example, if it has a label."""
        known = self.labels is not None and 0 <= index < len(self.labels) and self.labels[index] >= 0
        return int(self.labels[index]) if known and self.labels is not None else None

    def name_of(self, label: int | None) -> str:
        """The name of a class, or its number; empty without a class."""
        named = label is not None and self.class_names is not None and label < len(self.class_names)
        return self.class_names[label] if named else "" if label is None else str(label)  # type: ignore[index]

    @cached_property
    def previews(self) -> dict[int, str]:
        """The previews made so far, as HTML by index."""
        return {}

    def preview(self, index: int) -> str:
        """An example as HTML; empty where it cannot be read."""
        if index not in self.previews:
            if self.show is not None:
                self.previews[index] = preview(self.show(index))
            else:
                there = self.dataset is not None and 0 <= index < len(self.dataset)
                self.previews[index] = preview(self.dataset[index]) if there else ""
        return self.previews[index]

    def gallery(self, title: str, lead: str, order: Tensor, caption: Callable[[int], str]) -> str:
        """Tiles of the first examples in an order of indices, shape (m,), int64, and of the first of each class."""
        chosen = self._chosen(order)
        if not chosen:
            return ""
        tiles = [self._tile(index, is_top, caption(index)) for index, is_top in chosen]
        kind = "tiles texts" if any("<q>" in tile for tile in tiles) else "tiles"
        return f'<h3>{escape(title)}</h3><p>{escape(lead)}</p><div class="{kind}">{"".join(tiles)}</div>'

    def menu(self) -> str:
        """The menu of classes that filters the galleries of its section."""
        choices = [f'<option value="{label}">{escape(self.name_of(label))}</option>' for label in self.classes]
        first = '<option value="">all</option>'
        return f"<label>Class: <select>{first}{''.join(choices)}</select></label>" if choices else ""

    @cached_property
    def classes(self) -> list[int]:
        """The classes to choose from: all, or the most common ones."""
        if self.labels is None:
            return []
        found, counts = np.unique(self.labels[self.labels >= 0], return_counts=True)
        return sorted(found[np.argsort(-counts, kind="stable")][:CLASSES].tolist())

    def _chosen(self, order: Tensor) -> list[tuple[int, bool]]:
        """The indices to show, and whether each is among the first of all."""
        top = order[:TOP].tolist()
        chosen = dict.fromkeys(top, True)
        if self.labels is not None:
            here = order[(order >= 0) & (order < len(self.labels))].numpy()
            labels = self.labels[here]
            for label in self.classes:
                for index in here[labels == label][:OF_CLASS].tolist():
                    chosen.setdefault(index, False)
        return list(chosen.items())

    def _tile(self, index: int, is_top: bool, caption: str) -> str:
        label = self.class_of(index)
        name = f"<b>{escape(self.name_of(label))}</b> " if label is not None else ""
        of = f' data-label="{label}"' if label is not None else ""
        flag = " data-top" if is_top else " hidden"
        return f'<div class="tile"{of}{flag}>{self.preview(index)}{name}#{index}<br>{caption}</div>'


def preview(example: Any) -> str:
    """An example as HTML: an image, or a text."""
    shown = _shown(example)
    if isinstance(shown, np.ndarray):
        content = base64.b64encode(png(shown)).decode()
        return f'<img loading="lazy" alt="" src="data:image/png;base64,{content}">'
    return f"<q>{escape(shown[:CHARACTERS])}{'…' if len(shown) > CHARACTERS else ''}</q>"


def _shown(example: Any) -> np.ndarray | str:
    """The image, uint8, (h, w) or (h, w, 3), or the text that stands for an example."""
    if isinstance(example, str):
        return example
    if isinstance(example, Mapping):
        values = list(example.values())
        texts = [value for value in values if isinstance(value, str)]
        images = [value for value in values if _is_image(value)]
        return _shown(images[0]) if images else "\n".join(texts) or _shown(values[0] if values else "")
    if isinstance(example, (tuple, list)) and example and not isinstance(example[0], (int, float)):
        return _shown(example[0])
    if _is_image(example):
        return _pixels(example)
    numbers = np.asarray(example.cpu() if isinstance(example, Tensor) else example)
    if numbers.dtype.kind in "iufb":
        flat = numbers.reshape(-1)
        return ", ".join(f"{value:.3g}" for value in flat[:12].tolist()) + (
            f", … ({flat.size:,} numbers)" if flat.size > 12 else ""
        )
    return str(example)


def _is_image(value: Any) -> bool:
    if hasattr(value, "convert") and hasattr(value, "size"):  # of Pillow
        return True
    shape = tuple(getattr(value, "shape", ()))
    if len(shape) == 2:
        return min(shape) >= 4
    return len(shape) == 3 and min(shape) > 0 and (shape[0] in (1, 3, 4) or shape[2] in (1, 3, 4)) and max(shape) >= 4


def _pixels(image: Any) -> np.ndarray:
    """An image of any kind as uint8, (h, w) or (h, w, 3), at most ``SIDE`` pixels wide and high."""
    values = (
        torch.from_numpy(np.array(image.convert("RGB"))) if hasattr(image, "convert") else torch.as_tensor(image).detach().cpu()
    )
    is_bytes, values = values.dtype == torch.uint8, values.float()
    if values.ndim == 2:
        values = values[None]
    elif values.shape[0] not in (1, 3, 4):
        values = values.permute(2, 0, 1)
    values = values[: 1 if len(values) < 3 else 3].nan_to_num()
    side = max(values.shape[1:])
    if side > SIDE:
        size = [max(1, math.ceil(length * SIDE / side)) for length in values.shape[1:]]
        values = F.interpolate(values[None], size, mode="area")[0]
    if not is_bytes:
        low, high = float(values.min()), float(values.max())
        low, high = (0.0, 1.0) if low >= 0 and high <= 1 else (0.0, 255.0) if low >= 0 and high > 8 else (low, high)
        values = 255 * (values - low) / ((high - low) or 1.0)
    pixels = values.round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return pixels[:, :, 0] if pixels.shape[2] == 1 else pixels


def png(pixels: np.ndarray) -> bytes:
    """An image, uint8, (h, w) or (h, w, 3), in the format of PNG."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()  # 0: no filter
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    parts: Sequence[tuple[bytes, bytes]] = ((b"IHDR", header), (b"IDAT", zlib.compress(raw, 9)), (b"IEND", b""))
    chunks = (struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
