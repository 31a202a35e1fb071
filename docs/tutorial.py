"""The tutorial as a page: writes docs/pages/tutorial.md and its pictures from the notebook and its outputs.

python docs/tutorial.py
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "tutorial.ipynb"
PAGES = ROOT / "docs" / "pages"
NOTE = "This page is the notebook `examples/tutorial.ipynb` with its outputs; open it in Jupyter to change things.\n"


def files() -> dict[Path, bytes]:
    """The page and its pictures: what is in each file."""
    pictures: dict[Path, bytes] = {}
    blocks = []
    section = "Tutorial"
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source.replace("../docs/pages/", "").rstrip() + "\n")
            section = next((line.strip("# ") for line in source.splitlines() if line.startswith("#")), section)
            continue
        blocks.append(fenced(source, "python"))
        blocks += [shown(output, section, pictures) for output in cell["outputs"]]
    title, rest = blocks[0].split("\n\n", 1)
    first, rest = rest.split("\n\n", 1)
    page = "\n".join([f"{title}\n\n{first}\n\n{NOTE}\n{rest}", *blocks[1:]])
    return {PAGES / "tutorial.md": page.encode(), **pictures}


def fenced(text: str, language: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```\n"


def shown(output: dict[str, Any], section: str, pictures: dict[Path, bytes]) -> str:
    """An output as text or as a link to a picture, which is added to the pictures."""
    if "data" not in output:
        return fenced("".join(output["text"]), "text")
    path = PAGES / "tutorial" / f"{len(pictures) + 1}.png"
    pictures[path] = base64.b64decode(output["data"]["image/png"])
    link = path.relative_to(PAGES)
    return f"[![{section}: picture {len(pictures)}]({link})]({link})\n"


if __name__ == "__main__":
    (PAGES / "tutorial").mkdir(exist_ok=True)
    for path, content in files().items():
        path.write_bytes(content)
