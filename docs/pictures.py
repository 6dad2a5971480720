"""The pictures of real runs in docs/: `python docs/pictures.py` makes them anew, in about a minute.

session.svg is a recorded terminal session, live-plot.svg what a notebook's cell shows in the end, seeds.svg
a chart of `qfleet report` over five seeds. They need no script, font or file from elsewhere.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import shlex
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

DOCS = Path(__file__).resolve().parent
COLUMNS, LINES = 100, 30
SESSION = (
    "qfleet train CartPole-v1 --run-dir runs/first",
    "qfleet eval runs/first --episodes 20",
)
_LAST_SECONDS = 5.0
_MIN_SECONDS = 0.4
_FRAMES = 10
_CHAR, _LINE = 7.8, 17  # size of a character in the picture
_COLORS = ("#6b7280", "#e06c75", "#7ec699", "#e5c07b", "#6db1ee", "#c792ea", "#56b6c2", "#d6deeb")
_PARTS = re.compile(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)|\x1b.?")


class Style(NamedTuple):
    """How a character looks. color: an index into the eight colors of a terminal; -1: the usual one."""

    color: int = -1
    bold: bool = False
    dim: bool = False


_PLAIN = Style()
Cell = tuple[str, Style]


@dataclass
class Screen:
    """A terminal that understands what rich writes to one: styles, lines erased, the cursor moved up."""

    cells: list[list[Cell]] = field(default_factory=lambda: [[]])
    line: int = 0
    column: int = 0
    style: Style = _PLAIN

    def write(self, text: str) -> None:
        """Takes in text with its escape sequences."""
        for numbers, command, control, plain in _PARTS.findall(text):
            if plain:
                for start in range(0, len(plain), COLUMNS):
                    self._put(plain[start : start + COLUMNS])
            elif control == "\r":
                self.column = 0
            elif control == "\n":
                self._next_line()
            elif command == "m":
                self._look(numbers)
            elif command == "A":
                self.line = max(0, self.line - int(numbers or 1))
            elif command == "K":
                self.cells[self.line] = [] if numbers == "2" else self.cells[self.line][: self.column]

    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        """The last lines, as many as the terminal has."""
        return tuple(map(tuple, self.cells[-LINES:]))

    def _next_line(self) -> None:
        self.line += 1
        if self.line == len(self.cells):
            self.cells.append([])

    def _put(self, text: str) -> None:
        """Writes at most a line's length at the cursor; what is too long for its line goes on in the next."""
        if (rest := text[max(0, COLUMNS - self.column) :]) and self.column:
            self._put(text[: -len(rest)])
            self._next_line()
            self.column, text = 0, rest
        line = self.cells[self.line]
        line += [(" ", _PLAIN)] * (self.column - len(line))
        end = self.column + len(text)
        self.cells[self.line] = line[: self.column] + [(char, self.style) for char in text] + line[end:]
        self.column = end

    def _look(self, numbers: str) -> None:
        for number in map(int, numbers.split(";") if numbers else ("0",)):
            if number == 0:
                self.style = _PLAIN
            elif number in (1, 2):
                self.style = self.style._replace(bold=number == 1, dim=number == 2)
            elif number == 22:
                self.style = self.style._replace(bold=False, dim=False)
            elif number == 39:
                self.style = self.style._replace(color=-1)
            elif 30 <= number <= 37 or 90 <= number <= 97:
                self.style = self.style._replace(color=number % 10)


Frame = tuple[float, tuple[tuple[Cell, ...], ...]]
"""Seconds since the start, and the screen from then on."""


def record(commands: Sequence[str], folder: Path) -> list[Frame]:
    """Runs the commands one after the other in a terminal of their own, in the folder."""
    screen, began, frames = Screen(), time.monotonic(), list[Frame]()

    def keep() -> None:
        now = time.monotonic() - began
        if frames and now - frames[-1][0] < _MIN_SECONDS:
            now = frames.pop()[0]
        if not frames or frames[-1][1] != screen.shown():
            frames.append((now, screen.shown()))

    for command in commands:
        screen.write(f"\x1b[32m$\x1b[0m {command}\r\n")
        keep()
        time.sleep(1.0)  # to read it
        for text in output(command, folder):
            screen.write(text)
            keep()
        keep()
    return frames


