"""Documents name what is there: links, paths, functions and extras; docs/benchmarks.md knows every script."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from actors.envs import make

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
SETTINGS = (ROOT / "docs/settings.md").read_text("utf-8")
NO_SETTINGS = {"env.step", "metrics.jsonl"}
"""What looks like a setting."""
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text("utf-8")
PACKAGES = ("replay_service", "actors", "learner", "cluster", "qfleet")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
FOLDERS = (*PACKAGES, "benchmarks", "configs", "deploy", "docs", "tests")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """Relative links of a document whose file or heading is missing."""
    text = document.read_text("utf-8")
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = document.parent / path if path else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text("utf-8"))):
            broken.append(link)
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "there.md").write_text("# The family, at last\n")
    page = tmp_path / "page.md"
    page.write_text("[a](there.md#the-family-at-last) [b](there.md#no) [c](gone.md) [d](https://example.org)")
    assert broken_links(page) == ["there.md#no", "gone.md"]


def test_every_benchmark_is_in_the_list_of_scripts() -> None:
    scripts = {
        path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text("utf-8")
    }
    listed = (ROOT / "docs/benchmarks.md").read_text("utf-8").partition("## All scripts")[2]
    named = {
        name
        for cell in re.findall(r"^\| (`.+?`) \|", listed, re.MULTILINE)
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert named == scripts - {"run"}


@pytest.mark.parametrize(
    "document",
    [path for path in DOCUMENTS if path.name != "CHANGELOG.md"],  # it names former paths, too
    ids=lambda path: path.name,
)
def test_paths_are_there(document: Path) -> None:
    paths = re.findall(rf"`((?:{'|'.join(FOLDERS)})/[\w./*-]*)`", document.read_text("utf-8"))
    assert [path for path in paths if not list(ROOT.glob(path))] == []


def functions(path: Path) -> set[str]:
    """Functions and methods of a module, methods as Class.method."""
    found = set()
    for node in ast.parse(path.read_text("utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            found.add(node.name)
    return found


def test_methods_that_the_architecture_names_exist() -> None:
    code = " ".join(re.findall(r"`[^`]+`", ARCHITECTURE.replace("```", "")))
    named = set(re.findall(r"\b([A-Z]\w*[a-z]\w*\.[a-z_]\w*)\b", code))
    assert len(named) >= 30
    assert named <= set[str]().union(*map(functions, SOURCES))


def test_each_hop_of_a_walk_is_in_its_file() -> None:
    hops = re.findall(r"^\| (\d+) \| `([\w/]+\.py)` \(\d+\) \| (.+?) \|", ARCHITECTURE, re.MULTILINE)
    assert [int(number) for number, _, _ in hops] == [*range(1, 16), *range(1, 8)]
    for _, path, names in hops:
        assert set(re.findall(r"`([\w.]+)`", names)) <= functions(ROOT / path), (path, names)


def test_the_architecture_knows_how_long_files_are() -> None:
    """Within a tenth, so that not every change of a file is a change of the page."""
    told = re.findall(r"`([\w/]+\.py)` \((\d+)\)", ARCHITECTURE)
    lines = {path: len((ROOT / path).read_text("utf-8").splitlines()) for path, _ in told}
    assert len(lines) >= 20
    assert [each for each in told if abs(lines[each[0]] - int(each[1])) > lines[each[0]] / 10] == []


def test_extras_that_are_named_exist() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    deployed = (*(ROOT / "deploy").rglob("*.yaml"), ROOT / "deploy/Dockerfile")
    files = (*SOURCES, *DOCUMENTS, *deployed, ROOT / "Makefile", ROOT / "pyproject.toml")
    texts = [file.read_text("utf-8") for file in files]
    lists = [names for text in texts for names in re.findall(r"(?:'\.|qfleet)\[([\w,]+)\]", text)]
    named = {name for names in lists for name in names.split(",")}
    assert {"all", "atari", "dev", "export", "report", "tensorboard", "video"} <= named
    assert named <= extras.keys()
    assert set(make._EXTRAS.values()) <= extras.keys()


def test_benchmarks_that_are_named_take_the_options_that_are_shown() -> None:
    shown = {
        (name, option)
        for document in DOCUMENTS
        for name, options in re.findall(r"python -m benchmarks\.(\w+)([^`\n]*)", document.read_text("utf-8"))
        for option in ("", *re.findall(r"(--[\w-]+)", options.partition("#")[0]))
        if name.islower()
    }
    assert len(shown) > 20
    sources = {name: (ROOT / f"benchmarks/{name}.py").read_text("utf-8") for name, _ in shown}
    assert [each for each in sorted(shown) if each[1] not in sources[each[0]]] == []


def test_settings_that_are_named_exist() -> None:
    sections = "env|actors|replay|learner|pacing|evaluation|stop|checkpoint|metrics|run"
    known = {
        f"{section}.{name}" for section, name in re.findall(rf"^\| `({sections})\.([\w.]+)`", SETTINGS, re.M)
    }
    assert len(known) > 100
    named = {
        (document.name, setting)
        for document in DOCUMENTS
        if document.name != "CHANGELOG.md"  # it names former ones, too
        for code in re.findall(r"`([^`\n]+)`|^(qfleet .*)$", document.read_text("utf-8"), re.M)
        for setting in re.findall(rf"(?<![\w./-])((?:{sections})\.[a-z_]+)(?![\w(/])", " ".join(code))
    }
    assert len(named) > 200
    wrong = {each for each in named if each[1] not in known | NO_SETTINGS}
    assert wrong == set()
