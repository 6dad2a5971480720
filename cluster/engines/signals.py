"""Signals that end a run: the driver saves before it stops, and its roles leave them to the driver.

Owns the handlers of both, and the end of other commands; imports nothing of the project.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

WARNINGS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
"""What batch schedulers send some time before they end a job: Slurm by --signal, Grid Engine by -notify, and
limits of CPU time."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *WARNINGS)
_UNCOUNTED = (signal.SIGHUP, *WARNINGS)


class Interrupted(KeyboardInterrupt):
    """A signal that ends a command, or a second one during a run, which then does not save.

    signal: its number.
    """

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number)
        self.signal = number


class EndingSignals:
    """Within the block, STOP_SIGNALS raise Interrupted.

    Libraries that handle a signal themselves if nobody else does, as SDL does SIGTERM, leave it alone. SIGHUP
    stays ignored if the process ignores it, as under nohup. WARNINGS stay with whoever handles or ignores
    them, and every signal with a handler from outside Python, which nobody could put back. Signals that the
    process has inherited as blocked are unblocked within the block. Outside the main thread, where Python
    allows no handlers, the block has no effect.
    """

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, object] = {}
        self._blocked: set[signal.Signals] = set()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
            self._previous = {number: known for number, known in handlers.items() if _is_free(number, known)}
        self._install()
        before = signal.pthread_sigmask(signal.SIG_UNBLOCK, self._previous)
        self._blocked = {number for number in self._previous if number in before}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, self._blocked)
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _install(self) -> None:
        for number in self._previous:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise Interrupted(signal.Signals(number))


@contextmanager
def woken_by_signals() -> Iterator[int]:
    """Yields a descriptor that can be read once a signal that has a handler has come to the main thread."""
    readable, writable = os.pipe()
    for end in (readable, writable):
        os.set_blocking(end, False)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False) if in_main else -1
    try:
        yield readable
    finally:
        if in_main:
            signal.set_wakeup_fd(before)
        os.close(readable)
        os.close(writable)


class StopSignals(EndingSignals):
    """Within the block, the first SIGINT or SIGTERM requests a stop, and the second raises Interrupted.

    SIGHUP and WARNINGS request a stop, too. They may come twice, with other signals after them: from a
    terminal that closes, or each second above a limit of CPU time. So they never count as one of the two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.received: signal.Signals | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets SIGTERM wait until the block ends, in threads too that begin within it.

        Ray takes the handler of SIGTERM when it starts, and its own ends the process after three seconds.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            yield
        finally:
            self._install()
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    def ignore(self) -> None:
        """Ignores further signals: the run is closing, which takes a second or two."""
        for number in self._previous:
            signal.signal(number, signal.SIG_IGN)

    def request(self) -> str | None:
        """The reason to stop, or None."""
        return None if self.received is None else f"stopped by {self.received.name}"

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received in (None, *_UNCOUNTED):
            self.received = signal.Signals(number)
        elif number not in _UNCOUNTED:
            raise Interrupted(signal.Signals(number))


def leave_signals_to_driver() -> None:
    """Makes this process, which has one role, ignore STOP_SIGNALS from now on.

    Whoever signals every process of a run means the driver, which needs its roles to save. Programs that an
    environment starts end by SIGTERM as usual, and so do processes that it forks: it may end them that way.
    They receive WARNINGS, which garbage collectors use among their own threads.
    """
    for number in STOP_SIGNALS:
        # Not SIG_IGN, which programs inherit.
        signal.signal(number, _do_nothing)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, *WARNINGS})
    os.register_at_fork(after_in_child=_end_by_sigterm)


def run_shielded(work: Callable[[], None], released: threading.Event) -> None:
    """Calls work() in a thread that blocks STOP_SIGNALS, waits for its end, and raises what it raised.

    Processes that work() starts inherit the mask, and the kernel ends those that asked for it with the thread
    that started them: it lives until `released` is set.
    """
    done: Future[None] = Future()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            done.set_exception(error)
        else:
            done.set_result(None)
            released.wait()

    threading.Thread(target=run, daemon=True, name="shielded from signals").start()
    done.result()


def _is_free(number: signal.Signals, handler: object) -> bool:
    """Whether the block may take the signal from this handler."""
    if number in WARNINGS:
        return handler == signal.SIG_DFL or isinstance(getattr(handler, "__self__", None), EndingSignals)
    return handler is not None and not (number == signal.SIGHUP and handler == signal.SIG_IGN)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    pass


def _end_by_sigterm() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
