"""The learner's side of the service: prefetched minibatches over all shards, priorities sent back in bulk.

Owns the requests in flight; must not import ray, torch or learner.
"""

import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Generic, Protocol, TypeVar

import numpy as np

from replay_service.config import ReplayConfig
from replay_service.messages import Minibatch, PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.prefetch import Prefetch, choose_prefetch, initial_prefetch
from replay_service.shard import EmptyShardError
from replay_service.sharding import (
    allocate,
    draw_probability,
    importance_exponent,
    importance_weights,
    largest_weight,
    shard_starts,
)
from replay_service.staging import Staging
from replay_service.window_slots import SlotPlace, WindowSlot

Ticket = TypeVar("Ticket")

_REPLIES_REMEMBERED = 9
# Reading a reply that is already there takes less time than this.
_WAITED_SECONDS = 2e-4


class ShardLostError(RuntimeError):
    """A shard does not answer: its process or its reply is lost."""


class ShardTransport(Protocol[Ticket]):
    """Calls to shards, in this process or another. Calls to one shard keep their order."""

    @property
    def num_shards(self) -> int:
        """S; shards are numbered from 0."""

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> Ticket:
        """Starts ReplayShard.exchange and returns at once."""

    def collect(self, ticket: Ticket) -> SampleReply:
        """Waits for the reply; once per ticket. Raises ShardLostError, or what the shard raised."""

    def status(self, shard: int) -> ShardStatus:
        """Waits for ReplayShard.status. Raises ShardLostError, or what the shard raised."""


@dataclass(frozen=True, eq=False)
class _Request(Generic[Ticket]):
    """One request to all shards that are not lost.

    tickets: shard -> ticket; counts: [K, S], 0 for lost shards; shares: [S], each shard's share of the mass,
    from which counts were allocated.
    slot: where the shards of this host put the windows, if windows are large.
    requested_at_update: number of updates done when it was sent; sent_at: that time, on the monotonic clock.
    """

    tickets: Mapping[int, Ticket]
    shares: np.ndarray
    counts: np.ndarray
    slot: WindowSlot | None
    requested_at_update: int
    sent_at: float


