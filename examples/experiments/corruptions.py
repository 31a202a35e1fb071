"""Ways to corrupt data, each with a mask of what was corrupted.

All are deterministic by seed and draw from streams of their own: neither the global random state nor anything else that is
drawn from the same seed has to do with them. Nothing is changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from rholoss.isolation import derived_seed

Reading = Literal["wrong", "redrawn"]
Draws = Literal["derived", "plain"]


def wrong_labels(
    labels: Tensor, share: float, classes: int, seed: int, reading: Reading = "wrong", draws: Draws = "derived"
) -> tuple[Tensor, Tensor]:
    """Uniform label noise.

    Args:
        labels: (N,), int64, from 0 to ``classes - 1``.
        share: in [0, 1]; of the examples, ``round(share * N)`` are chosen.
        classes: how many, at least 2.
        seed: of the choice and of the new labels.
        reading: what the share means. ``"wrong"``: all that were chosen get another class, drawn evenly from the others.
            ``"redrawn"``: they get a class drawn evenly from all, their own too, so fewer are wrong: with 10 classes and a share
            of 10 %, about 9 %.
        draws: how the seed is used. ``"derived"``: a random stream of this corruption's own draws a class for each example that
            was chosen. ``"plain"``: a generator with this very seed draws a class for every example, chosen or not. The rows of
            the study in ``studies/holdout`` were made so, and stay repeatable.

    Returns:
        Labels (N,), and a mask (N,) of those that are another than before.
    """
    if classes < 2:
        raise ValueError(f"wrong labels need at least 2 classes, got {classes}")
    if reading not in ("wrong", "redrawn"):
        raise ValueError(f"reading must be 'wrong' or 'redrawn', got {reading!r}")
    if draws not in ("derived", "plain"):
        raise ValueError(f"draws must be 'derived' or 'plain', got {draws!r}")
    generator = _stream("wrong labels", seed) if draws == "derived" else torch.Generator().manual_seed(seed)
    chosen = _chosen(len(labels), share, generator)
    first = 1 if reading == "wrong" else 0
    if draws == "derived":
        steps = torch.randint(first, classes, (len(chosen),), generator=generator)
    else:
        steps = torch.randint(first, classes, (len(labels),), generator=generator)[chosen]
    changed = labels.clone()
    changed[chosen] = (labels[chosen] + steps) % classes
    return changed, changed != labels


def similar_labels(labels: Tensor, share: float, similar: Mapping[int, int] | Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Structured label noise: a wrong label is that of a similar class.

    Args:
        labels: (N,), int64.
        share: in [0, 1], of the examples of each class that has a similar one: ``round(share * n)`` of its n are changed.
        similar: which class becomes which, such as ``{3: 5}``; or a confusion matrix (C, C), where row ``c`` says in what
            proportions ``c`` is taken for others. Its diagonal does not count, and a row of zeros leaves a class alone.
        seed: of the choice and of the new labels.

    Returns:
        Labels (N,), and a mask (N,) of those that are another than before.
    """
    weights = _confusion(similar, int(labels.max()) + 1 if len(labels) else 1)
    generator = _stream("similar labels", seed)
    changed = labels.clone()
    for kind in labels.unique().tolist():
        if kind < len(weights) and weights[kind].sum() > 0:
            mine = (labels == kind).nonzero().flatten()
            chosen = mine[_chosen(len(mine), share, generator)]
            if len(chosen):
                changed[chosen] = torch.multinomial(weights[kind], len(chosen), replacement=True, generator=generator)
    return changed, changed != labels


def _confusion(similar: Mapping[int, int] | Tensor, classes: int) -> Tensor:
    if isinstance(similar, Tensor):
        weights = similar.double().clone()
        if weights.ndim != 2 or weights.shape[0] != weights.shape[1] or not bool((weights >= 0).all()):
            raise ValueError(f"a confusion matrix must be (C, C), none of it negative, got {tuple(weights.shape)}")
    else:
        size = max(classes, *(max(pair) + 1 for pair in similar.items())) if similar else classes
        weights = torch.zeros(size, size, dtype=torch.float64)
        for one, other in similar.items():
            weights[one, other] = 1
    return weights.fill_diagonal_(0)


