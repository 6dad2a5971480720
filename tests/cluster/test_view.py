"""What a person sees while a run goes on."""

from __future__ import annotations

import io
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
import rich.live
from rich.console import Console

from cluster.config import StopConfig
from cluster.metrics import Snapshot
from cluster.view import Headline, LineView, LiveView, make_view, progress

EMPTY = Snapshot(
    **{
        item.name: None if "None" in str(item.type) else 0.0 if item.type == "float" else 0
        for item in fields(Snapshot)
    }
)
MIDDLE = replace(
    EMPTY,
    run_seconds=90.0,
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
        (StopConfig(env_steps=100_000), 0.25, 270.0),
        (StopConfig(updates=8_000), 0.75, 30.0),
        (StopConfig(seconds=180.0), 0.5, 90.0),
        # The first condition to be reached ends the run.
        (StopConfig(env_steps=100_000, updates=8_000, seconds=900.0), 0.75, 30.0),
        (StopConfig(updates=6_000), 1.0, 0.0),
        (StopConfig(updates=3_000), 1.0, 0.0),
        (StopConfig(target_return=50.0), 0.0, None),
    ],
)
def test_progress_and_time_left(stop: StopConfig, share: float, seconds_left: float | None) -> None:
    assert progress(MIDDLE, stop) == (pytest.approx(share), pytest.approx(seconds_left))


def test_nothing_is_foretold_before_anything_moved() -> None:
    assert progress(EMPTY, StopConfig(updates=100)) == (0.0, None)


def test_lines_tell_headline_figures_and_events() -> None:
    stream = io.StringIO()
    with LineView(HEADLINE, StopConfig(updates=8_000), stream) as view:
        view.figures(EMPTY)
        view.figures(MIDDLE)
        view.event("actor 3 died", 91.26)
    *head, empty, middle, event = stream.getvalue().splitlines()
    for fact in ("CartPole-v1", "local runtime", "runs/x", "http://127.0.0.1:9/metrics"):
        assert fact in " ".join(head)
    assert "return - | greedy - | eps -" in empty
    assert "ETA" not in empty
    assert middle == (
        "   90.0 s |  75% | ETA 0:30 | steps 25,000 | updates 6,000 | return -12.3 | greedy 45.6 | "
        "eps 0.25 | 321 updates/s | 1,234 steps/s | samples/insert 3.99 of 4 | lag 64.0 | bound by learner"
    )
    assert event == "   91.3 s | actor 3 died"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_only_a_terminal_gets_the_panel() -> None:
    assert isinstance(make_view(HEADLINE, StopConfig(), io.StringIO()), LineView)
    assert isinstance(make_view(HEADLINE, StopConfig(), Terminal()), LiveView)


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
)


@pytest.mark.parametrize("snapshot", [EMPTY, MIDDLE, LARGE], ids=["empty", "middle", "large"])
def test_the_panel_fits_80_columns(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, height=40, force_terminal=True, color_system=None)
    monkeypatch.setattr(rich.live, "get_console", lambda: console)
    with LiveView(HEADLINE, StopConfig(updates=1_000_000_000)) as view:
        view.figures(snapshot)
        view.event("version 400 is the best so far: greedy return 165.6, confirmed", 9.2)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    # Nothing that was to be shown is cut off.
    assert "…" not in text
    for fact in (
        "CartPole-v1 · local",
        "runs/x",
        f"{snapshot.env_steps_total:,}",
        f"{snapshot.updates_total:,}",
        f"{snapshot.samples_per_insert:.2f} of {snapshot.samples_per_insert_target:g}",
        "bound by",
        "9.2 s  version 400 is the best so far",
    ):
        assert fact in text
