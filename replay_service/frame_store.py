"""A ring of frames, each held once, addressed by absolute frame number.

Owns the frame arrays; must not import anything but numpy and `block`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from replay_service.block import FrameField


class FrameStore:
    """The newest `num_frames` frames of every field; frame number f lies at f % num_frames for ever.

    The arrays are np.empty: the operating system gives a page only when it is first written.
    """

    def __init__(self, fields: tuple[FrameField, ...], num_frames: int) -> None:
        self.num_frames = num_frames
        self.next_frame = 0
        self._bytes_per_frame = sum(field.bytes_per_frame for field in fields)
        self._frames = {field.name: np.empty((num_frames, *field.shape), field.dtype) for field in fields}

    @property
    def stored_bytes(self) -> int:
        """Bytes written so far."""
        return min(self.next_frame, self.num_frames) * self._bytes_per_frame

    def oldest_after(self, num_new: int) -> int:
        """The lowest frame number still held once `num_new` more frames are appended."""
        return max(0, self.next_frame + num_new - self.num_frames)

    def append(self, frames: Mapping[str, np.ndarray]) -> int:
        """Copies F frames (name -> [F, *shape], F <= num_frames) in; returns the number of the first."""
        first = self.next_frame
        start = first % self.num_frames
        for name, ring in self._frames.items():
            new = frames[name]
            head = min(len(new), self.num_frames - start)
            ring[start : start + head] = new[:head]
            ring[: len(new) - head] = new[head:]
        self.next_frame += len(new)
        return first

    def gather(
        self, frame: np.ndarray, offset: np.ndarray, out: Mapping[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Copies of the frames `frame[:, None] + offset`: name -> [M, W, *shape].

        frame: [M] int64 absolute numbers; offset: [M, W] int64, smaller than num_frames in size; out: arrays
        to copy into instead of new ones, contiguous. The caller vouches that all frames are still held.
        """
        # Reduced once a row; the offsets then leave the ring by less than one turn, which take's wrap folds.
        positions = (frame % self.num_frames)[:, None] + offset
        # Wrap also spares a copy: into an `out` that may fail half-way, as with "raise", take writes last.
        return {
            name: ring.take(positions, axis=0, out=None if out is None else out[name], mode="wrap")
            for name, ring in self._frames.items()
        }
