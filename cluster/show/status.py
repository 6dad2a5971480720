"""The status of a run: read from its directory, or asked of its coordinator over HTTP.

Owns driver.json, the /status document and the output of `qfleet status`; reading a run executes nothing. Must
not import ray.
"""

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal, TextIO
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

import msgspec

from cluster.engines.process_info import is_alive, start_ticks
from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.record.events import Event, events_path, read_events
from cluster.record.line_file import read_objects
from cluster.record.logs import one_line
from cluster.record.run_dir import read_config
from cluster.settings.config import ConfigError
from cluster.settings.renames import renamed_metrics
from cluster.settings.resolved import ResolvedConfig, ResolvedStop
from cluster.show.view import LINE_WIDTH, Headline, can_draw, make_view, metrics_line
from cluster.wording import duration, short, wrapped
from replay_service.journal.durable_files import write_whole

State = Literal["starting", "running", "ended", "failed", "gone"]

_ANSWER_SECONDS = 5.0
# A driver on another machine counts as alive until the run has written nothing for this long.
_SILENT_INTERVALS = 20.0
_SILENT_SECONDS = 30.0
_WATCH_SECONDS = 1.0
_READ_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Driver:
    """The process that drives a run, as it describes itself in driver.json.

    process_start_ticks: see start_ticks; 0 in the files of older versions.
    """

    host: str
    pid: int
    metrics_url: str
    process_start_ticks: int = 0

    def is_alive(self, *, silent: bool) -> bool:
        """Whether the process is alive; on another machine it counts as alive unless the run is silent."""
        is_known = self.host == platform.node() and self.process_start_ticks
        return is_alive(self.pid, self.process_start_ticks) if is_known else not silent


@dataclass(frozen=True)
class RunStatus:
    """The status of a run. details: explains the state. returns: mean training returns, oldest first."""

    headline: Headline
    stop: ResolvedStop
    state: State
    details: str
    snapshot: Snapshot | None
    returns: tuple[float, ...] = ()

    @property
    def description(self) -> str:
        """State and details in one line."""
        return f"{self.state}: {self.details}"

    @property
    def goes_on(self) -> bool:
        """Whether the run has not ended."""
        return self.state in ("starting", "running")


def announce(run_dir: Path, metrics_url: str) -> None:
    """Writes driver.json: this process drives the run and serves its metrics at `metrics_url`."""
    pid = os.getpid()
    driver = Driver(platform.node(), pid, metrics_url, start_ticks(pid))
    write_whole(run_dir / "driver.json", msgspec.json.encode(driver))


def status_document(config: ResolvedConfig, run_dir: Path, newest: Callable[[], Snapshot | None]) -> bytes:
    """The answer of /status: JSON with the run's facts and newest snapshot; NaN and infinity become null."""
    run = {
        "env_id": config.env.id,
        "runtime": config.run.runtime,
        "run_dir": str(run_dir),
        "stop": config.stop,
    }
    snapshot = newest()
    return msgspec.json.encode(
        {"run": run, "snapshot": None if snapshot is None else known_metrics(snapshot)}
    )


