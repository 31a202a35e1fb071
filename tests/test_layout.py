"""The layout of the package: layers, two wings, no private names shared, one surface, no optional package, small functions."""

import ast
import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import rholoss

ROOT = Path(__file__).parents[1]
PACKAGE = Path(rholoss.__file__).parent
RUNTIME = {"torch", "numpy", "typing_extensions"}
NEEDS_ITS_FRAMEWORK = "rholoss.integrations.lightning"  # a Lightning callback; nobody without Lightning imports it
OF_NAMED_TUPLES = {"_asdict", "_field_defaults", "_fields", "_make", "_replace"}  # public, and documented by Python
ANNOTATED = ("report", "plans", "diagnostics")  # folders whose lower modules draw, write or replay what an upper one holds
READING_PATH = ("__init__.py", "selectors/rho_loss.py", "selector.py", "candidates.py", "store/store.py")


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


architecture = load(ROOT / "docs" / "architecture.py")
SOURCES = architecture.read_package(PACKAGE)
IMPORTS = architecture.imports(SOURCES)
UNITS = architecture.grouped(IMPORTS)
FOLDERS = sorted(unit for unit in UNITS if (PACKAGE / unit).is_dir())


def planted(**changed):
    """The sources with some code added to the end of some modules: ``store__checks`` is ``rholoss.store.checks``."""
    names = {"rholoss." + name.replace("__", "."): code for name, code in changed.items()}
    assert set(names) <= set(SOURCES)
    return {name: f"{source}\n{names.get(name, '')}\n" for name, source in SOURCES.items()}


class TestLayers:
    def test_the_folders_and_modules_are_in_layers(self):
        layers = architecture.layers(UNITS)
        assert "__init__" in layers[-1] or (layers[-1] == ["__main__"] and "__init__" in layers[-2])

    @pytest.mark.parametrize("folder", FOLDERS)
    def test_the_modules_of_a_folder_are_in_layers(self, folder):
        architecture.layers(architecture.within(IMPORTS, folder))

    def test_a_cycle_is_found(self):
        units = architecture.grouped(architecture.imports(planted(batches="from rholoss.selector import Selector")))
        with pytest.raises(ValueError, match=r"a cycle of imports: \['batches', 'candidates', .*'selector'"):
            architecture.layers(units)
        graph = architecture.imports(planted(store__metadata="import rholoss.store.store"))
        with pytest.raises(ValueError, match=r"a cycle of imports: \['rholoss.store.metadata', 'rholoss.store.store'\]"):
            architecture.layers(architecture.within(graph, "store"))

    @pytest.mark.parametrize(
        ("code", "eager"),
        [
            ("from rholoss import selector", True),
            ("from .. import selector", True),
            ("import rholoss.selector as s", True),
            ("try:\n    import rholoss.selector\nexcept ImportError:\n    pass", True),
            ("class A:\n    from rholoss.selector import Selector", True),
            ("def f():\n    from rholoss.selector import Selector", False),
            ("if TYPE_CHECKING:\n    from rholoss.selector import Selector", False),
            ("import typing\nif typing.TYPE_CHECKING:\n    pass\nelse:\n    from rholoss.selector import Selector", True),
        ],
    )
    def test_every_form_of_import_is_read(self, code, eager):
        sources = planted(data__index=code)
        assert ("rholoss.selector" in architecture.imports(sources)["rholoss.data.index"]) == eager
        assert ("rholoss.selector" in architecture.imports(sources, late=True)["rholoss.data.index"]) != eager


def late_imports_not_allowed(sources):
    """Late imports that point up, beyond the methods of the store and the annotations within two folders."""
    for module, target in architecture.upward_late_imports(sources):
        of_one_folder = architecture.unit_of(module) == architecture.unit_of(target) in ANNOTATED
        if module != "rholoss.store.store" and not of_one_folder:
            yield module, target


class TestLateImports:
    def test_only_the_methods_of_the_store_import_from_above(self):
        assert list(late_imports_not_allowed(SOURCES)) == []

    def test_in_the_store_they_are_in_methods_that_users_look_for(self):
        store = next(node for node in ast.parse(SOURCES["rholoss.store.store"]).body if isinstance(node, ast.ClassDef))
        methods = {
            method.name
            for method in store.body
            if isinstance(method, ast.FunctionDef)
            for node in ast.walk(method)
            if isinstance(node, ast.ImportFrom) and node.module.startswith("rholoss")
        }
        assert methods == {
            "from_model",
            "from_predictions",
            "score_share",
            "from_table",
            "to_table",
            "write_table",
            "merge",
            "report",
            "suspects",
        }

    def test_within_a_folder_they_are_for_annotations_only(self):
        for module in (module for module in SOURCES if architecture.unit_of(module) in ANNOTATED):
            for function in ast.walk(ast.parse(SOURCES[module])):
                if isinstance(function, ast.FunctionDef):
                    inside = [node for node in ast.walk(function) if isinstance(node, ast.ImportFrom)]
                    assert not [node for node in inside if node.module.startswith("rholoss")], module

    def test_another_one_is_found(self):
        sources = planted(batches="def f():\n    from rholoss.selector import Selector")
        assert list(late_imports_not_allowed(sources)) == [("rholoss.batches", "rholoss.selector")]


