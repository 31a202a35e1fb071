"""The examples whose label is probably wrong, by what models that never trained on them predict."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rholoss.arguments import iterable, map_style, optional, options_of, path_of, refuse_unknown, shown, whole
from rholoss.data.index import some
from rholoss.data.subset import class_names_of, dataset_of, labels_of, origin
from rholoss.files import atomic_write
from rholoss.store import IrreducibleLossStore, Predictions

SHOWN = 20  # rows of a table that is printed


@dataclass(frozen=True, eq=False)
class Suspects:
    """The examples whose label is probably wrong, the worst first. ``print`` shows a table.

    Attributes:
        columns: a row for each of them, as arrays of m by name: ``index``; ``given_class`` and ``given_probability``, of its
            label; ``suggested_class`` and ``suggested_probability``, of the most likely class; ``irreducible_loss``, in nats;
            ``margin``, the probability of the label minus that of the most likely other class, in [-1, 1]. With names of the
            classes, also ``given_label`` and ``suggested_label``.
        label_quality: a row for every example that has a prediction, by index, in the columns that tools for label quality use:
            ``index``; ``is_label_issue``; ``label_quality``, the probability of the label, in [0, 1]; ``given_label``
            and ``predicted_label``, classes.
        class_names: by class; None if unknown.
    """

    columns: dict[str, np.ndarray]
    label_quality: dict[str, np.ndarray]
    class_names: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.columns["index"])

    def to_pandas(self) -> Any:
        """The columns as a ``pandas.DataFrame``; an ImportError names the extra."""
        try:
            import pandas  # type: ignore[import-untyped]
        except ImportError:
            raise ImportError("to_pandas needs pandas, which is not installed; run: pip install 'rholoss[tables]'") from None
        return pandas.DataFrame(self.columns)

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the columns, with a line of their names, to a UTF-8 file, whole or not at all."""
        with atomic_write(path_of(path)) as raw:
            text = io.TextIOWrapper(raw, "utf-8", newline="")
            rows = csv.writer(text)
            rows.writerow(self.columns)
            rows.writerows(zip(*(column.tolist() for column in self.columns.values()), strict=True))
            text.flush()
            text.detach()

    def __str__(self) -> str:
        head = ("index", "label", "suggested", "probability", "loss", "margin")
        rows = [head, *self._rows(SHOWN)]
        widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self._summary(), "", *lines][: None if len(self) else 1])

    def _repr_html_(self) -> str:
        cells = [("<td>" + "</td><td>".join(map(escape, row)) + "</td>") for row in self._rows(SHOWN)]
        head = "<th>index</th><th>label</th><th>suggested</th><th>probability</th><th>loss, nats</th><th>margin</th>"
        body = "".join(f"<tr>{row}</tr>" for row in cells)
        return f"<p>{escape(self._summary())}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _summary(self) -> str:
        issues, n = int(self.label_quality["is_label_issue"].sum()), len(self.label_quality["index"])
        share = f" ({issues / n:.1%})" if n else ""
        listed = f"; the worst {min(SHOWN, len(self)):,} of a table of {len(self):,}" if len(self) else ""
        return f"{issues:,} of {n:,} labels are probably wrong{share}{listed}"

    def _rows(self, most: int) -> list[tuple[str, ...]]:
        names = ("index", "given_class", "suggested_class", "suggested_probability", "irreducible_loss", "margin")
        rows = zip(*(self.columns[name][:most].tolist() for name in names), strict=True)
        return [
            (f"{index}", self.name_of(given), self.name_of(other), f"{p:.3f}", f"{loss:.3f}", f"{margin:+.3f}")
            for index, given, other, p, loss, margin in rows
        ]

    def name_of(self, label: int) -> str:
        """The name of a class; its number if it has none."""
        return str(label) if self.class_names is None or label >= len(self.class_names) else self.class_names[label]


