"""From minibatches in the sampler's memory to batches on the learner's device.

Owns staging buffers, and the stream and events that order copies; must not import networks or the loop.
"""

from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from learner.batch import Batch, batch_of
from learner.core import minibatch_arrays
from replay_service.messages import Minibatch


@dataclass(eq=False)
class _Slot:
    """Buffers of one minibatch by name, in the host's memory and the device's.

    Events: `uploaded` is recorded after the copies, `read` after the update that reads them; None on a CPU.
    """

    host: dict[str, Tensor]
    device: dict[str, Tensor]
    uploaded: torch.cuda.Event | None
    read: torch.cuda.Event | None


class StagedUpload:
    """Two slots in turn: one is filled and copied while the update on the other is computed.

    Frame windows are copied once, as bytes: obs_tm1 and obs_t are views of them, and networks unpack them on
    the device. On CUDA the host's buffers are pinned, and copies run on a stream of their own. The computing
    stream waits for them by events; the CPU waits only before it fills a slot again. On a CPU the same code
    copies without streams and events.

    Updates must be queued in the order of their uploads, each before the next upload.
    """

    def __init__(self, stack: int, device: torch.device) -> None:
        self._stack = stack
        self._device = device
        cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if cuda else None  # type: ignore[no-untyped-call]
        self._slots: list[_Slot] = []
        self._uploads = 0

    def __call__(self, minibatch: Minibatch) -> tuple[Batch, Minibatch]:
        """Copies a minibatch: to a batch on the device, and into a slot's arrays. It may then be reused."""
        arrays = minibatch_arrays(minibatch)
        if not self._slots:
            self._slots = [self._make_slot(arrays) for _ in range(2)]
        slot, previous = self._slots[self._uploads % 2], self._slots[(self._uploads + 1) % 2]
        self._uploads += 1
        if previous.read is not None:
            previous.read.record(torch.cuda.current_stream(self._device))
        if slot.uploaded is not None:
            slot.uploaded.synchronize()  # with the last upload from this slot
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
        return batch_of(slot.device, self._stack), _in_slot(minibatch, slot.host)

    def _make_slot(self, arrays: dict[str, np.ndarray]) -> _Slot:
        cuda = self._stream is not None
        host = {
            name: torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, pin_memory=cuda)
            for name, array in arrays.items()
        }
        device = {name: torch.empty_like(tensor, device=self._device) for name, tensor in host.items()}
        uploaded, read = (torch.cuda.Event() if cuda else None for _ in range(2))  # type: ignore[no-untyped-call]
        return _Slot(host, device, uploaded, read)


def _in_slot(minibatch: Minibatch, host: dict[str, Tensor]) -> Minibatch:
    """The minibatch with its arrays in a slot's buffers, and copies of those that no update reads."""
    arrays = {name: tensor.numpy() for name, tensor in host.items()}
    return replace(
        minibatch,
        windows={name: arrays[name] for name in minibatch.windows},
        action=arrays["action"],
        reward=arrays["reward"],
        discount=arrays["discount"],
        weight=arrays["weight"],
        policy_version=minibatch.policy_version.copy(),
        keys=_copy(minibatch.keys),
        transitions_per_shard=_copy(minibatch.transitions_per_shard),
    )


def _copy(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.copy()
