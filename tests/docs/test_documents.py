"""Documents name what is there: links lead to files and headings, docs/benchmarks.md knows every script."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


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
