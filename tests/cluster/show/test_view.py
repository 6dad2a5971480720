"""The view of a run in its own terminal; cluster/show/panel.py and cluster/show/progress.py through it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from qfleet_processes import set_flags
from qfleet_serial import SMALL
from rich.cells import cell_len
from rich.console import Console

from cluster.metrics.snapshot import Finding, Snapshot, Verdict
from cluster.record.events import Event
from cluster.settings.resolved import ResolvedStop
from cluster.show.panel import Screen, sparkline
from cluster.show.progress import progress
from cluster.show.view import Headline, LineView, LiveView, Returns, make_view
from cluster.wording import byte_size, count, short

SMALL_FLAGS = set_flags(SMALL)

MIDDLE = replace(
    Snapshot(),
    run_seconds=90.0,
    acting_seconds=90.0,
    env_steps_total=25_000,
    updates_total=6_000,
    env_steps_per_second=1_234.5,
    updates_per_second=321.0,
    samples_per_insert=3.987,
    samples_per_insert_target=4.0,
    epsilon=0.25,
    train_return_mean=-12.3456,
    evaluation_return_mean=45.6,
    best_return_mean=44.0,
    loss=0.12345,
    q_mean=9.87,
    policy_lag_updates=64,
    restarts_total=2,
    learner_update_share=0.9,
)
HEADLINE = Headline("CartPole-v1", "local", Path("runs/x"), "http://127.0.0.1:9/metrics", "replay 1 MB")


@pytest.mark.parametrize(
    ("stop", "share", "seconds_left"),
    [
        (ResolvedStop(env_steps=100_000), 0.25, 270.0),
        (ResolvedStop(updates=8_000), 0.75, 30.0),
        (ResolvedStop(seconds=180.0), 0.5, 90.0),
        # The first condition to be reached ends the run.
        (ResolvedStop(env_steps=100_000, updates=8_000, seconds=900.0), 0.75, 30.0),
        (ResolvedStop(updates=6_000), 1.0, 0.0),
        (ResolvedStop(updates=3_000), 1.0, 0.0),
        (ResolvedStop(target_return=50.0), None, None),
    ],
)
def test_progress_and_time_left(stop: ResolvedStop, share: float | None, seconds_left: float | None) -> None:
    assert progress(MIDDLE, stop) == (pytest.approx(share), pytest.approx(seconds_left))


def test_nothing_is_foretold_before_anything_moved() -> None:
    assert progress(Snapshot(), ResolvedStop(updates=100)) == (0.0, None)


def test_lines_show_headline_metrics_and_events() -> None:
    stream = io.StringIO()
    with LineView(HEADLINE, ResolvedStop(updates=8_000), stream) as view:
        view.metrics(replace(Snapshot(), roles_wanted={"actor": 3, "shard": 1}, roles_up={"shard": 1}))
        view.metrics(MIDDLE)
        view.event(Event("info", "actor 3 died", 91.26))
        failure = "Traceback:\n  in x\nValueError: y\n\nactor 3 raised the error above"
        view.event(Event("failed", failure, 92.0))
    *head, empty, middle, event, failure = stream.getvalue().splitlines()
    for fact in ("CartPole-v1", "local runtime", "runs/x", "http://127.0.0.1:9/metrics"):
        assert fact in " ".join(head)
    assert empty == "    0.0 s | starting: 1 of 4 processes ready, waiting for actor"
    assert middle == (
        "   90.0 s |  75% | ETA 0:30 | steps 25k | updates 6k | return -12.3 | greedy 45.6 | 1.23k steps/s | "
        "321 updates/s"
    )
    assert event == "   91.3 s | actor 3 died"
    assert failure == "   92.0 s | failed: ValueError: y; actor 3 raised the error above"


def test_no_line_is_long_and_the_verdict_is_said_when_it_changes() -> None:
    stream = io.StringIO()
    verdicts = ["actor", "actor", "learner", "actor"]
    with LineView(HEADLINE, ResolvedStop(target_return=-1_234.5, updates=8_000), stream) as view:
        for second, stage in enumerate(verdicts):
            verdict = Verdict(stage, f"{'words ' * 30}{second}")  # type: ignore[arg-type]
            view.metrics(replace(LARGE, run_seconds=100.0 * second, verdict=verdict))
        view.event(Event("warning", "stale data: " + "evidence " * 40, 500.0))
        view.event(Event("info", "x" * 300, 500.0))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 120
    assert [line.split(" | ")[1].split()[0] for line in lines if "limits the speed:" in line] == [
        "acting",
        "learning",
        "acting",
    ]
    metrics = next(line for line in lines if "greedy" in line)
    assert "greedy 45.6 of -1.23k" in metrics
    assert "ETA" not in metrics  # nobody knows when a target will be reached


def test_nothing_follows_the_end() -> None:
    stream = io.StringIO()
    with LineView(HEADLINE, ResolvedStop(), stream) as view:
        view.metrics(MIDDLE)
        view.metrics(replace(MIDDLE, run_seconds=90.1, updates_total=6_100))
        view.event(Event("ended", "enough", 90.2))
    *_, before, end = stream.getvalue().splitlines()
    assert "updates 6.1k" in before
    assert end == "   90.2 s | end: enough"


def test_the_progress_stays_on_a_small_screen_and_the_last_panel_advises_nothing() -> None:
    verdict = Verdict("actor", "actors work " * 40)
    warnings = tuple(Finding("stale_data", 7, "evidence " * 30, "cause", "cure") for _ in range(5))
    snapshot = replace(MIDDLE, verdict=verdict, warnings=warnings)
    stop = ResolvedStop(updates=8_000, target_return=50.0)
    stream = io.StringIO()
    console = Console(file=stream, width=80, height=24, force_terminal=True, color_system=None)
    console.print(Screen("CartPole-v1", "runs/x", stop, snapshot, [1.0, 2.0]))
    lines = stream.getvalue().splitlines()
    assert len(lines) <= 23
    assert "75%" in lines[1]
    assert "44 of 50" in "".join(lines)
    assert "stale data" in "".join(lines)
    last = "".join(drawn(Screen("CartPole-v1", "runs/x", None, snapshot), 80, color_system=None))
    assert "stale data" not in last
    assert "bound" not in last


def test_lines_become_rare_and_the_last_is_always_shown() -> None:
    stream = io.StringIO()
    with LineView(HEADLINE, ResolvedStop(), stream) as view:
        for second in range(2 * 3_600 + 1):
            view.metrics(replace(Snapshot(), run_seconds=float(second), env_steps_total=1))
        view.event(Event("ended", "enough", 7_200.0))
    shown = [float(line.split()[0]) for line in stream.getvalue().splitlines() if " | steps " in line]
    assert shown[:3] == [0.0, 1.0, 2.0]
    assert shown[-1] == 7_200.0
    gaps = [later - earlier for earlier, later in pairwise(shown)]
    assert max(gaps) == 60.0
    assert all(gap >= 0.99 * min(max(0.1 * at, 1.0), 60.0) for at, gap in zip(shown[:-2], gaps, strict=False))
    # Two hours in a log that a person can still read.
    assert len(shown) < 170


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "term", "kind"),
    [
        (io.StringIO(), "xterm", LineView),
        (Terminal(), "xterm", LiveView),
        (Terminal(), "dumb", LineView),
    ],
)
def test_only_a_terminal_that_can_draw_gets_the_panel(
    stream: io.StringIO, term: str, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    assert isinstance(make_view(HEADLINE, ResolvedStop(), stream), kind)


LARGE = replace(
    MIDDLE,
    run_seconds=360_000.0,
    env_steps_total=12_345_678_901,
    updates_total=987_654_321,
    env_steps_per_second=1_234_567.0,
    updates_per_second=99_999.0,
    samples_per_insert_target=33.25,
    train_return_mean=-1_234_567.8,
    loss=123_456.7,
    policy_lag_updates=123_456,
    replay_transitions=10_000_000,
    replay_bytes=123_456_789_012,
    roles_up={"actor": 999, "shard": 16},
    roles_wanted={"actor": 1_000, "shard": 16},
    process_resident_memory_bytes={"actor": 500_000_000_000},
    checkpoint_age_seconds=300.0,
)


def drawn(screen: Screen, width: int, **settings: Any) -> list[str]:
    stream = io.StringIO()
    Console(file=stream, width=width, height=60, force_terminal=True, **settings).print(screen)
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 200])
@pytest.mark.parametrize("snapshot", [Snapshot(), MIDDLE, LARGE], ids=["empty", "middle", "large"])
def test_the_panel_fits_and_shows_everything(snapshot: Snapshot, width: int) -> None:
    returns = [float(value) for value in range(1_000)]
    screen = Screen("CartPole-v1 · local", "runs/x", ResolvedStop(updates=10**9), snapshot, returns)
    lines = drawn(screen, width, color_system=None)
    assert {cell_len(line) for line in lines} == {width}
    text = "\n".join(lines)
    assert "…" not in text
    for fact in (
        "CartPole-v1 · local",
        "runs/x",
        short(snapshot.train_return_mean),
        count(snapshot.env_steps_total),
        count(snapshot.updates_total),
        short(snapshot.samples_per_insert),
        byte_size(snapshot.replay_bytes),
    ):
        assert fact in text
    # All six groups beside each other where there is room, else three.
    (heads,) = [line for line in lines if "learning" in line and "acting" in line]
    assert ("roles" in heads) == (width == 200)
    # The width is used: the sparkline nearly reaches from side to side.
    (spark,) = [line for line in lines if "training return" in line]
    assert sum(char in "▁▂▃▄▅▆▇█" for char in spark) > width - 40


@pytest.mark.parametrize("width", [20, 40, 60, 79])
def test_a_narrow_terminal_gets_a_panel_of_its_width(width: int) -> None:
    screen = Screen("CartPole-v1 · local", "runs/x", ResolvedStop(), LARGE, [1.0, 2.0])
    assert {cell_len(line) for line in drawn(screen, width, color_system=None)} == {width}


def test_a_place_or_a_note_that_looks_like_markup_is_shown_as_it_is() -> None:
    screen = Screen("[red]x[/red]", "runs/[bold]y", ResolvedStop(), MIDDLE, (), "[link=a]note[/link]")
    text = "\n".join(drawn(screen, 80, color_system=None))
    for fact in ("[red]x[/red]", "runs/[bold]y", "[link=a]note[/link]"):
        assert fact in text


def test_verdict_and_warnings_are_said_in_full() -> None:
    verdict = Verdict("actor", "actors work 97% of the time and the learner waits; raise actors.num_actors")
    warnings = (
        Finding("stale_data", 7, "transitions are 12,000 updates old", "long chunks", "shorter ones"),
        Finding("diverging_q", 9, "|Q| is 300, at most 100 can be", "long steps", "shorter ones"),
    )
    snapshot = replace(MIDDLE, verdict=verdict, warnings=warnings)
    lines = drawn(Screen("CartPole-v1", "runs/x", ResolvedStop(), snapshot), 80, color_system=None)
    assert {cell_len(line) for line in lines} == {80}
    text = " ".join(" ".join(line.strip("│ ") for line in lines).split())
    for said in (verdict.line, *(f"! {warning.text}" for warning in warnings)):
        assert said in text
    silent = drawn(Screen("CartPole-v1", "runs/x", ResolvedStop(), MIDDLE), 80, color_system=None)
    assert "!" not in "".join(silent)


def test_an_ended_run_foretells_nothing() -> None:
    screen = Screen("CartPole-v1", "runs/x", None, MIDDLE, (), "ended: enough")
    text = "\n".join(drawn(screen, 80, color_system=None))
    assert "left" not in text
    assert "━" not in text
    assert "ended: enough" in text


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen("CartPole-v1", "runs/x", ResolvedStop(updates=8_000), MIDDLE, (1.0, 2.0))
    # Codes 30 to 37 and 90 to 97 are foreground colors, 38 chooses from palettes.
    color = re.compile(r"\x1b\[(?:\d+;)*(?:3[0-8]|9[0-7])[;m]")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert color.search("".join(drawn(screen, 80, color_system="truecolor")))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not color.search("".join(drawn(screen, 80, color_system="truecolor")))


@pytest.mark.parametrize(
    ("values", "width", "bars"),
    [
        ([], 8, ""),
        ([1.0, 2.0], 0, ""),
        ([5.0], 8, "▄"),
        ([3.0, 3.0, 3.0], 8, "▄▄▄"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([7, 0], 8, "█▁"),
        # Means of pairs: 0.5, 2.5, 4.5, 6.5.
        ([0, 1, 2, 3, 4, 5, 6, 7], 4, "▁▃▆█"),
        # Shares of three and four: nothing is left out. Means 0, 0 and 3.
        ([0, 0, 0, 0, 0, 9, 0, 0, 0], 3, "▁█▁"),
    ],
)
def test_sparklines(values: list[float], width: int, bars: str) -> None:
    assert sparkline(values, width) == bars


def test_returns_are_kept_in_bounded_memory() -> None:
    returns = Returns()
    for value in range(20_000):
        returns.take(replace(Snapshot(), train_return_mean=float(value)))
    assert 1_000 <= len(returns.values) < 2_048
    assert returns.values[0] == 0.0
    gaps = {later - earlier for earlier, later in pairwise(returns.values)}
    assert gaps == {16.0}
    returns.take(Snapshot())
    assert None not in returns.values


def test_ctrl_c_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    """A real run on a real terminal: the panel, then Ctrl-C typed at it."""
    main, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 80))
    before = termios.tcgetattr(terminal)
    arguments = ["train", "CartPole-v1", *SMALL_FLAGS, "--set", "stop.updates=10000000"]
    arguments += ["--set", "metrics.every_seconds=0.2", "--run-dir", str(tmp_path / "run")]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.main", *arguments],
        cwd=tmp_path,
        env=environment,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    output = b""

    def read_until(fact: Callable[[], bool]) -> None:
        nonlocal output
        deadline = time.monotonic() + 90.0
        while not fact():
            assert time.monotonic() < deadline, output.decode(errors="replace")
            if select.select([main], [], [], 0.2)[0]:
                output += os.read(main, 65_536)

    try:
        read_until(lambda: output.count("╭".encode()) >= 2 and b"updates/s" in output)
        assert b"\x1b[?25l" in output, "the cursor hides while the panel is drawn"
        os.write(main, b"\x03")
        read_until(lambda: process.poll() is not None and not select.select([main], [], [], 0.0)[0])
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    text = output.decode(errors="replace")  # the terminal's echo of Ctrl-C may split a character
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    _, end, *following = text.rpartition("╰")[2].split("\r\n")[:-1]
    assert end.endswith("end: stopped by SIGINT")
    # Nothing else follows but what to do next, which depends on whether there was an update in time.
    assert len(following) <= 2
    assert "Traceback" not in text
    assert termios.tcgetattr(terminal) == before
    os.close(terminal)
    os.close(main)
