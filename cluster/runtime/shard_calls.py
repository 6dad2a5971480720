"""Calls from actors and the learner to shards: pushes, which are kept until acknowledged, and exchanges.

Owns the calls in flight to shards and the reaction to a lost shard; must not import ray.
"""

import collections
from dataclasses import dataclass, replace

import numpy as np

from cluster.engines.engine import Calls, Handle, ObjectLost, Ref, RoleDied, ValueT
from cluster.runtime.shard_role import ShardRole
from replay_service.block import TransitionBlock
from replay_service.codec import encode
from replay_service.messages import InsertReply, PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.sampler import ShardLostError


@dataclass(eq=False)
class _Push:
    """A block that no shard has acknowledged. ref: its call; None while its shard is lost."""

    shard: int
    encoded: np.ndarray
    num_transitions: int
    ref: Ref[InsertReply] | None


class RoundRobinSink:
    """Pushes an actor's blocks to the shards in turn, a bounded number in flight.

    Each (writer, shard) is a stream of its own, so every shard sees sequences 0, 1, 2, … A block is kept
    until a shard acknowledges it: blocks that a lost shard did not acknowledge are sent again to its
    replacement. Until then new blocks go to the other shards; if all are lost, push keeps them and returns.
    """

    def __init__(
        self,
        calls: Calls,
        shards: list[Handle[ShardRole]],
        writer: int,
        incarnation: int,
        pushes_in_flight: int,
    ) -> None:
        self._calls = calls
        self._shards = list(shards)
        self._writer = writer
        self._incarnation = incarnation
        self._limit = pushes_in_flight
        self._turn = writer
        self._sequences = [0] * len(shards)
        self._lost: set[int] = set()
        self._statuses: dict[int, ShardStatus] = {}
        self._pushes: collections.deque[_Push] = collections.deque()

    @property
    def unacknowledged_transitions(self) -> int:
        """Transitions pushed that no shard has acknowledged yet."""
        return sum(push.num_transitions for push in self._pushes)

    @property
    def pushes_in_flight(self) -> int:
        """Number of blocks that no shard has acknowledged yet."""
        return len(self._pushes)

    def push(self, block: TransitionBlock) -> None:
        """Sends the block; first waits for the oldest push while too many are in flight."""
        while len(sent := self._sent()) >= self._limit:
            self._acknowledge(*sent[0])
        shard = self._next_shard()
        block = replace(
            block, writer=self._writer, incarnation=self._incarnation, sequence=self._sequences[shard]
        )
        self._sequences[shard] += 1
        push = _Push(shard, encode(block), block.num_transitions, None)
        self._pushes.append(push)
        if shard not in self._lost:
            self._send(push)

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard, after taking in what has been acknowledged by now."""
        while (sent := self._sent()) and self._calls.wait([sent[0][1]], 0.0):
            self._acknowledge(*sent[0])
        return tuple(self._statuses.values())

    def replace_shard(self, shard: int, handle: Handle[ShardRole]) -> None:
        """Replaces a lost shard, and sends its unacknowledged blocks to the replacement, in order."""
        self.statuses()
        self._shards[shard] = handle
        self._lost.discard(shard)
        self._send_again(shard)

    def _sent(self) -> list[tuple[_Push, Ref[InsertReply]]]:
        return [(push, push.ref) for push in self._pushes if push.ref is not None]

    def _next_shard(self) -> int:
        """The next shard in turn that is not lost; the next one at all if all are."""
        for _ in self._shards:
            shard = self._turn % len(self._shards)
            self._turn += 1
            if shard not in self._lost:
                return shard
        return self._turn % len(self._shards)

    def _send(self, push: _Push) -> None:
        (push.ref,) = self._calls.call(self._shards[push.shard], ShardRole.insert, push.encoded)

    def _send_again(self, shard: int) -> None:
        for push in self._pushes:
            if push.shard == shard:
                self._send(push)

    def _acknowledge(self, push: _Push, ref: Ref[InsertReply]) -> None:
        """Waits until the push is acknowledged, or marks it to be sent again."""
        try:
            reply = self._calls.get(ref)
        except RoleDied:
            self._lost.add(push.shard)
            for other in self._pushes:
                if other.shard == push.shard:
                    other.ref = None
        except ObjectLost:
            # Only the reply is known to be lost, and a push that did arrive is not taken twice.
            self._send_again(push.shard)
        else:
            self._pushes.remove(push)
            self._statuses[reply.status.shard] = reply.status


class EngineTransport:
    """replay_service.sampler.ShardTransport over an engine."""

    def __init__(self, calls: Calls, shards: list[Handle[ShardRole]]) -> None:
        self._calls = calls
        self._shards = list(shards)

    @property
    def num_shards(self) -> int:
        """The number of shards, S."""
        return len(self._shards)

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> Ref[SampleReply]:
        """Starts the exchange with one shard."""
        return self._calls.call(self._shards[shard], ShardRole.exchange, update, request)[0]

    def collect(self, ticket: Ref[SampleReply]) -> SampleReply:
        """Waits for the reply. Raises ShardLostError if it is lost."""
        return self._get(ticket)

    def status(self, shard: int) -> ShardStatus:
        """Asks a shard for its status and waits. Raises ShardLostError."""
        status: ShardStatus = self._get(self._calls.call(self._shards[shard], ShardRole.status)[0])
        return status

    def replace_shard(self, shard: int, handle: Handle[ShardRole]) -> None:
        """Replaces a lost shard by another one, which is called from now on."""
        self._shards[shard] = handle

    def _get(self, ref: Ref[ValueT]) -> ValueT:
        try:
            return self._calls.get(ref)
        except (RoleDied, ObjectLost) as error:
            raise ShardLostError(str(error)) from error
