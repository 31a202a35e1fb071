"""The plots of what was selected."""

import subprocess
import sys

import pytest
import torch
from watched_runs import Batch, methods_of, train

from rholoss.diagnostics import ComparisonLog, SelectionLog, plots

N = 12


def test_plots_are_drawn(tmp_path):
    wrong = torch.arange(60) % 4 == 0

    def watch(selector):
        others = methods_of(["train_loss", "uniform"], selector.loader, selector.model)
        log = SelectionLog(60, {"wrong": wrong, "not one": torch.zeros(60, dtype=torch.bool)}).attach(selector)
        return log, ComparisonLog(others, every=2).attach(selector)

    _, _, (log, comparison) = train("rho_loss", watch)
    figures = [
        plots.plot_shares(log, every=2),
        plots.plot_counts(log),
        plots.plot_counts(log, "wrong"),
        plots.plot_scores(log, every=2),
        plots.plot_agreement(comparison),
    ]
    for number, figure in enumerate(figures):
        figure.savefig(tmp_path / f"{number}.png")
    lines = {line.get_label(): list(line.get_ydata()) for line in figures[0].axes[0].lines}
    assert lines["wrong, in the data"] == [25.0] * 4
    assert lines["wrong, selected"] == [100 * record["wrong/selected"] for record in log.over_time(2)]
    assert lines["selected before"] == [100 * record["repeated"] for record in log.over_time(2)]
    bars = figures[2].axes[0].containers
    for container, mine in zip(bars, (log.selected[wrong], log.selected[~wrong]), strict=True):
        heights = [100 * int((mine == times).sum()) / len(mine) for times in range(int(log.selected.max()) + 1)]
        assert [bar.get_height() for bar in container] == pytest.approx(heights, rel=1e-5)
    shown = [text.get_text() for text in figures[4].axes[0].texts]
    assert shown == [f"{value:.0f}" for value in (100 * comparison.overlap()).flatten().tolist()]


def test_many_counts_share_a_bar_but_never_has_its_own():
    log = SelectionLog(N)
    for step in range(100):
        Batch([0, 1], [0], [1.0, 0.0], step).add_to(log)
    axes = plots.plot_counts(log).axes[0]
    heights = [bar.get_height() for bar in axes.containers[0]]
    assert len(heights) == 26
    assert heights[0] == pytest.approx(100 * 11 / 12)
    assert heights[25] == pytest.approx(100 / 12)
    assert [tick.get_text() for tick in axes.get_xticklabels()][:2] == ["never", "9-12"]


def test_diagnostics_leave_matplotlib_alone_until_a_plot_is_drawn():
    code = "import sys, rholoss.diagnostics.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'rholoss\[plot\]'"):
        plots.plot_counts(SelectionLog(N))