def noisy_inputs(x: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Input noise: some examples are nothing but noise, with the label of what was there.

    Args:
        x: (N, ...), uint8, or floats.
        share: in [0, 1]; ``round(share * N)`` examples.
        seed: of the choice and of the noise: bytes drawn evenly, or normal numbers of the data's mean and deviation.

    Returns:
        Inputs (N, ...), and a mask (N,) of those that were replaced.
    """
    generator = _stream("noisy inputs", seed)
    chosen = _chosen(len(x), share, generator)
    shape = (len(chosen), *x.shape[1:])
    if x.dtype == torch.uint8:
        noise = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    elif x.is_floating_point():
        deviation = x.std() if x.numel() > 1 else torch.ones(())
        noise = (torch.randn(shape, generator=generator) * deviation + x.mean()).to(x.dtype)
    else:
        raise TypeError(f"noise is of bytes or floats, got {x.dtype}")
    changed = x.clone()
    changed[chosen] = noise
    return changed, _mask(len(x), chosen)


def ambiguous_inputs(x: Tensor, labels: Tensor, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Ambiguous inputs: some examples are half of themselves and half of one of another class; their label is one of the two.

    Args:
        x: (N, ...), uint8, or floats.
        labels: (N,), int64, of at least two classes.
        share: in [0, 1]; ``round(share * N)`` examples.
        seed: of the choice and of whom each is blended with.

    Returns:
        Inputs (N, ...), and a mask (N,) of those that were blended.
    """
    generator = _stream("ambiguous inputs", seed)
    chosen = _chosen(len(x), share, generator)
    if len(chosen) and len(labels.unique()) < 2:
        raise ValueError("ambiguous inputs need examples of at least two classes")
    others = torch.empty_like(chosen)
    for kind in labels[chosen].unique().tolist():
        rows = labels[chosen] == kind
        pool = (labels != kind).nonzero().flatten()
        others[rows] = pool[torch.randint(len(pool), (int(rows.sum()),), generator=generator)]
    blend = (x[chosen].float() + x[others].float()) / 2
    changed = x.clone()
    changed[chosen] = blend.round().to(x.dtype) if x.dtype == torch.uint8 else blend.to(x.dtype)
    return changed, _mask(len(x), chosen)


def duplicates(n: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Examples that are there more than once.

    Args:
        n: how many examples there are.
        share: at least 0; ``round(share * n)`` copies are added, of examples drawn with replacement.
        seed: of which.

    Returns:
        Which example is at each index: indices (n + copies,), int64, of which the first n are 0 to n-1; and a mask of the same
        length of the copies.
    """
    if share < 0:
        raise ValueError(f"share must be at least 0, got {share}")
    copies = torch.randint(max(n, 1), (round(share * n),), generator=_stream("duplicates", seed))
    return torch.cat([torch.arange(n), copies]), torch.arange(n + len(copies)) >= n


def less_relevant(labels: Tensor, relevant: int) -> tuple[Tensor, Tensor]:
    """Relevance by class, as of CINIC-10 in the paper: only the classes below ``relevant`` are tested on.

    Returns:
        Which examples of holdout and test data to keep: indices, int64; and a mask (N,) of the less relevant training examples.
    """
    mask = labels >= relevant
    return (~mask).nonzero().flatten(), mask


def rare_classes(labels: Tensor, common: int, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """Relevance by number, as of CIFAR-100 in the paper: most of the data are of a few classes.

    Args:
        labels: (N,), int64.
        common: how many classes are common: those below this number, all of whose examples stay.
        share: which share of what is kept they make up, in (0, 1).
        seed: of which examples of the other classes stay, as many of each as can be.

    Returns:
        Which examples to keep: sorted indices, int64; and a mask of the same length of those of rare classes.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    generator = _stream("rare classes", seed)
    kept = (labels < common).nonzero().flatten()
    rest = (labels >= common).nonzero().flatten()
    wanted = min(len(rest), round(len(kept) * (1 - share) / share))
    order = rest[torch.randperm(len(rest), generator=generator)]
    turn = torch.empty(len(order), dtype=torch.int64)
    for kind in labels[order].unique().tolist():
        rows = (labels[order] == kind).nonzero().flatten()
        turn[rows] = torch.arange(len(rows))
    kept = torch.cat([kept, order[torch.argsort(turn, stable=True)[:wanted]]]).sort().values
    return kept, labels[kept] >= common


def _stream(name: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(name, seed))


def _chosen(n: int, share: float, generator: torch.Generator) -> Tensor:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be in [0, 1], got {share}")
    return torch.randperm(n, generator=generator)[: round(share * n)]


def _mask(n: int, chosen: Tensor) -> Tensor:
    mask = torch.zeros(n, dtype=torch.bool)
    mask[chosen] = True
    return mask
