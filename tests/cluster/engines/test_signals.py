"""A first signal asks for a stop, a second one interrupts, and afterwards all is as before."""

from __future__ import annotations

import select
import signal
import subprocess
import sys
import threading

import pytest

from cluster.engines.signals import (
    STOP_SIGNALS,
    WARNINGS,
    EndingSignals,
    Interrupted,
    StopSignals,
    run_shielded,
    woken_by_signals,
)

NUMBERS = list(STOP_SIGNALS)


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS[:2])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = handlers()
    with StopSignals() as signals:
        assert signals.request() is None
        signal.raise_signal(number)
        assert signals.received is number
        assert signals.request() == f"stopped by {number.name}"
        with pytest.raises(Interrupted) as interrupted:
            signal.raise_signal(signal.SIGTERM)
        assert interrupted.value.signal is signal.SIGTERM
    assert handlers() == before


def test_a_terminal_that_closes_may_hang_up_again_and_terminate() -> None:
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        assert signals.request() == "stopped by SIGHUP"
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert signals.received is signal.SIGTERM
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", WARNINGS)
def test_a_scheduler_may_warn_again_and_again_and_terminate(number: signal.Signals) -> None:
    # A command that trains has one block within the other.
    with EndingSignals(), StopSignals() as signals:
        for _ in range(3):
            signal.raise_signal(number)
        assert signals.request() == f"stopped by {number.name}"
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(number)
        assert signals.request() == "stopped by SIGTERM"
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize("number", WARNINGS)
def test_a_warning_stays_with_who_handles_it(number: signal.Signals) -> None:
    got: list[int] = []
    before = signal.signal(number, lambda number, frame: got.append(number))
    try:
        with StopSignals() as signals:
            signal.raise_signal(number)
            assert signals.request() is None
        signal.raise_signal(number)
        assert got == [number, number]
    finally:
        signal.signal(number, before)


def test_a_handler_from_outside_python_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = dict.fromkeys((signal.SIGINT, signal.SIGUSR1))
    known = signal.getsignal
    with monkeypatch.context() as patched:
        # As in a program that has handlers of its own before it begins Python, such as Blender.
        patched.setattr(signal, "getsignal", lambda number: taken.get(number, known(number)))
        before = handlers()
        with EndingSignals(), pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        assert handlers() == before


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.request() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", NUMBERS)
def test_other_commands_end_by_any_of_them(number: signal.Signals) -> None:
    before = handlers()
    with pytest.raises(Interrupted) as interrupted, EndingSignals():
        signal.raise_signal(number)
    assert interrupted.value.signal is number
    assert handlers() == before


def test_held_signals_arrive_although_a_library_took_the_handler() -> None:
    with StopSignals() as signals:
        with signals.held():
            signal.raise_signal(signal.SIGTERM)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            assert signals.received is None
        assert signals.received is signal.SIGTERM


def test_a_run_that_is_closing_ignores_signals() -> None:
    before = handlers()
    with StopSignals() as signals:
        signals.ignore()
        for number in NUMBERS:
            signal.raise_signal(number)
        assert signals.request() is None
    assert handlers() == before


def test_another_thread_leaves_the_handlers_alone() -> None:
    before, within = handlers(), []

    def enter() -> None:
        with StopSignals() as signals:
            signals.ignore()
            within.append(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert within == [before]


BLOCKED = """
import os, signal
from cluster.engines.signals import STOP_SIGNALS, StopSignals
with StopSignals() as signals:
    os.kill(os.getpid(), signal.SIGINT)
    print(signals.request())
print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))
"""


def test_signals_that_the_parent_had_blocked_are_received() -> None:
    told, released = [], threading.Event()
    run_shielded(lambda: told.append(subprocess.check_output([sys.executable, "-c", BLOCKED])), released)
    released.set()
    assert told == [f"stopped by SIGINT\n{sorted(map(int, STOP_SIGNALS))}\n".encode()]


ROLE = """
import os, signal, subprocess, sys, time
from cluster.engines.signals import STOP_SIGNALS, WARNINGS, leave_signals_to_driver
signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
leave_signals_to_driver()
for number in STOP_SIGNALS:
    os.kill(os.getpid(), number)
for number in (signal.SIGTERM, *WARNINGS):
    program = subprocess.Popen(["sleep", "60"])
    program.send_signal(number)
    assert program.wait(30) == -number
ours, theirs = os.pipe()
forked = os.fork()
if not forked:
    os.write(theirs, b"up")
    time.sleep(60)
    os._exit(0)
os.read(ours, 2)
os.kill(forked, signal.SIGTERM)
assert os.waitstatus_to_exitcode(os.waitpid(forked, 0)[1]) == -signal.SIGTERM
print("lives")
"""


def test_a_role_leaves_signals_to_the_driver_and_what_it_starts_does_not() -> None:
    done = subprocess.run([sys.executable, "-c", ROLE], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("lives\n", "")


def test_shielded_work_starts_processes_that_block_the_signals() -> None:
    program = "import signal; print(sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))))"
    told, released = [], threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    run_shielded(lambda: told.append(subprocess.check_output([sys.executable, "-c", program])), released)
    released.set()
    assert told == [f"{sorted(map(int, STOP_SIGNALS))}\n".encode()]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_what_shielded_work_raises_is_raised_here() -> None:
    def fail() -> None:
        raise ConnectionError("nobody there")

    with pytest.raises(ConnectionError, match="nobody there"):
        run_shielded(fail, threading.Event())


def test_a_signal_wakes_who_waits_for_a_descriptor() -> None:
    before = signal.set_wakeup_fd(-1)
    with StopSignals() as signals, woken_by_signals() as woken:
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, signal.SIGTERM)).start()
        assert select.select([woken], [], [], 60.0)[0] == [woken]
        assert signals.received is signal.SIGTERM
    assert signal.set_wakeup_fd(before) == -1


def test_outside_the_main_thread_no_signal_wakes() -> None:
    woken: list[list[int]] = []

    def wait() -> None:
        with woken_by_signals() as descriptor:
            woken.append(select.select([descriptor], [], [], 0.0)[0])

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    assert woken == [[]]
