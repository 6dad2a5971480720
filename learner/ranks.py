"""The ranks of a learner: processes that apply the same updates, each of them to its part of every minibatch.

Owns what ranks tell each other and how they sum up; must not import networks, the update step or the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from learner.config import part_sizes
from learner.core import Meeting
from learner.shared_sums import through_memory
from learner.torch_private import Store, connect_sums, join_store, serve_store


class RankLostError(RuntimeError):
    """Another rank cannot be reached: its process or its machine is gone."""


class Intent(NamedTuple):
    """What a rank knows before an update; or what all ranks know together.

    is_empty: it could not draw its part of the minibatch; together: any rank could not, so nobody learns.
    is_late: its time is over; together: any rank's is, so this update is the last one of the chunk.
    largest_weight: see Minibatch; together: the largest of all ranks.
    """

    is_empty: bool
    is_late: bool
    largest_weight: float


class Others(NamedTuple):
    """How many transitions of a minibatch come before and after those of one rank."""

    before: int
    after: int


class Ranks(Protocol):
    """One rank's view of all of them. Every rank must make the same calls in the same order.

    Attributes:
        rank: the number of this rank, from 0. size: how many there are.
    """

    rank: int
    size: int

    def agree(self, intent: Intent) -> Intent:
        """What all ranks know together."""

    def sum_(self, tensor: Tensor) -> None:
        """Replaces the tensor in place by the sum over ranks: the same bits on each. NaN in, NaN out."""

    def gather(self, values: Tensor) -> Tensor:
        """The values [K] of each rank, [N, K], the same bits on each."""

    def take_seconds(self) -> float:
        """Seconds spent in exchanges, which includes waiting for slower ranks, since the last call."""


class OneRank:
    """The only rank: it exchanges nothing."""

    rank = 0
    size = 1

    def agree(self, intent: Intent) -> Intent:
        """See Ranks."""
        return intent

    def sum_(self, tensor: Tensor) -> None:
        """See Ranks."""

    def gather(self, values: Tensor) -> Tensor:
        """See Ranks."""
        return values.unsqueeze(0)

    def take_seconds(self) -> float:
        """See Ranks."""
        return 0.0


ONE_RANK = OneRank()
"""It has no state."""


class SeveralRanks:
    """One of several ranks. Sums on GPUs are computed by NCCL, others by gloo, but large ones through memory
    where the ranks share a machine.

    Each method raises RankLostError if another rank is gone; if it hangs, so does this one.
    """

    def __init__(self, rank: int, size: int) -> None:
        self.rank = rank
        self.size = size
        self._sums: dict[str, Callable[[Tensor], None]] = {}
        self._store: Store | None = None
        self._seconds = 0.0

    def open_meeting(self, host: str) -> Meeting:
        """Lets the other ranks find this one. host: an address of this machine that they reach."""
        self._store, port = serve_store(host)
        return Meeting(host, port)

    def meet(self, meeting: Meeting, host: str, device: torch.device, gradient_bytes: int) -> None:
        """Connects all ranks; returns once they are.

        host: this rank's address for the others. gradient_bytes: of the tensor that each update sums up.
        """
        try:
            store = self._store or join_store(*meeting)
            for kind in dict.fromkeys(("cpu", device.type)):
                self._sums[kind] = connect_sums(kind, store, host, self.rank, self.size)
            if device.type == "cpu":
                self._sums["cpu"] = through_memory(
                    self._sums["cpu"], store, self.rank, self.size, gradient_bytes
                )
        except RuntimeError as error:
            raise RankLostError(str(error)) from error
        self._store = store  # which lives as long as the connections that were made by it

    def agree(self, intent: Intent) -> Intent:
        """See Ranks."""
        of_all = self.gather(torch.tensor(intent, dtype=torch.float64))
        is_empty, is_late, largest_weight = of_all.amax(dim=0).tolist()
        return Intent(is_empty > 0.0, is_late > 0.0, largest_weight)

    def sum_(self, tensor: Tensor) -> None:
        """See Ranks."""
        began = time.perf_counter()
        try:
            self._sums[tensor.device.type](tensor)
        except RuntimeError as error:
            raise RankLostError(str(error)) from error
        self._seconds += time.perf_counter() - began

    def gather(self, values: Tensor) -> Tensor:
        """See Ranks."""
        of_all = values.new_zeros(self.size, *values.shape)
        of_all[self.rank] = values
        self.sum_(of_all)
        return of_all

    def take_seconds(self) -> float:
        """See Ranks."""
        taken, self._seconds = self._seconds, 0.0
        return taken


def transitions_of_others(ranks: Ranks, batch_size: int) -> Others:
    """The transitions of the other ranks in a minibatch of batch_size; none for a rank alone."""
    sizes = part_sizes(batch_size, ranks.size)
    return Others(sum(sizes[: ranks.rank]), sum(sizes[ranks.rank + 1 :]))


def are_equal(ranks: Ranks, digest: int) -> bool:
    """Whether all ranks gave the same digest, below 2^53."""
    digests = ranks.gather(torch.tensor([digest], dtype=torch.float64))
    return bool((digests == digest).all())


def from_first_(ranks: Ranks, tensor: Tensor) -> None:
    """Replaces the tensor in place by that of rank 0."""
    if ranks.rank > 0:
        tensor.zero_()
    ranks.sum_(tensor)
