"""`qfleet report`: its numbers are the run's, whatever a run is called stays text, and it shows well."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from qfleet_serial import SMALL, train_serial

from cluster.cli import run
from cluster.metrics.snapshot import figures
from cluster.record.logs import LogSource
from cluster.record.tensorboard import require_tensorboard, scalars
from cluster.report.axes import linear, tick, vertical
from cluster.report.data import (
    Chart,
    Series,
    bootstrap,
    charts,
    evaluation_steps,
    greedy_curve,
    groups_of,
    iqm,
    periods,
    phases,
    read_run,
    thinned,
)
from cluster.report.report import panels, render, write_report
from cluster.report.svg import chart_svg, legend
from cluster.settings.config import ConfigError
from cluster.show.status import snapshot_of
from replay_service.histogram import Histogram

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


def synthetic(
    folder: Path,
    *,
    seed: int = 0,
    gradient: float = 1.0,
    lines: int = 50,
    settings: dict[str, Any] | None = None,
    extra: dict[str, Any] | None = None,
    events: Sequence[tuple[str, str]] = (("END", "enough"),),
) -> Path:
    """A run directory in which every figure is a known line."""
    (folder / "logs").mkdir(parents=True)
    config = {"env": {"id": "Known-v0"}, "run": {"seed": seed, "runtime": "serial"}, **(settings or {})}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "provenance.json").write_text(json.dumps({"commit": "abc", "packages": {"numpy": "2"}}))
    metrics = [
        {
            "run_seconds": float(index),
            "env_steps_total": 100 * index,
            "updates_total": 10 * index,
            "weights_version": 10 * index,
            "train_return_mean": gradient * index + seed,
            "best_return_mean": gradient * index + seed,
            "env_steps_per_second": 100.0,
            "role_seconds_total": {"learner": {"wait": 1.0 * index, "update": 3.0 * index}},
            "process_resident_memory_bytes": {"learner": 2e8, "actor": 1e8},
            **(extra or {}),
        }
        for index in range(lines)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    evaluations = [
        {"version": version, "confirms": confirms, "returns": [version - 1.0, version + 1.0 + 100 * confirms]}
        for version in (0, 100, 200)
        for confirms in (False, True)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in evaluations))
    source = LogSource("coordinator", 0, 0.0)
    (folder / "logs" / "events.log").write_text(
        "".join(source.lines(level, text, 3.0) for level, text in events)  # type: ignore[arg-type]
    )
    return folder


def test_what_a_resumed_run_played_again_is_shown_once(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "run", lines=6)
    for name, again in (
        ("metrics", [{"env_steps_total": 200}, {"of": "another version"}, {"env_steps_total": 250}]),
        ("evaluations", [{"version": None, "returns": [3.0]}, {"version": 100, "returns": [7.0]}]),
    ):
        with (path / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in again)
    replaced = read_run(path)  # a learner that was lost goes back, too, but nothing is played again
    assert (len(replaced.metrics), len(replaced.evaluations)) == (9, 8)
    (path / "resumes.jsonl").write_text("{}\n")
    resumed = read_run(path)
    assert [line.get("env_steps_total") for line in resumed.metrics] == [0, 100, 200, None, 250]
    assert [line["version"] for line in resumed.evaluations] == [0, 0, 100]
    assert resumed.evaluations[-1]["returns"] == [7.0]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real serial run, with TensorBoard events."""
    run_dir = tmp_path_factory.mktemp("report") / "real"
    train_serial(run_dir, [*SMALL, "metrics.every_seconds=0.02", "metrics.tensorboard=true"])
    return run_dir


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


def test_no_panel_is_empty_and_each_says_what_it_shows(real: Path) -> None:
    for panel in panels(groups_of([read_run(real)])):
        assert panel.title
        if isinstance(panel, Chart):
            assert panel.x_label
            assert panel.y_label
            assert max(len(line.xs) for line in panel.series) > 1
            assert legend(panel)
            text = str(chart_svg(panel))
            assert panel.x_label in text
            assert "nan" not in text
            assert "inf" not in text
        else:
            assert all(sum(seconds) > 0 for _, seconds in panel.rows)


