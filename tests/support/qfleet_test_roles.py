"""Roles for the tests of the engines; Ray needs them in a module that its workers can import."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from cluster.engines.engine import Calls, Handle


class Counter:
    """Remembers what it was told, in order."""

    def __init__(self, start: int = 0) -> None:
        self.seen = [start]

    def add(self, value: int) -> int:
        self.seen.append(value)
        return sum(self.seen)

    def history(self) -> list[int]:
        return self.seen

    def two(self) -> tuple[str, np.ndarray]:
        return "report", np.arange(3, dtype=np.float32)

    def total_of(self, array: np.ndarray, factor: int) -> float:
        return float(array.sum()) * factor

    def fail(self) -> None:
        deep_inside()

    def fail_in_two(self) -> tuple[int, int]:
        raise ValueError("no pair today")

    def block(self) -> None:
        threading.Event().wait()


def deep_inside() -> None:
    """The frame that the error must name."""
    raise ZeroDivisionError("seven of nine")


class BrokenFromTheStart:
    """Its constructor raises."""

    def __init__(self) -> None:
        raise LookupError("nothing to build from")

    def hello(self) -> str:
        return "hello"


class Asker:
    """Calls another role and waits for the answer."""

    def __init__(self, calls: Calls, other: Handle[Any]) -> None:
        self.calls = calls
        self.other = other

    def ask(self, method: Callable[..., object], *args: int) -> object:
        (ref,) = self.calls.call(self.other, method, *args)
        return self.calls.get(ref)


class Echo:
    """Gives back what it gets, and does to its process what it is told."""

    def give(self, value: object) -> object:
        return value

    def zeros(self, num_bytes: int) -> bytes:
        return bytes(num_bytes)

    def pid(self) -> int:
        return os.getpid()

    def lock(self) -> object:
        return threading.Lock()

    def leave(self) -> None:
        raise SystemExit(3)

    def start_daemon(self) -> int:
        """Starts a program in a session of its own, and returns its pid."""
        return subprocess.Popen(["sleep", "1000"], start_new_session=True).pid

    def draws(self) -> float:
        return float(np.random.random())  # noqa: NPY002 - as many environments do

    def descriptors(self) -> int:
        return len(os.listdir("/proc/self/fd"))

    def environment(self, name: str) -> str | None:
        return os.environ.get(name)

    def product(self) -> float:
        """A product of matrices by torch, large enough for all its threads."""
        import torch

        return float((torch.ones(300, 300) @ torch.ones(300, 300)).sum())


class DiesAtBirth:
    """Its process ends while it is made."""

    def __init__(self) -> None:
        os._exit(7)
