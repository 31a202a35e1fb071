"""The imports of the package: reads them, orders the modules in layers, and draws the picture of the page "Architecture".

python docs/architecture.py            writes docs/pages/architecture.svg
python docs/architecture.py --check    exits with 1 where the committed picture is not that of the code

The package is read as text; nothing of it is imported.
"""

from __future__ import annotations

import ast
import html
import importlib.util
import itertools
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = "rholoss"
Graph = dict[str, set[str]]


def package_folder() -> Path:
    """The package beside this script, or the installed one."""
    if (ROOT / NAME).is_dir():
        return ROOT / NAME
    spec = importlib.util.find_spec(NAME)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def read_package(folder: Path | None = None) -> dict[str, str]:
    """The source of every module by its full name; a folder's ``__init__`` has the name of the folder."""
    folder = folder or package_folder()
    sources = {}
    for path in sorted(folder.rglob("*.py")):
        parts = (NAME, *path.relative_to(folder).with_suffix("").parts)
        sources[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return sources


# --- what imports what ----------------------------------------------------------------------------------------------------------


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_statements(node: ast.AST, late: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import statement, and whether it is late: inside a function, or under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child, late
        elif isinstance(child, ast.If) and is_type_checking(child):
            for part in child.body:
                yield from import_statements(ast.Module([part], []), True)
            for part in child.orelse:
                yield from import_statements(ast.Module([part], []), late)
        else:
            yield from import_statements(child, late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))


def names_of(statement: ast.Import | ast.ImportFrom, module: str, modules: Iterable[str]) -> Iterator[str]:
    """Full names of the modules that a statement imports: ``from rholoss import functional`` imports ``rholoss.functional``."""
    if isinstance(statement, ast.Import):
        yield from (alias.name for alias in statement.names)
        return
    base = statement.module or ""
    if statement.level:
        base = ".".join([*module.split(".")[: -statement.level], *([base] if base else [])])
    for alias in statement.names:
        full = f"{base}.{alias.name}"
        yield full if full in modules else base


def imports(sources: Mapping[str, str], *, late: bool = False) -> Graph:
    """The modules of the package that each module imports, at import time or late."""
    graph: Graph = {}
    for module, source in sources.items():
        found = import_statements(ast.parse(source))
        graph[module] = {
            name
            for statement, is_late in found
            if is_late == late
            for name in names_of(statement, module, sources)
            if name in sources and name != module
        }
    return graph


# --- graphs ---------------------------------------------------------------------------------------------------------------------


def unit_of(module: str) -> str:
    """The top-level unit that a module is in: ``store`` for ``rholoss.store.checks``; ``__init__`` for the package itself."""
    return module.split(".")[1] if "." in module else "__init__"


def grouped(graph: Graph) -> Graph:
    """The graph of the top-level units."""
    units: Graph = {}
    for module, targets in graph.items():
        unit = unit_of(module)
        units.setdefault(unit, set()).update(unit_of(target) for target in targets if unit_of(target) != unit)
    return units


def within(graph: Graph, unit: str) -> Graph:
    """The graph of the modules of one sub-package, without its ``__init__``, which only hands their names on."""
    inside = {module for module in graph if unit_of(module) == unit and module.count(".") > 1}
    return {module: graph[module] & inside for module in inside}


def reachable(graph: Graph, start: str) -> set[str]:
    """All that a node reaches, itself not counted unless it is on a cycle."""
    reached: set[str] = set()
    left = list(graph[start])
    while left:
        node = left.pop()
        if node not in reached:
            reached.add(node)
            left += graph[node]
    return reached


def layers(graph: Graph) -> list[list[str]]:
    """The nodes in layers, lowest first: each imports only from layers below its own.

    Raises:
        ValueError: there is a cycle; the message has the nodes that are on one.
    """
    placed: list[list[str]] = []
    below: set[str] = set()
    while len(below) < len(graph):
        ready = sorted(node for node in graph if node not in below and graph[node] <= below)
        if not ready:
            raise ValueError(f"a cycle of imports: {sorted(node for node in graph if node in reachable(graph, node))}")
        placed.append(ready)
        below |= set(ready)
    return placed


def direct(graph: Graph) -> Graph:
    """The graph without the edges that follow from others."""
    return {
        node: {target for target in targets if not any(target in reachable(graph, other) for other in targets - {target})}
        for node, targets in graph.items()
    }


def upward_late_imports(sources: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Late imports whose target imports, at import time and perhaps through others, the module that holds them."""
    eager, late = imports(sources), imports(sources, late=True)
    for module, targets in late.items():
        yield from ((module, target) for target in sorted(targets) if module in reachable(eager, target))


# --- the picture ----------------------------------------------------------------------------------------------------------------

PICTURE = ROOT / "docs" / "pages" / "architecture.svg"
WIDTH, BESIDE, MARGIN, GAP, LINE = 480, 3, 10, 8, 14  # a phone shows it at three quarters of its size, still readable
SIDES = {"making": "makes a store", "neither": "in neither wing", "both": "needs both", "selecting": "selects"}
STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1b1f24; font-size: 11.5px }
  .name { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: 12.5px; font-weight: 700 }
  .on { fill: #4a525c; font-size: 10.5px }
  .card { fill: #ffffff } .row { fill: #eef0f3 }
  .box { stroke-width: 1 }
  .neither { fill: #ffffff; stroke: #8b949e } .making { fill: #dcebff; stroke: #3b78c4 }
  .selecting { fill: #ffe9d1; stroke: #c47a22 } .both { fill: #e6f4e0; stroke: #4f9440 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e8eaed } .on { fill: #b4bcc6 }
    .card { fill: #1b1f24 } .row { fill: #262b32 }
    .neither { fill: #1b1f24; stroke: #7d8590 } .making { fill: #17365c; stroke: #6ea8ee }
    .selecting { fill: #523515; stroke: #e0a050 } .both { fill: #21421b; stroke: #7cbf6b }
  }
"""


def label_of(source: str) -> str:
    """The first sentence of a module's docstring, or its part before a colon or semicolon."""
    first = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
    return re.split(r"(?<=[?]) |[:;.] |[:;.]$", first, maxsplit=1)[0].replace("``", "")


def side_of(unit: str, graph: Graph) -> str:
    """Which wing a unit is in: it makes a store, it selects, it needs both wings, or it is in neither."""
    reached = {unit} | reachable(graph, unit)
    sides = {(True, False): "making", (False, True): "selecting", (True, True): "both"}
    return sides.get(("irreducible" in reached, "selector" in reached), "neither")


def text(x: float, y: float, words: str, kind: str = "") -> str:
    chosen = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{chosen}>{html.escape(words, quote=False)}</text>'


def box_lines(unit: str, width: float, sources: Mapping[str, str], graph: Graph) -> list[tuple[str, str]]:
    """The lines of text in a box, each with its kind: the name, what it is, and what it rests on."""
    module = NAME if unit == "__init__" else f"{NAME}.{unit}"
    name = NAME if unit == "__init__" else unit + "/" * any(other.startswith(f"{module}.") for other in sources)
    rests_on = ", ".join(sorted(target for target in direct(graph)[unit] if not target.startswith("_")))
    return [
        (name, "name"),
        *((line, "") for line in textwrap.wrap(label_of(sources[module]), int((width - 10) / 7))),
        *((line, "on") for line in textwrap.wrap(f"↓ {rests_on}" if rests_on else "", int((width - 10) / 6))),
    ]


def row_of_boxes(units: list[str], y: float, sources: Mapping[str, str], graph: Graph) -> tuple[list[str], float]:
    """Boxes beside each other over the whole width, and where they end."""
    width = (WIDTH - 2 * MARGIN - (len(units) - 1) * GAP) / len(units)
    lines = [box_lines(unit, width, sources, graph) for unit in units]
    height = max(map(len, lines)) * LINE + 10
    parts = []
    for place, unit in enumerate(units):
        x, side = MARGIN + place * (width + GAP), side_of(unit, graph)
        parts.append(f'<rect class="box {side}" x="{x:.1f}" y="{y:g}" width="{width:.1f}" height="{height:g}" rx="4"/>')
        parts += [text(round(x + 6, 1), y + 15 + LINE * i, words, kind) for i, (words, kind) in enumerate(lines[place])]
    return parts, y + height


def in_lines(units: list[str]) -> list[list[str]]:
    """Units that stand beside each other, at most so many, as evenly as possible."""
    n = -(-len(units) // BESIDE)
    ends = [round(i * len(units) / n) for i in range(n + 1)]
    return [units[start:end] for start, end in itertools.pairwise(ends)]


def legend(y: float) -> Iterator[str]:
    x = float(MARGIN)
    for side, words in SIDES.items():
        yield f'<rect class="box {side}" x="{x:g}" y="{y:g}" width="12" height="12" rx="2"/>'
        yield text(x + 17, y + 10, words)
        x += 36 + 6.5 * len(words)


def draw(sources: Mapping[str, str]) -> str:
    """The picture: a band for each layer, a box for each unit; what makes a store is on the left, what selects on the right."""
    graph = grouped(imports(sources))
    rows = [[unit for unit in row if unit == "__init__" or not unit.startswith("_")] for row in layers(graph)]
    order = list(SIDES)
    rows = [sorted(row, key=lambda unit: (order.index(side_of(unit, graph)), unit)) for row in rows if row]
    parts = [text(MARGIN, 22, "A box imports only from rows below its own. After ↓: what it rests on directly."), *legend(32)]
    y = 58.0
    for row in reversed(rows):
        top, boxes = y, []
        for units in in_lines(row):
            more, y = row_of_boxes(units, y, sources, graph)
            boxes += more
            y += GAP
        parts.append(f'<rect class="row" x="4" y="{top - 5:g}" width="{WIDTH - 8}" height="{y - top + 2:g}" rx="5"/>')
        parts += boxes
        y += 7
    names = "; ".join(", ".join(row) for row in rows)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y:g}" width="{WIDTH}" height="{y:g}" role="img">',
            f"<title>The layers of {NAME}</title>",
            f"<desc>Layers, lowest first: {names}</desc>",
            f"<style>{STYLE}</style>",
            f'<rect class="card" width="{WIDTH}" height="{y:g}" rx="6"/>',
            *parts,
            "</svg>\n",
        ]
    )


def main(arguments: list[str]) -> int:
    picture = draw(read_package())
    if "--check" in arguments:
        if PICTURE.exists() and PICTURE.read_text() == picture:
            return 0
        print(f"{PICTURE} is not the picture of the code: run python docs/architecture.py")
        return 1
    PICTURE.write_text(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
