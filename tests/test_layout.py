"""The shape of the package: one surface, layers that point one way, no optional package, and small modules."""

import ast
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import rholoss

PACKAGE = Path(rholoss.__file__).parent
LAYERS = [
    "schedules",
    "functional",
    "cost",
    "ranking",
    "rivals",
    "progress",
    "ids",
    "guest",
    "parts",
    "batches",
    "indexing",
    "reading",
    "sampling",
    "sizes",
    "scoring",
    "cheaper",
    "options",
    "source",
    "storefile",
    "sweep",
    "fingerprint",
    "trainer",
    "fitting",
    "models",
    "tally",
    "making",
    "shards",
    "tokens",
    "predictions",
    "provenance",
    "table",
    "summary",
    "verdict",
    "plots",
    "wording",
    "report",
    "store",
    "crossfit",
    "candidates",
    "selection",
    "selector",
    "registry",
    "selectors",
    "presets",
    "testing",
    "integrations",
    "diagnostics",
    "named",
    "command",
    "__init__",
    "__main__",
]
MAKING = [  # what makes and keeps irreducible losses
    "crossfit",
    "fingerprint",
    "fitting",
    "making",
    "models",
    "parts",
    "predictions",
    "progress",
    "provenance",
    "shards",
    "store",
    "storefile",
    "sweep",
    "table",
    "tally",
    "trainer",
]
PAYING = [
    "cheaper",
    "cost",
    "presets",
    *(f"selectors/{name}" for name in ("keep_schedule", "learner", "short_list", "while_it_pays")),
]
JUDGING = ["__main__", "command", "named", "plots", "report", "summary", "verdict", "wording"]  # the rest is what selects
PACKAGES = ("selectors", "diagnostics", "tokens", "integrations")  # whose modules may import from each other
RUNTIME = {"torch", "numpy", "typing_extensions"}


def layer_of(module):
    """Which layer a module such as ``selectors/rho_loss`` is in."""
    return LAYERS.index(module.split("/")[0])


def imports_of(source, at_import_only=False):
    """Full names of what a module imports, at import or anywhere in it."""
    tree = ast.parse(source)
    nodes = tree.body if at_import_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names] if node.module == "rholoss" else []
            yield from ([f"rholoss.{name}" for name in names] or [node.module])


def upward(module, source):
    """The imports of a module that point to its own layer or to one above it; siblings within a package are allowed."""
    for name in imports_of(source):
        package = module.split("/")[0]
        if not name.startswith("rholoss.") or (package in PACKAGES and name.startswith(f"rholoss.{package}.")):
            continue
        if layer_of(name.split(".")[1]) >= layer_of(module):
            yield name


def modules():
    return {path.relative_to(PACKAGE).with_suffix("").as_posix(): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def test_every_module_imports_only_from_layers_below():
    for module, source in modules().items():
        if module not in ("__init__", *(f"{package}/__init__" for package in PACKAGES)):
            assert not list(upward(module, source)), module
    assert {module.split("/")[0] for module in modules()} == set(LAYERS)


def test_an_import_that_points_up_is_found():
    assert list(upward("store", "from rholoss.selector import Selector")) == ["rholoss.selector"]
    assert list(upward("batches", "from rholoss import functional, scoring")) == ["rholoss.scoring"]


def test_no_module_refers_to_an_optional_package_at_import():
    for module, source in modules().items():
        if module == "integrations/lightning":  # is a Lightning callback, and imported by nobody who has no Lightning
            continue
        for name in imports_of(source, at_import_only=True):
            top = name.split(".")[0]
            assert top in RUNTIME | {"rholoss"} or top in sys.stdlib_module_names, f"{module} imports {name}"


def test_importing_the_package_imports_its_runtime_packages_and_nothing_else():
    code = (
        "import sys, torch, numpy, typing_extensions, torch.utils.data; before = set(sys.modules); import rholoss; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(done.stdout.split()) - {"rholoss"} - RUNTIME
    assert new <= set(sys.stdlib_module_names)
    assert done.stderr == ""


def test_the_surface_is_what_all_says():
    submodules = {module.name for module in pkgutil.iter_modules(rholoss.__path__)}
    public = {name for name in vars(rholoss) if not name.startswith("_")} - submodules
    assert public == set(rholoss.__all__)
    assert rholoss.__all__ == sorted(rholoss.__all__)


@pytest.mark.parametrize("name", rholoss.__all__)
def test_every_public_name_says_what_it_is(name):
    assert getattr(rholoss, name).__doc__


def lines_of_code(source):
    """Lines that are neither blank, nor comment, nor docstring."""
    documentation = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documentation |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    lines = enumerate(source.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in documentation for i, line in lines)


def test_modules_and_the_core_stay_small():
    for module, source in modules().items():
        assert len(source.splitlines()) <= 250, module
    sizes = {module: lines_of_code(source) for module, source in modules().items()}
    making, judging, paying = (sum(sizes[module] for module in group) for group in (MAKING, JUDGING, PAYING))
    of_methods = (module for module in sizes if module == "rivals" or module.startswith("selectors/"))
    methods = sum(sizes[module] for module in of_methods if module not in PAYING)
    looking_back = sum(size for module, size in sizes.items() if module.startswith("diagnostics/"))
    assert making < 2000
    assert judging < 900
    assert looking_back < 700
    tokens, integrations = (
        sum(size for module, size in sizes.items() if module.startswith(f"{package}/")) for package in ("tokens", "integrations")
    )
    assert paying < 700
    assert tokens < 350
    assert integrations < 150
    apart = sizes["testing"] + making + judging + looking_back + paying + methods + tokens + integrations
    assert sum(sizes.values()) - apart < 1550
