"""All connections of one process, watched together: what waits is sent, and what comes is taken in.

Owns the watching by epoll; must not import anything but the standard library and the wire.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Protocol

from cluster.engines.wire import DescriptorsLost, Line, Message, Packed


class Endpoint(Protocol):
    """One end of a connection, and what happens with what comes."""

    @property
    def line(self) -> Line:
        """The line that is watched."""

    def take(self, message: Message) -> None:
        """Handles a message."""

    def miss(self, error: DescriptorsLost) -> None:
        """Handles a message whose file descriptors this process had no room for."""

    def lose(self) -> None:
        """Handles the end of the connection; nothing follows."""


class Lines:
    """Watches connections until they end."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Endpoint] = {}
        self._events: dict[int, int] = {}

    def watch(self, endpoint: Endpoint) -> None:
        """Watches a connection from now on, unless it is watched already."""
        number = endpoint.line.fileno()
        if self._watched.get(number) is endpoint:
            return
        self._watched[number], self._events[number] = endpoint, select.EPOLLIN
        self._epoll.register(number, select.EPOLLIN)

    def end(self, endpoint: Endpoint) -> None:
        """Closes a connection and tells its endpoint, unless it has ended before."""
        number = endpoint.line.fileno()
        if self._watched.get(number) is endpoint:
            del self._watched[number], self._events[number]
            self._epoll.unregister(number)
            endpoint.line.close()
            endpoint.lose()

    def send(
        self,
        endpoint: Endpoint,
        head: Any,
        values: Sequence[Packed] = (),
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        """Sends a message; what there is no room for is sent during later turns. Takes over the sockets."""
        try:
            endpoint.line.send(head, values, sockets)
        except OSError:
            self.end(endpoint)
        else:
            self._adjust(endpoint)

    def turn(self, timeout_seconds: float | None) -> None:
        """Sends what waits, and takes one message of each connection; waits until there is something to do.

        None: waits for ever.
        """
        for number, event in self._epoll.poll(timeout_seconds):
            endpoint = self._watched.get(number)
            if endpoint is not None:  # else an earlier event of this turn ended it
                self._handle(endpoint, event)

    def close(self) -> None:
        """Closes every connection; their endpoints are not told."""
        for endpoint in self._watched.values():
            endpoint.line.close()
        self._watched.clear()
        self._epoll.close()

    def _handle(self, endpoint: Endpoint, event: int) -> None:
        if event & select.EPOLLOUT:
            with suppress(ConnectionError):  # reading tells that the connection has ended
                endpoint.line.flush()
            self._adjust(endpoint)
        if not event & ~select.EPOLLOUT:
            return
        try:
            # One message: epoll tells of the next one for less than asking for it costs.
            if (message := endpoint.line.receive()) is not None:
                endpoint.take(message)
        except DescriptorsLost as error:
            endpoint.miss(error)
        except EOFError:
            self.end(endpoint)

    def _adjust(self, endpoint: Endpoint) -> None:
        """Has epoll report room to send while something waits for it, and messages while they are read."""
        number, line = endpoint.line.fileno(), endpoint.line
        events = (select.EPOLLIN if line.reads else 0) | (select.EPOLLOUT if line.unsent_bytes else 0)
        if self._events.get(number, events) != events:
            self._events[number] = events
            self._epoll.modify(number, events)
