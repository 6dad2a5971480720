"""The documentation site: stages docs/ with the pages that are generated, and builds it with zensical.

`make docs` runs it; the site is build/docs/site. Links into the repository's code become plain text, because
the site holds pages only.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
OTHERS = {"README.md": "index.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Documents outside docs/ -> their names in the site."""
NAV = {
    "Home": "index.md",
    "Start": [
        *("start.md", "own-environment.md", "own-network.md", "notebook.md", "from-q-learning-to-dqn.md"),
        *("clusters.md", "watching.md", "moving.md", "from-rllib.md"),
    ],
    "How to": [
        *(
            "usage.md",
            "masks.md",
            "images.md",
            "dict-observations.md",
            "slow-simulators.md",
            "long-episodes.md",
        ),
        *(
            "resuming.md",
            "several-seeds.md",
            "tuning.md",
            "callbacks.md",
            "tracking.md",
            "troubleshooting.md",
        ),
    ],
    "Reference": ["commands.md", "settings.md", "metrics.md", "python.md", "block-format.md"],
    "Explanation": [
        *("architecture.md", "checkpoints.md", "diagnosis.md", "failures.md", "security.md", "scaling.md"),
        *("benchmarks.md", "replay-benchmarks.md"),
    ],
    "Project": ["changelog.md", "contributing.md", "citation.md"],
}
"""Heading -> its pages, in order."""
NOTEBOOK = "notebook.md"
"""The page that can also be had as a notebook file."""
# Wide screens show wide tables. Names of settings and metrics stay whole; on a phone, such a table scrolls.
STYLE = """\
.md-grid { max-width: 84rem }
.md-typeset td code { word-break: normal; overflow-wrap: normal }
"""
_DOCSTRINGS = {
    "heading_level": 3,
    "show_root_heading": True,
    "show_root_full_path": False,
    "show_root_toc_entry": False,
    "show_source": False,
    "merge_init_into_class": True,
    "separate_signature": True,
    "show_signature_annotations": True,
}
"""How a public name is shown: its signature below the heading that this script writes, without its source."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


def stage(folder: Path) -> None:
    """Writes the pages of the site and mkdocs.yml into a folder, which is emptied before."""
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "pages"
    pages.mkdir(parents=True)
    for file in sorted((ROOT / "docs").iterdir()):
        if file.suffix == ".svg":
            shutil.copy(file, pages / file.name)
        elif file.suffix == ".md":
            (pages / file.name).write_text(page(file), encoding="utf-8")
    heading, _, rest = (pages / NOTEBOOK).read_text(encoding="utf-8").partition("\n")
    offered = f"{heading}\n\n[This page as a notebook file](notebook.ipynb)\n{rest}"
    (pages / NOTEBOOK).write_text(offered, encoding="utf-8")
    (pages / "notebook.ipynb").write_text(notebook(ROOT / "docs" / NOTEBOOK), encoding="utf-8")
    for name, staged in OTHERS.items():
        (pages / staged).write_text(page(ROOT / name), encoding="utf-8")
    (pages / "style.css").write_text(STYLE, encoding="utf-8")
    (pages / "commands.md").write_text(commands(), encoding="utf-8")
    (pages / "python.md").write_text(python(), encoding="utf-8")
    (pages / "citation.md").write_text(citation(), encoding="utf-8")
    settings = {
        "site_name": "qfleet",
        "site_description": "Distributed DQN: many actors, sharded replay, one learner",
        "docs_dir": "pages",
        "site_dir": "site",
        "use_directory_urls": False,
        "extra_css": ["style.css"],
        "nav": [{heading: entry} for heading, entry in NAV.items()],
        # Nothing comes from elsewhere: no fonts, no icons of the repository's host.
        "theme": {
            "name": "material",
            "font": False,
            "features": ["navigation.sections", "content.code.copy", "search.highlight"],
            "palette": [
                {"media": f"(prefers-color-scheme: {scheme})", "scheme": color}
                for scheme, color in (("light", "default"), ("dark", "slate"))
            ],
        },
        "plugins": [
            "search",
            {"mkdocstrings": {"handlers": {"python": {"paths": [str(ROOT)], "options": _DOCSTRINGS}}}},
        ],
        "markdown_extensions": ["tables", "fenced_code", "toc"],
    }
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def page(file: Path) -> str:
    """The text of a document, its links turned to those of the site."""

    def turned(match: re.Match[str]) -> str:
        image, text, link = match.groups()
        target, mark, anchor = link.partition("#")
        if not target or link.startswith(("http:", "https:")):
            return match[0]
        path = (file.parent / target).resolve()
        if path.parent == ROOT / "docs" and path.suffix in (".md", ".svg"):
            return f"{image}[{text}]({path.name}{mark}{anchor})"
        if path.parent == ROOT and path.name in OTHERS:
            return f"{image}[{text}]({OTHERS[path.name]}{mark}{anchor})"
        return text

    return _LINK.sub(turned, file.read_text(encoding="utf-8"))


def notebook(file: Path) -> str:
    """A document as a notebook: its Python blocks are cells, and so are the texts between, without links."""
    text = _LINK.sub(lambda link: "" if link[1] else link[2], file.read_text(encoding="utf-8"))
    parts = re.split(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    cells = [
        {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": part.strip()}
        | ({"outputs": [], "execution_count": None} if kind == "code" else {})
        for number, part in enumerate(parts)
        for kind in (("markdown", "code")[number % 2],)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1
    )


def commands() -> str:
    """The page of all commands, as their --help prints them."""
    from cluster.cli import make_parser

    parser = make_parser()
    (choices,) = [
        action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    parts = ["# Commands", "", "`qfleet COMMAND --help` prints these texts."]
    for name, command in choices.items():
        parts += ["", f"## qfleet {name}", "", "```text", command.format_help().strip(), "```"]
    return "\n".join(parts) + "\n"


def python() -> str:
    """The page of the Python interface: the docstring of each public name."""
    import qfleet

    parts = ["# The Python interface", "", "What `import qfleet` gives."]
    for name in qfleet.__all__:
        if name in qfleet._HOMES:
            module, defined = qfleet._HOMES[name]
            parts += ["", f"## qfleet.{name}", "", f"::: {module}.{defined}"]
    return "\n".join(parts) + "\n"


def citation() -> str:
    """The page that says how to cite the project."""
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    return f"# Citation\n\n`CITATION.cff` has the facts:\n\n```yaml\n{text}```\n"


def broken(site: Path) -> Iterator[str]:
    """Links of the built pages to what is not there, and whatever they load from elsewhere."""
    # 404.html names everything from the root of a server.
    pages = (file for file in site.rglob("*.html") if file.name != "404.html")
    texts = {file: file.read_text(encoding="utf-8") for file in pages}
    anchors = {file: set(re.findall(r'\bid="?([^"\s>]+)', text)) for file, text in texts.items()}
    for file, text in texts.items():
        place = file.relative_to(site)
        for tag, link in re.findall(r'<(\w+)[^>]*?\b(?:href|src)="?([^"\s>]+)', text):
            if re.match(r"\w+:|//", link):
                if tag != "a" and not link.startswith("data:"):
                    yield f"{place}: <{tag}> loads {link}"
                continue
            path, _, anchor = link.partition("#")
            target = (file.parent / path).resolve() if path else file
            target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                yield f"{place}: {link} is not there"
            elif anchor and anchor not in anchors.get(target, {anchor}):
                yield f"{place}: {link} has no such anchor"


def main() -> None:
    """Builds the site; ends with status 1 if a link leads nowhere."""
    folder = ROOT / "build" / "docs"
    stage(folder)
    subprocess.run([sys.executable, "-m", "zensical", "build"], cwd=folder, check=True)
    problems = sorted(set(broken(folder / "site")))
    print(*problems, f"{folder / 'site' / 'index.html'}: {len(problems)} broken links", sep="\n")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
