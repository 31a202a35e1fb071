"""Progress bars: one switch for everything, one bar at a time, and silence where nobody watches."""

import io
import sys

import pytest
import torch
from conftest import make_data, make_learnable_data, make_net
from torch.utils.data import DataLoader

from rholoss import IrreducibleLossStore, auto, cross_fit, fit_irreducible_model, record_plan, split
from rholoss.progress import Reporter
from rholoss.selectors.selection_via_proxy import proxy_scores
from rholoss.tokens import ReferenceLossCache

pytest.importorskip("tqdm")
DATA = make_data(40)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def bars(monkeypatch):
    """The bars that are drawn."""
    import tqdm

    class Bar(tqdm.tqdm):
        drawn, most = [], 0

        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            Bar.drawn.append(self)
            Bar.most = max(Bar.most, sum(not bar.disable for bar in Bar.drawn))

    monkeypatch.setattr(tqdm, "tqdm", Bar)
    return Bar


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    for name in ("RHOLOSS_PROGRESS", "CI"):
        monkeypatch.delenv(name, raising=False)


def score(**how):
    IrreducibleLossStore.from_model(make_net(0), DATA, batch_size=10, **how)


def fit(part, **how):
    parts = split(part, holdout=0.6, validation=0.3)
    return fit_irreducible_model(make_net(0), parts.holdout, parts.validation, epochs=2, **how)


def plan(tmp_path, **how):
    loader = DataLoader(DATA, batch_size=4, shuffle=True)
    store = IrreducibleLossStore.from_model(make_net(1), DATA, progress=False)
    record_plan(loader, make_net(0), store, steps=2, path=tmp_path / "run.plan", **how)


def rehearsal(**how):
    auto(DataLoader(make_learnable_data(560), batch_size=10), torch.nn.Linear(6, 4), steps=100, **how)


def token_cache(**how):
    batches = [(torch.arange(2) + 2 * i, torch.rand(2, 3), torch.ones(2, 3)) for i in range(3)]
    ReferenceLossCache.from_batches(batches, **how)


LONG = {
    "a scoring": lambda _, **how: score(**how),
    "a share of a scoring": lambda folder, **how: IrreducibleLossStore.score_share(
        make_net(0), DATA, folder / "il.npz", process=0, processes=2, **how
    ),
    "a fit": lambda _, **how: fit(DATA, **how),
    "a cross-fit": lambda _, **how: cross_fit(DATA, lambda part: fit(part, **how), **how),
    "a plan": plan,
    "a rehearsal": lambda _, **how: rehearsal(**how),
    "a token cache": lambda _, **how: token_cache(**how),
    "a ranking": lambda _, **how: proxy_scores(make_net(0), DATA, **how),
}


@pytest.mark.parametrize("what", LONG)
def test_one_switch_for_everything_and_one_bar_at_a_time(what, bars, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RHOLOSS_PROGRESS", "0")
    LONG[what](tmp_path / "silent")
    assert (bars.drawn, *capsys.readouterr()) == ([], "", "")
    monkeypatch.setenv("RHOLOSS_PROGRESS", "1")
    LONG[what](tmp_path / "env")
    by_variable = [(bar.desc, bar.n) for bar in bars.drawn]
    assert by_variable
    assert bars.most == 1
    assert all(bar.disable for bar in bars.drawn[: -1 if "share" in what else None]), "closed"
    bars.drawn.clear()
    monkeypatch.setenv("RHOLOSS_PROGRESS", "0")
    LONG[what](tmp_path / "argument", progress=True)
    assert [(bar.desc, bar.n) for bar in bars.drawn] == by_variable, "the argument is stronger than the variable"
    seen = []
    LONG[what](tmp_path / "function", progress=lambda done, total: seen.append((done, total)))
    assert seen
    assert all(done > 0 and (total is None or done <= total) for done, total in seen)


@pytest.mark.parametrize(
    ("terminal", "variables", "is_drawn"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"CI": "true"}, False),
        (True, {"CI": "false"}, True),
        (True, {"RHOLOSS_PROGRESS": "0"}, False),
        (False, {"RHOLOSS_PROGRESS": "1", "CI": "1"}, True),
        (True, {"RHOLOSS_PROGRESS": ""}, True),
    ],
)
def test_by_itself_a_bar_is_drawn_on_a_terminal_outside_of_ci(terminal, variables, is_drawn, bars, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal() if terminal else io.StringIO())
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    score()
    assert bool(bars.drawn) == is_drawn
    assert ("irreducible losses: 100%" in sys.stderr.getvalue()) == is_drawn


def test_a_variable_that_says_neither_is_refused(monkeypatch):
    monkeypatch.setenv("RHOLOSS_PROGRESS", "yes")
    with pytest.raises(ValueError, match="RHOLOSS_PROGRESS must be 1 for progress bars or 0 for none, got 'yes'"):
        score()
    score(progress=False)


def test_only_the_first_process_draws_but_each_calls_its_function(bars, monkeypatch):
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    seen = []
    for rank in (1, 0):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        for progress in (True, lambda done, total: seen.append(done)):
            Reporter(progress)(1, 1)
        assert (len(bars.drawn), len(seen)) == (1 - rank, 2 - rank)


def test_an_error_or_an_early_stop_closes_the_bar(bars):
    def fails(x):
        if (x == DATA.tensors[0][35]).all(1).any():
            raise OSError("no such disk")
        return x[:, :4]

    with pytest.raises(OSError, match="no such disk"):
        IrreducibleLossStore.from_model(fails, DataLoader(DATA, batch_size=1), progress=True)
    with Reporter(True) as report:
        report(1, 10)
    report(2, 10)
    assert [bar.disable for bar in bars.drawn] == [True, True]
    assert [bar.n for bar in bars.drawn] == [35, 1]
