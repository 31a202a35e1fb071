"""Parts of a dataset that keep the indices of its examples, and the labels of a dataset."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset

from rholoss.arguments import item, map_style, number, seed_of, shown, whole
from rholoss.data.index import tensor_of
from rholoss.isolation import derived_seed


class IndexedSubset(Dataset[Any]):
    """Some examples of a dataset; in selections and stores, they keep the indices that they have in that dataset.

    So one store of the whole dataset serves all its parts. A part of a part is a part of the dataset.

    Args:
        dataset: a map-style dataset, or a part of one.
        indices: which of its examples: positions in ``dataset``, shape (n,), int64, distinct.

    Attributes:
        dataset: the whole dataset.
        indices: indices of the examples in the whole dataset, shape (n,), int64.

    Examples:
        >>> import torch
        >>> part = IndexedSubset(IndexedSubset(list("abcdef"), [1, 3, 5]), [2, 0])
        >>> list(part), part.indices.tolist()
        (['f', 'b'], [5, 1])
    """

    def __init__(self, dataset: Any, indices: Any) -> None:
        n, positions = len(map_style(dataset, "dataset")), _positions(indices)
        if len(positions) and (int(positions.min()) < 0 or int(positions.max()) >= n):
            got = f"{int(positions.min())} to {int(positions.max())}"
            raise IndexError(f"indices must be positions from 0 to {n - 1} in the dataset, got {got}")
        repeated = len(positions) - len(positions.unique())
        if repeated:
            raise ValueError(f"a part holds each example once, got {repeated:,} repetitions")
        self.dataset: Any = whole_of(dataset)
        self.indices: Tensor = index_of(dataset, positions)

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"IndexedSubset({len(self):,} of the {len(self.dataset):,} examples of a {type(self.dataset).__name__})"

    def __getitem__(self, position: int) -> Any:
        return self.dataset[int(self.indices[position])]

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        read = getattr(self.dataset, "__getitems__", None)
        wanted = self.indices[list(positions)].tolist()
        return read(wanted) if read else [self.dataset[index] for index in wanted]


class Split(NamedTuple):
    """The parts of a dataset to train on, to fit the irreducible-loss model on, and to choose its weights by."""

    train: IndexedSubset
    holdout: IndexedSubset
    validation: IndexedSubset


def split(dataset: Any, *, holdout: float = 0.1, validation: float = 0.02, seed: int = 0, labels: Any = None) -> Split:
    """Divide a dataset at random into training, holdout and validation parts without common examples.

    Args:
        dataset: a map-style dataset, or a part of one.
        holdout: size of the holdout: a fraction of the dataset, in (0, 1), or a whole number of examples, at least 1.
        validation: likewise; 0 for none. The remaining examples are the training part, which may be empty.
        seed: seed of the division.
        labels: labels to stratify by, shape (N,), integer; None: the dataset's own, where it shows them (see ``labels_of``).

    Returns:
        The training, holdout and validation parts.

    Raises:
        ValueError: there are too few examples, or the labels are not one per example.

    Examples:
        >>> train, holdout, validation = split(range(100), holdout=0.2, validation=10)
        >>> len(train), len(holdout), len(validation)
        (70, 20, 10)
    """
    n, seed = len(map_style(dataset, "dataset", 1)), seed_of(seed)
    sizes = [_count(holdout, n, "holdout", least=1), _count(validation, n, "validation", least=0)]
    if sum(sizes) == n + 1 and not any(isinstance(item(share), Integral) for share in (holdout, validation)):
        sizes[0] -= 1  # both were rounded up
    if sum(sizes) > n:
        what = f"a holdout of {sizes[0]:,} and a validation part of {sizes[1]:,} exceed the {n:,} examples"
        raise ValueError(f"{what}; ask for less")
    order = stratified_order(n, labels_of(dataset) if labels is None else labels, seed)
    held, validating, training = (part.sort().values for part in order.split([*sizes, n - sum(sizes)]))
    return Split(IndexedSubset(dataset, training), IndexedSubset(dataset, held), IndexedSubset(dataset, validating))


def stratified_order(n: int, labels: Any, seed: int) -> Tensor:
    """Positions 0 to n-1 in random order, shape (n,), int64, in which any chunk has the labels in proportion, to within one."""
    generator = torch.Generator().manual_seed(derived_seed("parts", seed))
    order = torch.randperm(n, generator=generator)
    if labels is None:
        return order
    labels = checked_labels(labels, n).cpu()
    _, kind, counts = labels[order].unique(return_inverse=True, return_counts=True)
    by_kind = torch.argsort(kind, stable=True)
    firsts = counts.cumsum(0) - counts
    rank = torch.empty(n, dtype=torch.float64)
    offset = torch.rand(len(counts), dtype=torch.float64, generator=generator)  # else single examples would all be in the middle
    rank[by_kind] = (torch.arange(n) - firsts[kind[by_kind]] + offset[kind[by_kind]]) / counts[kind[by_kind]]
    return order[torch.argsort(rank, stable=True)]


def checked_labels(labels: Any, n: int, name: str = "labels") -> Tensor:
    """Labels that were given, one integer per example: shape (n,), int64, on the CPU."""
    found = _integers(labels, n)
    if found is None:
        got = getattr(labels, "shape", None)
        got = shown(labels) if got is None else f"{labels.dtype} of shape {tuple(got)}"
        raise ValueError(f"{name} must be one per example, shape ({n},), integers, got {got}")
    return found.cpu()


def labels_of(dataset: Any) -> Tensor | None:
    """The label of every example, shape (N,), integer, if a dataset shows them without being read; else None.

    Looked up in the last tensor of a ``TensorDataset``, the attributes ``targets`` and ``labels``, the columns ``label`` and
    ``labels``; for parts, subsets and concatenations, in the datasets inside. A look-up that fails, as under a transform that
    needs all columns, finds nothing.
    """
    try:
        return _labels_shown(dataset)
    except Exception:  # whatever a property or a transform raises: the labels are optional
        return None


def _labels_shown(dataset: Any) -> Tensor | None:
    if isinstance(dataset, (IndexedSubset, Subset)):
        labels = labels_of(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [labels_of(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else torch.cat(parts)  # type: ignore[arg-type]
    if isinstance(dataset, TensorDataset):
        return _integers(dataset.tensors[-1], len(dataset))
    columns = getattr(dataset, "column_names", None) or ()
    candidates = [getattr(dataset, name, None) for name in ("targets", "labels")]
    candidates += [dataset[name] for name in ("label", "labels") if name in columns]
    return next((labels for labels in (_integers(values, len(dataset)) for values in candidates) if labels is not None), None)


def class_names_of(data: Any) -> tuple[str, ...] | None:
    """The names of the classes, by class, if a dataset, or a loader over one, shows them; else None.

    Looked up in the attribute ``classes``, and in ``names`` of the features ``label`` and ``labels``.
    """
    dataset = origin(dataset_of(data))[0]
    dataset = dataset.datasets[0] if isinstance(dataset, ConcatDataset) else dataset
    features = getattr(dataset, "features", None) or {}
    found = [getattr(dataset, "classes", None)]
    found += [
        getattr(features[name], "names", None)
        for name in ("label", "labels")
        if isinstance(features, Mapping) and name in features
    ]
    return next((tuple(map(str, names)) for names in found if isinstance(names, (list, tuple)) and names), None)


def joined(parts: list[IndexedSubset]) -> Any:
    """One dataset of several: of tensors, if all are, as those are read many rows at once."""
    if len(parts) == 1:
        return parts[0]
    if all(type(part.dataset) is TensorDataset for part in parts) and len({len(part.dataset.tensors) for part in parts}) == 1:
        columns = list(zip(*(part.dataset.tensors for part in parts), strict=True))
        if all(len({(tensor.dtype, tensor.device, tensor.shape[1:]) for tensor in column}) == 1 for column in columns):
            return TensorDataset(*(_rows_of(column, parts) for column in columns))
    return ConcatDataset(parts)


def _rows_of(tensors: tuple[Tensor, ...], parts: list[IndexedSubset]) -> Tensor:
    """Rows of several tensors in one, each copied once."""
    sizes = [len(part) for part in parts]
    rows = tensors[0].new_empty((sum(sizes), *tensors[0].shape[1:]))
    for tensor, part, place in zip(tensors, parts, rows.split(sizes), strict=True):
        torch.index_select(tensor.detach(), 0, part.indices.to(tensor.device), out=place)
    return rows


def whole_of(dataset: Any) -> Any:
    """The whole dataset behind an ``IndexedSubset``; any other dataset unchanged."""
    return dataset.dataset if isinstance(dataset, IndexedSubset) else dataset


def index_of(dataset: Any, positions: Any) -> Any:
    """The indices of positions in a dataset: for an ``IndexedSubset``, those in the whole dataset; else the positions."""
    return dataset.indices[positions] if isinstance(dataset, IndexedSubset) else positions


def by_position(dataset: Any, by_index: Tensor) -> Tensor:
    """Values by index, shape (N,), reordered to the examples of a dataset, shape (n,)."""
    return by_index[dataset.indices] if isinstance(dataset, IndexedSubset) else by_index


def dataset_of(data: Any) -> Any:
    """The dataset of a loader, or the dataset itself."""
    return data.dataset if isinstance(data, DataLoader) else data


def origin(dataset: Any) -> tuple[Any, Tensor | None]:
    """The dataset behind parts and subsets, and the indices of the examples in it; None for all of them."""
    indices: Tensor | None = None
    while isinstance(dataset, (IndexedSubset, Subset)):
        inner = torch.as_tensor(dataset.indices, dtype=torch.int64)
        indices = inner if indices is None else inner[indices]
        dataset = dataset.dataset
    return dataset, indices


def in_common(one: Any, other: Any) -> int:
    """The number of examples that two parts of one dataset share; 0 for parts of different datasets."""
    (base, mine), (its_base, its) = origin(one), origin(other)
    if base is not its_base:
        return 0
    everything = torch.arange(len(base))
    return int(torch.isin(everything if mine is None else mine, everything if its is None else its).sum())


def _count(share: float, n: int, name: str, least: int) -> int:
    expected = f"a share of the {n:,} examples, in (0, 1), or a whole number of them, at least {least}"
    if isinstance(item(share), Integral):
        return whole(share, name, expected, least)
    count = round(n * number(share, name, expected, lambda part: 0 <= part < 1))
    return whole(count, name, expected, least)


def _positions(indices: Any) -> Tensor:
    """Positions that were given, shape (n,), int64, on the CPU."""
    try:
        positions = torch.as_tensor(indices)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"indices must be one whole number per example, shape (n,), got {shown(indices)}") from None
    positions = positions.long() if positions.numel() == 0 else positions
    if positions.ndim != 1 or positions.dtype.is_floating_point or positions.dtype == torch.bool:
        got = f"{positions.dtype} of shape {tuple(positions.shape)}"
        raise ValueError(f"indices must be one whole number per example, shape (n,), got {got}")
    return positions.long().cpu()


def _integers(values: Any, n: int) -> Tensor | None:
    try:
        labels = tensor_of(values)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
        return None
    return labels.long() if labels.dtype in (torch.uint16, torch.uint32, torch.uint64) else labels  # torch cannot sort these
