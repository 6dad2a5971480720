"""The live plot of a notebook: its cell shows the run's numbers and lines, and its end."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
from qfleet_serial import SMALL, Recorder

from cluster.api import train
from cluster.report import notebook
from cluster.settings.load_config import load_config


class Cell:
    """A cell's output, as IPython's display gives a handle of it."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, html: str) -> None:
        self.shown.append(html)


@pytest.fixture
def cell(monkeypatch: pytest.MonkeyPatch) -> Cell:
    """What IPython.display.display returns; IPython itself need not be there."""
    cell, module = Cell(), ModuleType("IPython.display")
    vars(module).update(HTML=str, display=lambda html, display_id: cell)
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return cell


def test_the_cell_follows_the_run_to_its_end(
    tmp_path: Path, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notebook, "_GAP_SECONDS", 0.0)
    config = load_config("CartPole-v1", [*SMALL, "metrics.every_seconds=0.01"])
    plot = notebook.LivePlot()
    result = train(config, tmp_path / "run", callbacks=[plot], view=lambda *_: Recorder())
    assert len(cell.shown) > 3
    last = ElementTree.fromstring(cell.shown[-1].replace("&#9644;", ""))
    (text,) = [each.text for each in last.iter("p")]
    assert text is not None
    assert text.startswith("Ended: stop.updates = 200 reached. ")
    assert f"{result.outcome.final.updates_total} updates" in text
    lines = [each for each in last.iter("polyline") if each.get("stroke") in notebook.LIGHT]
    assert len(lines) == 2
    assert [(each.text or "").strip() for each in last.iter("span")] == ["training return", "greedy return"]


def test_outside_of_a_notebook_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython.display", None)
    with pytest.raises(ModuleNotFoundError):
        notebook.LivePlot()
