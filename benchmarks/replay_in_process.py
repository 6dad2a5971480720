"""One shard in this process: insert 64, prioritized sample 512 with gather, update 512, against peers.

Run as `python -m benchmarks.replay_in_process --peer-python PATH`, the interpreter of an environment that has
any of cpprb, tianshou and stable-baselines3; without it peers are not measured. Blocks are encoded before the
clock starts, as an actor does; decoding and checking them counts.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from itertools import cycle, islice, pairwise
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np

from benchmarks.processor import processor
from benchmarks.replay_data import (
    ATARI,
    ATARI_CAPACITY,
    CARTPOLE,
    CARTPOLE_CAPACITY,
    encoded_blocks,
    full_shard,
    peer,
    print_paired,
    random_block,
)
from replay_service.block import BlockSchema
from replay_service.config import ReplayConfig
from replay_service.messages import PriorityUpdate, SampleRequest
from replay_service.shard import ReplayShard
from replay_service.transition_store import TransitionStore, frame_capacity

BATCH = 512
REPEATS = 200


class Loop:
    """Insert 64, sample 512, update 512: priorities go with the next request, as the learner sends them."""

    def __init__(self, shard: ReplayShard, schema: BlockSchema, loops: int) -> None:
        self._shard = shard
        self._pushes = encoded_blocks(schema, 64, writer=1)
        self._loops = loops

    def rate(self) -> float:
        pushes = list(islice(self._pushes, self._loops))
        update = None
        began = perf_counter()
        for push in pushes:
            self._shard.insert(push)
            reply = self._shard.exchange(update, SampleRequest((BATCH,)))
            update = PriorityUpdate(reply.keys, np.abs(reply.reward))
        return self._loops / (perf_counter() - began)


def inserts_per_second(shard: ReplayShard, schema: BlockSchema, size: int) -> float:
    """Transitions with priorities inserted per second, in blocks of `size`."""
    seconds = []
    for push in islice(encoded_blocks(schema, size, writer=1_000 + size), REPEATS):
        began = perf_counter()
        shard.insert(push)
        seconds.append(perf_counter() - began)
    return size / median(seconds)


def print_gather(capacity: int) -> None:
    """Gathers 512 windows into existing arrays and into new ones, against one memcpy of as many windows.

    Both sides read memory that no cache holds, and write to the same arrays.
    """
    store = TransitionStore(ATARI, capacity, frame_capacity(ATARI, capacity), first_key=0)
    block = random_block(ATARI, BATCH)
    while store.next_key < capacity:
        store.insert(block)
    rng = np.random.default_rng(0)
    held = [store.gather(np.arange(BATCH)).windows for _ in range(20)]
    copies = {name: window.copy() for name, window in held[0].items()}
    milliseconds: list[list[float]] = [[], [], []]
    for windows in islice(cycle(held), REPEATS):
        # In rising order, as strata draw them.
        keys = np.sort(rng.integers(store.oldest_key, store.next_key, BATCH))
        marks = [perf_counter()]
        for name, window in windows.items():
            np.copyto(copies[name], window)
        marks.append(perf_counter())
        store.gather(keys, [copies])
        marks.append(perf_counter())
        store.gather(keys)
        marks.append(perf_counter())
        for took, (begin, end) in zip(milliseconds, pairwise(marks), strict=True):
            took.append((end - begin) * 1e3)
    copied, gathered, fresh = map(median, milliseconds)
    print(f"{'gather 512 Atari windows, ms':40s} {gathered:12.2f}   one memcpy: {copied:.2f}", end="   ")
    print(f"ratio {gathered / copied:.2f} (into new arrays {fresh:.2f}, {fresh / copied:.2f})", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path)
    peer_python: Path | None = parser.parse_args(arguments).peer_python
    print(processor(), flush=True)
    print(f"{'':40s} {'ours':>12s}   (medians of pairs in turns)")

    shard = full_shard(CARTPOLE, CARTPOLE_CAPACITY)
    loop = Loop(shard, CARTPOLE, loops=1_500)
    for name in ("cpprb", "tianshou"):
        with peer(peer_python, name, "cartpole") as other:
            print_paired("CartPole, 1M held, loops/s", loop.rate, other, name)
    for size in (64, 512):
        rate = inserts_per_second(shard, CARTPOLE, size)
        print(f"{f'  inserts in blocks of {size}, transitions/s':40s} {rate:12,.0f}", flush=True)

    loop = Loop(full_shard(ATARI, ATARI_CAPACITY), ATARI, loops=150)
    uniform = Loop(full_shard(ATARI, ATARI_CAPACITY, ReplayConfig(sampling="uniform")), ATARI, loops=150)
    with peer(peer_python, "tianshou", "atari") as other:
        print_paired("Atari, 100k held, loops/s", loop.rate, other, "tianshou")
    with peer(peer_python, "stable-baselines3", "atari") as other:
        print_paired("  the peer uniform, loops/s", loop.rate, other, "stable-baselines3")
        print_paired("  both sides uniform, loops/s", uniform.rate, other, "stable-baselines3")
    print_gather(ATARI_CAPACITY)


if __name__ == "__main__":
    main()
