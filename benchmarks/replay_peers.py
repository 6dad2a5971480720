"""Other replay buffers under the loop insert 64, sample 512, update the priorities of those 512.

Run by an interpreter that has the peer, never by ours: `PYTHON replay_peers.py NAME cartpole|atari`. Fills
the buffer, prints its name and version, and for each line of input runs the loop and prints loops/s.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from importlib.metadata import version
from time import perf_counter
from typing import Any

import numpy as np

INSERT = 64
BATCH = 512
ALPHA, BETA = 0.6, 0.4
CAPACITY = {"cartpole": 1_000_000, "atari": 100_000}
LOOPS = {"cartpole": 1_500, "atari": 60}
rng = np.random.default_rng(0)


def observations(shape: str, count: int) -> np.ndarray:
    if shape == "atari":
        return rng.integers(0, 256, (count, 4, 84, 84), dtype=np.uint8)
    return rng.random((count, 4), dtype=np.float32)


def cpprb(shape: str) -> Callable[[], None]:
    from cpprb import PrioritizedReplayBuffer

    obs = {"shape": (4, 84, 84), "dtype": np.uint8} if shape == "atari" else {"shape": 4}
    scalar = {"action": {"dtype": np.int32}, "reward": {}, "discount": {}, "version": {"dtype": np.int64}}
    buffer = PrioritizedReplayBuffer(CAPACITY[shape], {"obs": obs, "next_obs": obs, **scalar}, alpha=ALPHA)

    def transitions(count: int) -> dict[str, np.ndarray]:
        scalars = {name: rng.random(count, dtype=np.float32) for name in (*scalar, "priorities")}
        return {"obs": observations(shape, count), "next_obs": observations(shape, count), **scalars}

    many, few = transitions(1_000), transitions(INSERT)
    for _ in range(CAPACITY[shape] // 1_000):
        buffer.add(**many)

    def loop() -> None:
        buffer.add(**few)
        sample = buffer.sample(BATCH, beta=BETA)
        buffer.update_priorities(sample["indexes"], np.abs(sample["reward"][:, 0]))

    return loop


def tianshou(shape: str) -> Callable[[], None]:
    from tianshou.data import Batch, PrioritizedVectorReplayBuffer

    size = CAPACITY[shape] // INSERT * INSERT
    buffer = PrioritizedVectorReplayBuffer(size, INSERT, alpha=ALPHA, beta=BETA)
    few = Batch(
        obs=observations(shape, INSERT),
        obs_next=observations(shape, INSERT),
        act=np.zeros(INSERT, np.int64),
        rew=rng.random(INSERT),
        terminated=np.zeros(INSERT, bool),
        truncated=np.zeros(INSERT, bool),
    )
    lanes = np.arange(INSERT)
    for _ in range(size // INSERT):
        buffer.add(few, buffer_ids=lanes)

    def loop() -> None:
        buffer.add(few, buffer_ids=lanes)
        sample, indices = buffer.sample(BATCH)
        buffer.update_weight(indices, np.abs(sample.rew))

    return loop


def stable_baselines3(shape: str) -> Callable[[], None]:
    """Samples uniformly; it has no priorities to update."""
    from gymnasium.spaces import Box, Discrete
    from stable_baselines3.common.buffers import ReplayBuffer

    obs, following = observations(shape, INSERT), observations(shape, INSERT)
    space = Box(0, 255, obs.shape[1:], np.uint8) if shape == "atari" else Box(-1, 1, (4,), np.float32)
    buffer = ReplayBuffer(CAPACITY[shape], space, Discrete(2), device="cpu", n_envs=INSERT)
    infos: list[dict[str, Any]] = [{}] * INSERT
    few = (obs, following, np.zeros((INSERT, 1)), np.ones(INSERT), np.zeros(INSERT), infos)
    for _ in range(buffer.buffer_size):
        buffer.add(*few)

    def loop() -> None:
        buffer.add(*few)
        buffer.sample(BATCH)

    return loop


def dm_reverb(shape: str) -> Callable[[], None]:
    """A local server and one client. Holds 30,000 items only: a million would take minutes to insert."""
    import reverb

    table = reverb.Table(
        "replay",
        sampler=reverb.selectors.Prioritized(ALPHA),
        remover=reverb.selectors.Fifo(),
        max_size=CAPACITY[shape],
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server(tables=[table])
    atexit.register(server.stop)  # the closure also keeps it alive
    client = reverb.Client(f"localhost:{server.port}")
    zero = np.float32(0.0)
    frames = [(observation, np.int32(0), zero, zero) for observation in observations(shape, INSERT + 1)]

    def insert() -> None:
        with client.trajectory_writer(num_keep_alive_refs=2) as writer:
            writer.append(frames[0])
            for frame in frames[1:]:
                writer.append(frame)
                item = tuple(column[-2:] for column in writer.history)
                writer.create_item("replay", priority=1.0, trajectory=item)

    for _ in range(30_000 // INSERT):
        insert()

    def loop() -> None:
        insert()
        keys = [sample[0].info.key for sample in client.sample("replay", num_samples=BATCH)]
        client.mutate_priorities("replay", dict(zip(keys, rng.random(BATCH), strict=True)))

    return loop


PEERS: dict[str, Callable[[str], Callable[[], None]]] = {
    "cpprb": cpprb,
    "tianshou": tianshou,
    "stable-baselines3": stable_baselines3,
    "dm-reverb": dm_reverb,
}


def main(name: str, shape: str) -> None:
    loop: Any = PEERS[name](shape)
    loops = 10 if name == "dm-reverb" else LOOPS[shape]
    print(f"{name} {version(name)}", flush=True)
    for _ in sys.stdin:
        began = perf_counter()
        for _ in range(loops):
            loop()
        print(loops / (perf_counter() - began), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
