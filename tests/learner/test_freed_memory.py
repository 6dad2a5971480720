"""Freed memory stays with the process: updates that allocate megabytes make no page faults."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from learner.freed_memory import keep_freed_memory

FAULTS = """
import ctypes, resource, sys
import torch
from learner.freed_memory import keep_freed_memory

# glibc's own values; loading torch may have raised them.
for threshold in (-1, -3):
    ctypes.CDLL(None).mallopt(threshold, 128 << 10)
if sys.argv[1] == "kept":
    assert keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def allocate():
    held = [torch.ones(1 << 18) for _ in range(8)]
for _ in range(20):
    allocate()
before = faults()
for _ in range(20):
    allocate()
print(faults() - before)
"""


def faults(mode: str) -> int:
    """Page faults of 20 times 8 tensors of a megabyte, all 8 freed after each time."""
    command = [sys.executable, "-c", FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_freed_tensors_give_their_memory_to_the_next_ones() -> None:
    if not keep_freed_memory():
        pytest.skip("the C library is not glibc")
    pages = 20 * 8 * 256
    assert faults("kept") < pages / 20 < pages / 2 < faults("given back")


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library(name: None) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    assert not keep_freed_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
