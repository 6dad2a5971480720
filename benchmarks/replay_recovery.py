"""How long a shard reads its journal of compressed Atari transitions, and how evenly it answers meanwhile.

`python -m benchmarks.replay_recovery --transitions 100000`. Needs the Atari extra.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.processor import processor
from benchmarks.replay_memory import play
from cluster.control.timeouts import chunk_seconds
from replay_service.block import TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.shard import ReplayShard

CONFIG = ReplayConfig(sampling="prioritized", compression="lz4", persist="continuous")


def make_shard(folder: Path, blocks: list[TransitionBlock], capacity: int, incarnation: int) -> ReplayShard:
    """A shard that has not read its journal yet."""
    return ReplayShard(
        CONFIG,
        blocks[0].schema,
        shard=0,
        incarnation=incarnation,
        capacity=capacity,
        seed=np.random.SeedSequence(0),
        folder=folder,
        recovers_later=True,
    )


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--transitions", type=int, default=100_000)
    parser.add_argument("--game", default="Pong")
    options = parser.parse_args(given)
    print(processor(), flush=True)
    blocks = play(options.game, 5.0)
    with tempfile.TemporaryDirectory(prefix="qfleet-recovery-") as folder:
        first = make_shard(Path(folder), blocks, options.transitions, 0)
        for sequence in count():
            if first.store.count >= options.transitions:
                break
            first.insert(encode(replace(blocks[sequence % len(blocks)], sequence=sequence)))
        first.close()
        num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
        shard = make_shard(Path(folder), blocks, options.transitions, 1)
        slices: list[float] = []
        cpu, done = time.process_time(), False
        while not done:
            began = time.perf_counter()
            done = shard.recover(chunk_seconds(30.0, None))
            slices.append(time.perf_counter() - began)
        cpu = time.process_time() - cpu
        held = shard.store.count
    print(
        f"{held:,} transitions of {options.game}, {num_bytes / 1e9:.2f} GB of journal: {sum(slices):.1f} s, "
        f"{cpu:.1f} s of them CPU, {len(slices)} answers, the longest after {max(slices):.2f} s; "
        f"a million transitions take {cpu / held * 1e6:.0f} s of CPU"
    )


if __name__ == "__main__":
    main()
