"""The frames of one shard: a ring over preallocated arrays, or one whose large byte images are compressed.

Owns the frame arrays and segments; must not import anything but numpy, `block` and lz4, which only a
compressed store imports.
"""

import sys
from collections.abc import Mapping

import numpy as np

from replay_service.block import FrameField

# For smaller frames, the overhead of a segment is larger than what compression saves.
MIN_COMPRESSED_BYTES = 256
MIN_STRIDE_FRAMES = 4
# High compression writes a frame in 13 us instead of 1.5, but segments are a fifth smaller and read faster.
LZ4_LEVEL = 3


class FrameStore:
    """The newest `num_frames` frames of every field; frame number f lies at f % num_frames.

    Frames never written are 0, and their pages take no memory.
    """

    def __init__(self, fields: tuple[FrameField, ...], num_frames: int) -> None:
        self.num_frames = num_frames
        self.next_frame = 0
        self._bytes_per_frame = sum(field.bytes_per_frame for field in fields)
        self._frames = {field.name: np.zeros((num_frames, *field.shape), field.dtype) for field in fields}

    @property
    def stored_bytes(self) -> int:
        """Bytes written so far."""
        return min(self.next_frame, self.num_frames) * self._bytes_per_frame

    def oldest_after(self, num_new: int) -> int:
        """The lowest frame number that is held after `num_new` more frames are appended."""
        return max(0, self.next_frame + num_new - self.num_frames)

    def append(self, frames: Mapping[str, np.ndarray]) -> int:
        """Copies F frames in (name -> [F, *shape], F <= num_frames); returns the number of the first."""
        first = self.next_frame
        start = first % self.num_frames
        num_new = len(next(iter(frames.values())))
        head = min(num_new, self.num_frames - start)
        for name, ring in self._frames.items():
            ring[start : start + head] = frames[name][:head]
            ring[: num_new - head] = frames[name][head:]
        self.next_frame += num_new
        return first

    def gather(
        self, frame: np.ndarray, offset: np.ndarray, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Copies of the frames `frame[:, None] + offset`: name -> [M, W, *shape].

        frame: [M] int64 absolute numbers; offset: [M, W] int64, absolute values below num_frames; out:
        contiguous arrays to copy into instead of new ones. The caller guarantees that all frames are held.
        """
        # One modulo per transition is enough: with its offset, a position is less than one turn outside the
        # ring, and `take` wraps it.
        positions = (frame % self.num_frames)[:, None] + offset
        # Mode "raise" would gather into a buffer first and copy that to `out`.
        return {
            name: ring.take(positions, axis=0, out=None if out is None else out[name], mode="wrap")
            for name, ring in self._frames.items()
        }


def is_compressed(field: FrameField) -> bool:
    """Whether frames of this field are compressed: MIN_COMPRESSED_BYTES or more values of one byte each.

    Numbers of several bytes hardly compress.
    """
    return np.dtype(field.dtype).itemsize == 1 and field.bytes_per_frame >= MIN_COMPRESSED_BYTES


def segment_frames(span: int) -> tuple[int, int]:
    """Stride and length of segments, in frames, for windows that span `span` frames."""
    stride = max(MIN_STRIDE_FRAMES, -(-span // 2))
    return stride, stride + span - 1


class CompressedFrameStore:
    """The newest `num_frames` frames of every field, with the interface of FrameStore.

    Segment s holds `stride + span - 1` frames from number s * stride on, so any `span` consecutive frames lie
    within one segment and a window costs one decompression. A frame is stored up to three times; at these
    compression ratios that is cheaper than decompressing two segments per window.

    A segment never holds frames of two `append` calls, and each call begins at a multiple of stride, so some
    frame numbers stay unused. A segment is freed when the ring reaches its slot again.
    """

    def __init__(self, fields: tuple[FrameField, ...], num_frames: int, span: int) -> None:
        """span: largest number of frames from the first to the last of a window, both included."""
        # Imported here because uncompressed shards do not need it.
        from lz4 import block as lz4_block

        self._compress = lz4_block.compress
        self._decompress = lz4_block.decompress
        self._stride, self._length = segment_frames(span)
        self._num_segments = -(-num_frames // self._stride)
        self.num_frames = self._num_segments * self._stride
        self.next_frame = 0
        self._fields = fields
        self._segments: dict[str, list[bytes | None]] = {
            field.name: [None] * self._num_segments for field in filter(is_compressed, fields)
        }
        self._segment_bytes = sum(map(sys.getsizeof, self._segments.values()))
        self._plain = FrameStore(
            tuple(field for field in fields if not is_compressed(field)), self.num_frames
        )

    @property
    def stored_bytes(self) -> int:
        """Bytes held, including Python's overhead for each segment."""
        return self._segment_bytes + self._plain.stored_bytes

    def oldest_after(self, num_new: int) -> int:
        """See FrameStore."""
        return max(0, self.next_frame + self._padded(num_new) - self.num_frames)

    def append(self, frames: Mapping[str, np.ndarray]) -> int:
        """See FrameStore."""
        first = self.next_frame
        num_new = len(next(iter(frames.values())))
        for name, segments in self._segments.items():
            for begin in range(0, num_new, self._stride):
                segment: bytes = self._compress(
                    np.ascontiguousarray(frames[name][begin : begin + self._length]),
                    mode="high_compression",
                    compression=LZ4_LEVEL,
                    store_size=False,
                )
                slot = (first + begin) // self._stride % self._num_segments
                evicted = segments[slot]
                segments[slot] = segment
                self._segment_bytes += sys.getsizeof(segment)
                self._segment_bytes -= 0 if evicted is None else sys.getsizeof(evicted)
        self._plain.next_frame = first
        self._plain.append(frames)
        self.next_frame = first + self._padded(num_new)
        return first

    def gather(
        self, frame: np.ndarray, offset: np.ndarray, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """See FrameStore. A window spans at most `span` frames, all of one `append`."""
        numbers = frame[:, None] + offset
        segment = numbers.min(axis=1, initial=np.iinfo(np.int64).max) // self._stride
        positions = numbers - (segment * self._stride)[:, None]
        slots = (segment % self._num_segments).tolist()
        windows = self._plain.gather(frame, offset, out)
        for field in filter(is_compressed, self._fields):
            target = np.empty((*numbers.shape, *field.shape), field.dtype) if out is None else out[field.name]
            self._unpack(field, slots, positions, target)
            windows[field.name] = target
        return {field.name: windows[field.name] for field in self._fields}

    def _unpack(self, field: FrameField, slots: list[int], positions: np.ndarray, target: np.ndarray) -> None:
        """Fills target [M, W, *shape]: target[m] with frames positions[m] of the segment in slots[m]."""
        segments = self._segments[field.name]
        frame_bytes = field.bytes_per_frame
        at_most_bytes = self._length * frame_bytes
        # One item per frame, so that no window needs a reshape of its own.
        item = np.dtype((np.void, frame_bytes))
        num_transitions, width = positions.shape
        windows = target.reshape(num_transitions, width * frame_bytes).view(item)
        for slot, position, window in zip(slots, positions, windows, strict=True):
            data = self._decompress(segments[slot], uncompressed_size=at_most_bytes)
            # Mode "raise" would gather into a buffer first and copy that to `out`.
            np.frombuffer(data, item).take(position, out=window, mode="clip")

    def _padded(self, num_frames: int) -> int:
        return -(-num_frames // self._stride) * self._stride
