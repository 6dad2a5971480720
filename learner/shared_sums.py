"""Sums over ranks of one machine through memory that they share, where sockets take five times as long.

Owns this memory; must not import networks, the update step or the loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict

import torch
from torch import Tensor

from learner.torch_private import Store
from replay_service.host_memory import HostMemory, MemoryAddress, reach

FEWEST_BYTES = 64 << 10
"""Smaller tensors go through sockets, which take as long as ranks need to wait for each other."""
_ALIGNMENT = 64


def through_memory(
    sum_: Callable[[Tensor], None], store: Store, rank: int, size: int, num_bytes: int
) -> Callable[[Tensor], None]:
    """Like sum_, which goes through sockets, but faster for tensors of FEWEST_BYTES to num_bytes.

    It is sum_ itself where ranks cannot share memory: they are on several machines or in several containers.
    Each rank must call this, and then sum the same tensors in the same order. Raises RuntimeError if another
    rank is gone.
    """
    if num_bytes < FEWEST_BYTES:
        return sum_
    half = -(-num_bytes // _ALIGNMENT) * _ALIGNMENT
    own = None
    with suppress(OSError):  # no Linux, or no room
        own = HostMemory("qfleet-sums", 2 * half)
    memories = _memories(store, rank, size, own)
    able = torch.tensor([float(len(memories))])
    sum_(able)  # after which each rank has mapped what it needs
    del own
    # Each rank knows all memories, or no rank uses any.
    return _SharedSums(sum_, rank, memories, half) if able.item() == size * size else sum_


class _SharedSums:
    """Each rank writes into its own memory and reads that of all.

    Two halves take turns: once all ranks have written into one, all have read the other.
    """

    def __init__(
        self, sum_: Callable[[Tensor], None], rank: int, memories: Sequence[Tensor], half: int
    ) -> None:
        """memories: of each rank, [2 half] uint8."""
        self._sum = sum_
        self._rank = rank
        self._memories = memories
        self._half = half
        self._begins = 0
        self._written = torch.zeros(1)

    def __call__(self, tensor: Tensor) -> None:
        """Replaces the tensor in place by the sum over ranks, in their order: the same bits on each."""
        if not FEWEST_BYTES <= tensor.nbytes <= self._half:
            self._sum(tensor)
            return
        begins, self._begins = self._begins, self._half - self._begins
        parts = [
            memory[begins : begins + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
            for memory in self._memories
        ]
        parts[self._rank].copy_(tensor)
        self._sum(self._written)
        torch.add(parts[0], parts[1], out=tensor)
        for part in parts[2:]:
            tensor.add_(part)


def _memories(store: Store, rank: int, size: int, own: HostMemory | None) -> list[Tensor]:
    """The memory [uint8] of each rank, in their order, as far as this one reaches them."""
    store.set(f"memory of {rank}", "" if own is None else json.dumps(asdict(own.address)))
    memories = []
    for place in [store.get(f"memory of {other}").decode() for other in range(size)]:
        with suppress(OSError):  # the system grants no access
            if place and (mapping := reach(MemoryAddress(**json.loads(place)))) is not None:
                memories.append(torch.frombuffer(mapping, dtype=torch.uint8))
    return memories
