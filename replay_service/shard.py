"""One replay shard: takes blocks exactly once, draws rows, takes priorities back.

Owns the order of operations and the counters; must not import ray or anything outside replay_service.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from time import perf_counter

import numpy as np

from replay_service.block import BlockSchema, TransitionBlock
from replay_service.codec import decode
from replay_service.config import ReplayConfig
from replay_service.journal.durability import Durability, SealReply
from replay_service.journal.recovery import FoundJournal, RecoveryReport
from replay_service.journal.segments import SEGMENT_BYTES, Delivered, Journal
from replay_service.messages import InsertReply, PriorityUpdate, SampleReply, SampleRequest, ShardStatus
from replay_service.selectors import PrioritizedSelector, Selector, UniformSelector
from replay_service.shard_meter import ShardMeter
from replay_service.transition_store import TransitionStore, frame_capacity
from replay_service.window_slots import SlotMapper

KEYS_PER_INCARNATION = 1 << 40


class SequenceGapError(RuntimeError):
    """A writer's push came before the one that precedes it."""


class EmptyShardError(RuntimeError):
    """Rows were asked of a shard that holds none."""


class UnknownKeyError(ValueError):
    """A priority came for a key that this shard has not given out yet."""


class ReplayShard:
    """Storage, priorities and counters of one shard.

    Keys count inserts from `incarnation * 2^40`: a priority meant for an earlier incarnation is merely late.
    Nothing here keeps a reference to what is passed in.
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
    ) -> None:
        """folder: where the journal is, if config.persist asks for one; what it holds is recovered first.

        Raises ValueError where there is no folder then, or its journal has keys of this incarnation; OSError.
        """
        first_key = incarnation * KEYS_PER_INCARNATION
        found: FoundJournal | None = None
        if config.persist not in (None, "none"):
            if folder is None:
                raise ValueError(f"replay.persist is {config.persist}, but the shard was given no folder")
            found = FoundJournal(folder)
            first_key = found.first_key(first_key, capacity)
        self._schema = schema
        self._shard = shard
        self._incarnation = incarnation
        self._rng = np.random.default_rng(seed)
        num_frames = frame_capacity(schema, capacity)
        self._store = TransitionStore(schema, capacity, num_frames, first_key, config.compression)
        self._selector: Selector
        if config.sampling == "uniform":
            self._selector = UniformSelector(capacity, first_key)
        else:
            self._selector = PrioritizedSelector(
                capacity, first_key, exponent=config.priority_exponent, epsilon=config.priority_epsilon
            )
        self._slots = SlotMapper()
        self._capacity = capacity
        self._meter = ShardMeter(config.num_shards, _transition_bytes(schema))
        # Writer -> its incarnation and the sequence number due next.
        self._writers: dict[int, tuple[int, int]] = {}
        self._inserted_transitions_total = 0
        self._env_steps_total = 0
        self._evicted_transitions_total = 0
        self._sampled_transitions_total = 0
        self._late_priorities_total = 0
        self._heard: set[int] = set()
        self._earlier_transitions_total = 0
        self._earlier_env_steps_total = 0
        self.recovery: RecoveryReport | None = None
        self._durability: Durability | None = None
        if found is not None and folder is not None:
            journal = Journal(
                folder, number=found.next_number, next_key=first_key, segment_bytes=SEGMENT_BYTES
            )
            earlier, self.recovery = found.replay(schema, self._store, self._selector, journal)
            journal.next_key = self._store.next_key
            self._writers = dict(earlier.writers)
            self._earlier_transitions_total = earlier.inserted_transitions_total
            self._earlier_env_steps_total = earlier.env_steps_total
            self._durability = Durability(config, journal, self._store, self._selector, self._delivered)

    def insert(self, encoded: np.ndarray) -> InsertReply:
        """Stores an encoded block ([bytes] uint8) unless it is held already or its writer was replaced.

        A writer's sequence starts at 0 with each of its incarnations. Where this shard replaces another, the
        first push of each writer may be ahead of what is known: the pushes between died with the other.

        Raises BlockError (malformed, or of another schema), CapacityError (too large) and SequenceGapError;
        in each case nothing was changed. Raises JournalFullError where a full disk shall stop the run.
        """
        began = perf_counter()
        block = decode(encoded, expected_schema=self._schema)
        is_due = self._is_due(block)
        self._heard.add(block.writer)
        if not is_due:
            self._meter.refused()
            return InsertReply(accepted=False, status=self._status())
        oldest_key = self._store.oldest_key
        first_key = self._store.insert(block)
        self._selector.insert(first_key, block.priority)
        self._selector.evict_before(self._store.oldest_key)
        if self._durability is not None:
            self._durability.inserted(encoded, first_key)
        self._writers[block.writer] = (block.incarnation, block.sequence + 1)
        self._inserted_transitions_total += block.num_transitions
        self._env_steps_total += block.env_steps
        self._evicted_transitions_total += self._store.oldest_key - oldest_key
        self._meter.inserted(encoded.nbytes, perf_counter() - began)
        return InsertReply(accepted=True, status=self._status())

    def exchange(self, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        """Takes priorities, then draws: one call for the learner's whole round trip.

        Raises EmptyShardError where rows are asked of an empty shard, and as update_priorities does.
        """
        began = perf_counter()
        if update is not None:
            self._set_priorities(update)
        updated = perf_counter()
        num_transitions = sum(request.counts)
        if num_transitions and not self._store.count:
            raise EmptyShardError(f"shard {self._shard} was asked for {num_transitions} rows but holds none")
        if num_transitions:
            keys, probability = self._selector.draw(request.counts, self._rng)
        else:
            keys, probability = np.empty(0, np.int64), np.empty(0)
        parts = self._slots.parts(request.slot, request.counts) if request.slot is not None else None
        rows = self._store.gather(keys, parts)
        self._sampled_transitions_total += num_transitions
        self._meter.exchanged(keys, self._store.next_key - 1, updated - began, perf_counter() - updated)
        return SampleReply(
            status=self._status(),
            counts=request.counts,
            windows=rows.windows,
            action=rows.action,
            reward=rows.reward,
            discount=rows.discount,
            policy_version=rows.policy_version,
            keys=keys,
            probability=probability,
        )

    def update_priorities(self, update: PriorityUpdate) -> ShardStatus:
        """Sets the priorities of the keys still held, in the order given; counts the others as late.

        Raises UnknownKeyError for a key not given out yet, ValueError for a TD error that is NaN, infinite or
        negative.
        """
        self._set_priorities(update)
        return self._status()

    def status(self) -> ShardStatus:
        """How the shard stands, with the metrics of its work."""
        metrics = self._meter.read(
            self._selector, self._store.count, self._capacity, self._sampled_transitions_total
        )
        return replace(self._status(), metrics=metrics)

    def _status(self) -> ShardStatus:
        return ShardStatus(
            shard=self._shard,
            incarnation=self._incarnation,
            count=self._store.count,
            mass=self._selector.mass,
            min_priority=self._selector.min_priority,
            inserted_transitions_total=self._inserted_transitions_total,
            env_steps_total=self._env_steps_total,
            evicted_transitions_total=self._evicted_transitions_total,
            sampled_transitions_total=self._sampled_transitions_total,
            late_priorities_total=self._late_priorities_total,
            stored_bytes=self._store.stored_bytes + self._selector.nbytes,
            earlier_transitions_total=self._earlier_transitions_total,
            earlier_env_steps_total=self._earlier_env_steps_total,
            journal_error=None if self._durability is None else self._durability.error,
        )

    def seal_slice(self, into: Path) -> SealReply:
        """A slice, below 50 ms, of making all that is held durable; ask again until the reply is done.

        Inserts and draws may come between slices. Only what is new since the last cut is written; the files
        of the cut are linked into folder `into`, which then is the owner of a cut that never changes.

        Raises RuntimeError where nothing is to be persisted, JournalFullError where a full disk shall stop
        the run, OSError for a disk that fails otherwise.
        """
        if self._durability is None:
            raise RuntimeError("replay.persist is none: there is no journal to seal")
        return self._durability.seal_slice(into)

    def close(self) -> None:
        """Closes the journal's files, if there are any."""
        if self._durability is not None:
            self._durability.close()

    def _delivered(self) -> Delivered:
        return Delivered(
            dict(self._writers),
            self._earlier_transitions_total + self._inserted_transitions_total,
            self._earlier_env_steps_total + self._env_steps_total,
        )

    def _is_due(self, block: TransitionBlock) -> bool:
        """Whether this is the writer's next push; False if it is held already or its incarnation is over."""
        incarnation, due = self._writers.get(block.writer, (block.incarnation, 0))
        if block.incarnation > incarnation:
            due = 0
        elif block.incarnation < incarnation:
            return False
        if block.sequence > due and (self._incarnation == 0 or block.writer in self._heard):
            raise SequenceGapError(
                f"writer {block.writer} (incarnation {block.incarnation}) sent push {block.sequence} "
                f"to shard {self._shard}, which waits for push {due}"
            )
        return block.sequence >= due

    def _set_priorities(self, update: PriorityUpdate) -> None:
        keys, td_errors = update.keys, update.td_errors
        if len(keys) != len(td_errors):
            raise ValueError(f"{len(keys)} keys but {len(td_errors)} TD errors")
        if len(keys) == 0:
            return
        if keys.max() >= self._store.next_key:
            raise UnknownKeyError(
                f"key {keys.max()}; shard {self._shard} has given out {self._store.next_key - 1}"
            )
        held = keys >= self._store.oldest_key
        num_held = int(np.count_nonzero(held))
        if num_held < len(keys):
            keys, td_errors = keys[held], td_errors[held]
            self._late_priorities_total += len(held) - num_held
        self._selector.set_priorities(keys, td_errors)


def _transition_bytes(schema: BlockSchema) -> int:
    """Bytes of one sampled row: its windows, and action, reward, discount, version, key and probability."""
    return schema.window * sum(field.bytes_per_frame for field in schema.frame_fields) + 36
