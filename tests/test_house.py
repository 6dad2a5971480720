"""The limits of the house: small classes and functions, few statements, a header and a test for every module.

The test reads the four packages as syntax trees. docs/architecture.md may name exceptions to the limits of
classes and functions, each with its reason, in the table below its heading "Exceptions". Where a module is
tested through another one, the header of that test file names it by its path, as `actors/core.py`.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("replay_service", "actors", "learner", "cluster", "qfleet")

CLASS_LINES = 350
CLASS_ATTRIBUTES = 22
FUNCTION_LINES = 80
STATEMENTS = 18_644
"""A ceiling: a new capability may raise it by what it needs, a rebuilding only lowers it."""

_EXCEPTION = re.compile(r"^\| `([^`]+)` \| (.+) \|$", re.MULTILINE)


@dataclass(frozen=True)
class Excess:
    """A class or function that is above a limit. name: path and qualified name, as an exception gives it."""

    name: str
    number: int
    unit: str

    def __str__(self) -> str:
        return f"{self.name}: {self.number} {self.unit}"


def modules() -> dict[str, ast.Module]:
    """The packages' modules by path, below the root."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text("utf-8")) for path in paths}


def statements(tree: ast.AST) -> int:
    """How many statements a tree has, docstrings included."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(tree))


def attributes(defined: ast.ClassDef) -> set[str]:
    """Names that the class's methods assign to `self`; fields of a dataclass are none."""
    return {
        node.attr
        for method in defined.body
        if isinstance(method, ast.FunctionDef)
        for node in ast.walk(method)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if isinstance(node.value, ast.Name) and node.value.id == "self"
    }


def excesses(path: str, tree: ast.AST, within: str = "") -> Iterator[Excess]:
    """Everything of a module, or of a class or function in it, that is above a limit."""
    for node in ast.iter_child_nodes(tree):
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from excesses(path, node, within)
            continue
        qualified = f"{within}{node.name}"
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if lines > (CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES):
            yield Excess(f"{path}:{qualified}", lines, "lines")
        if isinstance(node, ast.ClassDef) and len(attributes(node)) > CLASS_ATTRIBUTES:
            yield Excess(f"{path}:{qualified}", len(attributes(node)), "attributes")
        yield from excesses(path, node, f"{qualified}.")


def exceptions(document: str) -> dict[str, str]:
    """Name -> reason of each line of the table below the heading "Exceptions"; empty where there is none."""
    _, _, rest = document.partition("\n## Exceptions\n")
    section, _, _ = rest.partition("\n## ")
    return dict(_EXCEPTION.findall(section))


def sentences(text: str) -> int:
    """How many sentences a text has; a colon or semicolon ends one as well."""
    return len(re.findall(r"[.:;](?:\s|$)", text))


def headers(folder: Path) -> str:
    """The headers of all test files below a folder."""
    trees = (ast.parse(path.read_text("utf-8")) for path in sorted(folder.rglob("test_*.py")))
    return "\n".join(ast.get_docstring(tree) or "" for tree in trees)


def without_test(paths: list[str], tests: Path) -> list[str]:
    """The modules that have neither a test of their name in their place nor a place in a test's header."""
    told = headers(tests)
    return [
        path
        for path in paths
        if not path.endswith("__init__.py")
        if not (tests / path).with_name(f"test_{Path(path).name}").exists()
        if not re.search(rf"(?<![\w/]){re.escape(path)}(?!\w)", told)
    ]


def test_classes_and_functions_are_small() -> None:
    excused = exceptions((ROOT / "docs/architecture.md").read_text("utf-8"))
    found = [excess for path, tree in modules().items() for excess in excesses(path, tree)]
    above = [str(excess) for excess in found if excess.name not in excused]
    assert not above, "\n" + "\n".join(above)
    assert excused.keys() <= {excess.name for excess in found}, "an exception is not needed any more"


def test_the_whole_is_small() -> None:
    counts = dict.fromkeys(PACKAGES, 0)
    for path, tree in modules().items():
        counts[path.split("/")[0]] += statements(tree)
    assert sum(counts.values()) <= STATEMENTS, f"{sum(counts.values()):,} statements: {counts}"


def test_every_module_begins_with_what_it_owns() -> None:
    short = [path for path, tree in modules().items() if sentences(ast.get_docstring(tree) or "") < 2]
    assert not short, "\n" + "\n".join(short)


def test_every_module_has_a_test_of_its_name_or_is_named_by_one() -> None:
    missing = without_test(list(modules()), ROOT / "tests")
    assert not missing, "\n" + "\n".join(missing)


def test_limits_are_measured() -> None:
    body = "\n".join(f"        self.a{i}, self.b{i} = 1, 2\n        self.a{i} += 1" for i in range(12))
    text = f"class Wide:\n    field: int = 0\n    def fill(self):\n{body}\n"
    text += "def long():\n" + "    x = 1\n" * FUNCTION_LINES + "def short():\n" + "    x = 1\n" * 79
    text += "class Long:\n" + "    def f(self): ...\n" * CLASS_LINES
    found = list(excesses("a/b.py", ast.parse(text)))
    assert list(map(str, found)) == [
        "a/b.py:Wide: 24 attributes",
        "a/b.py:long: 81 lines",
        "a/b.py:Long: 351 lines",
    ]
    assert sentences("The shard. Owns its frames;\nimports numpy.") == 3
    assert statements(ast.parse('def f():\n    """Text."""\n    if x:\n        y = 1')) == 4


def test_exceptions_are_read_from_their_table() -> None:
    table = "| what | why |\n|---|---|\n| `a/b.py:C` | one state |"
    text = f"# A\n\n| `no` | no |\n\n## Exceptions\n\n{table}\n\n## B\n\n| `no` | no |\n"
    assert exceptions(text) == {"a/b.py:C": "one state"}
    assert exceptions("# A\n") == {}


def test_tests_are_found_by_name_or_header(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "test_b.py").write_text('"""Tests b, and a/c.py through it."""')
    assert without_test(["a/__init__.py", "a/b.py", "a/c.py", "a/d.py", "c.py"], tmp_path) == [
        "a/d.py",
        "c.py",
    ]