def output(command: str, folder: Path) -> Iterator[str]:
    """What a `qfleet` command writes to its terminal, as it comes. Raises CalledProcessError."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    _, *arguments = shlex.split(command)
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.main", *arguments],
        cwd=folder,
        stdin=its,
        stdout=its,
        stderr=its,
        env={**os.environ, "TERM": "xterm", "PYTHONPATH": str(DOCS.parent)},
    )
    os.close(its)
    decoder = codecs.getincrementaldecoder("utf-8")()
    while select.select([ours], [], [], 60.0)[0]:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # as Linux says that nobody writes to it any more
            break
        yield decoder.decode(data)
    os.close(ours)
    if status := process.wait():
        raise subprocess.CalledProcessError(status, command)


def film(frames: Sequence[Frame]) -> str:
    """The frames as one SVG, each for the time that it was there; equal lines are held once.

    Of many frames it has some, and the last.
    """
    frames = [*frames[: -1 : len(frames) // _FRAMES + 1], frames[-1]]
    total = frames[-1][0] + _LAST_SECONDS
    width, height = round(COLUMNS * _CHAR) + 24, LINES * _LINE + 24
    names: dict[str, str] = {}
    pictures, steps = [], []
    for index, (seconds, lines) in enumerate(frames):
        steps.append(f"{100 * seconds / total:.2f}% {{ transform: translateY({-index * height}px) }}")
        uses = [
            f'<use href="#{names.setdefault(drawn, f"l{len(names)}")}" y="{(number + 1) * _LINE}"/>'
            for number, line in enumerate(lines)
            if (drawn := line_svg(line))
        ]
        pictures.append(f'<g transform="translate(12 {index * height + 8})">{"".join(uses)}</g>')
    lines_svg = "".join(f'<text id="{name}">{drawn}</text>' for drawn, name in names.items())
    colors = "".join(f".c{index} {{ fill: {color} }} " for index, color in enumerate(_COLORS))
    last = (len(frames) - 1) * height
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">
<title>{escape("; ".join(SESSION))}: recorded</title>
<style>
text {{ font: 13px ui-monospace, "DejaVu Sans Mono", Menlo, monospace; fill: #d6deeb; white-space: pre }}
{colors}.b {{ font-weight: bold }} .d {{ opacity: .6 }}
#film {{ animation: film {total:.1f}s step-end infinite }}
@keyframes film {{ {" ".join(steps)} }}
@media (prefers-reduced-motion: reduce) {{ #film {{ animation: none; transform: translateY({-last}px) }} }}
</style>
<defs>{lines_svg}</defs>
<rect width="{width}" height="{height}" rx="8" fill="#14171c"/>
<g id="film">{"".join(pictures)}</g>
</svg>
"""


def line_svg(line: Sequence[Cell]) -> str:
    """A line as spans of equal style; each begins in its column, whatever the font."""
    spans, start = [], 0
    while start < len(line):
        style, end = line[start][1], start
        while end < len(line) and line[end][1] == style:
            end += 1
        text = "".join(char for char, _ in line[start:end])
        look = f"c{style.color} " * (style.color >= 0) + "b " * style.bold + "d" * style.dim
        if text := text.rstrip():
            name = f' class="{look.strip()}"' if look else ""
            place = f'x="{start * _CHAR:.4g}" textLength="{len(text) * _CHAR:.4g}"'
            spans.append(f"<tspan {place}{name}>{escape(text, quote=False)}</tspan>")
        start = end
    return "".join(spans)


