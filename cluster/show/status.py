"""How a run stands: read from its directory, or asked of its coordinator over HTTP.

Owns driver.json, the /status document and what `qfleet status` says; reading executes nothing. No ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import os
import platform
import sys
import time
import typing
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO
from urllib.parse import urlsplit

import msgspec
import psutil

from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.record.events import Event, events_path, read_events
from cluster.record.line_file import read_objects
from cluster.record.run_dir import read_config
from cluster.settings.config import ConfigError, StopConfig
from cluster.settings.renames import renamed_metrics
from cluster.settings.resolved import ResolvedConfig
from cluster.show.view import Headline, LineView, LiveView, can_draw, metrics_line
from cluster.wording import duration

if TYPE_CHECKING:
    from cluster.show.panel import Screen

State = Literal["starting", "running", "ended", "failed", "gone"]

_ANSWER_SECONDS = 5.0
# A driver on another machine is believed to live while its figures are younger than this many intervals.
_SILENT_INTERVALS = 20.0
_SILENT_SECONDS = 30.0
_WATCH_SECONDS = 1.0
_READ_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Driver:
    """Which process runs a run, as it wrote it to driver.json. process_started: unix seconds."""

    host: str
    pid: int
    process_started: float
    metrics_url: str

    @property
    def lives(self) -> bool | None:
        """Whether this very process still runs; None where it is another machine's."""
        if self.host != platform.node():
            return None
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.process_started) < 2.0
            return same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclass(frozen=True)
class RunStatus:
    """One look at a run. story: how it stands, in words; returns: mean training returns, oldest first."""

    headline: Headline
    stop: StopConfig
    state: State
    description: str
    snapshot: Snapshot | None
    returns: tuple[float, ...] = ()


def announce(run_dir: Path, metrics_url: str) -> None:
    """Says in the run directory that this process runs it, and where its figures are served."""
    process = psutil.Process(os.getpid())
    driver = Driver(platform.node(), process.pid, process.create_time(), metrics_url)
    (run_dir / "driver.json").write_text(json.dumps(dataclasses.asdict(driver)), encoding="utf-8")


def status_document(config: ResolvedConfig, run_dir: Path, newest: Callable[[], Snapshot | None]) -> bytes:
    """What /status serves: JSON with the run's facts and its newest snapshot. Not finite numbers are null."""
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
    """A snapshot from a line of metrics.jsonl or a /status answer of any version of this program.

    What a version did not know yet is None, zero or empty; what only it knew is left out.
    """
    hints = typing.get_type_hints(Snapshot)
    values = renamed_metrics(values)
    given: dict[str, Any] = {}
    for item in dataclasses.fields(Snapshot):
        try:
            given[item.name] = msgspec.convert(values[item.name], hints[item.name], strict=False)
        except (KeyError, msgspec.ValidationError):
            has_default = (
                item.default is not dataclasses.MISSING or item.default_factory is not dataclasses.MISSING
            )
            if not has_default:
                given[item.name] = _nothing(hints[item.name])
    return Snapshot(**given)


def _nothing(hint: Any) -> Any:
    """The value of a type that stands for "not known"."""
    if type(None) in typing.get_args(hint):
        return None
    return (typing.get_origin(hint) or hint)()


def newest_run(runs: Path = Path("runs")) -> Path:
    """The run below `runs` that wrote last. Raises ConfigError where there is none."""
    found = [
        (max(_written(path), _written(path.parent / "metrics.jsonl")), path.parent)
        for path in runs.glob("*/config.yaml")
    ]
    if not found:
        raise ConfigError(
            f"no run below {runs.absolute()}; give a run directory, or the --address of its coordinator"
        )
    return max(found)[1]


