"""`qfleet report`: its numbers are the run's, whatever a run is called stays text, and it shows well."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from qfleet_recorded_runs import diagnosed, double_and_single, synthetic

from cluster.cli import run
from cluster.report.charts import charts
from cluster.report.report import render, write_report
from cluster.report.runs import groups_of, read_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "</title></script><script>alert(1)</script><img src=x onerror=alert(2)>&'\"{{ 7*7 }}"


class Page(HTMLParser):
    """Every start tag with its attributes, and the text of each element by its tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "img", "br", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1] == tag, f"</{tag}> closes <{self._open[-1]}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1] if self._open else "", data.strip()))

    def all(self, tag: str) -> list[str]:
        return [text for element, text in self.texts if element == tag]


def test_the_numbers_on_the_page_are_the_runs(real: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", str(real)]) == 0
    out = real / "report.html"
    assert capsys.readouterr().out == f"{out}\n"
    page = Page(out.read_text())
    last = json.loads((real / "metrics.jsonl").read_text().splitlines()[-1])
    cells = page.all("td")
    for shown in (
        f"{last['best_return_mean']:,.2f}",
        f"{last['train_return_mean']:,.2f}",
        f"{last['env_steps_total']:,}",
        f"{last['updates_total']:,}",
        "stop.updates = 200 reached",
    ):
        assert shown in cells
    titles = page.all("h3")
    for title in ("Greedy return", "Training return", "Loss", "Samples per insert", "Time of the learner"):
        assert title in titles
    assert "stop.updates = 200 reached" in cells
    assert json.loads((real / "provenance.json").read_text())["python"] in cells
    # The settings that were changed, and what they would have been.
    where = page.texts.index(("th", "learner.batch_size"))
    assert page.texts[where + 1] == ("td", "16")


def test_a_run_with_nothing_in_it_has_a_page_without_charts(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("env: {id: Known-v0}\n")
    assert charts(groups_of([read_run(tmp_path)])) == ()
    page = Page(render([read_run(tmp_path)]))
    assert page.all("h2") == ["Answer", "Configuration", "Summary"]
    assert "has not ended" in page.all("td")


def test_nothing_outside_the_page_is_asked_for(real: Path, tmp_path: Path) -> None:
    runs = [
        read_run(real),
        read_run(synthetic(tmp_path / "x", settings={"url": "https://example.org/x.png"})),
    ]
    text = render(runs)
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if tag == "a":
                assert value.startswith("#")
            elif name in ("src", "href", "data", "srcset", "poster", "action", "xlink:href"):
                assert value.startswith("data:")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in text


def test_hostile_names_and_values_stay_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "|")
    synthetic(
        folder,
        settings={"evil": {HOSTILE: HOSTILE}},
        extra={**diagnosed(HOSTILE, HOSTILE), "role_seconds_total": {HOSTILE: {HOSTILE: 3.0}}},
        events=[("INFO", HOSTILE), ("END", HOSTILE)],
    )
    other = synthetic(tmp_path / "other", settings={"evil": {HOSTILE: 2}})
    page = Page(render([read_run(folder), read_run(other)]))
    assert {tag for tag, _ in page.tags} <= {
        *(
            "html",
            "head",
            "meta",
            "title",
            "style",
            "body",
            "header",
            "section",
            "h1",
            "h2",
            "h3",
            "p",
            "div",
        ),
        *("table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "ul", "li", "span"),
        *("svg", "text", "polyline", "polygon", "nav", "a", "dl", "dt", "dd"),
    }
    assert HOSTILE in page.all("td")
    assert f"{folder.name}" in page.all("h3")
    assert "49" not in page.all("td"), "no template in a value is run"


def test_several_runs_are_compared_by_what_differs(tmp_path: Path) -> None:
    page = Page(render([read_run(path) for path in double_and_single(tmp_path)]))
    assert "learner.double" in page.all("th")
    assert page.all("td").count("False") == 4
    # Best returns of the seeds are 49 to 52.
    assert "50.50" in page.all("td")


def test_the_answer_comes_first_and_every_part_is_in_the_contents(real: Path, tmp_path: Path) -> None:
    for runs in ([real], double_and_single(tmp_path)):
        text = render([read_run(path) for path in runs])
        page = Page(text)
        assert page.all("h2")[0] == "Answer"
        ids = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
        links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
        assert links == [f"#{each}" for each in ids]


def test_a_report_compares_with_a_baseline_over_the_axis_that_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = [str(synthetic(tmp_path / f"old-{seed}", seed=seed)) for seed in (0,)]
    new = [
        str(synthetic(tmp_path / f"new-{seed}", seed=seed, settings={"learner": {"double": True}}))
        for seed in range(3)
    ]
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: not opened.append(url))
    out = tmp_path / "page.html"
    assert run(["report", *new, "--baseline", *old, "--x", "updates", "--out", str(out), "--open"]) == 0
    assert opened == [out.as_uri()]
    text = out.read_text()
    assert "The baseline is double = None." in text
    assert "double = True against double = None" in text
    assert "updates</text>" in text
    assert "environment steps</text>" not in text
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert run(["report", *new, "--out", str(out), "--open"]) == 2
    assert "--open found no browser" in capsys.readouterr().err


def test_the_diagnosis_has_a_table(tmp_path: Path) -> None:
    run_dir = synthetic(tmp_path / "run", extra=diagnosed("90%", "lag 9"))
    page = Page(render([read_run(run_dir)]))
    assert "Diagnosis" in page.all("h2")
    where = page.texts.index(("td", "acting limits the speed: 90%"))
    assert page.texts[where - 2 : where] == [("td", "0:00"), ("td", "0:49")]
    assert "stale data: lag 9. Cause: long chunks. Cure: shorter ones" in page.all("td")


@pytest.mark.parametrize(("name", "tag"), [("video.gif", "img"), ("video.mp4", "video")])
def test_a_video_is_carried_along(tmp_path: Path, name: str, tag: str) -> None:
    path = synthetic(tmp_path / "run")
    (path / name).write_bytes(b"moving pictures")
    ((_, attributes),) = [one for one in Page(render([read_run(path)])).tags if one[0] == tag]
    assert base64.b64decode(attributes["src"].partition("base64,")[2]) == b"moving pictures"


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["report", "nowhere"], ["nowhere: no run directory"]),
        (["report", "{run}", "--out", "{run}/config.yaml/x.html"], ["--out", "cannot be written"]),
        (
            ["report", "{run}", "--out", "x.html", "--png", "{run}/config.yaml/x"],
            ["--png", "cannot be written"],
        ),
    ],
)
def test_bad_input_is_2(
    arguments: list[str],
    facts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    synthetic(tmp_path / "run")
    assert run([argument.format(run=tmp_path / "run") for argument in arguments]) == 2
    captured = capsys.readouterr()
    for fact in facts:
        assert fact in captured.err


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, real: Path) -> dict[str, Path]:
    """Pages to look at: one run, and many with long names, hostile settings and warnings."""
    folder = tmp_path_factory.mktemp("shown")
    many = [
        synthetic(
            folder / f"{'a-very-long-name-of-a-run-' * 3}{index}",
            seed=index % 3,
            gradient=1.0 + index,
            settings={
                "learner": {"network": f"{'package.module' * 6}:{index // 3}"},
                "x": {HOSTILE: index // 3},
            },
            extra=diagnosed("slow " * 60, "stale data: x" * 20),
            events=[("WARNING", "x" * 300), ("ERROR", "long " * 100)],
        )
        for index in range(6)
    ]
    pages = {"one": folder / "one.html", "many": folder / "many.html"}
    write_report([real], pages["one"])
    write_report(many, pages["many"])
    return pages


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
@pytest.mark.parametrize("name", ["one", "many"])
@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (1_600, "dark")])
def test_a_browser_shows_it_without_complaint(
    shown: dict[str, Path], name: str, width: int, scheme: str, tmp_path: Path
) -> None:
    # The page allows no script; its twin measures itself. A window is never below 500, a frame can be.
    measure = """
        addEventListener("load", () => parent.postMessage(JSON.stringify({
            window: innerWidth,
            wide: document.documentElement.scrollWidth,
            dark: matchMedia("(prefers-color-scheme: dark)").matches,
            page: getComputedStyle(document.body).backgroundColor,
            hidden: [...document.querySelectorAll(".card")]
                .filter((card) => card.getBoundingClientRect().right > innerWidth + 1).length,
            empty: [...document.querySelectorAll("figure svg")]
                .filter((svg) => svg.getBoundingClientRect().height < 20).length,
        }), "*"))"""
    twin = (
        shown[name]
        .read_text()
        .replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    )
    (tmp_path / "twin.html").write_text(twin.replace("</body>", f"<script>{measure}</script></body>"))
    (tmp_path / "frame.html").write_text(
        "<!doctype html><meta name=color-scheme content='light dark'><body style='margin: 0'><script>"
        "addEventListener('message', (event) => { document.title = event.data; })</script>"
        f"<iframe src=twin.html style='border: 0; width: {width}px; height: 1100px'></iframe>"
    )
    shot = tmp_path / "shot.png"
    found = browse(shown[name], f"--screenshot={shot}", scheme=scheme, folder=tmp_path)
    assert "CONSOLE" not in found.stderr, found.stderr
    assert shot.stat().st_size > 10_000
    dom = browse(tmp_path / "frame.html", "--dump-dom", scheme=scheme, folder=tmp_path).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title is not None, dom[:2_000]
    facts = json.loads(title.group(1))
    assert facts["window"] == width
    assert facts["wide"] <= width, "nothing is wider than the window"
    assert (facts["hidden"], facts["empty"]) == (0, 0)
    assert facts["dark"] == (scheme == "dark")
    assert facts["page"] == ("rgb(20, 23, 28)" if scheme == "dark" else "rgb(246, 247, 249)")


def browse(page: Path, what: str, *, scheme: str, folder: Path) -> subprocess.CompletedProcess[str]:
    arguments = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}",
        "--window-size=1600,1200",
        "--virtual-time-budget=3000",
        what,
        page.as_uri(),
    ]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=90)
