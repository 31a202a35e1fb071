"""The examples whose label is probably wrong: found, ranked, named, written, and refused for other data."""

import csv

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset, TensorDataset

from rholoss import IndexedSubset, IrreducibleLossStore
from rholoss.report import find_suspects
from rholoss.store import Predictions

P = [[0.9, 0.06, 0.04], [0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.97, 0.02, 0.01], [0.1, 0.45, 0.45], [0.35, 0.25, 0.4]]
LABELS = [0, 0, 1, 2, 1, 0]


def store(**options):
    return IrreducibleLossStore.from_predictions(P, LABELS, kind="probabilities", top_classes=2, **options)


def dataset(labels=LABELS, names=("cat", "dog", "owl")):
    data = TensorDataset(torch.randn(len(labels), 2), torch.tensor(labels))
    data.classes = list(names)
    return data


def test_a_label_is_suspicious_below_the_chance_level():
    found = store().suspects()
    assert found.columns["index"].tolist() == [3]  # index 5 is above 1/3, though another class is likelier
    quality = found.label_quality
    assert quality["is_label_issue"].tolist() == [False, False, False, True, False, False]
    assert quality["label_quality"].tolist() == pytest.approx([0.9, 0.8, 0.7, 0.01, 0.45, 0.35])
    assert quality["predicted_label"].tolist()[:4] == [0, 0, 1, 0]
    assert quality["given_label"].tolist() == LABELS


def test_the_columns_are_those_of_the_predictions():
    found = store().suspects(top=6)
    assert found.columns["index"].tolist() == [3, 5, 4, 2, 1, 0]
    assert found.columns["irreducible_loss"].tolist() == pytest.approx([-np.log(P[i][LABELS[i]]) for i in found.columns["index"]])
    assert found.columns["margin"].tolist() == pytest.approx([-0.96, -0.05, 0.0, 0.5, 0.7, 0.84], abs=1e-6)
    assert found.columns["suggested_probability"].tolist() == pytest.approx([0.97, 0.4, 0.45, 0.7, 0.8, 0.9])
    assert "given_label" not in found.columns


def test_names_come_from_the_dataset_or_are_given():
    for found in (store().suspects(dataset()), store().suspects(class_names=["cat", "dog", "owl"])):
        assert found.columns["given_label"].tolist() == ["owl"]
        assert found.columns["suggested_label"].tolist() == ["cat"]
        assert "owl        cat" in str(found)
        assert "<td>owl</td><td>cat</td>" in found._repr_html_()


def test_a_name_is_text_in_a_notebook():
    found = store().suspects(class_names=["<script>", "b", "c"])
    assert "<script>" not in found._repr_html_()
    assert "&lt;script&gt;" in found._repr_html_()


@pytest.mark.parametrize("part", [IndexedSubset, Subset])
def test_of_a_part(part):
    data = part(dataset(), [1, 3])
    for given in (data, DataLoader(data)):
        assert store().suspects(given, top=6).columns["index"].tolist() == [3, 1]
    assert len(store().suspects(part(dataset(), [0, 1]))) == 0


def test_of_ids():
    found = store(ids=[70, 60, 50, 40, 30, 20]).suspects()
    assert found.columns["index"].tolist() == [40]


@pytest.mark.parametrize("labels", [[0, 0, 1, 0, 1, 0], [0, 0, 1]])
def test_other_labels_are_refused(labels):
    with pytest.raises(ValueError, match="made from other data than this dataset"):
        store().suspects(dataset(labels))


def test_a_store_without_predictions_says_how_to_make_one():
    with pytest.raises(ValueError, match=r"from_model\(model, data, top_classes=3\)"):
        IrreducibleLossStore([0.5]).suspects()


def test_a_table_is_written_whole(tmp_path):
    found = store().suspects(class_names=['a,"b"', "ä", "c\nd"], top=2)
    found.to_csv(tmp_path / "suspects.csv")
    with open(tmp_path / "suspects.csv", encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == list(found.columns)
    assert [row[head.index("given_label")] for row in rows] == ["c\nd", 'a,"b"']
    assert [int(row[0]) for row in rows] == [3, 5]


def test_a_table_as_a_data_frame():
    pytest.importorskip("pandas")
    found = store().suspects(class_names=['a,"b"', "ä", "c\nd"], top=2)
    assert list(found.to_pandas()["index"]) == [3, 5]


def test_nothing_to_suspect_is_said():
    empty = IrreducibleLossStore.from_predictions(np.zeros((0, 3)), np.zeros(0, int), kind="probabilities", top_classes=2)
    assert empty.predictions is None
    without = Predictions(torch.full((2, 3), -1).int(), torch.full((2, 3), torch.nan))
    assert len(IrreducibleLossStore([0.5, 0.1], predictions=without).suspects(top=5)) == 0
    found = store().suspects(top=0)
    assert str(found) == "1 of 6 labels are probably wrong (16.7%)"


def test_the_dataset_of_an_unknown_option():
    with pytest.raises(TypeError, match="class_names"):
        find_suspects(store(), class_name=["a"])
    with pytest.raises(TypeError, match="class_names must be one name for each class"):
        store().suspects(class_names="abc")
    with pytest.raises(ValueError, match="one name for each class, such as .*: the labels go up to 2, got 2 names; name each"):
        store().suspects(class_names=["cat", "dog"])
    with pytest.raises(ValueError, match="the labels go up to 3, got 2 names"):
        store().report([0, 3, 1] + [0] * (len(store()) - 3), class_names=["cat", "dog"])
    assert store().suspects(class_names=["cat", "dog", "owl", "unused"]).class_names[3] == "unused"