def meetings(sources):
    """Units of the two wings, and what each reaches of the other wing at import time."""
    units = architecture.grouped(architecture.imports(sources))
    making, selecting = {"irreducible"}, {"selector", "selectors", "wrappers"}
    for unit, other in (*((unit, making) for unit in sorted(selecting)), ("irreducible", selecting)):
        if found := other & architecture.reachable(units, unit):
            yield unit, found


def test_what_makes_a_store_and_what_selects_meet_in_the_store_alone():
    assert {"selectors", "wrappers", "selector", "irreducible", "store"} <= set(UNITS)
    assert list(meetings(SOURCES)) == []
    assert "store" in UNITS["irreducible"] & UNITS["selectors"]


def test_wings_that_meet_elsewhere_are_found():
    sources = planted(selectors__uniform="from rholoss.irreducible import Fit")
    assert list(meetings(sources)) == [("selectors", {"irreducible"}), ("wrappers", {"irreducible"})]
    sources = planted(irreducible__score="from rholoss import selector")
    assert list(meetings(sources)) == [("irreducible", {"selector"})]


# --- private names --------------------------------------------------------------------------------------------------------------


def is_private(name):
    return name.startswith("_") and name.strip("_") != "" and not (name.startswith("__") and name.endswith("__"))


def targets(node):
    """What an assignment assigns to, tuples taken apart."""
    if isinstance(node, ast.Assign):
        left = list(node.targets)
    elif isinstance(node, (ast.AnnAssign, ast.AugAssign, ast.NamedExpr)):
        left = [node.target]
    else:
        return
    while left:
        target = left.pop()
        if isinstance(target, (ast.Tuple, ast.List)):
            left += target.elts
        elif isinstance(target, ast.Starred):
            left.append(target.value)
        else:
            yield target


def private_definitions(tree):
    """Private names of functions, classes, methods, constants, class attributes and attributes of ``self``."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        for target in targets(node):
            if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id in ("self", "cls"):
                names.add(target.attr)
    for scope in (node for node in ast.walk(tree) if isinstance(node, (ast.Module, ast.ClassDef))):
        for statement in scope.body:
            names |= {target.id for target in targets(statement) if isinstance(target, ast.Name)}
    return {name for name in names if is_private(name)}


def private_uses(tree):
    """Private names that a module reads from elsewhere: as an attribute, by import, or by ``getattr`` with the name in quotes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module != "__future__":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr", "delattr"):
            yield from (argument.value for argument in node.args if isinstance(argument, ast.Constant))


def reach_ins(sources):
    """Private names that a module uses and another one defines."""
    trees = {module: ast.parse(source) for module, source in sources.items()}
    defined = {module: private_definitions(tree) for module, tree in trees.items()}
    modules = {module.rsplit(".", 1)[-1] for module in sources}
    for module, tree in trees.items():
        elsewhere = set().union(*(names for other, names in defined.items() if other != module))
        used = {name for name in private_uses(tree) if isinstance(name, str) and is_private(name)} - modules - OF_NAMED_TUPLES
        yield from ((module, name) for name in sorted((used & elsewhere) - defined[module]))


def private_overrides(sources):
    """Private names of a class that a class of another module, from which it is derived, has as well."""
    classes = {
        node.name: (module, node)
        for module, source in sources.items()
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
    }

    def ancestors(node):
        for base in node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", None)
            if name in classes and classes[name][1] is not node:
                yield classes[name]
                yield from ancestors(classes[name][1])

    for module, node in classes.values():
        mine = private_definitions(ast.Module([node], []))
        for whence, ancestor in ancestors(node):
            if whence != module:
                both = mine & private_definitions(ast.Module([ancestor], [])) - {node.name, ancestor.name}
                yield from ((module, node.name, name) for name in sorted(both))


class TestPrivateNames:
    def test_no_module_uses_a_private_name_of_another(self):
        assert list(reach_ins(SOURCES)) == []

    def test_no_class_overrides_a_private_name_of_another_module(self):
        assert list(private_overrides(SOURCES)) == []

    @pytest.mark.parametrize(
        "code",
        [
            "from rholoss.store.arrays import _mapped_again",
            "import rholoss.store.arrays as s\ns._mapped_again",
            "def f(store):\n    return store._mapped_again",
            "def f(store):\n    return getattr(store, '_mapped_again', None)",
        ],
    )
    def test_a_reach_in_is_found(self, code):
        assert list(reach_ins(planted(selection=code))) == [("rholoss.selection", "_mapped_again")]

    def test_a_reach_in_through_an_inherited_attribute_is_found(self):
        sources = {
            "rholoss.a": "class A:\n    def __init__(self):\n        self._x, self.y = 1, 2",
            "rholoss.b": "from rholoss.a import A\nclass B(A):\n    def f(self):\n        return self._x",
        }
        assert list(reach_ins(sources)) == [("rholoss.b", "_x")]

    def test_a_private_name_of_ones_own_is_no_reach_in(self):
        sources = {
            "rholoss.a": "_N = 1\nclass A:\n    _x = 1",
            "rholoss.b": "_N = 2\nclass B:\n    _x = 2\nprint(B._x, B.__doc__, _N)",
        }
        assert list(reach_ins(sources)) == []
        assert list(private_overrides(sources)) == []

    @pytest.mark.parametrize("body", ["_x = 2", "def _x(self): ...", "def f(self):\n        self._x = 2"])
    def test_a_private_name_that_is_overridden_is_found(self, body):
        base = "class A:\n    _x = 1\nclass Between(A): ..."
        sources = {"rholoss.a": base, "rholoss.b": f"import rholoss.a\nclass B(rholoss.a.Between):\n    {body}"}
        assert list(private_overrides(sources)) == [("rholoss.b", "B", "_x")]


