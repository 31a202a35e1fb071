"""Frozen features: a hundred times cheaper to train on than images or sentences. Computed once, and kept in a file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from experiments.packages import imported
from rholoss.isolation import derived_seed

PATCH, SPACING = 6, 1  # pixels
Arrays = dict[str, Tensor]


def cached(folder: Path | None, name: str, made_of: bytes, make: Callable[[], Arrays]) -> Arrays:
    """What ``make()`` returns, from a file if it was made before of the same content.

    Args:
        folder: where the files are; None to keep nothing.
        name: what the file's name begins with.
        made_of: a digest of all that the result depends on.
        make: makes tensors by name.
    """
    if folder is None:
        return make()
    path = folder / f"{name}-{made_of.hex()[:16]}.npz"
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            return {key: torch.from_numpy(file[key]) for key in file.files}
    arrays = make()
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, **{key: value.numpy() for key, value in arrays.items()})  # type: ignore[arg-type]
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return arrays


def digest(*parts: Any) -> bytes:
    """Of tensors by their bytes, of files by their content, of all else by what is printed."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            total.update(f"{part.dtype}{tuple(part.shape)}".encode())
            total.update(np.ascontiguousarray(part.numpy()).data)
        elif isinstance(part, Path):
            total.update(hashlib.blake2b(part.read_bytes()).digest())
        else:
            total.update(hashlib.blake2b(repr(part).encode()).digest())
    return total.digest()


def patch_features(train: Tensor, test: Tensor, filters: int = 160, generator: torch.Generator | None = None) -> Arrays:
    """Features of images, learnt from the training images without their labels.

    Patches of 6 x 6 pixels are brought to zero mean and unit variance and whitened; random ones of them are the filters; what
    exceeds 0.25 of a filter's response is averaged over each quarter of the image.

    Args:
        train: images (n, c, h, w), uint8.
        test: more of them.
        filters: how many.
        generator: draws which patches they are; None for one of its own, always the same.

    Returns:
        ``"train"`` and ``"test"``: (n, 4 * filters), float32, standardised by the training images.

    References:
        Coates and Ng, "The Importance of Encoding Versus Training with Sparse Coding and Vector Quantization", ICML 2011.
    """
    weight, shift = _filters(train, filters, generator or torch.Generator().manual_seed(derived_seed("patches", 0)))
    made = [torch.cat([_responses(part, weight, shift) for part in images.split(200)]) for images in (train, test)]
    mean, std = made[0].mean(0), made[0].std(0) + 1e-6
    return {name: (values - mean) / std for name, values in zip(("train", "test"), made, strict=True)}


def _filters(images: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Filters (count, c, 6, 6) that whiten a patch and compare it in one product, and what to take off, (count,)."""
    sample = images[torch.randperm(len(images), generator=generator)[:20_000]].float()
    corners = torch.randint(images.shape[-1] - PATCH + 1, (-(-len(sample) // 200), 2), generator=generator).tolist()
    cut = [part[:, :, i : i + PATCH, j : j + PATCH].flatten(1) for part, (i, j) in zip(sample.split(200), corners, strict=True)]
    patches = torch.cat(cut)
    patches = (patches - patches.mean(1, keepdim=True)) / (patches.var(1, keepdim=True) + 10).sqrt()
    mean = patches.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(patches.T))
    whiten = vectors @ torch.diag((values.clamp(min=0) + 0.1).rsqrt()) @ vectors.T
    white = (patches - mean) @ whiten
    chosen = torch.randperm(len(white), generator=generator)[:count]
    bank = whiten @ F.normalize(white[chosen], dim=1).T
    return bank.T.reshape(len(chosen), images.shape[1], PATCH, PATCH).contiguous(), mean @ bank


def _responses(images: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    x, size = images.float(), weight[0].numel()
    means, squares = (F.avg_pool2d(v.mean(1, keepdim=True), PATCH, SPACING) for v in (x, x**2))
    std = ((squares - means**2).clamp(min=0) * size / (size - 1) + 10).sqrt()
    centred = F.conv2d(x, weight) - means * weight.sum((1, 2, 3))[:, None, None]
    response = centred / std - shift[:, None, None]
    return F.adaptive_avg_pool2d((response - 0.25).clamp(min=0), 2).flatten(1)


def sentence_features(sentences: list[str], folder: Path, length: int = 128, batch: int = 64) -> Tensor:
    """The mean of a transformer's last hidden states over each sentence's tokens: (n, d), float32.

    Args:
        sentences: n of them.
        folder: a small model with its tokenizer, as ``save_pretrained`` writes them.
        length: tokens after which a sentence is cut.
        batch: sentences in one pass.
    """
    transformers: Any = imported("transformers", "features of sentences")
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    order = sorted(range(len(sentences)), key=lambda i: len(sentences[i]))  # alike lengths together: little padding
    features = torch.empty(len(sentences), model.config.hidden_size)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            rows = order[start : start + batch]
            tokens = tokenizer(
                [sentences[i] for i in rows], padding=True, truncation=True, max_length=length, return_tensors="pt"
            )
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            features[rows] = (hidden * mask).sum(1) / mask.sum(1)
    return features


def token_ids(sentences: list[str], folder: Path, length: int = 128) -> Arrays:
    """Token ids and attention masks, each (n, l), int64, padded to the longest sentence, at most ``length``."""
    transformers: Any = imported("transformers", "token ids")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokens = tokenizer(sentences, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def model_files(folder: Path) -> list[Path]:
    """What a model in a folder depends on: its weights, settings and vocabulary.

    Raises:
        FileNotFoundError: there is no model in it.
    """
    wanted = ("config.json", "model.safetensors", "pytorch_model.bin", "tokenizer.json", "vocab.txt", "spiece.model")
    files = [folder / name for name in wanted if (folder / name).exists()]
    if not {"config.json"} & {path.name for path in files}:
        raise FileNotFoundError(
            f"expected a model with its tokenizer in {folder}, as transformers' save_pretrained writes them (config.json, "
            "model.safetensors, tokenizer.json); pass encoder=FOLDER, or put one there: see README.md"
        )
    return files
