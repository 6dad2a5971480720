"""Messages between processes of one machine: pickled values, with large arrays in anonymous shared memory.

Owns the byte format; must not import anything but the standard library and `cluster.engines.shared_memory`.
"""

from __future__ import annotations

import array
import errno
import io
import os
import pickle  # noqa: TID251 - between processes of one run, over sockets without a name; nothing is read from disk
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from cluster.engines.shared_memory import Memory, MemoryPool

_HEADER = struct.Struct("<QI")  # bytes of the body; file descriptors that come with it
_ALIGNMENT = 64
_MOST_DESCRIPTORS = 253  # of one message; the kernel's own limit
_ANCILLARY_BYTES = socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4)
SHARED_BYTES = 256 * 1024
"""From this size on, the arrays of a value travel in shared memory. Making the memory costs more than the
copies of smaller ones through a socket."""

_BUSY = (errno.EAGAIN, errno.ETOOMANYREFS)
"""What sendmsg raises while the other side has to read first: bytes, or file descriptors."""


@dataclass(frozen=True, eq=False)
class Packed:
    """A value that is ready to be sent, as often as needed unless it holds sockets.

    data: its pickle (protocol 5). parts: its out-of-band buffers, or their sizes if they lie in `memory`.
    sockets: connections to roles that the value refers to.
    """

    data: bytes
    parts: tuple[Any, ...]
    memory: Memory | None = None
    sockets: tuple[socket.socket, ...] = ()


Connect = Callable[[Any], tuple[str, socket.socket | None] | None]
"""Object -> its name and, if it stands for a role, a new connection to that; None for an ordinary value."""

Adopt = Callable[[str, socket.socket | None], Any]
"""What Connect returned, on the other side -> the object that stands for it there."""


class Unsendable(TypeError):  # noqa: N818
    """A value that cannot be pickled."""


class _Pickler(pickle.Pickler):
    """Pickles values in which some objects stand for roles or for the calls of a process.

    Python asks persistent_id about every number of a value, and reducer_override only about objects of
    classes: half the time of a report.
    """

    def __init__(self, file: io.BytesIO, buffers: list[pickle.PickleBuffer], connect: Connect) -> None:
        super().__init__(file, 5, buffer_callback=buffers.append)
        self._connect = connect
        self.sockets: list[socket.socket] = []

    def reducer_override(self, obj: Any) -> Any:
        """Name and place among the value's sockets of what stands for something."""
        found = self._connect(obj)
        if found is None:
            return NotImplemented
        name, connection = found
        if connection is None:
            return _stands_for, (name, None)
        self.sockets.append(connection)
        return _stands_for, (name, len(self.sockets) - 1)


class _Unpickler(pickle.Unpickler):
    """Unpickles values; `adopt` makes the objects that stand for something."""

    def __init__(self, packed: Packed, buffers: Sequence[Any], adopt: Adopt) -> None:
        super().__init__(io.BytesIO(packed.data), buffers=buffers)
        self._sockets = packed.sockets
        self._adopt = adopt

    def find_class(self, module: str, name: str) -> Any:
        """What makes the objects of a pickle: `adopt`, in place of _stands_for."""
        found = super().find_class(module, name)
        return self._adopted if found is _stands_for else found

    def _adopted(self, name: str, place: int | None) -> Any:
        return self._adopt(name, None if place is None else self._sockets[place])


def _stands_for(name: str, place: int | None) -> Any:
    """In a pickle, the mark of an object that `adopt` makes. Never called."""
    raise NotImplementedError


