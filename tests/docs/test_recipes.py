"""The quick start and the recipes print what their pages say; messages, defaults and names on other pages are the code's."""

import ast
import contextlib
import inspect
import io
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import rholoss

PAGES = Path(__file__).parents[2] / "docs" / "pages"
RECIPES = [PAGES / "quickstart.md", *sorted((PAGES / "recipes").glob("*.md"))]
TWO_PROCESSES = "several_processes.md"  # torchrun starts them
NEEDED = {"llm_tokens.md": "accelerate", "transformers_trainer.md": "accelerate", "lightning.md": "lightning"}
OF_THE_TRAINER = ("{'train_runtime'", "{'eval_loss'")  # begins a line of the Trainer's own
PROGRAM = re.compile(r"^```python\n(.*?)^```\n(?:\nIt prints[^\n]*\n\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def programs(page):
    """The Python code blocks of a page, each with its lines where they are on the page, and with what the page says it prints."""
    text = page.read_text()
    for match in PROGRAM.finditer(text):
        yield "\n" * (text[: match.start(1)].count("\n")) + match.group(1), match.group(2)


def outputs(page):
    """What each program of a page prints, and what the page says."""
    names = {"__name__": "__main__"}
    for program, said in programs(page):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, str(page), "exec"), names)
        lines = [line for line in printed.getvalue().splitlines() if not line.startswith(OF_THE_TRAINER)]
        yield "\n".join(lines), said


def parts(text):
    """The words of a text; its percentages; its other numbers."""
    pieces = re.split(r"(\d[\d,]*\.?\d*)", " ".join(text.split()))
    words, numbers = pieces[::2], [float(number.replace(",", "")) for number in pieces[1::2]]
    is_share = [after.startswith("%") for after in words[1:]]
    shares = [number for number, share in zip(numbers, is_share, strict=True) if share]
    return words, shares, [number for number, share in zip(numbers, is_share, strict=True) if not share]


def about(text):
    """What another machine may print instead: the same words, percentages within 8 points, other numbers within a fifth."""
    words, shares, numbers = parts(text)
    return words, pytest.approx(shares, abs=8), pytest.approx(numbers, rel=0.2)


@pytest.mark.parametrize("page", [page for page in RECIPES if page.name != TWO_PROCESSES], ids=lambda page: page.stem)
def test_a_program_prints_what_its_page_says(page, tmp_path, monkeypatch):
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name])
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        if page.name in NEEDED:
            warnings.simplefilter("ignore")  # whatever frameworks warn of is their affair
        for printed, said in outputs(page):
            assert parts(printed) == about(said or ""), printed


def test_two_processes_print_what_the_page_says(tmp_path):
    ((program, said),) = programs(PAGES / "recipes" / TWO_PROCESSES)
    (tmp_path / "train.py").write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "train.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=200, env=environment)
    assert parts(done.stdout) == about(said), done.stderr[-4000:]


def test_other_words_and_numbers_are_noticed():
    said = "30% of\n 1,000 labels"
    assert parts("35% of 1,100 labels") == about(said)
    for printed in ("45% of 1,000 labels", "30% of 2,000 labels", "30% of 1,000 words", "30% of 1,000 labels, 3% of 4"):
        assert parts(printed) != about(said)


def test_every_recipe_has_a_program_and_says_what_it_prints():
    for page in RECIPES:
        assert next(said for _, said in programs(page)), page.name


def test_the_messages_of_troubleshooting_are_those_of_the_code():
    sources = [ast.parse(path.read_text()) for path in Path(rholoss.__file__).parent.rglob("*.py")]
    nodes = [node for source in sources for node in ast.walk(source) if isinstance(node, ast.Constant)]
    said = "\n".join(node.value for node in nodes if isinstance(node.value, str))
    messages = re.findall(r"^### `(.*)`$", (PAGES / "troubleshooting.md").read_text(), re.MULTILINE)
    assert len(messages) > 20
    for message in messages:
        for words in message.split("…"):
            assert words.strip(" ,:") in said, message


def test_the_defaults_of_the_cheat_sheet_are_those_of_the_code():
    table = re.findall(r"^\| `(\w+)=(\S+)` \|", (PAGES / "cheat_sheet.md").read_text(), re.MULTILINE)
    options = inspect.signature(rholoss.Selector).parameters.values()
    expected = {option.name: option.default for option in options if option.kind is inspect.Parameter.KEYWORD_ONLY}
    assert {name: ast.literal_eval(default) for name, default in table} == expected


def test_the_methods_named_beside_the_papers_are_there():
    text = (PAGES / "papers_code.md").read_text()
    names = re.findall(
        r"^\| .* \| `(\w+)`(?: with `\w+=`)? \|$", text[text.index("## Methods") : text.index("## Logs")], re.MULTILINE
    )
    assert len(names) == 10
    assert set(names) <= set(rholoss.selector_names())