def find_suspects(
    store: IrreducibleLossStore,
    dataset: Any = None,
    *,
    top: int | None = None,
    class_names: Sequence[str] | None = None,
    **unknown: Any,
) -> Suspects:
    """Find the examples whose label is probably wrong, as ``IrreducibleLossStore.suspects`` does.

    A label is probably wrong if the models give it a probability below 1 / C, which is a loss above the chance level log(C), and
    find another class the most likely. The worst have the lowest probability.

    Args:
        store: a store that was made with ``top_classes=2`` or more.
        dataset: the dataset, a part of it to look at alone, or a loader over either; for the names of the classes, and to check
            that the labels are those that were scored. None: all examples of the store.
        top: list so many examples, whether their label is probably wrong or not; None: those whose label is.
        class_names: by class; None: those of the dataset, where it shows them in ``classes`` or ``features``.
        **unknown: refused, with the option that is meant.

    Raises:
        ValueError: the store holds no predictions, or the labels of the dataset are others.

    Examples:
        >>> predictions = [[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.99, 0.01]]
        >>> store = IrreducibleLossStore.from_predictions(predictions, [0, 0, 1, 1], kind="probabilities", top_classes=2)
        >>> print(store.suspects(class_names=["cat", "dog"]))
        1 of 4 labels are probably wrong (25.0%); the worst 1 of a table of 1
        <BLANKLINE>
        index  label  suggested  probability   loss  margin
            3    dog        cat        0.990  4.605  -0.980
    """
    refuse_unknown(unknown, options_of(find_suspects), "suspects")
    if not isinstance(store, IrreducibleLossStore):
        raise TypeError(f"store must be an IrreducibleLossStore, got {shown(store)}")
    top = optional(whole, top, "top", "a number of examples, at least 0, or None", 0)
    index, losses, predictions = _known(store)
    names = class_names_of(dataset) if class_names is None else checked_names(class_names, predictions.classes[:, 0].numpy())
    counted = 0 if store.meta.calibration is None else store.meta.calibration.classes
    C = counted or int(predictions.classes.max()) + 1 if len(index) else 1
    index, losses, predictions = _of_dataset(dataset, index, losses, predictions)
    quality, issue = predictions.probabilities[:, 0], label_issues(predictions, C)
    order = quality.argsort(stable=True)
    order = order[issue[order]] if top is None else order[:top]
    given, predicted = predictions.classes[:, :2].long().T
    everything = {"index": index, "is_label_issue": issue, "label_quality": quality}
    columns = {
        **{"index": index, "given_class": given, "given_probability": quality},
        **{"suggested_class": predicted, "suggested_probability": predictions.probabilities[:, 1]},
        **{"irreducible_loss": losses, "margin": margins(predictions)},
    }
    found = Suspects(
        {name: column[order].numpy() for name, column in columns.items()},
        {name: column.numpy() for name, column in {**everything, "given_label": given, "predicted_label": predicted}.items()},
        names,
    )
    for name in ("given", "suggested") if names else ():
        found.columns[f"{name}_label"] = np.array(
            [found.name_of(label) for label in found.columns[f"{name}_class"].tolist()], str
        )
    return found


def margins(predictions: Predictions) -> Tensor:
    """The probability of each label minus that of the most likely other class, shape (N,), float32, in [-1, 1]."""
    p = predictions.probabilities
    agrees = predictions.classes[:, 1] == predictions.classes[:, 0]
    return p[:, 0] - torch.where(agrees, p[:, 2], p[:, 1])


def label_issues(predictions: Predictions, classes: int) -> Tensor:
    """Which labels are probably wrong among so many classes, shape (N,), bool: see ``find_suspects``."""
    return (predictions.classes[:, 1] != predictions.classes[:, 0]) & (predictions.probabilities[:, 0] < 1 / classes)


def checked_names(names: Any, labels: np.ndarray | None) -> tuple[str, ...]:
    """Names of classes that were given, by class: of all that are labels, integers, where these are known."""
    what = "one name for each class, such as ['cat', 'dog']"
    found = list(iterable(names, "class_names", what))
    if not all(isinstance(name, str) for name in found):
        raise TypeError(f"class_names must be {what}, got {shown(names)}")
    if labels is not None and len(labels) and len(found) <= labels.max():
        raise ValueError(
            f"class_names must be {what}: the labels go up to {labels.max()}, got {len(found)} names; name each class"
        )
    return tuple(found)


def _known(store: IrreducibleLossStore) -> tuple[Tensor, Tensor, Predictions]:
    """Index, irreducible loss and predictions of the examples that have a prediction, on the CPU."""
    if store.predictions is None:
        raise ValueError(
            "suspects are found by predictions, and this store holds none: expected one made with top_classes=2 or more, such as "
            "IrreducibleLossStore.from_model(model, data, top_classes=3); make the store again"
        )
    predictions = store.predictions.to(torch.device("cpu"))
    rows = torch.nonzero(predictions.classes[:, 0] >= 0).flatten()
    index = rows if store.ids is None else store.ids.cpu()[rows]
    return index, store.losses.cpu()[rows], predictions.rows(rows)


def _of_dataset(data: Any, index: Tensor, losses: Tensor, predictions: Predictions) -> tuple[Tensor, Tensor, Predictions]:
    """The examples that are in a dataset, if one is given, whose labels are checked."""
    if data is None:
        return index, losses, predictions
    whole, part = origin(map_style(dataset_of(data), "dataset"))
    labels = labels_of(whole)
    if labels is not None:
        there = torch.nonzero((index >= 0) & (index < len(labels))).flatten()
        other = there[labels[index[there]].long() != predictions.classes[there, 0]]
        if len(there) < len(index) or len(other):
            what = f"{len(other):,} labels differ, at indices {some(index[other].tolist())}" if len(other) else "it is shorter"
            raise ValueError(f"this store was made from other data than this dataset: {what}; pass the one that was scored")
    if part is None:
        return index, losses, predictions
    mine = torch.isin(index, part)
    return index[mine], losses[mine], predictions.rows(mine)
