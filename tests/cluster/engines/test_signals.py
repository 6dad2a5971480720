"""A first signal asks for a stop, a second one interrupts, and afterwards all is as before."""

from __future__ import annotations

import signal
import threading

import pytest

from cluster.engines.signals import Interrupted, StopSignals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


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


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignals() as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signals.request() is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_taken_back_from_a_library() -> None:
    with StopSignals() as signals:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signals.reinstall()
        signal.raise_signal(signal.SIGTERM)
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
            signals.reinstall()
            signals.ignore()
            within.append(handlers())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert within == [before]
