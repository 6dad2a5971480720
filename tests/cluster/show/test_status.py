"""`qfleet status`: runs that go on, have ended, failed or vanished, in a folder and over HTTP."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import msgspec
import pytest
from qfleet_processes import LocalRun, set_flags
from qfleet_serial import SMALL, train_serial

from cluster.cli import run
from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.record.prometheus import MetricsServer
from cluster.settings.config import ConfigError
from cluster.settings.resolved import ResolvedConfig, ResolvedStop
from cluster.show.status import (
    newest_run,
    snapshot_of,
    status_document,
    status_of_address,
    status_of_directory,
)
from replay_service.histogram import BOUNDS, Histogram

SOME = replace(
    Snapshot(),
    run_seconds=12.5,
    updates_total=321,
    train_return_mean=7.5,
    loss=math.nan,
    roles_up={"actor": 3.0},
    sample_policy_lag_updates=Histogram((1,) * (len(BOUNDS) + 1), 9.0),
)


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that reached its end."""
    run_dir = tmp_path_factory.mktemp("runs") / "ended"
    train_serial(run_dir, [*SMALL, "metrics.every_seconds=0.05"])
    return run_dir


def test_a_run_that_has_ended_says_how(ended: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Its driver is this very process, which goes on: as if it had been another.
    pretend_driver(ended, pid=2**22 - 1)
    status = status_of_directory(ended)
    assert (status.state, status.description) == ("ended", "ended: stop.updates = 200 reached")
    lines = [json.loads(line) for line in (ended / "metrics.jsonl").read_text().splitlines()]
    assert status.snapshot is not None
    assert {name: known_metrics(status.snapshot)[name] for name in ("updates_total", "env_steps_total")} == {
        name: lines[-1][name] for name in ("updates_total", "env_steps_total")
    }
    assert list(status.returns) == [
        line["train_return_mean"] for line in lines if "train_return_mean" in line
    ]
    assert run(["status", str(ended)]) == 0
    out = capsys.readouterr().out
    for fact in ("CartPole-v1 · serial", str(ended), "ended: stop.updates = 200 reached", "updates 200"):
        assert fact in out
    assert "ETA" not in out
    # Watching it comes to the same end at once.
    assert run(["status", str(ended), "--watch"]) == 0
    assert "ended: stop.updates = 200 reached" in capsys.readouterr().out


def pretend_driver(run_dir: Path, **changed: object) -> None:
    driver = json.loads((run_dir / "driver.json").read_text())
    (run_dir / "driver.json").write_text(json.dumps({**driver, **changed}))


def copy_of(ended: Path, folder: Path, *, events: str | None = None) -> Path:
    run_dir = folder / "copy"
    (run_dir / "logs").mkdir(parents=True)
    for name in ("config.yaml", "metrics.jsonl", "driver.json"):
        (run_dir / name).write_bytes((ended / name).read_bytes())
    text = (ended / "logs" / "events.log").read_text() if events is None else events
    (run_dir / "logs" / "events.log").write_text(text)
    return run_dir


def test_a_driver_that_died_without_a_word_is_gone(ended: Path, tmp_path: Path) -> None:
    run_dir = copy_of(ended, tmp_path, events="")
    pretend_driver(run_dir, pid=2**22 - 1)
    status = status_of_directory(run_dir)
    assert status.state == "gone"
    assert f"process {2**22 - 1} on " in status.description
    assert "without a final event" in status.description


def test_another_process_of_the_same_number_is_not_the_driver(ended: Path, tmp_path: Path) -> None:
    run_dir = copy_of(ended, tmp_path, events="")
    pretend_driver(run_dir, pid=os.getpid(), process_start_ticks=1)
    assert status_of_directory(run_dir).state == "gone"


@pytest.mark.parametrize(("age_seconds", "state"), [(5.0, "running"), (3_600.0, "gone")])
def test_a_driver_elsewhere_is_alive_while_its_metrics_are_fresh(
    ended: Path, tmp_path: Path, age_seconds: float, state: str
) -> None:
    run_dir = copy_of(ended, tmp_path, events="")
    pretend_driver(run_dir, host="another-machine")
    written = (run_dir / "metrics.jsonl").stat().st_mtime
    os.utime(run_dir / "config.yaml", (written - 10, written - 10))
    assert status_of_directory(run_dir, now=written + age_seconds).state == state


def test_a_failed_run_says_what_failed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = set_flags(SMALL)
    flags += ["--set", "env.id=qfleet_test_envs:BrokenAfter", "--set", "env.kwargs={steps: 70, how: raise}"]
    flags += ["--set", "evaluation.every_updates=1000"]
    assert run(["train", *flags, "--run-dir", str(tmp_path / "run")]) == 1
    capsys.readouterr()
    pretend_driver(tmp_path / "run", pid=2**22 - 1)
    assert run(["status", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    (description,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert "the corridor has collapsed" in description
    assert "; actor 0 raised the error above" in description


def test_a_run_that_goes_on_is_attached_to_both_ways(
    local_run: LocalRun, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = set_flags(override for override in SMALL if "runtime" not in override)
    flags += ["--set", "stop.updates=10000000", "--set", "metrics.every_seconds=0.2"]
    local_run.start("CartPole-v1", *flags)
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    status = status_of_directory(local_run.run_dir)
    assert status.state == "running"
    assert status.snapshot is not None
    assert status.snapshot.updates_total > 0
    address = status.headline.metrics_url.removeprefix("http://").removesuffix("/metrics")
    assert run(["status", "--address", address]) == 0
    out = capsys.readouterr().out
    for fact in ("CartPole-v1 · local", str(local_run.run_dir), f"running: answers at {address}", "updates "):
        assert fact in out
    over_http = status_of_address(address).snapshot
    assert over_http is not None
    assert over_http.updates_total >= status.snapshot.updates_total
    local_run.send(signal.SIGKILL)
    local_run.finish()
    assert status_of_directory(local_run.run_dir).state == "gone"
    with pytest.raises(ConfigError, match="nothing answers"):
        status_of_address(address)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["status", "nowhere"], ["nowhere: no run directory", "no such folder"]),
        (["status"], ["no run below", "runs", "--address"]),
        (["status", "somewhere", "--address", "127.0.0.1:1"], ["not both"]),
        (["status", "--address", "127.0.0.1"], ["--address is 127.0.0.1", "HOST:PORT"]),
        (["status", "--address", "127.0.0.1:x"], ["--address is 127.0.0.1:x", "HOST:PORT"]),
        (["status", "--address", "127.0.0.1:99999"], ["99999", "HOST:PORT"]),
    ],
)
def test_what_cannot_be_looked_at_is_bad_input(
    arguments: list[str],
    facts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    for fact in facts:
        assert fact in captured.err


def test_an_address_that_refuses_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConfigError, match=rf"127\.0\.0\.1:{port}.*nothing answers.*refused.*metrics\.host"):
        status_of_address(f"127.0.0.1:{port}")


@pytest.fixture
def stranger() -> Iterator[Callable[[int, bytes], str]]:
    """A server of something else: answer(status, body) -> its address."""
    servers = []

    def start(code: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None: ...

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (404, b"", "not that of a qfleet run.*404"),
        (200, b"<html>", "not that of a qfleet run"),
        (200, b"null", "not that of a qfleet run"),
        (200, b"[]", "not that of a qfleet run"),
        (200, b'{"run": {}, "snapshot": null}', "not that of a qfleet run"),
        (200, b'{"run": 3, "snapshot": null}', "not that of a qfleet run"),
    ],
)
def test_somebody_else_who_answers_is_told_apart(
    stranger: Callable[[int, bytes], str], code: int, body: bytes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        status_of_address(stranger(code, body))


def test_the_endpoint_serves_the_newest_snapshot_as_json() -> None:
    newest: list[Snapshot] = []
    config = ResolvedConfig(stop=ResolvedStop(updates=1_000))
    document = lambda: status_document(config, Path("/runs/x"), lambda: newest[-1] if newest else None)  # noqa: E731
    server = MetricsServer("127.0.0.1", 0, lambda: None, {}, document)
    try:
        first = status_of_address(server.url)
        assert (first.state, first.snapshot, first.stop) == ("starting", None, ResolvedStop(updates=1_000))
        newest.append(SOME)
        with urllib.request.urlopen(server.url.replace("/metrics", "/status"), timeout=10) as reply:
            assert reply.headers["Content-Type"] == "application/json"
            served = json.loads(reply.read())
        assert served["snapshot"]["updates_total"] == 321
        assert served["snapshot"]["loss"] is None, "JSON knows no NaN"
        status = status_of_address(server.url)
        assert status.snapshot == replace(SOME, loss=None)
        assert (status.headline.env_id, str(status.headline.run_dir)) == (config.env.id, "/runs/x")
        with urllib.request.urlopen(server.url, timeout=10) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain")
    finally:
        server.close()


def test_metrics_of_other_versions_are_read_as_far_as_they_are_known() -> None:
    assert snapshot_of({}) == Snapshot()
    line = json.loads(msgspec.json.encode(known_metrics(replace(SOME, loss=2.5))))
    assert snapshot_of({**line, "metric_of_the_future": [1]}) == replace(SOME, loss=2.5)
    assert snapshot_of({"updates_total": "nonsense", "loss": 1.5}) == replace(Snapshot(), loss=1.5)


def test_the_newest_run_is_the_one_that_wrote_last(tmp_path: Path) -> None:
    for name, at in (("old", 100), ("resumed", 50), ("broken", 900)):
        (tmp_path / name).mkdir()
        if name != "broken":
            (tmp_path / name / "config.yaml").touch()
            os.utime(tmp_path / name / "config.yaml", (at, at))
    (tmp_path / "resumed" / "metrics.jsonl").touch()
    os.utime(tmp_path / "resumed" / "metrics.jsonl", (500, 500))
    assert newest_run(tmp_path).name == "resumed"
