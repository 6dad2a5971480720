"""Messages arrive whole and in order, however small the pieces are in which they travel."""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.engines.shared_memory import MemoryPool
from cluster.engines.wire import SHARED_BYTES, Line, Message, Unsendable, pack, unpack


def no_role(obj: object) -> None:
    """Nothing in these values stands for a role."""


def never(name: str, end: socket.socket | None) -> Any:
    raise AssertionError(name)


@pytest.fixture
def lines() -> Iterator[tuple[Line, Line]]:
    with closing(Lines()) as made:
        yield made.here, made.there


class Lines:
    """Both ends of a connection with the smallest buffer that the system has."""

    def __init__(self) -> None:
        ends = socket.socketpair()
        for end in ends:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        self.here, self.there = map(Line, ends)

    def close(self) -> None:
        self.here.close()
        self.there.close()


def carry(here: Line, there: Line, count: int) -> list[Message]:
    """Turns both sides until `count` messages are there; neither ever waits."""
    found = []
    for _ in range(100_000):
        if here.fileno() >= 0:
            here.flush()
        message = there.receive()
        if message is not None:
            found.append(message)
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} of {count} messages")


SIZES = st.lists(st.sampled_from([0, 1, 100, 5_000, SHARED_BYTES - 1, SHARED_BYTES, 700_000]), max_size=4)


@settings(max_examples=60, deadline=None)
@given(messages=st.lists(SIZES, min_size=1, max_size=6), text=st.integers(0, 50_000))
def test_messages_arrive_in_order_in_any_pieces(messages: list[list[int]], text: int) -> None:
    with closing(Lines()) as both:
        for number, sizes in enumerate(messages):
            values = [pack(np.full(size, number, np.uint8), no_role, MemoryPool()) for size in sizes]
            both.here.send((number, "x" * text), values)
        for number, message in enumerate(carry(both.here, both.there, len(messages))):
            assert message.head == (number, "x" * text)
            arrays = [unpack(value, never) for value in message.values]
            assert [array.tolist() for array in arrays] == [[number] * size for size in messages[number]]
        assert both.here.unsent_bytes == 0


def test_sockets_arrive_with_their_message(lines: tuple[Line, Line]) -> None:
    here, there = lines
    for number in range(5):
        own, theirs = socket.socketpair()
        with own:
            own.sendall(bytes([number]))
        here.send(number, [pack(np.zeros(SHARED_BYTES), no_role, MemoryPool())], [theirs])
        here.send("between")
    messages = carry(here, there, 10)
    for number, message in enumerate(messages[::2]):
        assert message.head == number
        (end,) = message.sockets
        with end:
            assert end.recv(10) == bytes([number])


def test_the_other_side_is_gone_in_the_middle_of_a_message(lines: tuple[Line, Line]) -> None:
    here, there = lines
    here.send("x" * 1_000_000)
    assert there.receive() is None
    here.close()
    with pytest.raises(EOFError):
        carry(here, there, 1)
    with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
        there.send("answer")


def test_a_line_does_not_read_while_too_much_is_unsent() -> None:
    ends = socket.socketpair()
    line, other = Line(ends[0], pause_above_bytes=500_000), Line(ends[1])
    line.send("x" * 400_000)
    assert line.reads
    line.send("x" * 400_000)
    assert not line.reads
    carry(line, other, 2)
    assert line.reads
    line.close()
    other.close()


def test_memory_is_freed_with_its_last_array(lines: tuple[Line, Line]) -> None:
    here, there = lines
    gc.collect()  # what earlier tests have left could go at any time
    before = len(os.listdir("/proc/self/fd"))
    here.send("one", [pack(np.arange(SHARED_BYTES), no_role, MemoryPool())])
    (message,) = carry(here, there, 1)
    array = unpack(message.values[0], never)
    part = array[5:9]
    del message, array
    assert part.tolist() == [5, 6, 7, 8]
    del part
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_cannot_be_pickled_is_named() -> None:
    with pytest.raises(Unsendable, match=r"function cannot be sent to another process: .*lambda"):
        pack(lambda: None, no_role, MemoryPool())
