"""Assembles the replies of all shards into minibatches.

Owns the buffers and the shared slots; must not import ray, torch, the shard or the sampler.
"""

from collections.abc import Mapping

import numpy as np

from replay_service.messages import SampleReply
from replay_service.sharding import shard_starts
from replay_service.window_slots import WindowArray, WindowSlot, slot_pool

_FIELDS = ("action", "reward", "discount", "policy_version", "keys", "probability")


class Staging:
    """The K minibatches of a request, B transitions each, ordered by shard; all requests use the same arrays.

    Large windows are staged in a slot, of which each request in flight has its own: the shards of this host
    write there themselves, and only windows from other hosts are copied. Everything else is copied once.

    Attributes:
        transitions: field name -> [K, B], for action, reward, discount, policy_version, keys and probability.
        windows: field name -> [K, B, W, *shape], writable and contiguous.
        slots: memory for the windows of the requests in flight; None where windows are small.
    """

    def __init__(self, reply: SampleReply, num_minibatches: int, batch_size: int) -> None:
        """Takes dtypes and shapes from a reply of any shard, with windows."""
        shape = (num_minibatches, batch_size)
        self.transitions = {name: np.empty(shape, getattr(reply, name).dtype) for name in _FIELDS}
        self._window_arrays = tuple(
            WindowArray(name, window.dtype.str, shape + window.shape[1:])
            for name, window in reply.windows.items()
        )
        self.windows: Mapping[str, np.ndarray] = {}
        self._own_windows: Mapping[str, np.ndarray] = {}
        self.slots = slot_pool(self._window_arrays)

    def stage(self, replies: Mapping[int, SampleReply], counts: np.ndarray, slot: WindowSlot | None) -> None:
        """Replaces the minibatches by those of `replies` (shard -> reply).

        counts: [K, S], as requested; slot: the request's, which holds the windows that replies do not carry.

        Raises RuntimeError if a shard drew other counts.
        """
        if slot is not None:
            self.windows = slot.windows
            self._own_windows = {}
        elif not self._own_windows:
            self._own_windows = {each.name: np.empty(each.shape, each.dtype) for each in self._window_arrays}
            self.windows = self._own_windows
        starts = shard_starts(counts)
        for shard, reply in replies.items():
            if reply.counts != tuple(counts[:, shard]):
                raise RuntimeError(f"shard {shard} drew {reply.counts}, not {counts[:, shard]}")
            targets = [(self.transitions[name], getattr(reply, name)) for name in _FIELDS]
            targets += [(self.windows[name], window) for name, window in reply.windows.items()]
            end = 0
            for k, count in enumerate(reply.counts):
                begin, end = end, end + count
                start = starts[k, shard]
                for target, source in targets:
                    target[k, start : start + count] = source[begin:end]
