"""The servers of a run's Ray: killed ones, ones that are told to end, and a GCS that does not answer."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

from cluster.engines.engine import EngineDied
from cluster.engines.ray_servers import ServerWatch, end_all, with_descendants

DEADLINE_SECONDS = 30.0
# Blocks SIGTERM as the servers of a private Ray do, and starts a process of its own.
PROGRAM = """
import signal, subprocess, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def server() -> Iterator[psutil.Popen]:
    process = psutil.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    yield process
    for each in (process, *process.children(recursive=True)) if process.is_running() else ():
        each.kill()
    process.wait()


def death_of(watch: ServerWatch) -> EngineDied:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            watch.look()
        except EngineDied as death:
            return death
    raise AssertionError("nothing was noticed")


@pytest.mark.parametrize("name", ["raylet", "dashboard agent", "gcs_server"])
def test_a_killed_server_is_noticed_once(server: psutil.Popen, name: str) -> None:
    watch = ServerWatch({"another": psutil.Process(), name: psutil.Process(server.pid)}, None)
    watch.look()
    assert not watch.said
    server.send_signal(signal.SIGKILL)
    death = death_of(watch)
    assert f"{name} (process {server.pid}) of the run's Ray died" in str(death)
    assert "`ray stop`" in str(death)
    assert death.objects_gone == (name != "gcs_server")
    assert watch.said
    watch.look()
    watch.close()


def test_a_server_that_is_told_to_end_is_noticed_while_it_lives(server: psutil.Popen) -> None:
    watch = ServerWatch({"gcs_server": psutil.Process(server.pid)}, None)
    server.send_signal(signal.SIGTERM)
    death = death_of(watch)
    assert f"gcs_server (process {server.pid}) of the run's Ray got SIGTERM" in str(death)
    assert not death.objects_gone
    assert server.is_running()


def test_a_gcs_elsewhere_that_does_not_answer_is_noticed() -> None:
    answers = [True, False]
    watch = ServerWatch({}, lambda seconds: answers.pop(0))
    assert "the GCS of the run's Ray does not answer" in str(death_of(watch))
    assert answers == []


def test_all_that_servers_started_is_ended_with_them(server: psutil.Popen) -> None:
    family = with_descendants({"raylet": psutil.Process(server.pid)})
    assert len(family) == 2
    end_all(family)
    assert not any(
        process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family.values()
    )
