"""The plots of what was selected."""

import copy
import subprocess
import sys

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

from rholoss import (
    IrreducibleLossStore,
    Selection,
    Selector,
    build_selector,
)
from rholoss.diagnostics import ComparisonLog, SelectionLog, plots

N = 12


class Batch:
    """A selected batch in plain numbers."""

    def __init__(self, index, positions, scores, step, epoch=0, correct=None, notes=None):
        self.index, self.positions, self.scores, self.step, self.epoch = index, sorted(positions), scores, step, epoch
        self.correct, self.notes = correct, notes or {}
        self.chosen = [index[position] for position in self.positions]

    def selection(self, ids=None):
        index = torch.tensor(self.index) if ids is None else ids[self.index]
        positions = torch.tensor(self.positions)
        weights = torch.ones(len(positions)) if len(set(self.positions)) < len(self.positions) else None
        notes = {name: torch.tensor(value) for name, value in self.notes.items()}
        scores = torch.tensor(self.scores)
        return Selection(index[positions], positions, weights, scores, index, self.step, self.epoch, notes)

    def add_to(self, log, ids=None):
        log.update(self.selection(ids), None if self.correct is None else torch.tensor(self.correct))


class Dropping(Selector):
    """A listener's victim: draws, is co-trained and leaves a note."""

    def score(self, candidates):
        candidates.notes["drawn"] = candidates.rand(1)[0]
        return candidates.rand()


def methods_of(names, loader, model, **how):
    store, other = IrreducibleLossStore.from_model(make_net(1), loader.dataset), make_net(2)
    return {name: build_selector(name, loader, model, store=store, irreducible_model=other, **how) for name in names}


def train(name, watch, mode="eval", epochs=2):
    """A run of some steps with a selector that is watched or not; what it selected, the weights, and the watcher."""
    torch.manual_seed(0)
    data, model = make_data(60), make_net(0)
    loader = DataLoader(data, batch_size=4, shuffle=True)
    store = IrreducibleLossStore.from_model(make_net(1), data)
    if name == "dropping":
        selector = Dropping(loader, model, keep=0.25, mode=mode)
    else:
        selector = build_selector(name, loader, model, store=store, proxy=make_net(3), keep=0.25, mode=mode)
    seen = watch(selector) if watch else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    chosen = []
    for _ in range(epochs):
        for x, y in selector:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            chosen.append((selector.last, copy.deepcopy(model)))
    return chosen, (selector.state_dict()["generator"], torch.get_rng_state(), *model.state_dict().values()), seen


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
