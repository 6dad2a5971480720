"""One replay shard: takes each block exactly once, draws transitions, takes priorities back.

Owns the order of operations; must not import ray or anything outside replay_service.
"""

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from replay_service.block import BlockSchema, TransitionBlock
from replay_service.codec import decode
from replay_service.config import ReplayConfig
from replay_service.extremes import largest
from replay_service.journal.delivered import Delivered
from replay_service.journal.durability import Durability, SealReply
from replay_service.journal.recovery import FoundJournal, RecoveryReport
from replay_service.messages import (
    InsertReply,
    PriorityUpdate,
    ProcessUsage,
    SampleReply,
    SampleRequest,
    ShardStatus,
)
from replay_service.selectors import PrioritizedSelector, Selector, UniformSelector
from replay_service.shard_meter import ShardMeter
from replay_service.transition_store import TransitionStore, frame_capacity
from replay_service.window_slots import SlotMapper

KEYS_PER_INCARNATION = 1 << 40


class SequenceGapError(RuntimeError):
    """A writer's push arrived before an earlier push of the same writer."""


class EmptyShardError(RuntimeError):
    """Transitions were requested, but none are held."""


class UnknownKeyError(ValueError):
    """A priority update names a key that the shard has not assigned yet."""


class ReplayShard:
    """Storage, priorities and counters of one shard. It keeps no reference to its arguments.

    Keys count transitions from about `incarnation * 2^40` on, so a priority for a key of an earlier
    incarnation is recognized: it is refused and counted.

    Attributes:
        store, selector: the transitions and their priorities, for reading.
    """

    def __init__(
        self,
        config: ReplayConfig,
        schema: BlockSchema,
        *,
        shard: int,
        incarnation: int,
        capacity: int,
        seed: np.random.SeedSequence,
        folder: Path | None = None,
        recovers_later: bool = False,
    ) -> None:
        """folder: where the journal is, if config.persist needs one; a journal found there is recovered.

        recovers_later: not here but by `recover`; whatever else is called first makes up for it.

        Raises ValueError if config.persist needs a folder and there is none, or if the journal has keys of
        this incarnation or a later one; OSError if the folder cannot be read.
        """
        first_key = incarnation * KEYS_PER_INCARNATION
        found: FoundJournal | None = None
        if config.persist not in (None, "none"):
            if folder is None:
                raise ValueError(f"replay.persist is {config.persist}, but the shard was given no folder")
            found = FoundJournal(folder)
            first_key = found.first_key(first_key, capacity)
        self._schema = schema
        self._first_key = first_key
        self._shard = shard
        self._incarnation = incarnation
        self._rng = np.random.default_rng(seed)
        self.store = TransitionStore(
            schema, capacity, frame_capacity(schema, capacity), first_key, config.compression
        )
        self.selector: Selector
        if config.sampling == "prioritized":
            self.selector = PrioritizedSelector(
                capacity, first_key, exponent=config.priority_exponent, epsilon=config.priority_epsilon
            )
        else:
            self.selector = UniformSelector(first_key)
        self._slots = SlotMapper()
        # 36 bytes are action, reward, discount, policy version, key and probability.
        transition_bytes = schema.window * sum(field.bytes_per_frame for field in schema.frame_fields) + 36
        self._meter = ShardMeter(config.num_shards, transition_bytes, capacity)
        self._heard: set[int] = set()  # writers that have pushed to this incarnation
        self._earlier = Delivered({}, 0, 0)
        self._delivered = self._earlier
        self._report: RecoveryReport | None = None
        self._durability: Durability | None = None
        self._config = config
        # Otherwise the journal grows by checkpoints only, each of which first drops what is evicted by then.
        self._journals_blocks = config.persist == "continuous"
        self._recovering = None if found is None else found.replay(schema, self.store, self.selector)
        if not recovers_later:
            self.recover()

    def recover(self, seconds: float = math.inf) -> bool:
        """Reads the journal for so long; returns whether that is done. Raises OSError."""
        deadline = time.monotonic() + seconds
        while self._recovering is not None:
            try:
                next(self._recovering)
            except StopIteration as end:
                journal, self._earlier, self._report = end.value
                self._delivered = self._earlier
                self._durability = Durability(self._config, journal, self.store, self.selector)
                self._meter.first_counted_key = self.store.next_key
                self._recovering = None
            if time.monotonic() >= deadline:
                break
        return self._recovering is None

    @property
    def recovery(self) -> RecoveryReport | None:
        """What could not be read back from the journal; None without a journal."""
        self.recover()
        return self._report

    def insert(self, encoded: np.ndarray) -> InsertReply:
        """Stores an encoded block ([bytes] uint8), unless it is held already or its writer was replaced.

        A writer's sequence starts at 0 with each of its incarnations. If this shard replaces another, the
        first push of a writer may be ahead: the pushes before it were lost with the other shard.

        Raises BlockError (malformed, or of another schema), CapacityError (too large) and SequenceGapError;
        nothing has changed then. Raises JournalFullError if the disk is full and that stops the run.
        """
        self.recover()
        self._meter.timer.enter("insert")
        block = decode(encoded, expected_schema=self._schema)
        replaced = block.incarnation < self._delivered.writers.get(block.writer, (0, 0))[0]
        accepted = not replaced and self._is_due(block)
        self._heard.add(block.writer)
        if accepted:
            self._store_block(block, encoded)
        elif replaced:
            self._meter.refused_pushes += 1
        else:
            self._meter.repeated_pushes += 1
        self._meter.timer.enter("idle")
        return InsertReply(accepted, self._status())

    def exchange(self, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        """Updates priorities, then draws: one call for the learner's whole round trip.

        Priorities are set in the order given; those of evicted keys are counted as late and ignored.

        Raises EmptyShardError if transitions are requested of an empty shard, UnknownKeyError for a key that
        is not assigned yet, ValueError for a TD error that is NaN, infinite or negative.
        """
        self.recover()
        self._meter.timer.enter("update")
        if update is not None:
            self._set_priorities(update)
        self._meter.timer.enter("sample")
        num_transitions = sum(request.counts)
        if num_transitions and not self.store.count:
            raise EmptyShardError(
                f"shard {self._shard} is empty and cannot draw {num_transitions} transitions"
            )
        if num_transitions:
            keys, probability = self.selector.draw(request.counts, self._rng)
        else:
            keys, probability = np.empty(0, np.int64), np.empty(0)
        parts = self._slots.parts(request.slot, request.counts) if request.slot is not None else None
        transitions = self.store.gather(keys, parts)
        self._meter.drawn(keys, self.store.next_key - 1)
        self._meter.timer.enter("idle")
        return SampleReply(
            **vars(transitions),
            status=self._status(),
            counts=request.counts,
            keys=keys,
            probability=probability,
        )

    def status(self, process: ProcessUsage | None = None) -> ShardStatus:
        """The shard's state, with the metrics of its work. process: that of a process of its own."""
        self.recover()
        metrics = self._meter.read(self.selector, self.store.count, process)
        return replace(self._status(), metrics=metrics)

    def seal_slice(self, into: Path) -> SealReply:
        """Works for less than 50 ms on a checkpoint of all that is held; call it until the reply is done.

        Inserts and draws may happen between slices. Only what is new since the last checkpoint is written.
        The checkpoint's files are linked into folder `into`, where they never change.

        Raises RuntimeError if replay.persist is none, JournalFullError if the disk is full and that stops the
        run.
        """
        self.recover()
        if self._durability is None:
            raise RuntimeError("replay.persist is none: there is no journal to seal")
        return self._durability.seal_slice(into, self._delivered)

    def close(self) -> None:
        """Closes the journal's files, if there are any."""
        if self._durability is not None:
            self._durability.close()

    def _status(self) -> ShardStatus:
        delivered, earlier, meter = self._delivered, self._earlier, self._meter
        inserted = delivered.inserted_transitions_total - earlier.inserted_transitions_total
        return ShardStatus(
            shard=self._shard,
            incarnation=self._incarnation,
            count=self.store.count,
            mass=self.selector.mass,
            min_priority=self.selector.min_priority,
            inserted_transitions_total=inserted,
            env_steps_total=delivered.env_steps_total - earlier.env_steps_total,
            evicted_transitions_total=meter.evicted_transitions,
            sampled_transitions_total=meter.sampled_transitions,
            late_priorities_total=meter.late_priorities,
            stored_bytes=self.store.stored_bytes + self.selector.nbytes,
            earlier_transitions_total=earlier.inserted_transitions_total,
            earlier_env_steps_total=earlier.env_steps_total,
            journal_error=None if self._durability is None else self._durability.error,
        )

    def _store_block(self, block: TransitionBlock, encoded: np.ndarray) -> None:
        oldest_key = self.store.oldest_key
        first_key = self.store.insert(block)
        self.selector.insert(first_key, block.priority, self.store.oldest_key)
        if self._durability is not None and self._journals_blocks:
            self._durability.inserted(encoded, first_key, self._delivered)
        self._delivered = self._delivered.after(block)
        self._meter.evicted(oldest_key, self.store.oldest_key)
        self._meter.inserted_bytes += encoded.nbytes

    def _is_due(self, block: TransitionBlock) -> bool:
        """Whether this is the writer's next push; False if it is held already."""
        incarnation, due = self._delivered.writers.get(block.writer, (block.incarnation, 0))
        if block.incarnation > incarnation:
            due = 0
        if block.sequence > due and (self._incarnation == 0 or block.writer in self._heard):
            raise SequenceGapError(
                f"writer {block.writer} (incarnation {block.incarnation}) sent push {block.sequence} "
                f"to shard {self._shard}, which expects push {due}"
            )
        return block.sequence >= due

    def _set_priorities(self, update: PriorityUpdate) -> None:
        keys, td_errors = update.keys, update.td_errors
        if len(keys) != len(td_errors):
            raise ValueError(f"{len(keys)} keys but {len(td_errors)} TD errors")
        if len(keys) == 0:
            return
        if largest(keys) >= self.store.next_key:
            raise UnknownKeyError(
                f"key {largest(keys)} is unknown: the newest of shard {self._shard} is "
                f"{self.store.next_key - 1}"
            )
        held = keys >= self.store.oldest_key
        num_held = int(np.count_nonzero(held))
        if num_held < len(keys):
            refused = int(np.count_nonzero(keys < self._first_key))
            keys, td_errors = keys[held], td_errors[held]
            self._meter.refused_priorities += refused
            self._meter.late_priorities += len(held) - num_held - refused
        self.selector.set_priorities(keys, td_errors)
