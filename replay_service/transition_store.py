"""The transitions of one shard: a ring of small records, beside a ring of frames.

Owns the records and early eviction; must not import anything but numpy, `block`, `config`, `messages`
and the frame stores.
"""

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np

from replay_service.block import BlockSchema, TransitionBlock
from replay_service.config import Compression
from replay_service.frame_store import CompressedFrameStore, FrameStore
from replay_service.messages import Transitions

SMALL_FRAME_BYTES = 1024
SLACK_FRAMES = 1024

# One record per transition, not one array per field: a draw then costs one cache miss instead of seven.
# history: frames before obs_frame that its stack may use; next_offset: next_frame - obs_frame.
TRANSITION_DTYPE = np.dtype(
    [
        ("obs_frame", np.int64),
        ("policy_version", np.int64),
        ("action", np.int32),
        ("reward", np.float32),
        ("discount", np.float32),
        ("next_offset", np.uint16),
        ("history", np.uint8),
    ],
    align=True,
)
_COPIED = ("policy_version", "action", "reward", "discount")
"""Fields that a record copies from a block unchanged."""


class CapacityError(ValueError):
    """A block is larger than the whole shard."""


def frame_capacity(schema: BlockSchema, capacity: int) -> int:
    """The number of frames that a shard of `capacity` transitions keeps.

    For small frames it is twice the capacity, enough for episodes of a single step. For images, where memory
    matters, it is 4 % above the capacity: blocks are so long that they repeat few frames. If frames run out,
    transitions are evicted early.
    """
    small = sum(field.bytes_per_frame for field in schema.frame_fields) <= SMALL_FRAME_BYTES
    return capacity + max(capacity if small else capacity // 25, SLACK_FRAMES)


class TransitionStore:
    """The newest transitions: those with keys in [oldest_key, next_key). Key k lies at k % capacity."""

    def __init__(
        self,
        schema: BlockSchema,
        capacity: int,
        num_frames: int,
        first_key: int,
        compression: Compression = "none",
    ) -> None:
        self.capacity = capacity
        self.oldest_key = first_key
        self.next_key = first_key
        self._first_key = first_key
        self._records = np.empty(capacity, TRANSITION_DTYPE)
        self._frames: FrameStore | CompressedFrameStore
        if compression == "lz4":
            self._frames = CompressedFrameStore(schema.frame_fields, num_frames, schema.span)
        else:
            self._frames = FrameStore(schema.frame_fields, num_frames)
        self._schema = schema
        # Offsets of a stack's frames from the transition's frame; and of both stacks with one-step returns:
        # the next one lies one frame further on, so the two overlap in all but one frame.
        self._stack = np.arange(1 - schema.stack, 1)[:, None]
        self._overlapping_stacks = np.arange(1 - schema.stack, 2)[:, None]
        # (key after a block's last transition, its first frame), oldest first: bounds eviction's search.
        self._blocks: deque[tuple[int, int]] = deque()

    @property
    def count(self) -> int:
        """Number of transitions held."""
        return self.next_key - self.oldest_key

    @property
    def stored_bytes(self) -> int:
        """Bytes of transitions and frames written so far."""
        num_written = min(self.next_key - self._first_key, self.capacity)
        return num_written * TRANSITION_DTYPE.itemsize + self._frames.stored_bytes

    def insert(self, block: TransitionBlock) -> int:
        """Copies a block in, evicts the oldest transitions, and returns the key of the block's first one.

        Raises CapacityError, before anything is changed, for a block that would not fit an empty store.
        """
        if block.num_transitions > self.capacity or block.num_frames > self._frames.num_frames:
            raise CapacityError(
                f"a block of {block.num_transitions} transitions and {block.num_frames} frames does not fit "
                f"a shard of {self.capacity} transitions and {self._frames.num_frames} frames: "
                "push smaller blocks, raise replay.capacity or lower replay.num_shards"
            )
        self._evict_for(block)
        first_frame = self._frames.append(block.frames)
        records = np.empty(block.num_transitions, TRANSITION_DTYPE)
        records["obs_frame"] = block.obs_frame.astype(np.int64) + first_frame
        for name in _COPIED:
            records[name] = getattr(block, name)
        records["next_offset"] = block.next_frame - block.obs_frame
        records["history"] = np.minimum(block.obs_frame - block.first_frame, self._schema.stack - 1)
        first_key = self.next_key
        start = first_key % self.capacity
        head = min(block.num_transitions, self.capacity - start)
        self._records[start : start + head] = records[:head]
        self._records[: block.num_transitions - head] = records[head:]
        self.next_key += block.num_transitions
        if block.num_transitions:
            self._blocks.append((self.next_key, first_frame))
        return first_key

    def gather(
        self, keys: np.ndarray, parts: Sequence[Mapping[str, np.ndarray]] | None = None
    ) -> Transitions:
        """Copies of the transitions with keys [M] int64, all of them held.

        A stack is the `stack` frames that end in the transition's frame, clamped at its first frame.

        parts: if given, arrays that the windows are copied to, one part after the other (name ->
        [m, W, *shape], the m add up to M); the result then has no windows.
        """
        records = self._records.take(keys % self.capacity)
        if self._schema.n_step == 1:
            offset = self._overlapping_stacks
        else:
            following = self._stack + records["next_offset"]
            offset = np.concatenate([np.broadcast_to(self._stack, following.shape), following])
        # [W, M], so that numpy's inner loops are long.
        offset = np.maximum(offset, -records["history"].astype(np.int64))
        copies = {name: records[name].copy() for name in _COPIED}
        return Transitions(self._gather_windows(records["obs_frame"], offset.T, parts), **copies)

    def _gather_windows(
        self, frame: np.ndarray, offset: np.ndarray, parts: Sequence[Mapping[str, np.ndarray]] | None
    ) -> dict[str, np.ndarray]:
        if parts is None:
            return self._frames.gather(frame, offset)
        end = 0
        for part in parts:
            begin, end = end, end + len(next(iter(part.values())))
            self._frames.gather(frame[begin:end], offset[begin:end], part)
        return {}

    def rebuild(self, key: int) -> tuple[int, TransitionBlock]:
        """The held transitions from `key` to the end of their block, as a block; and the key after them.

        Fields that a shard does not keep are 0: sender, env_steps, one_step_reward, end and priority.
        """
        place = next(i for i, (end_key, _) in enumerate(self._blocks) if end_key > key)
        end_key = self._blocks[place][0]
        is_last = place + 1 == len(self._blocks)
        end_frame = self._frames.next_frame if is_last else self._blocks[place + 1][1]
        records = self._records[np.arange(key, end_key) % self.capacity]
        lowest = records["obs_frame"] - records["history"]
        # These transitions need no frame below, and the store may hold none.
        first_frame = int(lowest.min())
        frames = self._frames.gather(
            np.arange(first_frame, end_frame), np.zeros((end_frame - first_frame, 1), np.int64)
        )
        obs_frame = (records["obs_frame"] - first_frame).astype(np.int32)
        block = TransitionBlock(
            schema=self._schema,
            writer=0,
            incarnation=0,
            sequence=0,
            env_steps=0,
            frames={name: array[:, 0] for name, array in frames.items()},
            action=records["action"],
            reward=records["reward"],
            discount=records["discount"],
            one_step_reward=np.zeros(len(records), np.float32),
            end=np.zeros(len(records), np.uint8),
            policy_version=records["policy_version"],
            obs_frame=obs_frame,
            next_frame=obs_frame + records["next_offset"],
            first_frame=(lowest - first_frame).astype(np.int32),
            priority=np.zeros(len(records), np.float32),
        )
        return end_key, block

    def _evict_for(self, block: TransitionBlock) -> None:
        """Raises oldest_key until the block fits and no held transition needs a frame that it overwrites."""
        self.oldest_key = max(self.oldest_key, self.next_key + block.num_transitions - self.capacity)
        oldest_frame = self._frames.oldest_after(block.num_frames)
        while self._blocks:
            end_key, first_frame = self._blocks[0]
            if end_key > self.oldest_key:
                if first_frame >= oldest_frame:
                    return
                keys = np.arange(self.oldest_key, end_key)
                records = self._records[keys % self.capacity]
                doomed = np.flatnonzero(records["obs_frame"] - records["history"] < oldest_frame)
                # A block's transitions refer to its frames in any order, but keys leave strictly by age.
                self.oldest_key += int(doomed[-1]) + 1 if len(doomed) else 0
                if self.oldest_key < end_key:
                    return
            self._blocks.popleft()
