"""A first signal asks for a stop, a second one interrupts, and afterwards all is as before."""

from __future__ import annotations

import signal
import threading

import pytest

from cluster.engines.signals import Interrupted, StopSignals

NUMBERS = [signal.SIGINT, signal.SIGTERM]


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in NUMBERS]


@pytest.mark.parametrize("number", NUMBERS)
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
