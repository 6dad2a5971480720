"""Stacks of a process that hangs, and the end of one that is frozen, with all that it started."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from cluster.engines.process_info import ProcessInfo, process_info
from cluster.engines.stacks import end_process, request_stack, stack_of

# A role that forks a process, starts a program without a handler, and hangs in a function of its own.
PROGRAM = """
import os, subprocess, sys, threading
from pathlib import Path
from cluster.engines.stacks import answer_stack_requests

def hang_for_ever():
    os.write(1, b"hangs\\n")
    threading.Event().wait()

answer_stack_requests(Path(sys.argv[1]), "actor 3")
subprocess.Popen(["sleep", "1000"])
os.fork()
hang_for_ever()
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in ("role", "forked process"):
            assert process.stdout.readline() == "hangs\n"
        below = psutil.Process(process.pid).children()
        yield process
        for one in (process, *below):
            with suppress(psutil.NoSuchProcess):
                one.kill()


def info_of(process: subprocess.Popen[str]) -> ProcessInfo:
    return replace(process_info(), pid=process.pid)


def test_each_stack_is_given_once(hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    for _ in range(2):
        stacks = stack_of(info_of(hanging), tmp_path, "actor 3")
        # Of the role and of the process that it forked.
        assert stacks.count("in hang_for_ever") == 2
    assert (tmp_path / "actor-3.stacks").read_text().count("in hang_for_ever") == 4
    # The program without a handler lives on, and so does the role.
    assert len(psutil.Process(hanging.pid).children()) == 2


def test_a_frozen_process_gives_no_stack_and_is_ended(hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    hanging.send_signal(signal.SIGSTOP)
    below = psutil.Process(hanging.pid).children()
    forked = next(process for process in below if process.name() != "sleep")
    forked.suspend()
    assert stack_of(info_of(hanging), tmp_path, "actor 3") == ""
    end_process(info_of(hanging))
    assert hanging.wait(10.0) == -signal.SIGKILL
    assert psutil.wait_procs(below, 10.0)[1] == []


def test_a_role_elsewhere_or_gone_is_passed_over(hanging: subprocess.Popen[str], tmp_path: Path) -> None:
    for elsewhere in (None, replace(info_of(hanging), host="elsewhere"), process_info()):
        request_stack(elsewhere)
        end_process(elsewhere)
    assert hanging.poll() is None
    hanging.kill()
    hanging.wait()
    gone = info_of(hanging)
    request_stack(gone)
    end_process(gone)


def test_requests_are_ignored_where_the_run_directory_is_not_seen(tmp_path: Path) -> None:
    program = (
        "import signal, sys\nfrom pathlib import Path\n"
        "from cluster.engines.stacks import answer_stack_requests\n"
        "answer_stack_requests(Path(sys.argv[1]), 'actor 3')\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "nowhere")]
    assert subprocess.run(arguments, timeout=60, check=False).returncode == 0
