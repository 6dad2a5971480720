"""Forks of a template: each is a process of its own, a child of who asked for it, and ends as a program does.

Tests cluster/engines/child.py, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from qfleet_processes import import_path, is_alive

from cluster.engines.child import Child
from cluster.engines.template import Template


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> Iterator[Template]:
    monkeypatch.setenv("PYTHONPATH", import_path())
    # A script that starts the tests in its background lets them ignore SIGINT, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with closing(Template("qfleet_forked", ("numpy.random",))) as made:
            made.start()
            yield made
    finally:
        signal.signal(signal.SIGINT, before)


def fork(template: Template, output: Path, *arguments: str) -> Child:
    with output.open("ab") as file, output.with_name("held").open("w") as held:
        child = template.fork("seed 1234567890123", arguments, file.fileno(), held.fileno())
    assert child is not None
    return child


def facts_of(template: Template, output: Path) -> dict[str, Any]:
    child = fork(template, output, "facts")
    child.wait()
    facts: dict[str, Any] = json.loads(output.read_text())
    assert (child.poll(), child.pid) == (0, facts["pids"][0])
    output.unlink()
    return facts


def test_a_fork_is_a_process_of_its_own(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a user may have set it; the template itself has loaded everything with one thread.
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        facts = facts_of(template, tmp_path / "out")
    finally:
        os.sched_setaffinity(0, cores)
    pid = facts["pids"][0]
    assert facts["pids"] == [pid, os.getpid(), pid]
    assert facts["argv"] == ["facts"]
    assert facts["threads"] == ["3", "1"]
    assert facts["cores"] == [min(cores)]
    assert (facts["stdin"], facts["blocked"], facts["name"]) == ("", [], "qf seed 1234567")
    assert facts["handlers"] == [str(signal.default_int_handler), str(signal.SIG_DFL)]
    assert facts["forked"]
    assert facts["numpy"]
    out, held = str(tmp_path / "out"), str(tmp_path / "held")
    assert facts["files"] == sorted([os.devnull, out, out, held])


def test_forks_draw_different_random_numbers(template: Template, tmp_path: Path) -> None:
    draws = [facts_of(template, tmp_path / "out")["draws"] for _ in range(2)]
    assert draws[0][0] != draws[1][0]
    assert draws[0][1] != draws[1][1]


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["exit", "null"], 0, ["at exit"]),
        (["exit", "143"], 143, ["at exit"]),
        (["exit", '"wrong"'], 1, ["at exit", "wrong"]),
        (["raise"], 1, ["ValueError: broken"]),
    ],
)
def test_a_fork_ends_as_a_program_does(
    template: Template, tmp_path: Path, arguments: list[str], status: int, words: list[str]
) -> None:
    child = fork(template, tmp_path / "out", *arguments)
    child.wait()
    assert child.returncode == status
    said = (tmp_path / "out").read_text().splitlines()
    assert sorted(said[-len(words) :]) == words


def test_a_fork_takes_signals_and_outlives_the_template(template: Template, tmp_path: Path) -> None:
    child = fork(template, tmp_path / "out", "wait")
    for _ in range(2):
        assert template._process is not None
        template._process.kill()
        assert template.fork("seed 1", ["facts"], 1, 1) is None
    assert child.poll() is None
    child.send_signal(signal.SIGTERM)
    child.wait()
    assert child.returncode == -signal.SIGTERM
    child.kill()  # has nobody left to end


def test_without_a_template_there_are_no_forks(tmp_path: Path) -> None:
    with closing(Template("qfleet_forked", ())) as template:
        assert template.fork("seed 1", ["facts"], 1, 1) is None


def test_a_template_that_has_a_thread_is_not_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
    (tmp_path / "threaded.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), import_path())))
    with closing(Template("qfleet_forked", ("threaded",))) as template:
        template.start()
        assert template.fork("seed 1", ["facts"], 1, 1) is None


def test_a_child_that_other_code_has_waited_for_has_ended() -> None:
    pid = os.fork()
    if not pid:
        os._exit(3)
    os.waitpid(pid, 0)
    assert Child(pid).poll() == 0


OWNER = """
import time
from cluster.engines.template import Template

template = Template("qfleet_forked", ())
template.start()
print(template.fork("seed 1", ["wait"], 1, 1).pid, template._process.pid, flush=True)
time.sleep(1000)
"""


def test_template_and_forks_stop_with_a_process_that_is_killed() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**os.environ, "PYTHONPATH": import_path()},
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        processes = [psutil.Process(int(pid)) for pid in owner.stdout.readline().split()]
        owner.kill()
    deadline = time.monotonic() + 30.0
    while any(map(is_alive, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
