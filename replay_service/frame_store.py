"""A ring of frames, each stored once, addressed by absolute frame number.

Owns the frame arrays; must not import anything but numpy and `block`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from replay_service.block import FrameField


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
        # One modulo per transition: offsets then leave the ring by less than one turn, which take wraps.
        positions = (frame % self.num_frames)[:, None] + offset
        # Mode "raise" would gather into a buffer first and copy that to `out`.
        return {
            name: ring.take(positions, axis=0, out=None if out is None else out[name], mode="wrap")
            for name, ring in self._frames.items()
        }
