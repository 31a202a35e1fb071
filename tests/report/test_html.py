"""The page of a report: whole, its own, safe, quick to open, and as wide as the window."""

import io
import os
import re

import numpy as np
import pytest
import torch
from browser import needs_browser, opened
from PIL import Image
from torch.utils.data import Dataset, Subset, TensorDataset

from rholoss import IndexedSubset, IrreducibleLossStore
from rholoss.report.gallery import Examples, png, preview

EVIL = "<script>window.hacked=1</script>"
EVIL_TEXT = '"><img src=x onerror="window.hacked=1">'


def scored(n, classes=4, **options):
    """A store with predictions, and its labels."""
    generator = torch.Generator().manual_seed(0)
    p = (3 * torch.randn(n, classes, generator=generator)).softmax(1)
    labels = torch.randint(classes, (n,), generator=generator)
    return IrreducibleLossStore.from_predictions(p, labels, kind="probabilities", top_classes=2, **options), labels


class Texts(Dataset):
    """A dataset of texts and labels."""

    def __init__(self, labels, names):
        self.targets, self.classes = labels, names

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return f"{EVIL_TEXT} {index} {EVIL}", int(self.targets[index])


def written(tmp_path, n=300, names=(EVIL, "b & c", "d", 'e"')):
    store, labels = scored(n, len(names))
    data = Texts(labels, list(names))
    store.report(data).to_html(tmp_path / "report.html", data, selected=torch.arange(n) % 5)
    return tmp_path / "report.html"


class TestPage:
    def test_is_one_file_that_asks_for_nothing(self, tmp_path):
        text = written(tmp_path).read_text()
        assert text.startswith("<!doctype html>")
        assert not re.search(r"<[^>]*(src|href)=\"(?!data:)|url\(|@import", text)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]

    def test_text_of_the_data_is_escaped(self, tmp_path):
        text = written(tmp_path).read_text()
        assert text.count("<script>") == 1  # its own
        assert "<img" not in text
        assert "&lt;script&gt;window.hacked=1&lt;/script&gt;" in text

    def test_says_what_the_report_says(self, tmp_path):
        store, labels = scored(300)
        report = store.report(labels, plain_accuracy=0.2, class_names=["a", "b", "c", "d"])
        report.to_html(tmp_path / "report.html")
        text = tmp_path.joinpath("report.html").read_text()
        assert f"median, {report.median:.3g}" in text
        assert "Calibration" in text
        assert report.verdict.sentences[1].replace("'", "&#x27;") in text
        assert "Look at the examples" not in text

    def test_galleries_hold_the_extremes(self, tmp_path):
        store, labels = scored(300)
        data = TensorDataset(torch.rand(300, 1, 8, 8), labels)
        counts = torch.zeros(300, dtype=torch.int64)
        counts[7] = 12
        store.report(data).to_html(tmp_path / "report.html", data, selected=counts)
        text = tmp_path.joinpath("report.html").read_text()
        parts = dict(zip(*[iter(re.split(r"<h3>(.*?)</h3>", text)[1:])] * 2, strict=True))
        assert list(parts) == ["Labels that are probably wrong", "Highest irreducible loss", "Lowest irreducible loss",
                               "Most selected", "Never selected"]  # fmt: skip
        for name, order in (
            ("Highest irreducible loss", (-store.losses).argsort()),
            ("Lowest irreducible loss", store.losses.argsort()),
        ):
            shown = [int(index) for index in re.findall(r"data-top>.*?#(\d+)", parts[name])]
            assert shown == order[:24].tolist()
        assert re.findall(r"data-top>.*?#(\d+)", parts["Most selected"]) == ["7"]
        assert "12 selections" in parts["Most selected"]
        hidden = re.findall(r'data-label="(\d)" hidden', parts["Highest irreducible loss"])
        assert hidden == sorted(hidden)
        assert len(hidden) > 12

    def test_of_a_part_and_of_ids(self, tmp_path):
        whole = TensorDataset(torch.rand(50, 1, 8, 8), torch.arange(50) % 2)
        part = IndexedSubset(whole, [40, 3, 7])
        store = IrreducibleLossStore([0.5, 3.0, 0.1], [40, 3, 7])
        read = []
        store.report(whole).to_html(tmp_path / "report.html", part, show=lambda index: read.append(index) or "shown")
        assert read == [3, 40, 7]
        names = IrreducibleLossStore([0.5, 3.0], ["a.png", "b.png"])
        names.report().to_html(tmp_path / "names.html", part)  # hashed: no dataset has such indices
        assert "<img" not in (tmp_path / "names.html").read_text()

    @pytest.mark.parametrize(("change", "message"), [
        (lambda x, y: (x.flip(0), y.flip(0)), "its labels, in their order, are not those|sampled examples differ in .0. "),
        (lambda x, y: (x[:40], y[:40]), "expected the 64 examples of the store, got a dataset of 40"),
    ])  # fmt: skip
    def test_other_data_are_refused_and_nothing_is_written(self, change, message, tmp_path):
        inputs, labels = torch.rand(64, 1, 8, 8), torch.zeros(64, dtype=torch.int64)
        labels[:7] = 1
        store = IrreducibleLossStore.from_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)),
                                                TensorDataset(inputs, labels), progress=False)  # fmt: skip
        report = store.report(labels)
        with pytest.raises(ValueError, match=message):
            report.to_html(tmp_path / "report.html", TensorDataset(*change(inputs, labels)))
        with pytest.raises(ValueError, match=message):
            report.to_html(tmp_path / "report.html", list(zip(*change(inputs, labels), strict=True)))
        assert list(tmp_path.iterdir()) == []

    def test_the_same_examples_in_another_form_are_shown(self, tmp_path):
        labels = torch.arange(64) % 7
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 7))
        inputs = torch.rand(64, 1, 8, 8)
        store = IrreducibleLossStore.from_model(model, TensorDataset(inputs, labels), progress=False)
        store.report(labels).to_html(tmp_path / "report.html", TensorDataset(2 * inputs - 1, labels))
        assert "<img" in (tmp_path / "report.html").read_text()

    def test_a_store_of_a_subset_shows_the_examples_of_the_subset(self, tmp_path):
        texts = [f"text {i}" for i in range(6)]
        IrreducibleLossStore([0.1, 0.2, 0.3]).report().to_html(tmp_path / "report.html", Subset(texts, [5, 4, 3]))
        page = (tmp_path / "report.html").read_text()
        assert "<q>text 5</q>#0" in page
        assert "text 0" not in page

    def test_without_any_loss(self, tmp_path):
        IrreducibleLossStore([torch.nan]).report().to_html(tmp_path / "report.html", ["a"])
        assert "No irreducible loss is known" in (tmp_path / "report.html").read_text()

    @pytest.mark.parametrize(("argument", "message"), [
        ({"selected": [1, 2]}, "selected must be one per example"),
        ({"show": 3}, "show must be a function"),
        ({"dataset": 3}, "dataset"),
    ])  # fmt: skip
    def test_wrong_arguments_leave_no_file(self, argument, message, tmp_path):
        with pytest.raises((TypeError, ValueError), match=message):
            IrreducibleLossStore([0.5, 0.1, 0.2]).report().to_html(tmp_path / "report.html", **argument)
        assert list(tmp_path.iterdir()) == []

    def test_in_a_notebook_it_is_a_part_of_the_page(self):
        store, labels = scored(100)
        text = store.report(labels, class_names=[EVIL, "b", "c", "d"])._repr_html_()
        assert "<html" not in text
        assert "<script" not in text
        assert "Can this store be trusted?" in text