def _written(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def status_of_directory(run_dir: Path, now: float | None = None) -> RunStatus:
    """How the run in a directory stands. Raises ConfigError if there is none."""
    config = read_config(run_dir)
    driver = _read_driver(run_dir)
    lines = read_objects(run_dir / "metrics.jsonl", _READ_BYTES)
    state, description = _selection(run_dir, config, driver, time.time() if now is None else now, bool(lines))
    returns = [line["train_return_mean"] for line in lines if line.get("train_return_mean") is not None]
    return RunStatus(
        Headline(config.env.id, config.run.runtime, run_dir, driver.metrics_url if driver else "", ""),
        config.stop,
        state,
        description,
        snapshot_of(lines[-1]) if lines else None,
        tuple(returns),
    )


def _selection(
    run_dir: Path, config: ResolvedConfig, driver: Driver | None, now: float, has_figures: bool
) -> tuple[State, str]:
    lives = driver.lives if driver else False
    age = now - max(_written(run_dir / "metrics.jsonl"), _written(run_dir / "config.yaml"))
    where = "" if driver is None else f"process {driver.pid} on {driver.host}"
    if lives is None and age < max(_SILENT_SECONDS, _SILENT_INTERVALS * config.metrics.every_seconds):
        lives = True
    if lives:
        if not has_figures:
            return "starting", f"starting: {where}"
        return "running", f"running: {where}, figures {duration(age)} old"
    for event in reversed(read_events(run_dir)):
        if event.kind == "ended":
            return "ended", f"ended: {event.text}"
        if event.kind == "failed":
            return "failed", f"{event.line} (all of it: {events_path(run_dir)})"
    lost = f"{where} is gone" if where else "its process is gone"
    return "gone", f"gone: {lost} and said no end; the newest figures are {duration(age)} old"


def _read_driver(run_dir: Path) -> Driver | None:
    try:
        return msgspec.json.decode((run_dir / "driver.json").read_bytes(), type=Driver)
    except (OSError, msgspec.MsgspecError):
        return None


def status_of_address(address: str) -> RunStatus:
    """How the run stands whose coordinator serves its figures at HOST:PORT (or a URL of that server).

    Raises:
        ConfigError: nobody answers there, or somebody else does.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        usable = parts.hostname is not None and parts.port is not None
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(
            f"--address is {address}: give HOST:PORT, as in the first lines of the run's output"
        )
    url = f"http://{parts.netloc}/status"
    try:
        # Not through a proxy: what answers is a process of one's own machine or cluster.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=_ANSWER_SECONDS) as reply:
            document = json.loads(reply.read())
        run = document["run"]
        stop = msgspec.convert(run["stop"], StopConfig)
        headline = Headline(run["env_id"], run["runtime"], Path(run["run_dir"]), url, "")
        snapshot = None if document["snapshot"] is None else snapshot_of(document["snapshot"])
    except urllib.error.HTTPError as error:
        raise ConfigError(
            f"{url}: answers {error.code} {error.reason}; no qfleet run is served there"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException):
        raise ConfigError(f"{url}: what answers is no qfleet run") from None
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"{url}: nobody answers ({reason}). Has the run ended, or does it listen on its own machine only "
            "(metrics.host)? Its address stands in the first lines of its output"
        ) from None
    if snapshot is None:
        return RunStatus(headline, stop, "starting", f"starting: answers at {parts.netloc}", None)
    returns = () if snapshot.train_return_mean is None else (snapshot.train_return_mean,)
    return RunStatus(headline, stop, "running", f"running: answers at {parts.netloc}", snapshot, returns)


def show(look: Callable[[], RunStatus], *, watch: bool, stream: TextIO | None = None) -> None:
    """Prints how the run stands; with `watch` again every second, until it ends or Ctrl-C.

    A terminal gets the panel of a live run, anything else lines. Raises what the first look raises.
    """
    stream = stream or sys.stdout
    status = look()
    draws = can_draw(stream)
    if not watch:
        if draws and status.snapshot is not None:
            from rich.console import Console

            Console(file=stream).print(_screen(status, status.snapshot, status.returns))
        else:
            print(_text(status), file=stream)
        return
    view = LiveView(status.headline, status.stop) if draws else LineView(status.headline, status.stop, stream)
    # Ctrl-C is how a watcher leaves; the run does not notice.
    with contextlib.suppress(KeyboardInterrupt), view:
        for newest in _looks(look, status):
            if newest.snapshot is not None:
                view.metrics(newest.snapshot)
        run_seconds = newest.snapshot.run_seconds if newest.snapshot else 0.0
        view.event(Event("info", newest.description, run_seconds))


def _looks(look: Callable[[], RunStatus], status: RunStatus) -> Iterator[RunStatus]:
    """One look after another, until the run does not go on.

    A coordinator that answers no more has ended: that is the last look's story.
    """
    yield status
    while status.state in ("starting", "running"):
        time.sleep(_WATCH_SECONDS)
        try:
            status = look()
        except ConfigError as error:
            status = dataclasses.replace(status, state="gone", description=f"gone: {error}")
        yield status


def _stop(status: RunStatus) -> StopConfig | None:
    """What an end may be foretold from: nothing, once it has come."""
    return status.stop if status.state in ("starting", "running") else None


def _screen(status: RunStatus, snapshot: Snapshot, returns: Sequence[float]) -> Screen:
    from cluster.show.panel import Screen

    headline = status.headline
    return Screen(headline.title, str(headline.run_dir), _stop(status), snapshot, returns, status.description)


def _text(status: RunStatus) -> str:
    lines = [f"{status.headline.title}, {status.headline.run_dir}", status.description]
    if status.snapshot is not None:
        lines.append(metrics_line(status.snapshot, _stop(status) or StopConfig()))
        lines += [f"warning: {warning.text}" for warning in status.snapshot.warnings]
    return "\n".join(lines)
