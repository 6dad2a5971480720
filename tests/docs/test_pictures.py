"""The pictures of docs/: the recorder understands a terminal, and what it made holds all that it shows."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from qfleet_script import load_script

ROOT = Path(__file__).resolve().parents[2]
PICTURES = load_script(ROOT / "docs" / "pictures.py")


def texts(screen: object) -> list[str]:
    return ["".join(char for char, _ in line) for line in screen.shown()]  # type: ignore[attr-defined]


def test_a_screen_shows_what_was_written_last() -> None:
    screen = PICTURES.Screen()
    screen.write("one\ntwo\r\n\x1b[1mthree\x1b[0m\x1b[2A\rONE\x1b[K\n\r\x1b[2Knew\x1b[?25l")
    assert texts(screen) == ["ONE", "new", "three"]
    assert screen.cells[2][0] == ("t", PICTURES.Style(bold=True))
    screen.write("\n\r" + "x" * (PICTURES.COLUMNS - 1) + "yz")
    assert texts(screen)[-2:] == ["x" * (PICTURES.COLUMNS - 1) + "y", "z"]
    screen.write("\n" * 40)
    assert len(screen.shown()) == PICTURES.LINES


def test_a_film_holds_each_line_once() -> None:
    screen = PICTURES.Screen()
    screen.write("a < b\n\x1b[31mred")
    film = PICTURES.film([(0.0, screen.shown()), (1.0, (*screen.shown(), screen.shown()[0]))])
    assert film.count("a &lt; b") == 1
    root = ElementTree.fromstring(film)
    assert len(root.findall(".//{*}use")) == 5
    assert root.find(".//{*}tspan[@class='c1']") is not None


@pytest.mark.parametrize("name", ["session", "live-plot", "seeds"])
def test_pictures_are_small_and_hold_all_that_they_show(name: str) -> None:
    text = (ROOT / "docs" / f"{name}.svg").read_text("utf-8")
    assert len(text.encode()) < 60_000
    root = ElementTree.fromstring(text)
    links = [value for each in root.iter() for key, value in each.items() if key.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert "url(" not in text
    assert "@import" not in text
