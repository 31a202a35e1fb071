"""Which trusted examples a rehearsal can use: enough, of the same kind and classes as the training data, and not among them."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from rholoss.arguments import item, map_style
from rholoss.data.fingerprint import same_content, spread
from rholoss.data.subset import dataset_of, in_common
from rholoss.rehearsal.reader import Reader, refuse_not_finite_inputs

FEWEST_TRUSTED = 40  # examples from which they count
_COMPARED = 64  # examples whose inputs are compared with the training data's
_SCALE = 3.0  # how many times as wide the range of inputs of one kind is not
_UNUSED = "they are not used"


class Verdict(NamedTuple):
    """Whether trusted examples are used, a sentence to print, and what they say of the classes."""

    usable: bool
    note: str = ""
    asked_for: Tensor | None = None  # labels, if only some are asked for
    unasked: float = 0.0  # share of the training data whose class is irrelevant


def trusted_of(given: Any) -> Any:
    """The dataset of trusted examples that was given; a TypeError with the cure if it is none."""
    data: Any = given if isinstance(given, DataLoader) else item(given)
    expected = "trusted must be a dataset, or a loader over one"
    if isinstance(data, Tensor) or (isinstance(data, (list, tuple)) and data and all(map(_is_whole, data))):
        cure = "for indices of a dataset, pass torch.utils.data.Subset(dataset, indices)"
        raise TypeError(f"{expected}, with examples like the training data's, got {_kind(data)}; {cure}")
    is_pair = isinstance(data, (list, tuple)) and len(data) == 2 and all(getattr(each, "ndim", 0) for each in data)
    if is_pair and len(data[0]) == len(data[1]) > 1:
        raise TypeError(f"{expected}, got {_kind(data)}; for inputs and labels, pass torch.utils.data.TensorDataset(X, Y)")
    return map_style(dataset_of(data), "trusted", 1, what="a dataset, or a loader over one")


def judge(trusted: Any, data: Any, reader: Reader, labels: Tensor, classes: int, only: bool) -> Verdict:
    """Whether trusted examples can be used, with a sentence that says why not.

    Args:
        trusted: a dataset.
        data: the training data.
        reader: reads examples of both.
        labels: of some training examples, int64.
        classes: C.
        only: whether classes without a trusted example are irrelevant to the task.

    Raises:
        TypeError: they are of another kind than the training examples, so that they cannot be in one batch.
        ValueError: their inputs are not finite.
    """
    n = len(trusted)
    if n < FEWEST_TRUSTED:
        return _refused(f"{n:,} trusted examples are too few to learn from, at least {FEWEST_TRUSTED} are needed")
    _check_alike(trusted, data, reader)
    own = reader.labels(trusted, n)
    kinds = own.unique()
    if len(kinds) < 2:
        return _refused(f"All trusted examples have the label {int(own[0])}")
    foreign = [int(label) for label in kinds if not 0 <= int(label) < classes]
    if foreign:
        return _refused(f"The trusted examples have labels that the model does not know, such as {foreign[0]}")
    shared = in_common(trusted, data) or _same_inputs(trusted, data, reader, own)
    if shared > n // 100:
        return _refused(f"About {shared:,} of {n:,} trusted examples are among the training data, too")
    scale = _other_scale(trusted, data, reader)
    return _refused(scale) if scale else _judged_classes(own, kinds, labels, only)


def _judged_classes(own: Tensor, kinds: Tensor, labels: Tensor, only: bool) -> Verdict:
    absent = ~torch.isin(labels, kinds)
    unasked = float(absent.float().mean()) if len(labels) else 0.0
    if unasked * len(own) < 10:  # so few may be missing by chance
        return Verdict(True)
    which = ", ".join(map(str, labels[absent].unique().tolist()[:5]))
    what = f"{unasked:.0%} of the training examples have labels that no trusted example has, such as {which}"
    if only:
        return Verdict(True, f"{what}: they are irrelevant to the task, and left out.", kinds, unasked)
    return Verdict(False, f"{what}: {_UNUSED}. If these classes are irrelevant to the task, pass only_trusted_classes=True.")


def _refused(why: str) -> Verdict:
    return Verdict(False, f"{why}: {_UNUSED}.")


def _check_alike(trusted: Any, data: Any, reader: Reader) -> None:
    """A TypeError if examples of both cannot be in one batch, in either order."""
    try:
        for one, other in ((data, trusted), (trusted, data)):
            reader.call(reader.batch((one, [0]), (other, [0])))
    except Exception as error:  # whatever a collate function and a model raise
        expected = "trusted examples must be of the same kind as the training examples, as they are in one batch"
        kinds = f"expected {_kind(data[0])}, got {_kind(trusted[0])} ({type(error).__name__}: {error})"
        raise TypeError(f"{expected}: {kinds}; make both with the same dataset class and transform") from error


def _same_inputs(trusted: Any, data: Any, reader: Reader, labels: Tensor) -> int:
    """How many trusted examples have the inputs of a training example, whatever its label: an estimate from some of both."""
    at = spread(len(trusted), 512)
    among = spread(len(data), min(4_000, 800_000 // len(at)))
    found, compared = same_content(reader.loader_of(data), reader.loader_of(trusted), at, among, labels[at])
    if found < 3:  # such as a text that happens to be in both
        return 0
    return min(len(trusted), round(found * len(trusted) / compared * len(data) / len(among)))


def _other_scale(trusted: Any, data: Any, reader: Reader) -> str:
    """A sentence if the trusted inputs are on another scale than the training inputs, as without the same transform."""
    sampled = [reader.call(reader.some(each, _COMPARED))[0] for each in (data, trusted)]
    for place in sampled[0].keys() & sampled[1].keys():
        mine, its = (call[place] for call in sampled)
        if not (mine.is_floating_point() and its.is_floating_point()):
            continue
        refuse_not_finite_inputs(its, "trusted example", spread(len(trusted), _COMPARED).tolist())
        (low, high), (its_low, its_high) = (_range(values) for values in (mine, its))
        widths = sorted((high - low, its_high - its_low))
        apart = abs(low + high - its_low - its_high) / 2
        if widths[0] > 0 and (widths[1] > _SCALE * widths[0] or apart > widths[1]):
            what = f"most of their values are from {its_low:.3g} to {its_high:.3g}, and from {low:.3g} to {high:.3g} there"
            return f"The trusted inputs are on another scale than the training inputs: {what}; transform both in the same way"
    return ""


def _range(values: Tensor) -> tuple[float, float]:
    """The values below which a twentieth, and all but a twentieth, of those that are not 0 are."""
    flat = values.detach().flatten().float().cpu()
    flat = flat[flat != 0]
    beyond = len(flat) // 20
    return (float(flat.kthvalue(beyond + 1).values), float(flat.kthvalue(len(flat) - beyond).values)) if len(flat) else (0.0, 0.0)


def _is_whole(value: Any) -> bool:
    return isinstance(item(value), Integral)


def _kind(value: Any) -> str:
    """What an example is made of, in short."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name!r}: {_kind(each)}" for name, each in list(value.items())[:8]) + "}"
    if isinstance(value, (tuple, list)):
        more = ", ..." if len(value) > 4 else ""
        return f"{type(value).__name__} ({', '.join(map(_kind, value[:4]))}{more})"
    name, shape = type(value).__name__, getattr(value, "shape", None)
    return name if shape is None else f"{name} {getattr(value, 'dtype', '')} {tuple(shape)}"
