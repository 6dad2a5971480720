"""From minibatches in the sampler's memory to batches on the learner's device.

Owns staging buffers, and the stream and events that order copies; must not import networks or the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from learner.batch import Batch, batch_of, minibatch_arrays, to_batch
from replay_service.messages import Minibatch


class Uploaded(NamedTuple):
    """A batch on the device, and its minibatch, whose arrays stay as they are until the upload after next."""

    batch: Batch
    minibatch: Minibatch


Upload = Callable[[Minibatch], Uploaded]


def make_upload(stack: int, device: torch.device, *, staged: bool) -> Upload:
    """How minibatches become batches: `staged` where updates are queued, else as views of the minibatch."""
    return StagedUpload(stack, device) if staged else partial(_as_it_lies, stack, device)


def _as_it_lies(stack: int, device: torch.device, minibatch: Minibatch) -> Uploaded:
    return Uploaded(to_batch(minibatch, stack, device), minibatch)


@dataclass(eq=False)
class _Slot:
    """Buffers of one minibatch by name, on both sides.

    uploaded: recorded behind the copies; read: behind the update that reads the device's side. None on a CPU.
    """

    host: dict[str, Tensor]
    device: dict[str, Tensor]
    uploaded: torch.cuda.Event | None
    read: torch.cuda.Event | None


class StagedUpload:
    """Two slots in turn: one is filled and copied while the update of the other is computed.

    Frame windows go over once, as the bytes that they are: obs_tm1 and obs_t are views of them, and networks
    unpack them on the device. On CUDA the host's side is pinned and copies run on a stream of their own; the
    computing stream waits for them by events, and nobody else does but who fills a slot again. On a CPU the
    same code copies in place.

    Updates must be queued in the order of their uploads, each before the next upload.
    """

    def __init__(self, stack: int, device: torch.device) -> None:
        self._stack = stack
        self._device = device
        self._stream = _stream(device) if device.type == "cuda" else None
        self._slots: list[_Slot] = []
        self._uploads = 0

    def __call__(self, minibatch: Minibatch) -> Uploaded:
        """The minibatch may change once this returns."""
        arrays = minibatch_arrays(minibatch)
        if not self._slots:
            self._slots = [self._make_slot(arrays) for _ in range(2)]
        slot, previous = self._slots[self._uploads % 2], self._slots[(self._uploads + 1) % 2]
        self._uploads += 1
        if previous.read is not None:
            previous.read.record(torch.cuda.current_stream(self._device))
        if slot.uploaded is not None:
            slot.uploaded.synchronize()  # of two uploads ago
        for name, array in arrays.items():
            np.copyto(slot.host[name].numpy(), array)
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            if self._stream is not None and slot.read is not None:
                self._stream.wait_event(slot.read)
            for name, host in slot.host.items():
                slot.device[name].copy_(host, non_blocking=True)
            if slot.uploaded is not None:
                slot.uploaded.record(self._stream)
        if slot.uploaded is not None:
            torch.cuda.current_stream(self._device).wait_event(slot.uploaded)
        return Uploaded(batch_of(slot.device, self._stack), _held(minibatch, slot.host))

    def _make_slot(self, arrays: dict[str, np.ndarray]) -> _Slot:
        cuda = self._stream is not None
        host = {
            name: torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, pin_memory=cuda)
            for name, array in arrays.items()
        }
        device = {name: torch.empty_like(tensor, device=self._device) for name, tensor in host.items()}
        return _Slot(host, device, _event() if cuda else None, _event() if cuda else None)


def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event()  # type: ignore[no-untyped-call]


def _held(minibatch: Minibatch, host: dict[str, Tensor]) -> Minibatch:
    """The minibatch with its arrays in a slot, and copies of what no update reads."""
    arrays = {name: tensor.numpy() for name, tensor in host.items()}
    copies = {
        name: None if array is None else array.copy()
        for name, array in (
            ("keys", minibatch.keys),
            ("transitions_per_shard", minibatch.transitions_per_shard),
        )
    }
    return replace(
        minibatch,
        windows={name: arrays[name] for name in minibatch.windows},
        action=arrays["action"],
        reward=arrays["reward"],
        discount=arrays["discount"],
        weight=arrays["weight"],
        policy_version=minibatch.policy_version.copy(),
        keys=copies["keys"],
        transitions_per_shard=copies["transitions_per_shard"],
    )
