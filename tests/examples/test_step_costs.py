"""The benchmark of step costs runs, and its page shows what it has measured."""

import json
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "examples" / "benchmarks"))
import step_costs  # noqa: E402

RESULTS = ROOT / "examples" / "results" / "step_costs.json"
PAGE = ROOT / "docs" / "pages" / "cost_measured.md"


def test_sections_run_and_are_told_as_tables(tmp_path, capsys):
    step_costs.main(["wrapper", "growth", "--rounds", "1", "--steps", "1", "--json", str(tmp_path / "out.json")])
    printed = capsys.readouterr().out
    assert "| look-up, rank and cut, 320 candidates" in printed
    before = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert set(before) == {"wrapper", "growth"}
    step_costs.main(["wrapper", "--rounds", "1", "--steps", "1", "--json", str(tmp_path / "out.json")])
    after = json.loads((tmp_path / "out.json").read_text())["tables"]
    assert after["growth"] == before["growth"]
    assert after["wrapper"] != before["wrapper"]


def test_every_option_runs(monkeypatch):
    monkeypatch.setattr(step_costs, "network", lambda: _small())
    bench = step_costs.Bench("cpu")
    for section in (step_costs.options, step_costs.peers):
        table = section(bench, 1, 1)
        assert table["plain"]["times plain"] == [1.0]
        assert all(row["ms"][0] > 0 for row in table.values())


def _small():
    from torch import nn

    first = [nn.Conv2d(1, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4)]
    return nn.Sequential(*first, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 48, step_costs.CLASSES))


def test_an_unknown_section_is_refused():
    with pytest.raises(SystemExit, match="no section speed; there are wrapper"):
        step_costs.main(["speed"])


def test_the_page_shows_the_committed_figures(tmp_path):
    copy = tmp_path / "cost_measured.md"
    copy.write_text(PAGE.read_text())
    step_costs.main(["--report", str(RESULTS), "--update", str(copy)])
    assert copy.read_text() == PAGE.read_text()
    assert set(json.loads(RESULTS.read_text())["tables"]) == set(step_costs.SECTIONS)
    assert set(step_costs.SECTIONS) <= set(re.findall(r"<!-- (\w+) -->", PAGE.read_text()))
