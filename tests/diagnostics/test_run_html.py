"""The page of a run."""

import pickle
import re

import pytest
import torch
from browser import needs_browser, opened
from torch.utils.data import TensorDataset
from watched_runs import Batch, methods_of, train

from rholoss.diagnostics import ComparisonLog, SelectionLog

EVIL = "<script>window.hacked=1</script>"
N = 60


@pytest.fixture
def watched():
    def watch(selector):
        others = methods_of(["train_loss", "uniform"], selector.loader, selector.model)
        log = SelectionLog(N, {EVIL: torch.arange(N) % 4 == 0}).attach(selector)
        return log, ComparisonLog(others, every=2).attach(selector)

    return train("rho_loss", watch)[2]


def dataset(labels):
    data = TensorDataset(torch.rand(N, 1, 8, 8), labels)
    data.classes = [EVIL, "b", "c"]
    return data


def test_holds_the_numbers_of_the_log(watched, tmp_path):
    log, comparison = watched
    log.to_html(tmp_path / "run.html", dataset(log.loader.dataset.tensors[1]), comparison=comparison)
    text = (tmp_path / "run.html").read_text()
    summary = log.summary()
    assert f"<b>{summary['never_selected']:.1%}</b><span>never selected</span>" in text
    assert f"<b>{summary['repeated']:.1%}</b><span>selected before</span>" in text
    for value in (100 * comparison.overlap()).flatten().tolist():
        assert f"<td>{value:.0f}</td>" in text
    assert text.count("<script>") == 1
    assert not re.search(r"<[^>]*(src|href)=\"(?!data:)|url\(|@import", text)
    most = int(log.selected.max())
    first = re.search(r"Most selected</h3>.*?#(\d+)<br>(\d+) of (\d+) times", text)
    assert [int(group) for group in first.groups()[1:]] == [most, int(log.drawn[int(first.group(1))])]
    never = re.search(r"Never selected</h3>(.*)", text).group(1)
    assert {int(i) for i in re.findall(r"#(\d+)<br>", never)} <= set(torch.nonzero(log.selected == 0).flatten().tolist())


def test_without_a_dataset_it_has_numbers_and_lines_alone(watched, tmp_path):
    log, _ = watched
    log.to_html(tmp_path / "run.html")
    text = (tmp_path / "run.html").read_text()
    assert text.count("<svg") == 3
    assert "Look at the examples" not in text
    assert "<html" not in log._repr_html_()
    assert log._repr_html_().count("<svg") == 3


def test_before_anything_was_selected_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing was selected yet; attach the log"):
        SelectionLog(N).to_html(tmp_path / "run.html")
    assert SelectionLog(N)._repr_html_() is None
    assert list(tmp_path.iterdir()) == []


def test_another_dataset_is_refused(tmp_path):
    log = SelectionLog(N)
    Batch([0, 1], [0], [1.0, 0.0], 1).add_to(log)
    small = TensorDataset(torch.rand(3, 1), torch.arange(3))
    with pytest.raises(ValueError, match="expected the 60 examples that the log counts, got a dataset of 3"):
        log.to_html(tmp_path / "run.html", small)
    with pytest.raises(ValueError, match="expected the 60 examples that the log counts, got a dataset of 5"):
        log.to_html(tmp_path / "run.html", ["a text"] * 5)
    with pytest.raises(ValueError, match="every must be a number of steps"):
        log.to_html(tmp_path / "run.html", every=0)


def test_a_dataset_in_another_order_is_refused(watched, tmp_path):
    log, _ = watched
    data = log.loader.dataset
    log.to_html(tmp_path / "run.html", data)
    with pytest.raises(ValueError, match="this page are of other data than this dataset: .* reordered"):
        log.to_html(tmp_path / "other.html", TensorDataset(*(column.flip(0) for column in data.tensors)))
    assert [path.name for path in tmp_path.iterdir()] == ["run.html"]
    assert pickle.loads(pickle.dumps(log)).loader is None


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_fits_the_window_and_runs_nothing_of_the_data(watched, width, tmp_path):
    log, comparison = watched
    log.to_html(tmp_path / "run.html", dataset(log.loader.dataset.tensors[1]), comparison=comparison)
    found = opened(tmp_path / "run.html", width)
    assert found["width"] <= found["window"] == width
    assert found["hacked"] is False
    assert found["loaded"] == []