def pack(value: Any, connect: Connect, memories: MemoryPool) -> Packed:
    """Pickles a value. Its arrays go to shared memory if they have SHARED_BYTES or more together.

    Raises:
        Unsendable: naming what cannot be pickled.
        OSError: there is no room for the memory.
    """
    buffers: list[pickle.PickleBuffer] = []
    file = io.BytesIO()
    pickler = _Pickler(file, buffers, connect)
    try:
        pickler.dump(value)
    except Exception as error:
        raise Unsendable(f"{type(value).__name__} cannot be sent to another process: {error}") from error
    data, sockets = file.getvalue(), tuple(pickler.sockets)
    views = [buffer.raw() for buffer in buffers]
    if sum(view.nbytes for view in views) < SHARED_BYTES:
        return Packed(data, tuple(map(bytes, views)), sockets=sockets)
    sizes = tuple(view.nbytes for view in views)
    *offsets, num_bytes = _offsets(sizes)
    return Packed(data, sizes, memories.write(views, offsets, num_bytes), sockets)


def unpack(packed: Packed, adopt: Adopt) -> Any:
    """The value; its arrays are read-only, and large ones are not copied. Raises what unpickling raises."""
    buffers: Sequence[Any] = packed.parts
    if packed.memory is not None:
        view = packed.memory.view()
        offsets = _offsets(packed.parts)
        buffers = [view[start : start + size] for start, size in zip(offsets, packed.parts, strict=False)]
    return _Unpickler(packed, buffers, adopt).load()


def _offsets(sizes: Sequence[int]) -> list[int]:
    """Where parts of these sizes in bytes begin in shared memory, and where the last one ends."""
    return list(accumulate((-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes), initial=0))


@dataclass(frozen=True)
class Message:
    """A message that has arrived: what it says, the values and the sockets that came with it."""

    head: Any
    values: tuple[Packed, ...]
    sockets: tuple[socket.socket, ...]


class DescriptorsLost(OSError):  # noqa: N818 - an event of this process, not of the message
    """A message came, and this process has no room for its file descriptors. head: what the message says."""

    def __init__(self, head: Any) -> None:
        super().__init__(errno.EMFILE, "too many open files: raise the limit with ulimit -n")
        self.head = head


@dataclass
class _Outgoing:
    """A message that is not wholly sent. values, sockets: kept open until their descriptors are sent."""

    views: list[memoryview]
    descriptors: list[int]
    values: Sequence[Packed]
    sockets: Sequence[socket.socket]
    num_bytes: int


@dataclass
class _Incoming:
    """A message that has not wholly arrived. body: None until the header is there."""

    header: bytes = b""
    descriptors: tuple[int, ...] = ()
    body: bytearray | None = None
    received: int = 0


