"""The documents' code blocks, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A code block. mark: the comment before it; empty for none."""

    mark: str
    language: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether a test must run it."""
        return self.language in ("python", "sh") and not self.mark.startswith("not run: ")

    def marked(self, kind: str) -> str:
        """What a mark of this kind names: "needs" a package, or the "file" to save it as; empty for none."""
        return self.mark.partition(": ")[2] if self.mark.startswith(f"{kind}: ") else ""

    def commands(self) -> Iterator[str]:
        """Its lines without comments; those that go on are joined."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if command := line.partition(" #")[0].strip():
                yield command


def blocks(document: Path) -> list[Block]:
    """The code blocks of a document, in order."""
    return [Block(*found) for found in _BLOCK.findall(document.read_text("utf-8"))]
