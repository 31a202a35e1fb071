"""Reads the README and the pages as a reader does: how much there is, and what is hard to read.

python docs/words.py            words of each page, wide tables, and the phrases below in pages and code
python docs/words.py --long     also each sentence of more than 30 words

Tables, code and comments are not counted. It is run by hand; it only prints.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]
OTHERS = [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
MOST_COLUMNS, MOST_WORDS = 6, 30
PLAINER = {  # a hard or home-made phrase, as a pattern: what readers know
    r"learnt": "learned",
    r"already right": "already correct",
    r"\bdear(er|est)?\b": "expensive",
    r"\bprices?\b": "cost",
    r"\bpa(y|ys|id|ying) (less|more|for)\b": "cost",
    r"poor data|(large|and) poor\b": "noisy data",
    r"nobody (will )?asks?\b": "less relevant",
    r"not asked for": "irrelevant to the task",
    r"learns? along|learning along": "co-trained",
    r"\bdoor\b": "adapter",
    r"the ground of": "base class of",
    r"\b(go|goes|gone|going|went) on\b": "resumes, continues",
    r"\banew\b": "again, from scratch",
    r"cannot be told|can be told|where it does not tell|told (apart )?from": "unknown, detected",
    r"\bsurer\b|\bsurest\b": "overconfident, most confident",
    r"worse than a guess|than a guess": "above the chance level, log(C)",
    r"the luck of": "unstable across runs",
    r"a stretch of": "a chunk of",
    r"\b(by|than|of) chance\b|^chance (?!level)|\bChance below": "uniform sampling",
    r"network of layers": "MLP",
    r"\b(is|are|was|were) told\b|\btold of\b": "receives",
    r"\bthe making of|with making": "the time to compute",
    r"what got worse": "failures",
    r"on their own$": "that drive data loading themselves",
    r"leaves no trace|\ba guest\b": "no side effects",
    r"without a word": "silently",
    r"\b[Ww]hoever\b|for those who": "if you, you",
    r"\bever so\b|as ever\b|the very (same|selections)": "the same",
}


def prose(text: str) -> Iterator[str]:
    """The paragraphs, list items and headings of a page: without code, tables, comments and the targets of links."""
    text = re.sub(r"^```.*?^```|<!--.*?-->|<[^>\n]+>|^:::[^\n]*\n(?: {4}[^\n]*\n)*", "\n\n", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)(\{[^}]*\})?", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*#:]|\d+\.) )", text):
        lines = [line.strip() for line in block.splitlines() if not line.lstrip().startswith("|")]
        if words := " ".join(lines).strip(" -#:"):
            yield words


def count(text: str) -> int:
    """How many words the prose has; what is nothing but signs is no word."""
    return sum(bool(re.search(r"\w", word)) for part in prose(text) for word in part.split())


def wide_tables(text: str) -> Iterator[tuple[int, str]]:
    """The number of columns and the head of each table that has too many."""
    for match in re.finditer(r"^(\|.*\|)\n\|[-| :]+\|$", text, re.MULTILINE):
        columns = match[1].count("|") - 1
        if columns > MOST_COLUMNS:
            yield columns, re.sub(r"\s+", " ", match[1])[:90]


def long_sentences(text: str) -> Iterator[tuple[int, str]]:
    """The number of words and the beginning of each sentence that has too many."""
    for part in prose(text):
        for sentence in re.split(r"(?<=[.!?:;])\s+(?=\W*\w)", part):
            if (words := len(sentence.split())) > MOST_WORDS:
                yield words, sentence[:100]


def strings(source: str) -> Iterator[tuple[int, str]]:
    """The docstrings and messages of a module: whatever string has a space in it, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value


def hard(text: str) -> Iterator[tuple[int, str, str]]:
    """Each phrase that has a plainer one: how many lines into the text, what stands there, and the plainer one."""
    for pattern, plainer in PLAINER.items():
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.MULTILINE):
            yield text[: match.start()].count("\n"), re.sub(r"\s+", " ", match[0]), plainer


def main() -> None:
    total = 0
    for page in PAGES:
        words = count(page.read_text())
        total += words
        print(f"{words:6,}  {page.relative_to(ROOT)}")
    print(f"{total:6,}  words in all\n")
    for page in PAGES:
        for columns, head in wide_tables(page.read_text()):
            print(f"{page.relative_to(ROOT)}: {columns} columns: {head}")
        if "--long" in sys.argv:
            for number, sentence in long_sentences(page.read_text()):
                print(f"{page.relative_to(ROOT)}: {number} words: {sentence}")
    for path in [*PAGES, *OTHERS, *sorted((ROOT / "rholoss").rglob("*.py"))]:
        texts = strings(path.read_text()) if path.suffix == ".py" else [(1, path.read_text())]
        for first, text in texts:
            for line, found, plainer in hard(text):
                print(f"{path.relative_to(ROOT)}:{first + line}: {found!r}: {plainer}")


if __name__ == "__main__":
    main()