def live_plot(folder: Path) -> str:
    """The picture that LivePlot shows at the end of a run."""
    import qfleet

    shown: list[str] = []
    module: Any = ModuleType("IPython.display")
    module.HTML = str
    module.display = lambda html, display_id: type("Output", (), {"update": staticmethod(shown.append)})
    sys.modules["IPython.display"] = module
    qfleet.train("CartPole-v1", folder / "notebook", callbacks=[qfleet.LivePlot()])
    page = shown[-1]
    (text,) = re.findall(r"<p>(.*?)</p>", page, re.DOTALL)
    (box, inner) = re.findall(r'<svg viewBox="0 0 (.*?)".*?>(.*?)</svg>', page, re.DOTALL)[0]
    keys = re.findall(r'<span style="color: (#\w+)">&#9644; (.*?)</span>', page)
    width, height = map(int, box.split())
    shapes = " ".join(inner.split())
    legend = "".join(
        f'<text x="{20 + 130 * index}" y="{height + 54}" fill="{color}">▬ {label}</text>'
        for index, (color, label) in enumerate(keys)
    )
    lines = "".join(
        f'<text x="14" y="{18 + 14 * index}">{line}</text>' for index, line in enumerate(text.split(". ", 1))
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height + 64}" role="img">
<style>text {{ font: 12px system-ui, sans-serif }}</style>
<rect width="{width}" height="{height + 64}" rx="8" fill="#fff"/>
{lines}<g transform="translate(0 36)">{shapes}</g>{legend}
</svg>
"""


def seeds_chart(group: Path) -> str:
    """The report's chart of training returns over a group of seeds, in light and dark."""
    from cluster.record.seed_group import with_groups_expanded
    from cluster.report.charts import charts
    from cluster.report.drawing import DARK, LIGHT, WIDTH, draw
    from cluster.report.runs import groups_of, read_run

    runs = [read_run(path) for path in with_groups_expanded([group])]
    drawing = next(draw(chart) for chart in charts(groups_of(runs)) if chart.title == "Training return")
    shapes = [
        f'<{"polygon" if path.filled else "polyline"} class="{path.style}" points="'
        + " ".join(f"{x:.0f},{y:.0f}" for x, y in path.points)
        + '"/>'
        for path in drawing.paths
    ]
    texts = [
        f'<text class="{label.align}" transform="translate({label.x:.0f} {label.y:.0f})'
        f'{" rotate(-90)" * label.turned}">{escape(label.text)}</text>'
        for label in drawing.labels
    ]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {drawing.height}" role="img">
<title>{escape(drawing.text)}</title>
<style>
text {{ font: 12px system-ui, sans-serif; fill: #5b6474 }}
.center {{ text-anchor: middle }} .right {{ text-anchor: end }}
polyline {{ fill: none; stroke: {LIGHT[0]}; stroke-width: 2 }} polygon {{ fill: {LIGHT[0]} }}
.faint {{ stroke-width: 1; opacity: .35 }} .band {{ opacity: .18 }} .dashed {{ stroke-dasharray: 5 4 }}
.grid {{ stroke: #d9dde4; stroke-width: 1 }}
@media (prefers-color-scheme: dark) {{
text {{ fill: #9aa4b2 }} polyline {{ stroke: {DARK[0]} }} polygon {{ fill: {DARK[0]} }}
.grid {{ stroke: #343b46 }}
}}
</style>
{"".join(shapes + texts)}
</svg>
"""


def main() -> None:
    """Makes all pictures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["XDG_STATE_HOME"] = str(folder / "state")
        (DOCS / "session.svg").write_text(film(record(SESSION, folder)), encoding="utf-8")
        (DOCS / "live-plot.svg").write_text(live_plot(folder), encoding="utf-8")
        for _ in output(
            "qfleet train CartPole-v1 --seeds 0 1 2 3 4 --parallel 2 --run-dir runs/five", folder
        ):
            pass
        (DOCS / "seeds.svg").write_text(seeds_chart(folder / "runs" / "five"), encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    main()
