"""A shard with a continuous journal in a process of its own, to be killed: address, folder, incarnation."""

from __future__ import annotations

import sys
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np

from replay_service.block import BlockSchema, FrameField
from replay_service.config import ReplayConfig
from replay_service.journal import writer
from replay_service.shard import ReplayShard

SCHEMA = BlockSchema((FrameField("image", "|u1", (32, 32)),), 2, 2)
CONFIG = ReplayConfig(sampling="prioritized", priority_exponent=0.5, persist="continuous")
CAPACITY = 2_000


def contents(shard: ReplayShard) -> dict[str, np.ndarray]:
    """Transitions held, oldest first: which they are (reward), their windows and their TD errors."""
    first, end = shard.store.oldest_key, shard.store.next_key
    transitions = shard.store.gather(np.arange(first, end))
    return {
        "reward": transitions.reward,
        "image": transitions.windows["image"],
        "td_error": shard.selector.td_errors(first, end),
    }


def main(address: str, folder: str, incarnation: str) -> None:
    """Answers (method, arguments) until it is killed."""
    # Small, so that segments are begun, sealed and removed all the time.
    writer.SEGMENT_BYTES = 1 << 20
    with Client(address) as connection:
        shard = ReplayShard(
            CONFIG,
            SCHEMA,
            shard=0,
            incarnation=int(incarnation),
            capacity=CAPACITY,
            seed=np.random.SeedSequence(0),
            folder=Path(folder),
        )
        while True:
            method, arguments = connection.recv()
            if method == "look":
                connection.send((contents(shard), shard.status(), shard.recovery))
            else:
                connection.send(getattr(shard, method)(*arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
