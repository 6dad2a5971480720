"""Logs: one format, the output of each role (cluster/record/output.py), and last words when a run fails.

Tests cluster/record/serial_logs.py, too.
"""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from qfleet_processes import LocalRun, run_qfleet, set_flags
from qfleet_serial import SMALL, train_serial

from cluster.engines.process_info import ProcessInfo
from cluster.record.logs import (
    LogSource,
    last_lines,
    log_path,
    one_line,
    parse_line,
    read_messages,
)
from cluster.record.output import LineWriter
from cluster.record.serial_logs import SerialLogs
from cluster.runtime.failure import RunFailed
from cluster.runtime.roles import ActorRole, Role

SOURCE = LogSource("actor 3", 2, run_started_at=1_000_000_000.0)
SMALL_FLAGS = set_flags(SMALL)
LOCAL = [override for override in SMALL if override != "run.runtime=serial"]
NO_EVALUATION = ("--set", "evaluation.every_updates=1000")
TALKATIVE = "env.id=qfleet_test_envs:Talkative"


def test_a_line_is_what_it_is() -> None:
    assert SOURCE.lines("WARNING", "careful", now=1_000_000_012.5) == (
        "2001-09-09T01:46:52.500Z     12.500 actor-3/2 WARNING careful\n"
    )


def test_every_line_of_a_message_tells_who_spoke() -> None:
    lines = SOURCE.lines("ERROR", "Traceback:\n  line 1\n\nValueError: x", now=1_000_000_001.0)
    assert all(" actor-3/2 ERROR " in line for line in lines.splitlines())
    (message,) = read_messages(lines.splitlines())
    assert message.text == "Traceback:\n  line 1\n\nValueError: x"
    assert (message.role, message.incarnation, message.level, message.run_seconds) == (
        "actor-3",
        2,
        "ERROR",
        1.0,
    )


@given(
    messages=st.lists(
        st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zl", "Zp", "Cs")), min_size=1)
        .map(str.strip)
        .filter(lambda text: text and not text.startswith("|")),
        min_size=1,
        max_size=4,
    )
)
def test_messages_are_read_back_as_they_were_written(messages: list[str]) -> None:
    written = "".join(SOURCE.lines("INFO", text, now=1_000_000_001.0) for text in messages)
    assert [message.text for message in read_messages(written.split("\n"))] == messages


@pytest.mark.parametrize(
    "line", ["", "Fatal Python error: Segmentation fault", "  File x", "2001 1 actor INFO"]
)
def test_other_lines_are_nobodys(line: str) -> None:
    assert parse_line(line) is None


def test_a_writer_waits_for_whole_lines() -> None:
    said: list[str] = []
    writer = LineWriter(SOURCE, "INFO", said.append, io.StringIO())
    print("one", end="", file=writer)
    assert said == []
    print(" two\nthree\r\nfour", end="", file=writer)
    texts = [message.text for message in read_messages("".join(said).splitlines())]
    assert texts == ["one two", "three"]
    writer.finish()
    assert "four" in said[-1]


