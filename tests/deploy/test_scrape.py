"""A real Prometheus finds a real run by its file and scrapes every metric that panels and rules name."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed_files import METRIC, PROMETHEUS, installed, metrics_named, panel_expressions, rules
from qfleet_processes import LocalRun

from cluster.record.scrape_targets import targets_folder

DEADLINE_SECONDS = 60.0
NOT_YET = {
    "qfleet_checkpoint_age_seconds",
    "qfleet_checkpoint_duration_seconds",
    "qfleet_checkpoint_bytes",
}
"""Metrics that exist only after the first checkpoint."""
ARGUMENTS = (
    "CartPole-v1",
    *("--set", "actors.num_actors=2"),
    *("--set", "actors.envs_per_actor=4"),
    *("--set", "actors.steps_per_chunk=16"),
    *("--set", "learner.hidden_sizes=[16]"),
    *("--set", "learner.batch_size=16"),
    *("--set", "learner.max_grad_norm=10"),
    *("--set", "replay.num_shards=2"),
    *("--set", "replay.sampling=prioritized"),
    *("--set", "pacing.learning_starts=128"),
    *("--set", "evaluation.every_updates=100"),
    *("--set", "evaluation.episodes=2"),
    *("--set", "metrics.every_seconds=0.2"),
    *("--set", "stop.target_return=1000000"),
)


class Server:
    """A Prometheus of the deployed configuration, with quicker intervals."""

    def __init__(self, program: str, folder: Path, targets: Path) -> None:
        shutil.copytree(PROMETHEUS, folder / "prometheus")
        (folder / "prometheus" / "targets").symlink_to(targets)
        file = folder / "prometheus" / "prometheus.yml"
        config = yaml.safe_load(file.read_text())
        config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        for job in config["scrape_configs"]:
            (found_in,) = job["file_sd_configs"]
            found_in["refresh_interval"] = "500ms"
            # Any Ray of this machine writes its targets to Ray's default folder; none of them is the test's.
            found_in["files"] = [
                str(folder / "ray" / Path(name).name) if Path(name).is_absolute() else name
                for name in found_in["files"]
            ]
        file.write_text(yaml.safe_dump(config))
        self._log = (folder / "prometheus.log").open("w")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._address = f"127.0.0.1:{free.getsockname()[1]}"
        self._process = subprocess.Popen(
            [
                program,
                f"--config.file={file}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={self._address}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The samples of an instant query, now."""
        query = urllib.parse.urlencode({"query": expression})
        return list(self.get(f"query?{query}")["result"])

    def get(self, what: str) -> Any:
        """The data of an API call; HTTPError where Prometheus refuses it."""
        with urllib.request.urlopen(f"http://{self._address}/api/v1/{what}", timeout=10) as reply:
            return json.load(reply)["data"]

    def is_up(self) -> bool:
        try:
            self.query("1")
        except urllib.error.HTTPError:
            return False
        except urllib.error.URLError:
            assert self._process.poll() is None, Path(self._log.name).read_text()[-2000:]
            return False
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self._log.close()


def wait_until(holds: Callable[[], object], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.2)


@pytest.fixture
def scraped(local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    prometheus = installed("prometheus")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    targets = targets_folder()
    targets.mkdir(parents=True)
    server = Server(prometheus, tmp_path, targets)
    try:
        local_run.start(*ARGUMENTS)
        wait_until(server.is_up, lambda: "Prometheus to answer")
        yield server
    finally:
        server.close()


def test_every_metric_that_panels_and_rules_name_has_data(scraped: Server, local_run: LocalRun) -> None:
    named = metrics_named()
    assert len(named) > 80
    unseen = named - NOT_YET

    def all_are_there() -> bool:
        stored = set(scraped.get("label/__name__/values"))
        unseen.difference_update({name for name in unseen if name in stored})
        return not unseen

    local_run.wait_for(all_are_there, "every series")
    empty = [name for name in sorted(named - NOT_YET) if not scraped.query(name)]
    assert not empty

    # The labels come with the target, and every expression is understood and gives what it should.
    (up,) = scraped.query('up{job="qfleet"}')
    assert (up["metric"]["run"], up["metric"]["env"]) == (local_run.run_dir.name, "CartPole-v1")
    (info,) = scraped.query("qfleet_run_info")
    assert not [label for label in info["metric"] if label.startswith("exported_")]
    assert info["metric"]["run"] == local_run.run_dir.name
    unanswered = [
        (title, expression)
        for title, expression in panel_expressions()
        if not NOT_YET & set(METRIC.findall(expression)) and "ALERTS" not in expression
    ]

    def all_are_answered() -> bool:
        unanswered[:] = [asked for asked in unanswered if not scraped.query(asked[1])]
        return not unanswered

    local_run.wait_for(all_are_answered, "data in every panel")
    assert not scraped.query("qfleet_checkpoint_age_seconds")
    healthy = scraped.get("rules")["groups"]
    assert {rule["health"] for group in healthy for rule in group["rules"]} == {"ok"}
    assert sum(len(group["rules"]) for group in healthy) == len(rules())

    # What Prometheus holds of one run stays within the bound.
    series = scraped.query('count({__name__=~"qfleet_.*"})')
    assert int(series[0]["value"][1]) <= 500 + 10 * 2

    # Prometheus's own sums: the shares of a single-threaded role's time are at most its number of processes.
    (worked,) = scraped.query('sum(rate(qfleet_role_seconds_total{role="learner"}[30s]))')
    assert 0.0 < float(worked["value"][1]) < 1.3

    local_run.send(signal.SIGINT)
    local_run.finish()
    assert list(targets_folder().iterdir()) == []
    wait_until(lambda: not scraped.get("targets?state=active")["activeTargets"], lambda: "the target to go")


def test_a_run_whose_folder_cannot_be_written_goes_on(
    local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "blocked").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "blocked"))
    serial = ("--runtime", "serial", "--set", "actors.num_actors=1", "--set", "stop.updates=64")
    local_run.start(*ARGUMENTS, *serial)
    assert local_run.finish() == 0
