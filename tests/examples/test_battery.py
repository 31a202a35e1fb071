"""The battery: its runs on a small setting, its texts, and a page that says what its report prints."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")

from battery import report, run, settings, texts, trusted
from experiments.results import read

ROOT = Path(__file__).parents[2]
NAME = "Digits, 30 % wrong"


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(settings.SETTINGS, NAME, dataclasses.replace(settings.SETTINGS[NAME], steps=60))
    monkeypatch.setattr(run, "LOOKS", 3)


@pytest.fixture
def rows(short, tmp_path):
    results = tmp_path / "battery.jsonl"
    assert run.main(["--data", str(tmp_path), "--settings", NAME, "--seeds", "0", "1", "--results", str(results)]) == 0
    return read(results)


def test_a_run_has_a_row_for_each_way(rows):
    first, second = ([row for row in rows if row["seed"] == seed] for seed in (0, 1))
    assert [row["label"] for row in first] == [*run.UNIFORM, run.FRONT, run.AS_LONG]
    assert len(second) == 4, "with other seeds, the two best of plain training only"
    assert all(row["steps"][-1] == 60 for row in first[:-1])
    assert first[-1]["steps"][-1] >= 60
    assert first[-2]["rehearsal"]["truly_wrong"] == pytest.approx(0.3, abs=0.01)


def test_a_row_is_made_once(rows, short, tmp_path, capsys):
    run.main(["--data", str(tmp_path), "--settings", NAME, "--seeds", "0", "1", "--results", str(tmp_path / "battery.jsonl")])
    assert capsys.readouterr().out == ""
    assert read(tmp_path / "battery.jsonl") == rows


def test_the_report(rows, tmp_path):
    (found,) = report.outcomes(rows)
    assert len(found.gains) == 2
    best = report.outcomes([{**row, "metric": [0.5, 0.5, 0.9 if row["label"] == run.FRONT else 0.5]} for row in rows])[0]
    assert best.gains == pytest.approx([40, 40])
    text = report.text([found])
    assert ("<details" in text) is not found.says_yes
    assert f"| {NAME} (100)" in text
    assert "| 30 |" in text
    report.draw([found], tmp_path / "battery.png")
    assert (tmp_path / "battery.png").stat().st_size > 10_000


@pytest.mark.skipif(not run.RESULTS.exists(), reason="no results")
def test_the_page_says_what_the_report_prints():
    page = (ROOT / "docs" / "pages" / "will_it_help.md").read_text()
    found = report.outcomes(read(run.RESULTS))
    assert [begin for begin, part in report.parts(found).items() if f"{begin}\n\n{part}\n\n" not in page] == []


@pytest.fixture
def few(short, rows, monkeypatch, tmp_path):
    """The study of trusted examples, short; the best plain training is that of the battery."""
    monkeypatch.setattr(trusted, "COUNTS", (0, 100))
    monkeypatch.setattr(trusted, "BATTERY", tmp_path / "battery.jsonl")
    return ["--data", str(tmp_path), "--settings", NAME, "--seeds", "0", "--results", str(tmp_path / "trusted.jsonl")]


def test_ways_to_use_trusted_examples(few, rows, tmp_path, capsys):
    assert trusted.main(few) == 0
    found = read(tmp_path / "trusted.jsonl")
    assert [row["label"] for row in found] == ["plain", "auto | 0", "auto | 100", "RHO-LOSS | 100"]
    plain = found[0]["metric"][-1]
    assert plain == max(row["metric"][-1] for row in rows if row["seed"] == 0 and row["label"] in run.UNIFORM)
    table = capsys.readouterr().out.splitlines()
    assert f"| 0 |  |  |  | {100 * (found[1]['ends']['auto'] - plain):+.1f} " in "\n".join(table)
    own = 100 * (found[3]["ends"]["RHO-LOSS"] - plain)
    assert f"| 100 | {100 * found[3]['right']:.0f} | {own:+.1f} " in "\n".join(table)
    assert trusted.main(few) == 0
    assert read(tmp_path / "trusted.jsonl") == found, "a row is made once"


@pytest.mark.skipif(not trusted.RESULTS.exists(), reason="no results")
def test_the_page_says_what_the_study_of_trusted_examples_prints():
    page = (ROOT / "docs" / "pages" / "will_it_help.md").read_text()
    assert f"{trusted.BEGIN}\n\n{trusted.report(trusted.RESULTS)}\n\n<!-- end -->" in page


def test_unknown_settings_are_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["--data", "x", "--settings", "Digit"])
    assert "no setting is called ['Digit']" in capsys.readouterr().err


TINY = {
    "newsgroups": "Category\tText\nd\tstring\nclass\t\nsci.space\tthe moon is far\nrec.autos\tthe car is near\n",
    "tweets": "sentiment,confidence,text\nnegative,0.7,it is far\npositive,0.9,it is near\n",
    "sst2": "sentence\tlabel\nit is far\t0\nit is near\t1\n",
    "cola": "gj04\t1\t\tIt is far.\ngj04\t0\t*\tFar it is is.\n",
}


@pytest.mark.parametrize("name", TINY)
def test_texts_are_read_in_the_format_in_which_they_are_published(name, tmp_path):
    (tmp_path / name).mkdir()
    for i, file in enumerate(texts.FILES[name]):
        (tmp_path / name / file).write_text(TINY[name] if not i else TINY[name].replace("far", "here"))
    found = texts.read_texts(name, tmp_path)
    assert found.x.shape == (2, texts.LENGTH[name])
    assert sorted(found.y.tolist()) == [0, 1]
    assert (found.x[0] == found.x[1]).any()
    assert not torch.equal(found.x[0], found.x[1])
    assert (0 if found.test is None else len(found.test[1])) == {"tweets": 0, "newsgroups": 1, "sst2": 1, "cola": 1}[name]


def test_missing_texts_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="20newsgroups-train.tab; see examples/battery/README.md"):
        texts.read_texts("newsgroups", tmp_path)


def test_the_settings_are_of_many_kinds():
    made = settings.SETTINGS.values()
    assert len(made) >= 14
    assert len({setting.data for setting in made}) >= 7
    assert {setting.model for setting in made} == {"mlp", "cnn", "bag", "transformer"}
    assert {0, 300, 1000, 10_000} <= {setting.trusted for setting in made}
    assert json.dumps([dataclasses.asdict(setting) for setting in made])