def test_a_process_that_a_role_has_to_itself_loses_no_word(tmp_path: Path) -> None:
    program = (
        "import sys, os, logging, warnings, time, faulthandler, ctypes\n"
        "from pathlib import Path\n"
        "from cluster.record.logs import LogSource\n"
        "from cluster.record.output import ProcessLog\n"
        "faulthandler.enable(all_threads=False)\n"
        "ProcessLog(LogSource('actor 3', 2, time.time() - 5.0), Path(sys.argv[1]))\n"
        "print('printed')\n"
        "print('complained', file=sys.stderr)\n"
        "logging.getLogger('envs.mine').warning('logged')\n"
        "warnings.warn('warned')\n"
        "os.write(1, b'native out\\n')\n"
        "sys.stdout.flush()\n"
        "ctypes.string_at(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, timeout=60)
    assert done.returncode < 0, "it crashed"
    assert (done.stdout, done.stderr) == (b"", b""), "nothing of it on the terminal"
    lines = log_path(tmp_path, "actor 3").read_text().splitlines()
    parsed = [found for line in lines if (found := parse_line(line))]
    assert {(one.role, one.incarnation) for one in parsed} == {("actor-3", 2)}
    assert all(5.0 <= one.run_seconds < 60.0 for one in parsed)
    texts = [(one.level, one.text) for one in parsed]
    assert texts[0][1].startswith("began as process")
    assert ("INFO", "printed") in texts
    assert ("WARNING", "complained") in texts
    assert ("WARNING", "envs.mine: logged") in texts
    assert any(
        level == "WARNING" and text.startswith("py.warnings: ") and "UserWarning: warned" in text
        for level, text in texts
    )
    assert "native out" in lines
    # The last words of a crash, which no Python code could have written.
    words = last_lines(tmp_path, "actor 3", 20)
    assert any("Segmentation fault" in word for word in words)
    assert not any(word.startswith("began as") for word in words)


def test_without_the_folder_the_newest_lines_wait_to_be_taken(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from cluster.record.logs import LogSource\n"
        "from cluster.record.output import ProcessLog\n"
        "log = ProcessLog(LogSource('shard 0', 0, time.time()), Path(sys.argv[1]))\n"
        "assert log.relays\n"
        "for number in range(3000): print('line', number)\n"
        "taken = log.take()\n"
        "assert log.take() == ''\n"
        "sys.__stdout__.write(taken)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "elsewhere")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1_000
    assert lines[-1].endswith(" shard-0/0 INFO    line 2999")


def test_roles_that_share_a_process_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = SerialLogs(tmp_path, 0.0)
    with logs.output_of("actor 0"):
        print("the actor acts")
        with logs.output_of("shard 0"):
            print("the shard stores", file=sys.stderr)
            print("and serves")
        print("and acts")
    print("the driver")
    captured = capsys.readouterr()
    assert captured.out == "the actor acts\nand serves\nand acts\nthe driver\n"
    assert captured.err == "the shard stores\n"
    assert last_lines(tmp_path, "actor 0", 9) == ["the actor acts", "and acts"]
    assert last_lines(tmp_path, "shard 0", 9) == ["the shard stores", "and serves"]


def test_a_failed_serial_run_ends_with_the_last_lines_and_the_reason(tmp_path: Path) -> None:
    arguments = [
        "train",
        "CartPole-v1",
        *SMALL_FLAGS,
        "--set",
        TALKATIVE,
        "--set",
        "env.kwargs={steps: 70}",
        *NO_EVALUATION,
    ]
    done = run_qfleet(*arguments, "--run-dir", "run", cwd=tmp_path)
    assert done.returncode == 1
    assert_last_words(done.stderr, tmp_path / "run")


def test_a_failed_local_run_ends_with_the_last_lines_and_the_reason(local_run: LocalRun) -> None:
    flags = set_flags(LOCAL)
    local_run.start(
        "CartPole-v1", *flags, "--set", TALKATIVE, "--set", "env.kwargs={steps: 70}", *NO_EVALUATION
    )
    assert local_run.finish() == 1
    assert_last_words(local_run.errors, local_run.run_dir)
    # Neither Ray nor an acting environment speaks on the terminal while the run goes on.
    assert not local_run.has_line("step 5")
    assert not any("raylet" in line or "ray::" in line for line in local_run.lines)
    log = log_path(local_run.run_dir / "logs", "actor 0").read_text()
    assert "began as process" in log
    assert " actor-0/0 WARNING " in log
    local_run.assert_nothing_left()


def assert_last_words(errors: str, run_dir: Path) -> None:
    lines = errors.splitlines()
    where = next(index for index, line in enumerate(lines) if line.startswith("the last lines of "))
    assert str(log_path(Path(run_dir.name) / "logs", "actor 0")) in lines[where]
    assert any(line.startswith("  step ") for line in lines[where + 1 :])
    assert "RuntimeError: said enough" in errors
    assert lines[-1].startswith("actor 0 raised the error above")
    log = log_path(run_dir / "logs", "actor 0").read_text()
    assert "UserWarning: careful now" in log
    events = (run_dir / "logs" / "events.log").read_text().splitlines()
    assert all(" coordinator/0 " in line for line in events)
    failure = read_messages(events)[-1]
    assert failure.level == "ERROR"
    assert "RuntimeError: said enough" in failure.text


TRACEBACK = "Traceback (most recent call last):\n  File x\npkg.SomeError: why\n"


@pytest.mark.parametrize(
    ("event", "text"),
    [
        ("learner died: of hunger", "learner died: of hunger"),
        (f"{TRACEBACK}\nactor 0 raised it", "pkg.SomeError: why; actor 0 raised it"),
        (f"{TRACEBACK}A note on it.\n\nactor 0 raised it", "pkg.SomeError: why; actor 0 raised it"),
        ("nothing moved:\n  actor 0: waits\nSee logs.", "nothing moved; See logs."),
    ],
)
def test_the_gist_of_a_failure(event: str, text: str) -> None:
    assert one_line(event) == text


@pytest.mark.parametrize("fails", [False, True])
def test_what_roles_say_on_machines_without_the_folder_reaches_it(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    process_info, waiting = Role.process_info, {"actor 0": "the last words\n"}

    def elsewhere(self: Role) -> ProcessInfo:
        return dataclasses.replace(process_info(self), relays_log=True)

    def take_log(self: Role) -> str:
        return waiting.pop("actor 0", "") if isinstance(self, ActorRole) else ""

    elsewhere.__name__ = "process_info"  # by which engines call it
    monkeypatch.setattr(Role, "process_info", elsewhere)
    monkeypatch.setattr(Role, "take_log", take_log)
    broken = [TALKATIVE, "env.kwargs={steps: 70}", "evaluation.every_updates=1000"]
    overrides = [*SMALL, *(broken if fails else ["stop.updates=16"])]
    if fails:
        with pytest.raises(RunFailed) as raised:
            train_serial(tmp_path / "run", overrides)
        assert (raised.value.role, raised.value.logs) == ("actor 0", tmp_path / "run" / "logs")
    else:
        train_serial(tmp_path / "run", overrides)
    assert "the last words" in last_lines(tmp_path / "run" / "logs", "actor 0", 10_000)