class TestPreview:
    @pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
    def test_an_image_is_what_another_program_reads(self, shape):
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(png(pixels)))), pixels)

    @pytest.mark.parametrize(
        "example",
        [
            (torch.rand(3, 8, 9), 1),
            {"label": 1, "image": Image.new("RGB", (300, 200))},
            np.zeros((8, 9, 3), np.uint8),
            [torch.randn(1, 8, 8), 0],
            torch.full((4, 300, 500), 7.0),
        ],
    )
    def test_images_of_any_kind(self, example):
        assert preview(example).startswith('<img loading="lazy" alt="" src="data:image/png;base64,')

    def test_numbers_and_texts(self):
        assert preview(({"input_ids": [1, 2], "text": "a < b"}, 0)) == "<q>a &lt; b</q>"
        assert preview((torch.arange(40.0), 1)) == "<q>0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, … (40 numbers)</q>"
        assert preview("x" * 500).endswith("x…</q>")

    def test_every_example_is_read_once(self):
        read = []
        examples = Examples(show=lambda index: read.append(index) or "text")
        for _ in range(2):
            examples.gallery("a", "b", torch.tensor([3, 1]), str)
        assert read == [3, 1]


@needs_browser
class TestInABrowser:
    @pytest.mark.parametrize("width", [1280, 390])
    def test_fits_the_window_filters_and_runs_nothing_of_the_data(self, width, tmp_path):
        found = opened(written(tmp_path), width)
        assert found["width"] <= found["window"] == width
        assert found["hacked"] is False
        assert found["loaded"] == []
        assert found["tiles"] == [120, 120, 60, 60, 60, 60]  # of five galleries: 24 at first, 12 of a class

    def test_a_hundred_thousand_examples_open_in_two_seconds(self, tmp_path):
        store, labels = scored(100_000, 10)
        data = TensorDataset(torch.randint(256, (100_000, 1, 28, 28), dtype=torch.uint8), labels)
        store.report(data).to_html(tmp_path / "report.html", data, selected=torch.arange(100_000) % 7)
        assert (tmp_path / "report.html").stat().st_size < 4_000_000
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # other programs take their share
        assert opened(tmp_path / "report.html", 1280)["milliseconds"] < 2_000 * busy
