"""Fingerprints of datasets, to detect other data, another order or other labels."""

import dataclasses
import warnings
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from rholoss.data.index import is_map_style, is_readable
from rholoss.data.subset import labels_of, whole_of
from rholoss.isolation import own_generators_kept, seeded
from rholoss.states import digest

SAMPLE = 32  # examples that are read
WHOLE = "the example"  # stands for the field of an example that is one value
Digests = dict[str, str]


def fingerprint(data: Any, seed: int = 0) -> dict[str, Any] | None:
    """A dataset's length, a digest of all labels it shows, and by field the kind and digests of a sample, as JSON values.

    Of a part, the whole dataset is used. Fields that differ between two readings, such as augmented images, are omitted; if all
    do, or the sample cannot be read, there is a warning. None where the data cannot be read by index, or report their own
    indices. Global random states, and generators in the dataset's attributes, stay as they are.
    """
    loader = DataLoader(data) if is_readable(data) and not isinstance(data, DataLoader) else data
    if not is_map_style(loader) or loader.batch_sampler is None:
        return None
    dataset = whole_of(loader.dataset)
    try:
        length = len(dataset)
    except (TypeError, NotImplementedError):
        return None
    labels = labels_of(dataset)
    digests = None if labels is None else labels_digest(labels)
    return {"length": length, "labels": digests, "sample": _sample(loader, dataset, seed)}


