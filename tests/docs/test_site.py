"""The documentation site: every page has a place, links lead somewhere, nothing comes from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from qfleet_documents import blocks
from qfleet_script import load_script

import qfleet

ROOT = Path(__file__).resolve().parents[2]


SITE = load_script(ROOT / "docs" / "site.py")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The staged pages."""
    folder = tmp_path_factory.mktemp("site") / "docs"
    SITE.stage(folder)
    return folder / "pages"


def test_every_page_has_its_place_and_every_place_a_page(pages: Path) -> None:
    named = chain.from_iterable([entry] if isinstance(entry, str) else entry for entry in SITE.NAV.values())
    assert sorted(named) == sorted(page.name for page in pages.glob("*.md"))


def test_links_between_pages_lead_to_pages_and_pictures(pages: Path) -> None:
    links = {
        (page.name, link.partition("#")[0])
        for page in pages.glob("*.md")
        for link in re.findall(r"\]\(([^)\s#][^)\s]*)\)", page.read_text("utf-8"))
        if not link.startswith(("http:", "https:"))
    }
    assert len(links) > 50
    assert [(page, link) for page, link in sorted(links) if not (pages / link).is_file()] == []


def test_the_reference_is_generated_and_complete(pages: Path) -> None:
    python, commands = (pages / "python.md").read_text(), (pages / "commands.md").read_text()
    for name in qfleet.__all__:
        assert name == "__version__" or f"## qfleet.{name}\n" in python
    for name in ("train", "eval", "status", "runs", "report", "export", "video", "plan", "settings"):
        assert f"## qfleet {name}\n" in commands
    assert "--seeds" in commands
    assert "learner.batch_size" in (pages / "settings.md").read_text()


def test_broken_links_and_what_is_loaded_from_elsewhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text(
        '<a href="b.html#there"></a><a href="b.html#gone"></a><a href=no.html></a>'
        '<a href="https://example.org"></a><script src="https://example.org/x.js"></script>'
    )
    (tmp_path / "b.html").write_text("<h1 id=there></h1>")
    assert sorted(SITE.broken(tmp_path)) == [
        "a.html: <script> loads https://example.org/x.js",
        "a.html: b.html#gone has no such anchor",
        "a.html: no.html is not there",
    ]


def test_the_notebook_has_the_blocks_of_its_page(pages: Path) -> None:
    assert "(notebook.ipynb)" in (pages / "notebook.md").read_text("utf-8")
    notebook = json.loads((pages / "notebook.ipynb").read_text("utf-8"))
    cells = {
        kind: [cell for cell in notebook["cells"] if cell["cell_type"] == kind]
        for kind in ("code", "markdown")
    }
    shown = [
        block.text.strip() for block in blocks(ROOT / "docs" / "notebook.md") if block.language == "python"
    ]
    assert [cell["source"] for cell in cells["code"]] == shown
    assert len(shown) == 3
    assert not any("](" in cell["source"] for cell in cells["markdown"])


@pytest.mark.slow
def test_the_site_builds_without_a_broken_link() -> None:
    pytest.importorskip("zensical", reason="the extra docs is not installed: make docs")
    ran = subprocess.run(
        [sys.executable, "docs/site.py"], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "0 broken links" in ran.stdout