class ReplaySampler(Generic[Ticket]):
    """Minibatches of `batch_size` transitions over all shards (a learner.core.MinibatchSource).

    A request asks all shards for minibatches; their replies are collected, staged and handed out; TD errors
    are taken back and leave with the next request. A shard is asked even for 0 transitions, because the
    request carries its priorities and the reply its mass.

    `prefetch_requests` requests of `minibatches_per_request` minibatches each are in flight. If `adaptive`,
    these are limits, and `adapt` chooses from measured times. With 0 requests, minibatches are requested when
    one is needed, which is deterministic if calls are direct.
    """

    def __init__(
        self,
        config: ReplayConfig,
        transport: ShardTransport[Ticket],
        *,
        batch_size: int,
        minibatches_per_request: int,
        prefetch_requests: int,
        rng: np.random.Generator,
        adaptive: bool = False,
    ) -> None:
        self._config = config
        self._transport = transport
        self._batch_size = batch_size
        self._rng = rng
        self._limits = Prefetch(minibatches_per_request, prefetch_requests)
        self._adapts = adaptive and prefetch_requests > 0
        self._prefetch = self._wanted = initial_prefetch(self._limits) if self._adapts else self._limits
        self._reply_seconds: deque[float] = deque(maxlen=_REPLIES_REMEMBERED)
        self._waited_seconds = 0.0
        self._statuses: dict[int, ShardStatus] = {}
        self._lost: set[int] = set()
        self._in_flight: deque[_Request[Ticket]] = deque()
        # Made when the first reply has shown dtypes and shapes.
        self._staging: Staging | None = None
        self._staged: _Request[Ticket] | None = None
        self._position = 0
        self._next_index = 0
        # Index of a minibatch -> its keys [B], ordered by shard, and counts [S].
        self._handed_out: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._returned: list[list[PriorityUpdate]] = [[] for _ in range(transport.num_shards)]

    @property
    def requests_in_flight(self) -> int:
        """Number of requests that were sent and not collected yet."""
        return len(self._in_flight)

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard that has sent one, by shard."""
        return tuple(status for _, status in sorted(self._statuses.items()))

    def adapt(self, update_seconds: float) -> None:
        """Chooses again how far ahead to request, from the duration of one update and of the newest replies.

        A new number of minibatches per request takes effect once the requests in flight are used up. Where
        prefetch is off, there is nothing to choose.
        """
        if not self._adapts:
            return
        self._wanted = choose_prefetch(
            self._prefetch,
            self._limits,
            update_seconds=update_seconds,
            reply_seconds=median(self._reply_seconds) if self._reply_seconds else None,
        )

    def shard_replaced(self, shard: int) -> None:
        """Must be called when another shard has taken this number: drops what belongs to the former one."""
        # Tickets of the former shard would make this one look lost.
        self._in_flight.clear()
        self._returned[shard].clear()
        self._lost.discard(shard)
        self._ask_status(shard)

    def next_minibatch(self, update: int) -> Minibatch:
        """The next minibatch; may wait. `update`, the updates done so far, sets the importance exponent.

        A lost shard is left out at once: requests that included it are sent again to the others.

        Raises EmptyShardError if no shard that is left holds transitions, and what a shard raised.
        """
        self._waited_seconds = 0.0
        if self._staged is None or self._position == self._prefetch.minibatches:
            self._advance(update)
        assert self._staged is not None
        assert self._staging is not None
        k = self._position
        self._position += 1
        counts = self._staged.counts[k]
        fields = {name: array[k] for name, array in self._staging.transitions.items()}
        if self._config.sampling == "prioritized":
            probability = draw_probability(self._staged.shares, counts, fields["probability"])
            exponent = importance_exponent(
                update, self._config.importance_exponent_start, self._config.importance_anneal_updates
            )
            weight = importance_weights(probability, exponent)
            largest = largest_weight(probability, exponent)
            self._handed_out[self._next_index] = (fields["keys"].copy(), counts)
        else:
            weight, largest = np.ones(self._batch_size, np.float32), 1.0
        minibatch = Minibatch(
            windows={name: array[k] for name, array in self._staging.windows.items()},
            action=fields["action"],
            reward=fields["reward"],
            discount=fields["discount"],
            policy_version=fields["policy_version"],
            weight=weight,
            index=self._next_index,
            keys=fields["keys"],
            transitions_per_shard=counts,
            requested_at_update=self._staged.requested_at_update,
            waited_seconds=self._waited_seconds,
            largest_weight=largest,
        )
        self._next_index += 1
        return minibatch

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        """Takes a copy of the absolute TD errors [B] of minibatch `index`; they leave with the next request.

        Does nothing if sampling is uniform. Raises ValueError for another shape, and for an index that was
        not handed out or was given back before.
        """
        if self._config.sampling != "prioritized":
            return
        if td_errors.shape != (self._batch_size,):
            raise ValueError(f"TD errors of shape {td_errors.shape}; a minibatch has ({self._batch_size},)")
        if index not in self._handed_out:
            raise ValueError(f"minibatch {index} is not waiting for TD errors")
        keys, counts = self._handed_out.pop(index)
        copied = td_errors.astype(np.float32)
        end = 0
        for shard, count in enumerate(counts.tolist()):
            begin, end = end, end + count
            if count and shard not in self._lost:
                self._returned[shard].append(PriorityUpdate(keys[begin:end], copied[begin:end]))

    def flush(self) -> None:
        """Sends the priorities that are not sent yet and waits until the shards have them."""
        tickets = {
            shard: self._transport.exchange(shard, update, SampleRequest(()))
            for shard in range(self._transport.num_shards)
            if (update := self._take_update(shard)) is not None
        }
        self._collect(tickets)

    def _advance(self, update: int) -> None:
        """Stages the oldest request in flight and sends new ones."""
        for shard in self._living():
            if shard not in self._statuses:
                self._ask_status(shard)
        self._retire_staged()
        self._change_prefetch()
        request, replies = self._next_replies(update)
        if self._staging is None:
            self._staging = Staging(
                next(iter(replies.values())), self._prefetch.minibatches, self._batch_size
            )
        # Sent before copying, so that the shards work meanwhile.
        if self._wanted.minibatches == self._prefetch.minibatches:
            while len(self._in_flight) < self._prefetch.requests:
                self._in_flight.append(self._request(update))
        self._staging.stage(replies, request.counts, request.slot)
        self._staged = request
        self._position = 0

    def _retire_staged(self) -> None:
        """Frees the staged request: all its shards have replied, and its minibatches are no longer read."""
        slots = None if self._staging is None else self._staging.slots
        if slots is not None and self._staged is not None and self._staged.slot is not None:
            slots.give_back(self._staged.slot)
        self._staged = None

    def _change_prefetch(self) -> None:
        """Adopts the wanted prefetch; a new size of requests only when none of the old size is in flight."""
        if self._wanted.minibatches == self._prefetch.minibatches:
            self._prefetch = self._wanted
        elif not self._in_flight:
            self._prefetch = self._wanted
            self._reply_seconds.clear()
            self._staging = None

    def _next_replies(self, update: int) -> tuple[_Request[Ticket], dict[int, SampleReply]]:
        """The oldest request and its replies. If none is in flight, or a reply is lost, sends another."""
        while True:
            request = self._in_flight.popleft() if self._in_flight else self._request(update)
            asked = time.monotonic()
            replies = self._collect(request.tickets)
            collected = time.monotonic()
            self._waited_seconds += collected - asked
            # Without a wait, the reply arrived earlier, at an unknown time.
            if collected - asked > _WAITED_SECONDS:
                self._reply_seconds.append(collected - request.sent_at)
            if len(replies) == len(request.tickets):
                return request, replies
            # The other requests in flight include the lost shard, too.
            self._in_flight.clear()

    def _request(self, update: int) -> _Request[Ticket]:
        """Asks all shards for K minibatches, allocated by the masses known now."""
        masses = self._masses()
        if not masses.any():
            # The masses may be out of date, as no reply has come since they were 0.
            for shard in self._living():
                self._ask_status(shard)
            masses = self._masses()
        if not masses.any():
            raise EmptyShardError("a minibatch was requested, but no shard is known to hold transitions")
        counts = allocate(masses, self._batch_size, self._prefetch.minibatches, self._rng.random())
        starts = shard_starts(counts)
        slots = None if self._staging is None else self._staging.slots
        slot = None if slots is None else slots.take()
        tickets: dict[int, Ticket] = {}
        for shard in self._living():
            place = None if slot is None else SlotPlace(slot.address, tuple(starts[:, shard].tolist()))
            request = SampleRequest(tuple(counts[:, shard].tolist()), place)
            tickets[shard] = self._transport.exchange(shard, self._take_update(shard), request)
        return _Request(tickets, masses / masses.sum(), counts, slot, update, time.monotonic())

    def _masses(self) -> np.ndarray:
        """The masses [S] known now; 0 for a lost shard."""
        return np.array(
            [
                0.0 if shard in self._lost else self._statuses[shard].mass
                for shard in range(self._transport.num_shards)
            ]
        )

    def _living(self) -> list[int]:
        """The shards that are not lost."""
        return [shard for shard in range(self._transport.num_shards) if shard not in self._lost]

    def _ask_status(self, shard: int) -> None:
        """Notes the shard's status; if it is lost, notes that and drops the priorities for it."""
        asked = time.monotonic()
        try:
            self._statuses[shard] = self._transport.status(shard)
        except ShardLostError:
            self._lost.add(shard)
            self._returned[shard].clear()
        self._waited_seconds += time.monotonic() - asked

    def _collect(self, tickets: Mapping[int, Ticket]) -> dict[int, SampleReply]:
        """Shard -> reply, without lost ones; a status call then shows whether the shard is lost as well."""
        replies: dict[int, SampleReply] = {}
        for shard, ticket in tickets.items():
            try:
                replies[shard] = self._transport.collect(ticket)
            except ShardLostError:
                self._ask_status(shard)
            else:
                self._statuses[shard] = replies[shard].status
        return replies

    def _take_update(self, shard: int) -> PriorityUpdate | None:
        """All priorities for a shard that are not sent yet, oldest first."""
        returned = self._returned[shard]
        if not returned:
            return None
        update = PriorityUpdate(
            np.concatenate([part.keys for part in returned]),
            np.concatenate([part.td_errors for part in returned]),
        )
        returned.clear()
        return update
