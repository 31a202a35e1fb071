"""The README and the pages: every snippet runs, every public name and method is on them, and the site is whole and its own."""

import itertools
import re
import runpy
import socket
from pathlib import Path

import pytest
import torch
from conftest import make_data, make_net
from torch import nn
from torch.utils.data import DataLoader

import rholoss
from rholoss import IrreducibleLossStore, RhoLossSelector, registry

ROOT = Path(__file__).parents[2]
SITE = ROOT / "docs" / "mkdocs.yml"
FOLDER = ROOT / "docs" / "pages"
PAGES = sorted(FOLDER.rglob("*.md"))
NEEDED = {
    "streams.md": ["webdataset", "datasets", "torchdata"],
    "frameworks.md": ["accelerate", "lightning", "transformers"],
    "trackers.md": ["tensorboard", "transformers", "accelerate"],
    "engines.md": ["pyarrow"],
    "suspects.md": ["pandas"],
}


def is_run_elsewhere(page):
    """The tutorial by its notebook; the quick start and the recipes in test_recipes.py, as whole programs."""
    return page.name in ("tutorial.md", "quickstart.md") or page.parent.name == "recipes"


def with_its_packages(page):
    """A page; where it needs packages, whatever these warn of is their affair."""
    return pytest.param(page, marks=pytest.mark.filterwarnings("ignore")) if page.name in NEEDED else page


def snippets(page):
    """The Python code blocks of a page, as one program with its own line numbers."""
    program = ["\n"] * 10_000
    inside = False
    lines = page.read_text().splitlines()
    for number, line in enumerate(lines):
        if re.match(r"```", line):
            inside = line.startswith("```python")
        elif inside:
            program[number] = line + "\n"
    return "".join(program).rstrip() + "\n"


def what_a_reader_has():
    """What the snippets take for granted: a training loop, and an irreducible-loss model."""
    train_set = make_data(320)
    model, il_model = make_net(0), make_net(1)
    loader = DataLoader(train_set, batch_size=8, shuffle=True)
    store = IrreducibleLossStore.from_model(il_model, train_set)
    return {
        "torch": torch,
        "train_set": train_set,
        "loader": loader,
        "model": model,
        "il_model": il_model,
        "proxy": make_net(2),
        "store": store,
        "RhoLossSelector": RhoLossSelector,
        "IrreducibleLossStore": IrreducibleLossStore,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "criterion": nn.CrossEntropyLoss(),
    }


SNIPPETS = [with_its_packages(page) for page in (ROOT / "README.md", *PAGES) if not is_run_elsewhere(page)]


@pytest.mark.parametrize("page", SNIPPETS, ids=lambda page: page.name)
def test_every_snippet_runs(page, tmp_path, monkeypatch):
    for package in NEEDED.get(page.name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))  # as torchrun does
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    program = snippets(page)
    exec(compile(program, str(page), "exec"), what_a_reader_has())


def test_the_snippets_are_found():
    assert "check_selector" in snippets(ROOT / "docs" / "pages" / "own_selector.md")


def test_a_selector_of_ten_lines_is_on_the_page_about_your_own():
    text = (ROOT / "docs" / "pages" / "own_selector.md").read_text()
    first = re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)
    assert len([line for line in first.splitlines() if line.strip()]) <= 10


def test_every_public_name_is_on_the_api_page():
    page = (ROOT / "docs" / "pages" / "api.md").read_text()
    for name in rholoss.__all__:
        assert f"::: rholoss.{name}\n" in page
    for module in (Path(rholoss.__file__).parent / "selectors").glob("*.py"):
        assert module.stem in ("__init__", "rho_loss") or f"::: rholoss.selectors.{module.stem}\n" in page