class Line:
    """One end of a connection. Takes in and gives out whole messages; neither direction ever waits.

    Attributes:
        unsent_bytes: of messages that the other side has no room for yet, their shared memory included.
        reads: whether to take in messages now; false while more than pause_above_bytes are unsent.
    """

    def __init__(self, end: socket.socket, pause_above_bytes: float = float("inf")) -> None:
        end.setblocking(False)
        self.socket = end
        self._pause_above_bytes = pause_above_bytes
        self.unsent_bytes = 0
        self._outgoing: deque[_Outgoing] = deque()
        self._incoming = _Incoming()

    @property
    def reads(self) -> bool:
        """See the class."""
        return self.unsent_bytes <= self._pause_above_bytes

    def fileno(self) -> int:
        """The socket's descriptor, for epoll."""
        return self.socket.fileno()

    def send(self, head: Any, values: Sequence[Packed] = (), sockets: Sequence[socket.socket] = ()) -> None:
        """Sends as much as there is room for and keeps the rest for `flush`. Takes over the sockets.

        Raises ConnectionError if the other side is gone.
        """
        sockets = [*sockets, *(one for value in values for one in value.sockets)]
        described = [
            (value.data, value.parts, value.memory and value.memory.num_bytes, len(value.sockets))
            for value in values
        ]
        body = pickle.dumps((head, described, len(sockets)), 5)
        descriptors = [value.memory.descriptor for value in values if value.memory is not None]
        descriptors += [one.fileno() for one in sockets]
        if len(descriptors) > _MOST_DESCRIPTORS:
            raise ValueError(f"{len(descriptors)} connections in one message; at most {_MOST_DESCRIPTORS}")
        header = _HEADER.pack(len(body), len(descriptors))
        shared = sum(value.memory.num_bytes for value in values if value.memory is not None)
        self._outgoing.append(
            _Outgoing(
                [memoryview(header), memoryview(body)], descriptors, values, sockets, len(body) + shared
            )
        )
        self.unsent_bytes += len(body) + shared
        self.flush()

    def flush(self) -> None:
        """Sends what waits, as far as there is room. Raises ConnectionError if the other side is gone."""
        while self._outgoing:
            message = self._outgoing[0]
            ancillary = []
            if message.descriptors:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", message.descriptors))]
            try:
                sent = self.socket.sendmsg(message.views, ancillary, socket.MSG_NOSIGNAL)
            except OSError as error:
                if error.errno in _BUSY:
                    return
                raise
            # They went with the first bytes, however many these were.
            message.descriptors = []
            for one in message.sockets:
                one.close()
            message.values, message.sockets = (), ()
            while message.views and sent >= len(message.views[0]):
                sent -= len(message.views.pop(0))
            if message.views:
                message.views[0] = message.views[0][sent:]
                return
            self.unsent_bytes -= message.num_bytes
            self._outgoing.popleft()

    def receive(self) -> Message | None:
        """The next message, or None if it has not wholly arrived.

        Raises:
            EOFError: the other side is gone.
            DescriptorsLost: the message has come, without its file descriptors.
        """
        try:
            if self._incoming.body is None and not self._receive_header():
                return None
            if not self._receive_body():
                return None
        except ConnectionError as error:
            raise EOFError(str(error)) from None
        incoming, self._incoming = self._incoming, _Incoming()
        return _opened(incoming)

    def _receive_header(self) -> bool:
        """Whether the header, and with it every descriptor of the message, is there."""
        incoming = self._incoming
        # Exactly the header, so that the descriptors that come along are this message's.
        missing = _HEADER.size - len(incoming.header)
        try:
            data, ancillary, _, _ = self.socket.recvmsg(missing, _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        if not data:
            raise EOFError("the other side has closed the connection")
        incoming.header += data
        for _, _, descriptors in ancillary:
            incoming.descriptors += tuple(memoryview(descriptors).cast("i"))
        if len(incoming.header) < _HEADER.size:
            return False
        incoming.body = bytearray(_HEADER.unpack(incoming.header)[0])
        return True

    def _receive_body(self) -> bool:
        incoming = self._incoming
        assert incoming.body is not None
        with memoryview(incoming.body) as body:
            while incoming.received < len(body):
                try:
                    received = self.socket.recv_into(body[incoming.received :])
                except BlockingIOError:
                    return False
                if not received:
                    raise EOFError("the other side has closed the connection")
                incoming.received += received
        return True

    def close(self) -> None:
        """Closes this end, and drops what was not sent."""
        for message in self._outgoing:
            for one in message.sockets:
                one.close()
        self._outgoing.clear()
        self.unsent_bytes = 0
        for descriptor in self._incoming.descriptors:
            os.close(descriptor)
        self._incoming = _Incoming()
        self.socket.close()


def _opened(incoming: _Incoming) -> Message:
    """The message whose bytes have arrived. Raises DescriptorsLost."""
    assert incoming.body is not None
    head, described, num_sockets = pickle.loads(incoming.body)
    _, expected = _HEADER.unpack(incoming.header)
    if len(incoming.descriptors) != expected:
        for descriptor in incoming.descriptors:
            os.close(descriptor)
        raise DescriptorsLost(head)
    num_memories = expected - num_sockets
    memories = iter(incoming.descriptors[:num_memories])
    sockets = [socket.socket(fileno=descriptor) for descriptor in incoming.descriptors[num_memories:]]
    own = num_sockets - sum(num for *_, num in described)
    values, taken = [], own
    for data, parts, num_bytes, num in described:
        memory = None if num_bytes is None else Memory(next(memories), num_bytes)
        values.append(Packed(data, parts, memory, tuple(sockets[taken : taken + num])))
        taken += num
    return Message(head, tuple(values), tuple(sockets[:own]))