def snapshot_of(values: Mapping[str, Any]) -> Snapshot:
    """A snapshot from a line of metrics.jsonl or an answer of /status, of any version of this program.

    Metrics that are missing or of another type keep their defaults; unknown ones are ignored.
    """
    hints = typing.get_type_hints(Snapshot)
    values = renamed_metrics(values)
    given: dict[str, Any] = {}
    for name, hint in hints.items():
        with contextlib.suppress(KeyError, msgspec.ValidationError):
            given[name] = msgspec.convert(values[name], hint, strict=False)
    return Snapshot(**given)


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run in `runs` that was written to last, or to one of its groups of seeds. Raises ConfigError."""
    paths = (*runs.glob("*/config.yaml"), *runs.glob("*/seed-*/config.yaml"))
    found = [(_written(path.parent), path.parent) for path in paths]
    if not found:
        raise ConfigError(
            f"no run below {runs.absolute()}; give a run directory, or the --address of its coordinator"
        )
    return max(found)[1]


def runs_table(run_dirs: Sequence[Path], now: float | None = None) -> str:
    """The runs in these folders, a line each, newest first; one that cannot be read says so.

    return: the best version's, else that of training. now: unix seconds.
    """
    now = time.time() if now is None else now
    lines = [("written", "state", "environment", "return", "steps", "folder")]
    for path in sorted(run_dirs, key=_written, reverse=True):
        ago = f"{duration(now - _written(path))} ago"
        try:
            status = status_of_directory(path, now)
        except ConfigError:
            lines.append((ago, "unreadable", "-", "-", "-", str(path)))
            continue
        last = status.snapshot or Snapshot()
        env_id, steps = status.headline.env_id, short(last.env_steps_total)
        lines.append((ago, status.state, env_id, short(last.headline_return), steps, str(path)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, cells, widths)).rstrip() for cells in lines)


def _written(run_dir: Path) -> float:
    """Unix time of the last write to the run directory."""
    files = (run_dir / name for name in ("config.yaml", "metrics.jsonl"))
    return max(file.stat().st_mtime for file in files if file.exists())


def status_of_directory(run_dir: Path, now: float | None = None) -> RunStatus:
    """The status of the run in a directory. Raises ConfigError if there is none. now: unix seconds."""
    config = read_config(run_dir)
    try:
        driver = msgspec.json.decode((run_dir / "driver.json").read_bytes(), type=Driver)
    except (OSError, msgspec.MsgspecError):
        driver = None
    lines = read_objects(run_dir / "metrics.jsonl", _READ_BYTES)
    age = (time.time() if now is None else now) - _written(run_dir)
    state, details = _state(run_dir, config, driver, age, has_metrics=bool(lines))
    return RunStatus(
        Headline(config.env.id, config.run.runtime, run_dir, driver.metrics_url if driver else "", ""),
        config.stop,
        state,
        details,
        snapshot_of(lines[-1]) if lines else None,
        tuple(line["train_return_mean"] for line in lines if line.get("train_return_mean") is not None),
    )


def _state(
    run_dir: Path, config: ResolvedConfig, driver: Driver | None, age: float, *, has_metrics: bool
) -> tuple[State, str]:
    """The state of a run and its details. age: seconds since the last write to its directory."""
    process = "its process" if driver is None else f"process {driver.pid} on {driver.host}"
    silent = age >= max(_SILENT_SECONDS, _SILENT_INTERVALS * config.metrics.every_seconds)
    events = read_events(run_dir)
    # The process may outlive its run, as a notebook does.
    has_ended = bool(events) and events[-1].kind in ("ended", "failed")
    if driver is not None and not has_ended and driver.is_alive(silent=silent):
        return (
            ("running", f"{process}, metrics {duration(age)} old") if has_metrics else ("starting", process)
        )
    for event in reversed(events):
        if event.kind == "ended":
            return "ended", event.text
        if event.kind == "failed":
            return "failed", f"{one_line(event.text)} (in full: {events_path(run_dir)})"
    return (
        "gone",
        f"{process} has ended without a final event in its log; its newest metrics are {duration(age)} old",
    )


def status_of_address(address: str) -> RunStatus:
    """The status of the run whose coordinator serves its metrics at HOST:PORT (or a URL of that server).

    Raises:
        ConfigError: nothing answers there, or the answer is not that of a run.
    """
    place = address.rpartition("//")[2].partition("/")[0]
    host, _, port = place.rpartition(":")
    if not (host and port.isdecimal() and int(port) < 2**16):
        raise ConfigError(
            f"--address is {address}: give HOST:PORT, as in the first lines of the run's output"
        )
    url = f"http://{place}/status"
    try:
        # No proxy: the coordinator runs on this machine or on the user's own cluster.
        opener = build_opener(ProxyHandler({}))
        with opener.open(url, timeout=_ANSWER_SECONDS) as reply:
            document = json.loads(reply.read())
        run = document["run"]
        stop = msgspec.convert(run["stop"], ResolvedStop)
        headline = Headline(run["env_id"], run["runtime"], Path(run["run_dir"]), url, "")
        snapshot = None if document["snapshot"] is None else snapshot_of(document["snapshot"])
    except (HTTPError, HTTPException, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{url}: the answer is not that of a qfleet run ({error!r})") from None
    except OSError as error:
        reason = error.reason if isinstance(error, URLError) else error
        raise ConfigError(
            f"{url}: nothing answers ({reason}). Has the run ended, or is it reachable from its own machine "
            "only (metrics.host)? The first lines of its output have its address"
        ) from None
    details = f"answers at {place}"
    if snapshot is None:
        return RunStatus(headline, stop, "starting", details, None)
    returns = () if snapshot.train_return_mean is None else (snapshot.train_return_mean,)
    return RunStatus(headline, stop, "running", details, snapshot, returns)


def show(look: Callable[[], RunStatus], *, watch: bool, stream: TextIO | None = None) -> None:
    """Prints the status that `look` returns; with `watch` every second, until the run ends or Ctrl-C.

    A terminal shows the panel, any other stream gets lines. Raises the errors of the first look.
    """
    stream = stream or sys.stdout
    status = look()
    if not watch:
        _print(status, stream)
        return
    view = make_view(status.headline, status.stop, stream)
    # Ctrl-C ends watching only, not the run.
    with contextlib.suppress(KeyboardInterrupt), view:
        for newest in _looks(look, status):
            if newest.snapshot is not None:
                view.metrics(newest.snapshot)
        run_seconds = newest.snapshot.run_seconds if newest.snapshot else 0.0
        view.event(Event("info", newest.description, run_seconds))


def _looks(look: Callable[[], RunStatus], status: RunStatus) -> Iterator[RunStatus]:
    """Yields `status`, then a new one every second until the run has ended or does not answer."""
    yield status
    while status.goes_on:
        time.sleep(_WATCH_SECONDS)
        try:
            status = look()
        except ConfigError as error:
            status = dataclasses.replace(status, state="gone", details=str(error))
        yield status


def _print(status: RunStatus, stream: TextIO) -> None:
    headline, snapshot = status.headline, status.snapshot
    if snapshot is not None and can_draw(stream):
        from rich.console import Console

        from cluster.show.panel import Screen

        title, place, stop = headline.title, str(headline.run_dir), status.stop if status.goes_on else None
        Console(file=stream).print(Screen(title, place, stop, snapshot, status.returns, status.description))
        return
    lines = [f"{headline.title}, {headline.run_dir}", status.description]
    if snapshot is not None:
        lines.append(metrics_line(snapshot, status.stop if status.goes_on else ResolvedStop()))
        lines += [f"warning: {warning.text}" for warning in snapshot.warnings]
        lines += [snapshot.verdict.line] if snapshot.verdict and status.goes_on else []
    print("\n".join(wrapped(line, LINE_WIDTH, "  ") for line in lines), file=stream)