# --- the surface ----------------------------------------------------------------------------------------------------------------


def imported_packages(source):
    """The packages that a module imports at import time."""
    for statement, late in architecture.import_statements(ast.parse(source)):
        if not late and isinstance(statement, ast.Import):
            yield from (alias.name.split(".")[0] for alias in statement.names)
        elif not late:
            yield "rholoss" if statement.level else statement.module.split(".")[0]


def optional(source):
    return {name for name in imported_packages(source) if name not in {"rholoss", *RUNTIME, *sys.stdlib_module_names}}


class TestSurface:
    def test_no_module_imports_an_optional_package_at_import(self):
        assert {module: optional(source) for module, source in SOURCES.items() if optional(source)} == {
            NEEDS_ITS_FRAMEWORK: {"lightning"}
        }
        assert NEEDS_ITS_FRAMEWORK not in set().union(*IMPORTS.values())

    def test_an_optional_package_is_found(self):
        assert optional("import os, matplotlib.pyplot\nfrom torch import nn") == {"matplotlib"}
        assert optional("def f():\n    import tqdm") == set()

    def test_importing_the_package_imports_its_runtime_packages_and_nothing_else(self):
        code = (
            "import sys, torch, numpy, typing_extensions, torch.utils.data; before = set(sys.modules); import rholoss; "
            "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        new = set(done.stdout.split()) - {"rholoss"} - RUNTIME
        assert new <= set(sys.stdlib_module_names)
        assert done.stderr == ""

    def test_the_surface_is_what_all_says(self):
        submodules = {module.name for module in pkgutil.iter_modules(rholoss.__path__)}
        public = {name for name in vars(rholoss) if not name.startswith("_")} - submodules
        assert public == set(rholoss.__all__)
        assert rholoss.__all__ == sorted(rholoss.__all__)

    @pytest.mark.parametrize("name", rholoss.__all__)
    def test_every_public_name_says_what_it_is(self, name):
        assert getattr(rholoss, name).__doc__


# --- sizes ----------------------------------------------------------------------------------------------------------------------


def lines_of(source):
    return len(source.splitlines())


def body_lengths(source):
    """Lines of the body of each function, its docstring not counted."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
            yield body[-1].end_lineno - body[0].lineno + 1 if body else 0


def percentile(values, share):
    values = sorted(values)
    return values[min(int(share * len(values)), len(values) - 1)]


class TestSizes:
    def test_nine_functions_in_ten_are_short(self):
        assert percentile([n for source in SOURCES.values() for n in body_lengths(source)], 0.9) <= 20

    def test_no_module_is_long(self):
        assert {module: lines_of(source) for module, source in SOURCES.items() if lines_of(source) > 500} == {}

    def test_the_package_is_small(self):
        assert sum(map(lines_of, SOURCES.values())) <= 19_700

    def test_the_reading_path_is_one_sitting(self):
        assert sum(lines_of((PACKAGE / path).read_text()) for path in READING_PATH) < 1_020

    def test_the_top_level_is_one_screen(self):
        assert len(list(PACKAGE.glob("*.py"))) <= 26
        assert 9 <= len(FOLDERS) <= 12

    def test_a_body_is_counted_without_its_docstring(self):
        source = 'def f():\n    """One\n    two."""\n    a = (\n        1\n    )\n    return a\ndef g():\n    """Nothing."""\n'
        assert list(body_lengths(source)) == [4, 0]
        assert percentile(range(1, 101), 0.9) == 91


def test_the_picture_of_the_layers_is_that_of_the_code():
    drawn = architecture.draw(SOURCES)
    assert architecture.PICTURE.read_text() == drawn, "run python docs/architecture.py"
    assert architecture.draw(planted(batches="import rholoss.functional")) != drawn


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/pages/architecture.md"])
def test_the_map_has_every_folder_and_module(page):
    words = (ROOT / page).read_text()
    for unit in (unit for unit in UNITS if not unit.startswith("_")):
        written = (f"{unit}/", f"`{unit}`") if unit in FOLDERS else (f"{unit}.py", f"`{unit}`")
        assert any(name in words for name in written), unit


def test_the_reading_path_is_on_the_page():
    table = (ROOT / "docs" / "pages" / "architecture.md").read_text()
    assert tuple(re.findall(r"^\| `([\w/]+\.py)` \|", table, re.MULTILINE)) == READING_PATH