def test_a_run_with_nothing_in_it_has_a_page_without_panels(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("env: {id: Known-v0}\n")
    assert panels(groups_of([read_run(tmp_path)])) == ()
    page = Page(render([read_run(tmp_path)]))
    assert page.all("h2") == ["Summary", "Configuration"]
    assert "has not ended" in page.all("td")


def test_nothing_outside_the_page_is_asked_for(real: Path, tmp_path: Path) -> None:
    runs = [
        read_run(real),
        read_run(synthetic(tmp_path / "x", settings={"url": "https://example.org/x.png"})),
    ]
    text = render(runs)
    for tag, attributes in Page(text).tags:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "a")
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "href", "data", "srcset", "poster", "action", "xlink:href"):
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
        extra={"verdict": HOSTILE, "warnings": [HOSTILE], "role_seconds_total": {HOSTILE: {HOSTILE: 3.0}}},
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
        *("svg", "text", "line", "polyline", "polygon", "rect"),
    }
    assert HOSTILE in page.all("td")
    assert f"{folder.name}" in page.all("h3")
    assert "49" not in page.all("td"), "no template in a value is run"


def test_iqm_is_the_mean_of_the_middle_half() -> None:
    values = np.array([[100.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [-100.0]])
    assert iqm(values)[0] == np.mean([2.0, 3.0, 4.0, 5.0])
    # Below four seeds nothing is cut.
    assert iqm(values[:3])[0] == pytest.approx(np.mean([100.0, 1.0, 2.0]))


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = bootstrap(rng.normal(3.0, 1.0, size=(20, 1)), iqm)
        hits += int(low[0] <= 3.0 <= high[0])
    # 190 of 200 are foretold; percentile intervals of 20 values are a little narrow, say 184, less 4 sigma.
    assert hits / 200 > 0.84
    assert hits < 200


def test_the_interval_is_that_of_a_naive_bootstrap() -> None:
    values = np.random.default_rng(2).normal(size=(9, 3))
    low, high = bootstrap(values, iqm)
    rng = np.random.default_rng(3)
    drawn = np.array([iqm(values[rng.integers(9, size=9)]) for _ in range(20_000)])
    np.testing.assert_allclose(low, np.percentile(drawn, 2.5, axis=0), atol=0.1)
    np.testing.assert_allclose(high, np.percentile(drawn, 97.5, axis=0), atol=0.1)


def test_runs_are_grouped_up_to_their_seeds_and_told_apart_by_what_differs(tmp_path: Path) -> None:
    paths = [
        synthetic(
            tmp_path / f"{double}-{seed}", seed=seed, gradient=1.0, settings={"learner": {"double": double}}
        )
        for double in (False, True)
        for seed in range(4)
    ]
    groups = groups_of([read_run(path) for path in paths])
    assert [(group.label, [one.seed for one in group.runs]) for group in groups] == [
        ("learner.double = False", [0, 1, 2, 3]),
        ("learner.double = True", [0, 1, 2, 3]),
    ]
    (training,) = [chart for chart in charts(groups) if chart.title == "Training return"]
    faint = [line for line in training.series if line.faint]
    loud = [line for line in training.series if not line.faint]
    assert (len(faint), len(loud)) == (8, 2)
    # Seeds 0 to 3 lie at index + seed; the IQM over four is the mean of the middle two: index + 1.5.
    steps, returns = np.array(loud[0].xs), np.array(loud[0].ys)
    np.testing.assert_allclose(returns, steps / 100 + 1.5)
    assert np.all(np.array(loud[0].low) <= returns)
    assert np.all(returns <= np.array(loud[0].high))
    page = Page(render([read_run(path) for path in paths]))
    assert "learner.double" in page.all("th")
    assert page.all("td").count("False") == 4
    # Best returns of the seeds are 49 to 52.
    assert "50.50" in page.all("td")


def test_evaluations_lie_where_their_versions_were_and_confirmations_are_left_out(tmp_path: Path) -> None:
    known = read_run(synthetic(tmp_path / "run"))
    assert evaluation_steps(known).tolist() == [0, 0, 1_000, 1_000, 2_000, 2_000]
    steps, means, episodes = greedy_curve(known)
    assert steps.tolist() == [0, 1_000, 2_000]
    assert means.tolist() == [0.0, 100.0, 200.0]
    assert episodes.tolist() == [[-1.0, 99.0, 199.0], [1.0, 101.0, 201.0]]


def test_time_by_phase_is_the_last_total(tmp_path: Path) -> None:
    (bars,) = phases(groups_of([read_run(synthetic(tmp_path / "run"))]))
    assert (bars.title, bars.phases, bars.rows) == (
        "Time of the learner",
        ("wait", "update"),
        (("run", (49.0, 147.0)),),
    )


def test_what_was_diagnosed_is_told_from_when_to_when(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "run", lines=0)
    said = [
        ("actor-bound: actors work 90 %", []),
        ("actor-bound: actors work 95 %", ["stale data: lag 9"]),
        ("learner-bound: 80 %", ["stale data: lag 10"]),
        (None, []),
        ("learner-bound: 70 %", []),
    ]
    lines = [
        {"run_seconds": float(second), "verdict": verdict, "warnings": warnings}
        for second, (verdict, warnings) in enumerate(said)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    assert [(period.kind, period.began, period.ended, period.text) for period in periods(read_run(path))] == [
        ("verdict", 0.0, 1.0, "actor-bound: actors work 95 %"),
        ("warning", 1.0, 2.0, "stale data: lag 10"),
        ("verdict", 2.0, 2.0, "learner-bound: 80 %"),
        ("verdict", 4.0, 4.0, "learner-bound: 70 %"),
    ]
    assert "Diagnosis" in Page(render([read_run(path)])).all("h2")


@pytest.mark.parametrize(("name", "tag"), [("video.gif", "img"), ("video.mp4", "video")])
def test_a_video_is_carried_along(tmp_path: Path, name: str, tag: str) -> None:
    path = synthetic(tmp_path / "run")
    (path / name).write_bytes(b"moving pictures")
    ((_, attributes),) = [one for one in Page(render([read_run(path)])).tags if one[0] == tag]
    assert base64.b64decode(attributes["src"].partition("base64,")[2]) == b"moving pictures"


@given(
    low=st.floats(-1e12, 1e12),
    span=st.one_of(st.just(0.0), st.floats(1e-6, 1e12)),
    pad=st.sampled_from([0.0, 0.05]),
)
def test_axes_hold_their_values_and_a_few_round_ticks(low: float, span: float, pad: float) -> None:
    axis = linear(low, low + span, pad)
    assert axis.low <= low <= low + span <= axis.high
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 12
    slack = 1e-6 * (axis.high - axis.low)
    assert all(axis.low - slack <= value <= axis.high + slack for value in axis.ticks)
    assert 0.0 <= axis.position(low) <= axis.position(low + span) <= 1.0


def test_a_vertical_axis_is_logarithmic_only_where_values_span_far() -> None:
    assert not vertical(1.0, 999.0).log
    assert not vertical(-1.0, 1e9).log
    axis = vertical(0.02, 3e4)
    assert axis.log
    assert (axis.low, axis.high) == (pytest.approx(0.01), pytest.approx(1e5))
    assert axis.position(math.sqrt(axis.low * axis.high)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.05, "0.05"), (2_500.0, "2500"), (250_000.0, "250k"), (1.5e6, "1.5M"), (-2e9, "-2G")],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick(value) == text


def test_long_runs_are_thinned_without_losing_their_mean() -> None:
    xs, ys = np.arange(100_000.0), np.random.default_rng(0).normal(5.0, 1.0, 100_000)
    few_xs, few_ys = thinned(xs, ys)
    assert len(few_xs) == len(few_ys) == 300
    assert np.mean(few_ys) == pytest.approx(ys.mean(), abs=0.01)
    assert list(few_xs) == sorted(few_xs)


def test_a_line_is_drawn_where_its_values_are() -> None:
    chart = Chart("Learning", "t", "x", "y", (Series("a", 0, (0.0, 10.0), (0.0, 4.0)),))
    (points,) = re.findall(r'<polyline class="line s0" points="([^"]+)"', str(chart_svg(chart)))
    (x0, y0), (x1, y1) = (map(float, pair.split(",")) for pair in points.split())
    labels = re.findall(
        r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', str(chart_svg(chart))
    )
    at = {(anchor, text): (float(x), float(y)) for x, y, anchor, text in labels}
    assert y1 < y0, "up is more"
    assert x0 == at["middle", "0"][0]
    assert x1 == at["middle", "10"][0]
    # Texts are set 4 below the height of their tick.
    assert y0 == pytest.approx(at["end", "0"][1] - 4, abs=0.11)
    assert y1 == pytest.approx(at["end", "4"][1] - 4, abs=0.11)


def test_each_chart_is_a_png_too(real: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_report([real], tmp_path / "page.html", tmp_path / "png")
    assert written[0] == tmp_path / "page.html"
    assert len(written) - 1 == len(panels(groups_of([read_run(real)])))
    for path in written[1:]:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert (width, height) == (960, 600)
    assert written[1].name == "01-greedy-return.png"


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


def test_missing_extras_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--png needs matplotlib.*\[report\]"):
        write_report([synthetic(tmp_path / "run")], png=tmp_path / "png")
    assert not (tmp_path / "png").exists()
    from cluster.settings.load_config import load_config

    require_tensorboard(load_config(None))
    with pytest.raises(ConfigError, match=r"metrics\.tensorboard is true.*\[tensorboard\]"):
        require_tensorboard(load_config(None, ["metrics.tensorboard=true"]))


def test_tensorboard_gets_every_figure_of_every_line(real: Path) -> None:
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (real / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    events = [Event.FromString(record) for record in records(file.read_bytes())]
    assert events[0].file_version == "brain.Event:2"
    lines = [json.loads(line) for line in (real / "metrics.jsonl").read_text().splitlines()]
    assert [event.step for event in events[1:]] == [line["env_steps_total"] for line in lines]
    for event, line in zip(events[1:], lines, strict=True):
        written = {value.tag: value.simple_value for value in event.summary.value}
        for name, figure in figures(snapshot_of(line)).items():
            for tag, value in scalars(name, figure):
                assert written[tag] == pytest.approx(value, rel=1e-5, abs=1e-6)


def records(data: bytes) -> list[bytes]:
    """The records of a TFRecord file: length, checksum of it, bytes, checksum of them."""
    found = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        assert len(found[-1]) == length
        data = data[16 + length :]
    return found


def test_labels_become_parts_of_a_tag_and_histograms_their_mean() -> None:
    assert list(scalars("a", 3)) == [("a", 3)]
    assert list(scalars("a", {"x": {"y": 1.0}, "z": 2.0})) == [("a/x/y", 1.0), ("a/z", 2.0)]
    assert list(scalars("a", Histogram((1, 3), 10.0))) == [("a_mean", 2.5)]
    assert list(scalars("a", Histogram((0, 0), 0.0))) == []


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
            extra={"verdict": "actor-bound: " + "slow " * 60, "warnings": ["stale data: x" * 20]},
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
            cut: [...document.querySelectorAll(".card")]
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
    assert (facts["cut"], facts["empty"]) == (0, 0)
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