def difference(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """How a dataset differs from the one with the saved fingerprint, in words; None where no difference is found."""
    if saved["length"] != now["length"]:
        return f"it has {now['length']:,} examples, and that had {saved['length']:,}"
    if saved["labels"] and now["labels"] and saved["labels"] != now["labels"]:
        return "its labels, in their order, are not those (it was reordered or relabelled)"
    for field, (kind, digests) in saved["sample"].items():
        its_kind, its = now["sample"].get(field, ("", ""))
        if kind == its_kind and digests != its:
            pairs = list(zip(_each(digests), _each(its), strict=True))
            differing = sum(one != other for one, other in pairs)
            return f"{differing} of {len(pairs)} sampled examples differ in {field} (reordered, or transformed differently)"
    if (saved["labels"] and now["labels"]) or saved["sample"].keys() & now["sample"].keys():
        return None
    fields = [(one, other) for one in saved["sample"].values() for other in now["sample"].values() if one[0] == other[0]]
    if fields and all(one != other for one, other in fields):
        return "its fields have other names, and none holds what one of that held (reordered, or transformed differently)"
    return None


def is_same_but_transformed(saved: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a difference may come from another transform of the same examples: other fields that tell them apart are the same.

    Classes, a field that is one integer, are never transformed; a floating number may be a weight.
    """
    if saved["length"] != now["length"] or (saved["labels"] and now["labels"] and saved["labels"] != now["labels"]):
        return False
    both = [(mine, now["sample"][field]) for field, mine in saved["sample"].items() if field in now["sample"]]
    changed = [kind for (kind, digests), (its_kind, its) in both if kind == its_kind and digests != its]
    kept = [its for mine, its in both if list(mine) == list(its) and len(set(_each(its[1]))) > 1]
    index = _index_digests(spread(now["length"], SAMPLE))
    is_relabelled = any(kind.endswith(" ()") and not kind.startswith("float") for kind in changed)
    return not is_relabelled and any(digests != index for _, digests in kept)


def compared(saved: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> dict[str, str]:
    """What two fingerprints have in common, what differs, and what could not be compared, in words, by what was looked at."""
    if not saved or not now:
        why = "the store has no fingerprint" if not saved else "these cannot be read by index"
        return {"data": f"not compared, as {why}"}
    n, was = now["length"], saved["length"]
    found = {"length": f"the same, {n:,} examples" if n == was else f"different, {n:,} examples, and {was:,} in the store"}
    is_known, is_same = saved["labels"] and now["labels"], saved["labels"] == now["labels"]
    in_order = "the same, in the same order" if is_same else "different, or in another order"
    found["labels"] = in_order if is_known else "not compared, as the data do not show them"
    for field, (kind, digests) in saved["sample"].items():
        its_kind, its = now["sample"].get(field, ("", ""))
        what = f"{'' if field == WHOLE else 'field '}{field}, {kind}"
        if kind != its_kind:
            found[what] = "not compared, as its kind has changed, or it differs from one reading to the next"
            continue
        pairs = list(zip(_each(digests), _each(its), strict=False))
        differing = sum(one != other for one, other in pairs)
        found[what] = f"different in {differing} of {len(pairs)}" if differing else f"the same in {len(pairs)}"
        found[what] += " sampled examples"
    return found


def example_digests(loader: DataLoader[Any], dataset: Any, positions: Tensor) -> list[Digests]:
    """A digest of each field of some examples, read as the loader reads them, in a worker if it has workers.

    Random generators in the dataset's attributes stay as they are.
    """
    if type(dataset) is TensorDataset:
        chunks = positions.split(256)
        return [each for at in chunks for each in _digests_of_tensors(column[at] for column in dataset.tensors)]
    workers = min(1, loader.num_workers)
    reader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size=16,
        sampler=positions.tolist(),
        collate_fn=_digested,
        num_workers=workers,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if workers else None,
    )
    with own_generators_kept(dataset):
        return [digests for batch in reader for digests in batch]


def same_content(
    one: DataLoader[Any], other: DataLoader[Any], positions: Tensor, among: Tensor | None = None, labels: Tensor | None = None
) -> tuple[int, int]:
    """How many examples that one loader reads are in another's dataset, by content, and how many were compared.

    Up to 512 examples are read of the other, among these positions, shape (n,), int64; and of the one those at the positions
    ``among``, or its first 50,000. With the other's ``labels`` at these positions, shape (n,), fields that go with them one to
    one are not compared, so that an example with another label is the same.
    """
    if not len(positions) or not len(one.dataset):  # type: ignore[arg-type]
        return 0, 0
    chosen = spread(len(positions), 512)
    compared = positions[chosen]
    among = torch.arange(min(len(one.dataset), 50_000)) if among is None else among  # type: ignore[arg-type]
    with seeded(0):
        read = [example_digests(loader, loader.dataset, at) for loader, at in ((one, among), (other, compared))]
    omitted = set() if labels is None else _fields_of_labels(read[1], labels[chosen].tolist())
    mine, theirs = (
        [repr(sorted((name, each) for name, each in digests.items() if name not in omitted)) for digests in part] for part in read
    )
    known = set(mine) - {"[]"}
    return sum(digest in known for digest in theirs), len(theirs)


def _fields_of_labels(read: list[Digests], labels: list[int]) -> set[str]:
    """The fields that have one value for each label, and another one for any other label."""
    values = {name: [digests.get(name) for digests in read] for name in read[0]}
    kinds = len(set(labels))
    return {name for name, each in values.items() if len(set(each)) == kinds == len(set(zip(each, labels, strict=True)))}


def spread(n: int, most: int) -> Tensor:
    """Positions that are spread evenly over n, at most so many, ascending, int64."""
    return torch.linspace(0, n - 1, min(n, most)).round().long().unique()


def _sample(loader: DataLoader[Any], dataset: Any, seed: int) -> dict[str, list[str]]:
    positions = spread(len(dataset), SAMPLE)
    try:
        with seeded(seed):
            read = example_digests(loader, dataset, positions.repeat(2))
    except Exception as error:  # an example that the loader may never draw
        cause = f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}"
        warnings.warn(f"a sample of this dataset cannot be read ({cause}): other data would not be noticed", stacklevel=3)
        return {}
    readings = read[: len(positions)], read[len(positions) :]
    fields: dict[str, list[str]] = {}
    differ = False
    for field in readings[0][0] if readings[0] else ():
        first, second = ([digests.get(field, ":") for digests in reading] for reading in readings)
        kinds = {digest.split(":")[0] for digest in first}
        differ = differ or (first != second and not _mostly_same(first, second))
        if first == second and "" not in kinds:
            fields[field] = [kinds.pop() if len(kinds) == 1 else "of any size", "".join(each.split(":")[1] for each in first)]
    index = _index_digests(positions)
    if differ and all(digests == index for _, digests in fields.values()):
        what = "no field of this dataset's examples is the same when they are read twice"
        why = "an index stands for no one example, or augmentation and masks are drawn again for all that it returns"
        cure = "let __getitem__ go by the index alone, or return a field that stays too, such as the label"
        warnings.warn(f"{what}: {why}, so that an irreducible loss is that of another; {cure}", stacklevel=3)
    return fields


def _mostly_same(first: list[str], second: list[str]) -> bool:
    """Whether a field tells examples apart, and is the same in most of them, such as rarely augmented images."""
    same = [one for one, other in zip(first, second, strict=True) if one == other]
    return 2 * len(same) > len(first) and 2 * len(set(first)) > len(first)


def _index_digests(positions: Tensor) -> str:
    """The digests of a field that is the index itself."""
    return "".join(digest(np.asarray(index).tobytes())[:8] for index in positions.tolist())


def _digests_of_tensors(columns: Iterable[Tensor]) -> list[Digests]:
    """Those of the examples of a ``TensorDataset``, many at once."""
    found = []
    for column in map(_array, columns):
        kind = _kind(column.dtype, column.shape[1:])
        found.append([_entry(kind, row.tobytes()) for row in column])
    names = [f"[{i}]" for i in range(len(found))]
    return [dict(zip(names, each, strict=True)) for each in zip(*found, strict=True)]


def _digested(examples: list[Any]) -> list[Digests]:
    read: list[Digests] = [{} for _ in examples]
    for example, found in zip(examples, read, strict=True):
        _read_fields(example, "", found)
    return read


def _read_fields(value: Any, name: str, found: Digests) -> None:
    """Add the fields of an example, as kind and digest each; fields whose content cannot be compared are omitted."""
    kind, content = _content(value)
    if content is not None:
        found[name or WHOLE] = _entry(kind, content)
    elif isinstance(value, Mapping):
        for key, part in value.items():
            _read_fields(part, f"{name}[{key!r}]", found)
    elif isinstance(value, (tuple, list)):
        for i, part in enumerate(value):
            _read_fields(part, f"{name}[{i}]", found)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            _read_fields(getattr(value, field.name), f"{name}.{field.name}", found)


def _content(value: Any) -> tuple[str, bytes | None]:
    """What kind of value it is, and its bytes; None for what has parts, and for what cannot be compared."""
    is_numbers = isinstance(value, list) and all(type(each) in (bool, int, float) for each in value)  # such as tokens: one field
    if isinstance(value, Tensor):
        value = _array(value)
    elif is_numbers or isinstance(value, (bool, int, float, np.generic)):
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _kind(value.dtype, value.shape), value.tobytes()
    if isinstance(value, (str, bytes)):
        return type(value).__name__, value.encode() if isinstance(value, str) else value
    if hasattr(value, "tobytes") and hasattr(value, "size"):  # an image
        return f"{type(value).__name__} {value.size}", value.tobytes()
    return "", None


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).detach().cpu().numpy()


def _entry(kind: str, content: bytes) -> str:
    return f"{kind}:{digest(content)[:8]}"


def _kind(dtype: np.dtype[Any], shape: tuple[int, ...]) -> str:
    return f"{_name(dtype)} {shape}"


@cache
def _name(dtype: np.dtype[Any]) -> str:
    return str(dtype).replace(":", "")  # slow


def labels_digest(labels: Tensor) -> str:
    """A digest of all labels in their order."""
    return digest(np.ascontiguousarray(labels.cpu().long().numpy()).tobytes())


def _each(digests: str) -> list[str]:
    return [digests[i : i + 8] for i in range(0, len(digests), 8)]
