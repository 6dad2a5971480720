"""The process of a role: builds the role and answers calls, one at a time, in the order in which they come.

Owns the loop of that process; must not import torch, gymnasium or ray.
"""

from __future__ import annotations

import socket
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from cluster.engines.engine import EngineError, RoleError
from cluster.engines.lines import Lines
from cluster.engines.process_calls import ProcessCalls
from cluster.engines.wire import DescriptorsLost, Line, Message, Packed, pack, unpack

_MOST_UNSENT_BYTES = 512 << 20
"""A caller that leaves more than this many bytes of replies is not listened to until it reads them."""


class _Caller:
    """A process that calls this role. inbox: calls of all callers, as they came."""

    def __init__(self, end: socket.socket, server: RoleServer) -> None:
        self.line = Line(end, _MOST_UNSENT_BYTES)
        self._server = server

    def take(self, message: Message) -> None:
        """Keeps a call for later, or adds a caller that the engine introduces."""
        if message.head is None:
            self._server.listen(message.sockets)
        else:
            self._server.inbox.append((self, message.head, message.values))

    def miss(self, error: DescriptorsLost) -> None:
        """Answers a call whose arguments this process has no room for."""
        if error.head is not None:
            number, method, _ = error.head
            self._server.answer(self, number, RoleError(self._server.name, f"{method}: {error.strerror}"))

    def lose(self) -> None:
        """Forgets the caller; a role without its engine has nothing to do any more."""
        self._server.leave(self)


class RoleServer:
    """Answers calls to one role until the engine closes its connection."""

    def __init__(self, name: str, engine: socket.socket) -> None:
        self.name = name
        self.inbox: deque[tuple[_Caller, tuple[int, str, int], Sequence[Packed]]] = deque()
        self._lines = Lines()
        self._calls = ProcessCalls(self._lines)
        self._engine = _Caller(engine, self)
        self._lines.watch(self._engine)
        self._role: Any = None
        self._failure: EngineError | None = None
        self._is_over = False

    def run(self, packed: Packed, become: Callable[[], None]) -> None:
        """Builds the role of (class, *arguments), and answers calls: all by the error if building fails.

        become: makes this process the role's own; if that fails, building has failed.
        """
        try:
            become()
            kind, *args = unpack(packed, self._calls.adopt)
            self._role = kind(*args)
        except EngineError as error:
            self._failure = error
        except Exception:  # noqa: BLE001 - carried to the caller as RoleError
            self._failure = RoleError(self.name, traceback.format_exc())
        while not self._is_over:
            self._lines.turn(0.0 if self.inbox else None)
            if self.inbox:
                self._handle(*self.inbox.popleft())

    def listen(self, callers: Sequence[socket.socket]) -> None:
        """Takes calls from further processes."""
        for end in callers:
            self._lines.watch(_Caller(end, self))

    def leave(self, caller: _Caller) -> None:
        """Ends the loop if the caller was the engine."""
        self._is_over = self._is_over or caller is self._engine

    def answer(
        self, caller: _Caller, number: int, error: EngineError | None, values: Sequence[Packed] = ()
    ) -> None:
        """Replies to a call, with an error or with its results."""
        self._lines.send(caller, (number, error), values)

    def _handle(self, caller: _Caller, head: tuple[int, str, int], given: Sequence[Packed]) -> None:
        number, method, returns = head
        try:
            if self._failure is not None:
                raise self._failure
            value = getattr(self._role, method)(*(unpack(arg, self._calls.adopt) for arg in given))
            values = value if returns > 1 else (value,)
            packed = [pack(one, self._calls.connect, self._calls.memories) for one in values]
        except EngineError as error:
            self.answer(caller, number, error)
        except Exception:  # noqa: BLE001 - carried to the caller as RoleError
            self.answer(caller, number, RoleError(self.name, traceback.format_exc()))
        else:
            self.answer(caller, number, None, packed)
