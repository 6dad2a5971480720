"""Memory is written again only when nobody reads it, whoever that is and however they end."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import signal
import socket
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engines.shared_memory import Memory, MemoryPool


def open_files() -> int:
    """Without those of garbage that earlier tests have left, which could go at any time."""
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


SIZES = st.sampled_from([1, 5_000, 70_000, 300_000])


def write(pool: MemoryPool, value: int, num_bytes: int) -> Memory:
    return pool.write([memoryview(bytes([value]) * num_bytes)], [0], num_bytes)


def file_of(memory: Memory) -> int:
    return os.fstat(memory.descriptor).st_ino


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.tuples(SIZES, st.integers(0, 6), st.booleans()), min_size=1, max_size=30))
def test_what_is_held_never_changes(steps: list[tuple[int, int, bool]]) -> None:
    """A value is held by its memory or by a view alone; any of them may be dropped at any time."""
    pool, held = MemoryPool(), list[tuple[Memory | memoryview, bytes]]()
    for number, (num_bytes, dropped, mapped) in enumerate(steps):
        memory = write(pool, number, num_bytes)
        held.append((memory.view() if mapped else memory, bytes([number]) * num_bytes))
        del memory, held[dropped : dropped + 1]
        for kept, expected in held:
            assert bytes(kept.view() if isinstance(kept, Memory) else kept) == expected


def test_memory_that_nobody_reads_is_used_again() -> None:
    pool = MemoryPool()
    first = write(pool, 1, 1_000_000)
    file, view = file_of(first), first.view()
    del first
    assert file_of(write(pool, 2, 1_000_000)) != file
    assert bytes(view[:3]) == b"\1\1\1"
    del view
    assert file_of(write(pool, 3, 900_000)) == file


def test_memory_on_its_way_in_a_message_is_not_used_again() -> None:
    pool, (here, there) = MemoryPool(), socket.socketpair()
    with here, there:
        memory = write(pool, 1, 1_000)
        file = file_of(memory)
        socket.send_fds(here, [b"x"], [memory.descriptor])
        del memory
        assert file_of(write(pool, 2, 1_000)) != file
        _, (descriptor,), _, _ = socket.recv_fds(there, 1, 1)
        assert bytes(Memory(descriptor, 1_000).view()) == b"\1" * 1_000
    assert file in {file_of(write(pool, number, 1_000)) for number in range(3)}


def test_memory_of_a_reader_that_is_killed_is_used_again() -> None:
    pool = MemoryPool()
    memory = write(pool, 1, 1_000)
    file = file_of(memory)
    told, tell = os.pipe()
    reader = os.fork()
    if reader == 0:
        view = memory.view()
        os.write(tell, view[:1])
        signal.pause()
    assert os.read(told, 1) == b"\1"
    os.close(told)
    os.close(tell)
    del memory
    assert file_of(write(pool, 2, 1_000)) != file
    os.kill(reader, signal.SIGKILL)
    os.waitpid(reader, 0)
    assert file in {file_of(one) for one in [write(pool, number, 1_000) for number in range(3)]}


def test_a_reader_cannot_write() -> None:
    memory = write(MemoryPool(), 1, 1_000)
    with pytest.raises(TypeError, match="read-only"):
        memory.view()[0] = 2
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.pwrite(memory.descriptor, b"x", 0)


def test_a_pool_keeps_8_files_and_32_megabytes_at_most() -> None:
    before = open_files()
    pool = MemoryPool()
    held = [write(pool, 1, 1_000) for _ in range(20)]
    assert open_files() == before + 28
    del held
    assert open_files() == before + 8
    for _ in range(9):
        write(pool, 1, 10_000_000)
    held = [write(pool, 1, 10_000_000) for _ in range(5)]
    assert open_files() <= before + 5 + 3
    write(pool, 1, 33 << 20)
    del held
    assert open_files() == before


def test_where_the_kernel_grants_no_leases_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EINVAL, "no leases")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    before = open_files()
    pool = MemoryPool()
    assert bytes(write(pool, 1, 1_000).view()) == b"\1" * 1_000
    assert open_files() == before


def test_parts_lie_at_their_offsets() -> None:
    pool = MemoryPool()
    write(pool, 9, 200)
    memory = pool.write([memoryview(b"abc"), memoryview(b""), memoryview(b"de")], [0, 64, 64], 128)
    view = memory.view()
    assert bytes(view[:3]) == b"abc"
    assert bytes(view[64:66]) == b"de"
    assert len(view) == 128