def test_every_method_is_in_the_table_and_nothing_else():
    table = (ROOT / "docs" / "pages" / "methods.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == rholoss.selector_names()


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_a_page_has_no_gap_and_no_dead_link(page):
    text = page.read_text()
    assert not re.search(r"TODO|TBD|[A-Z]+_TABLE|URL-OF", text)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def glued_blocks(text):
    """Lines that Markdown joins to what is above: no blank line after a table, or before a table, list or heading."""
    prose = re.sub(r"^( *)```.*?^\1```", lambda code: "\n" * code[0].count("\n"), text, flags=re.DOTALL | re.MULTILINE)
    kind = re.compile(r" *(?:(?P<table>\|)|(?P<list>(?:[-*+]|\d+\.) )|(?P<heading>#+ ))")
    lines = [(line, match.lastgroup if (match := kind.match(line)) else "text") for line in prose.splitlines()]
    for (above, before), (line, after) in itertools.pairwise(lines):
        starts = after in ("table", "heading") or (after == "list" and not above.startswith(" "))
        if above.strip() and line.strip() and before != after and (starts or before == "table"):
            yield line


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_a_blank_line_separates_tables_lists_and_headings_from_text(page):
    assert list(glued_blocks(page.read_text())) == []


@pytest.mark.parametrize(
    "text", ["| 1 |\ntext", "text\n| 1 |", "text\n- item", "text\n1. item", "text\n## Title", "## Title\n| 1 |"]
)
def test_a_missing_blank_line_is_found(text):
    assert list(glued_blocks(text)) == [text.splitlines()[1]]
    assert list(glued_blocks(text.replace("\n", "\n\n"))) == []


def in_the_navigation(settings):
    """The pages that the navigation of the site's settings lists, in its order."""
    nav = settings[settings.index("\nnav:") : settings.index("\nmarkdown_extensions:")]
    return re.findall(r"^ *- .*: (\S+\.md)$", nav, re.MULTILINE)


def test_every_page_is_in_the_navigation_once_and_nothing_else():
    assert sorted(in_the_navigation(SITE.read_text())) == sorted(str(page.relative_to(FOLDER)) for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_links_to_pages_in_the_navigation_only(page):
    linked = {(page.parent / target).resolve() for target in re.findall(r"\]\(([^)#:]+\.md)", page.read_text())}
    assert linked <= {FOLDER / target for target in in_the_navigation(SITE.read_text())}


def test_the_entrance_leads_to_every_other_page():
    linked = set(re.findall(r"\]\(([\w./]+\.md)", (FOLDER / "index.md").read_text()))
    assert linked == {str(page.relative_to(FOLDER)) for page in PAGES} - {"index.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_it_is_for_before_anything_else(page):
    title, first = page.read_text().split("\n\n")[:2]
    assert title.startswith("# ")
    assert first[0].isalpha(), "begin with a sentence, not with a table, a snippet or a heading"


def foreign_hosts(text):
    """What a page or a stylesheet would have a browser fetch from elsewhere; links are for readers to follow."""
    fetched = r"""(?:src=["']?|url\(["']?|@import ["']|<link[^>]*href=["']|!\[[^]]*\]\()((?:https?:)?//[^"')\s]+)"""
    return re.findall(fetched, text)


def test_the_site_asks_no_other_host():
    settings = SITE.read_text()
    assert not re.search(r"https?:", settings), "scripts and styles of the settings come from elsewhere"
    assert re.search(r"^  font: false$", settings, re.MULTILINE), "the theme's fonts come from elsewhere unless font is false"
    for path in [*PAGES, *(ROOT / "docs" / "pages" / "stylesheets").glob("*.css")]:
        assert foreign_hosts(path.read_text()) == [], path.name


def test_what_a_browser_would_fetch_is_told_from_a_link():
    assert foreign_hosts("[a paper](https://arxiv.org/abs/2206.07137)") == []
    for text in [
        "![a](https://x.org/a.png)",
        '<script src="//x.org/a.js">',
        "src: url(https://x.org/a.woff)",
        '@import "https://x.org/a.css"',
    ]:
        assert len(foreign_hosts(text)) == 1, text


def test_the_tutorial_is_that_of_the_notebook():
    files = runpy.run_path(str(ROOT / "docs" / "tutorial.py"))["files"]()
    assert [path for path, content in files.items() if path.read_bytes() != content] == [], "run python docs/tutorial.py"
    assert set((FOLDER / "tutorial").iterdir()) == {path for path in files if path.suffix == ".png"}
