"""The learner's side of the service: prefetched minibatches over all shards, priorities sent back in bulk.

Owns the requests in flight and the staging buffer; must not import ray, torch or learner.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Generic, Protocol, TypeVar

import numpy as np

from replay_service.config import ReplayConfig
from replay_service.messages import Minibatch, PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.prefetch import Prefetch, choose_prefetch, first_prefetch
from replay_service.shard import EmptyShardError, ReplayShard
from replay_service.sharding import allocate, draw_probability, importance_exponent, importance_weights
from replay_service.window_slots import MIN_SLOT_BYTES, SlotPlace, SlotPool, WindowArray, WindowSlot

Ticket = TypeVar("Ticket")

_REPLIES_REMEMBERED = 9
_WAITED_SECONDS = 2e-4
"""Longer than it takes to look at a reply that is there."""

TRANSITION_FIELDS = ("action", "reward", "discount", "policy_version", "keys", "probability")


class ShardLostError(RuntimeError):
    """A shard does not answer: its process is gone, or its reply."""


class ShardTransport(Protocol[Ticket]):
    """How shards are called: directly, or over processes. Calls to one shard keep their order."""

    @property
    def num_shards(self) -> int:
        """S; shards are numbered from 0."""

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> Ticket:
        """Starts ReplayShard.exchange and returns at once."""

    def collect(self, ticket: Ticket) -> SampleReply:
        """Waits for the reply, once; raises ShardLostError, or what the shard raised."""

    def status(self, shard: int) -> ShardStatus:
        """Waits for ReplayShard.status; raises ShardLostError, or what the shard raised."""


class LocalTransport:
    """Direct calls to shards of this process; a ticket is the reply itself."""

    def __init__(self, shards: Sequence[ReplayShard]) -> None:
        self._shards = tuple(shards)

    @property
    def num_shards(self) -> int:
        """See ShardTransport."""
        return len(self._shards)

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        """See ShardTransport."""
        return self._shards[shard].exchange(update, request)

    def collect(self, ticket: SampleReply) -> SampleReply:
        """See ShardTransport."""
        return ticket

    def status(self, shard: int) -> ShardStatus:
        """See ShardTransport."""
        return self._shards[shard].status()


@dataclass(frozen=True, eq=False)
class _Request(Generic[Ticket]):
    """One request to every shard: its tickets [S], and the shares [S] that made its counts [K, S].

    A lost shard has no ticket and no share.

    slot: where the shards of this host put the windows, if windows are large.
    asked_at_update: how many updates were done then. sent_at: on the monotonic clock.
    """

    tickets: tuple[Ticket | None, ...]
    shares: np.ndarray
    counts: np.ndarray
    slot: WindowSlot | None
    asked_at_update: int
    sent_at: float


@dataclass(frozen=True, eq=False)
class _Drawn:
    """What give_back needs of a minibatch: keys [B] ordered by shard, counts [S]."""

    keys: np.ndarray
    counts: np.ndarray


class ReplaySampler(Generic[Ticket]):
    """Minibatches of `batch_size` rows over all shards (a learner.core.MinibatchSource).

    `prefetch_requests` requests of `minibatches_per_request` minibatches each are kept in flight; where
    adaptive, at most so many: `adapt` chooses by measured times. 0 requests draw only when a minibatch is
    asked for, which with direct calls is deterministic. Every request goes to every shard, also for 0 rows:
    that carries the priorities and brings back the mass.

    The replies of a request are copied into one staging buffer, reused by the next: the arrays are writable,
    contiguous over shards, and valid until the next minibatch is asked for. Large windows are staged in a
    slot, each request in flight having its own: shards of this host write there themselves, and only what
    others send is copied.
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
        self._most = Prefetch(minibatches_per_request, prefetch_requests)
        self._prefetch = self._wanted = first_prefetch(self._most) if adaptive else self._most
        self._reply_seconds: deque[float] = deque(maxlen=_REPLIES_REMEMBERED)
        self._rng = rng
        self._prioritized = config.sampling == "prioritized"
        self._statuses: dict[int, ShardStatus] = {}
        self._lost: set[int] = set()
        self._in_flight: deque[_Request[Ticket]] = deque()
        self._current: _Request[Ticket] | None = None
        self._position = 0
        self._rows: dict[str, np.ndarray] = {}
        self._windows: dict[str, np.ndarray] = {}
        self._own_windows: dict[str, np.ndarray] = {}
        self._window_arrays: tuple[WindowArray, ...] = ()
        self._slots: SlotPool | None = None
        self._next_index = 0
        self._handed_out: dict[int, _Drawn] = {}
        self._waited_seconds = 0.0
        self._returned: list[list[PriorityUpdate]] = [[] for _ in range(transport.num_shards)]

    @property
    def prefetch(self) -> Prefetch:
        """How far ahead minibatches are drawn now."""
        return self._prefetch

    def adapt(self, update_seconds: float) -> None:
        """Chooses anew how far ahead to draw, by the seconds of one update and those that replies took.

        Another number of minibatches a request begins when what is in flight was learned from.
        """
        replies = self._reply_seconds
        self._wanted = choose_prefetch(
            self._prefetch,
            self._most,
            update_seconds=update_seconds,
            reply_seconds=median(replies) if replies else None,
        )

    @property
    def requests_in_flight(self) -> int:
        """Requests of minibatches_per_request minibatches each that were sent and not yet collected."""
        return len(self._in_flight)

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard heard of so far, in the order of shards."""
        return tuple(status for _, status in sorted(self._statuses.items()))

    def refresh(self) -> None:
        """Forgets all that was drawn, is in flight or was not sent yet, and asks every shard for its status.

        For a cut. The first minibatch asks by itself.
        """
        self._retire_current()
        self._in_flight.clear()
        self._handed_out.clear()
        for returned in self._returned:
            returned.clear()
        self._ask_statuses()

    def shard_replaced(self, shard: int) -> None:
        """The transport calls another shard under this number from now on; it may hold anything."""
        # Tickets of the shard that is gone would make this one look lost.
        self._in_flight.clear()
        self._returned[shard].clear()
        self._lost.discard(shard)
        self._ask_status(shard)

    def next_minibatch(self, update: int) -> Minibatch:
        """The next minibatch; `update` (updates done so far) sets the importance exponent. May wait.

        A shard that is lost is left out at once, and what was asked of it and the others together is asked
        again of the others.

        Raises EmptyShardError when no shard that is left holds rows, and what a shard raised.
        """
        self._waited_seconds = 0.0
        if self._current is None or self._position == self._prefetch.minibatches:
            self._advance(update)
        assert self._current is not None
        k = self._position
        self._position += 1
        counts = self._current.counts[k]
        rows = {name: array[k] for name, array in self._rows.items()}
        if self._prioritized:
            probability = draw_probability(self._current.shares, counts, rows["probability"])
            config = self._config
            exponent = importance_exponent(
                update, config.importance_exponent_start, config.importance_anneal_updates
            )
            weight = importance_weights(probability, exponent)
            self._handed_out[self._next_index] = _Drawn(rows["keys"].copy(), counts)
        else:
            weight = np.ones(self._batch_size, np.float32)
        minibatch = Minibatch(
            windows={name: array[k] for name, array in self._windows.items()},
            action=rows["action"],
            reward=rows["reward"],
            discount=rows["discount"],
            policy_version=rows["policy_version"],
            weight=weight,
            index=self._next_index,
            keys=rows["keys"],
            transitions_per_shard=counts,
            asked_at_update=self._current.asked_at_update,
            waited_seconds=self._waited_seconds,
        )
        self._next_index += 1
        return minibatch

    def give_back(self, index: int, td_errors: np.ndarray) -> None:
        """Absolute TD errors [B] of the minibatch `index`, copied; they leave with the next request.

        Nothing happens where sampling is uniform. Raises ValueError for an index that is not handed out, or
        was given back before, and for another shape.
        """
        if not self._prioritized:
            return
        if td_errors.shape != (self._batch_size,):
            raise ValueError(f"TD errors of shape {td_errors.shape}; a minibatch has ({self._batch_size},)")
        drawn = self._handed_out.pop(index, None)
        if drawn is None:
            raise ValueError(f"minibatch {index} is not waiting for TD errors")
        copied = td_errors.astype(np.float32)
        end = 0
        for shard, count in enumerate(drawn.counts.tolist()):
            begin, end = end, end + count
            if count and shard not in self._lost:
                self._returned[shard].append(PriorityUpdate(drawn.keys[begin:end], copied[begin:end]))

    def flush(self) -> None:
        """Sends the priorities still held back and waits until the shards have them."""
        nothing = SampleRequest(())
        tickets = tuple(
            None if update is None else self._transport.exchange(shard, update, nothing)
            for shard, update in enumerate(map(self._take_update, range(self._transport.num_shards)))
        )
        self._collect_all(tickets)

    def _advance(self, update: int) -> None:
        """Makes the oldest request in flight the current one and fills up what is in flight."""
        for shard in set(range(self._transport.num_shards)) - self._statuses.keys() - self._lost:
            self._ask_status(shard)
        self._retire_current()
        self._change_prefetch()
        while True:
            if not self._in_flight:
                self._in_flight.append(self._request(update))
            request = self._in_flight.popleft()
            asked = time.monotonic()
            replies = self._collect_all(request.tickets)
            collected = time.monotonic()
            self._waited_seconds += collected - asked
            if collected - asked > _WAITED_SECONDS:  # else the reply had been there for nobody knows how long
                self._reply_seconds.append(collected - request.sent_at)
            if replies is not None:
                break
            # What else is in flight was split over the lost shard, too.
            self._in_flight.clear()
        if not self._rows:
            self._prepare(next(reply for reply in replies if reply is not None))
        # Before the copying, so that the shards work meanwhile.
        if self._wanted.minibatches == self._prefetch.minibatches:
            while len(self._in_flight) < self._prefetch.requests:
                self._in_flight.append(self._request(update))
        self._stage(request, replies)
        self._current = request
        self._position = 0

    def _change_prefetch(self) -> None:
        """Goes over to the wanted prefetch; to other requests once none of the old ones is in flight."""
        if self._wanted.minibatches == self._prefetch.minibatches:
            self._prefetch = self._wanted
        elif not self._in_flight:
            self._prefetch = self._wanted
            self._reply_seconds.clear()
            # Made anew, in the new size, for the next reply.
            self._rows, self._own_windows, self._slots = {}, {}, None

    def _retire_current(self) -> None:
        """Nobody reads the current request's minibatches any more, and all its shards have replied."""
        if self._current is not None and self._current.slot is not None and self._slots is not None:
            self._slots.give_back(self._current.slot)
        self._current = None

    def _request(self, update: int) -> _Request[Ticket]:
        """Asks all shards for K minibatches, split by the masses known now."""
        num_shards = self._transport.num_shards
        masses = self._masses()
        if not masses.any():
            # Nobody was asked since, so what is known may be old.
            self._ask_statuses()
            masses = self._masses()
        if not masses.any():
            raise EmptyShardError("a minibatch was asked for, but no shard is known to hold rows")
        counts = allocate(masses, self._batch_size, self._prefetch.minibatches, self._rng.random())
        slot = self._slots.take() if self._slots is not None else None
        starts = _starts(counts)
        requests = [
            SampleRequest(
                tuple(counts[:, shard].tolist()),
                None if slot is None else SlotPlace(slot.address, tuple(starts[:, shard].tolist())),
            )
            for shard in range(num_shards)
        ]
        tickets = tuple(
            None
            if shard in self._lost
            else self._transport.exchange(shard, self._take_update(shard), request)
            for shard, request in enumerate(requests)
        )
        return _Request(tickets, masses / masses.sum(), counts, slot, update, time.monotonic())

    def _masses(self) -> np.ndarray:
        """The masses [S] known now; 0 for a lost shard."""
        shards = range(self._transport.num_shards)
        return np.array([0.0 if shard in self._lost else self._statuses[shard].mass for shard in shards])

    def _ask_statuses(self) -> None:
        for shard in range(self._transport.num_shards):
            if shard not in self._lost:
                self._ask_status(shard)

    def _ask_status(self, shard: int) -> None:
        """Notes the shard's status, or that it is lost: then its priorities have nowhere to go."""
        asked = time.monotonic()
        try:
            self._statuses[shard] = self._transport.status(shard)
        except ShardLostError:
            self._lost.add(shard)
            self._returned[shard].clear()
        self._waited_seconds += time.monotonic() - asked

    def _collect_all(self, tickets: Sequence[Ticket | None]) -> list[SampleReply | None] | None:
        """The replies, None where there was no ticket; or None if one did not come: its shard may be lost."""
        replies: list[SampleReply | None] = []
        for shard, ticket in enumerate(tickets):
            try:
                replies.append(None if ticket is None else self._collect(ticket))
            except ShardLostError:
                self._ask_status(shard)
        return replies if len(replies) == len(tickets) else None

    def _take_update(self, shard: int) -> PriorityUpdate | None:
        """All priorities given back for a shard and not sent yet, oldest first."""
        returned = self._returned[shard]
        if not returned:
            return None
        update = PriorityUpdate(
            np.concatenate([part.keys for part in returned]),
            np.concatenate([part.td_errors for part in returned]),
        )
        returned.clear()
        return update

    def _collect(self, ticket: Ticket) -> SampleReply:
        reply = self._transport.collect(ticket)
        self._statuses[reply.status.shard] = reply.status
        return reply

    def _prepare(self, reply: SampleReply) -> None:
        """Makes the staging buffers, once the first reply has shown dtypes and shapes."""
        shape = (self._prefetch.minibatches, self._batch_size)
        self._rows = {name: np.empty(shape, getattr(reply, name).dtype) for name in TRANSITION_FIELDS}
        self._window_arrays = tuple(
            WindowArray(name, window.dtype.str, shape + window.shape[1:])
            for name, window in reply.windows.items()
        )
        if sum(array.num_bytes for array in self._window_arrays) >= MIN_SLOT_BYTES:
            self._slots = SlotPool(self._window_arrays)

    def _stage(self, request: _Request[Ticket], replies: Sequence[SampleReply | None]) -> None:
        """Copies the replies into the staging buffer [K, B, ...], ordered by minibatch, then by shard."""
        if request.slot is not None:
            self._windows = request.slot.windows
            self._own_windows = {}
        else:
            if not self._own_windows:
                self._own_windows = {a.name: np.empty(a.shape, a.dtype) for a in self._window_arrays}
            self._windows = self._own_windows
        starts = _starts(request.counts)
        for shard, reply in enumerate(replies):
            if reply is None:
                continue
            if reply.counts != tuple(request.counts[:, shard]):
                raise RuntimeError(f"shard {shard} drew {reply.counts}, not {request.counts[:, shard]}")
            targets = [(self._rows[name], getattr(reply, name)) for name in TRANSITION_FIELDS]
            targets += [(self._windows[name], window) for name, window in reply.windows.items()]
            end = 0
            for k, count in enumerate(reply.counts):
                begin, end = end, end + count
                start = starts[k, shard]
                for target, source in targets:
                    target[k, start : start + count] = source[begin:end]


def _starts(counts: np.ndarray) -> np.ndarray:
    """Where each shard's rows begin in each minibatch, [K, S], for counts [K, S]."""
    starts: np.ndarray = np.cumsum(counts, axis=1) - counts
    return starts
