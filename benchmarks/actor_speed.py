"""How much of an environment's own speed an actor keeps, and what it pushes for a transition.

Run as `python -m benchmarks.actor_speed [--rounds N] [--lanes N]`. Sides take turns in one run, medians over
the rounds; each ratio is shown by wall time and by CPU time, which other work on the machine does not touch.
An actor's time holds everything but the call to the shard: acting, stepping, building rows, encoding blocks.
Bars: Atari at random 0.9 of ALE's vector environment with as many threads, with the Nature CNN 0.8 of the
slower of that and of bare batched inference; CartPole's native form 0.6; at most 1.2 frames of 7,056 bytes a
transition.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from actors.config import ActorsConfig, EnvConfig
from actors.core import Policy
from actors.envs import make_vector
from actors.rollout import EnvActor
from cluster.resolve import network_spec
from learner.config import LearnerConfig
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep
from replay_service.block import TransitionBlock
from replay_service.codec import encode
from replay_service.messages import ShardStatus

ROUND_SECONDS = 1.5
FRAME_BYTES = 84 * 84
ATARI = EnvConfig("ALE/Pong-v5")
CARTPOLE = EnvConfig("CartPole-v1")
NATURE = LearnerConfig(network="nature_cnn")
CHUNKS = {ATARI.id: 30 * (4 + 3), CARTPOLE.id: 32}
"""Vector steps of a chunk, as the automatic settings choose them for three-step rows."""


@dataclass
class CountingSink:
    """Encodes blocks as a real sink does, and counts."""

    rows: int = 0
    sent_bytes: int = 0

    def push(self, block: TransitionBlock) -> None:
        self.rows += block.num_rows
        self.sent_bytes += encode(block).nbytes

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


class RandomPolicy:
    """Never asked: an actor without weights acts at random."""

    def load(self, flat_weights: np.ndarray) -> None: ...

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        raise AssertionError


def actor_of(
    env: EnvConfig, lanes: int, policy: Policy, sink: CountingSink, weights: np.ndarray | None
) -> Callable[[], int]:
    """One chunk of an actor; returns the env steps that it took."""
    config = ActorsConfig(envs_per_actor=lanes, n_step=3, epsilon_start=0.1, epsilon_end=0.1)
    seed = np.random.SeedSequence(0)
    actor = EnvActor(env, config, policy=policy, sink=sink, actor=0, incarnation=0, num_actors=1, seed=seed)
    return lambda: actor.rollout(CHUNKS[env.id], 1, weights, 0).env_steps


def raw_of(env: EnvConfig, lanes: int) -> Callable[[], int]:
    """As many steps of the vector environment alone, with actions drawn beforehand."""
    kwargs = {"stack_num": 1, "reward_clipping": False, "num_threads": 1} if env is ATARI else {}
    vector = gym.make_vec(env.id, lanes, "vector_entry_point", **kwargs)
    vector.reset(seed=0)
    steps = CHUNKS[env.id]
    actions = np.random.default_rng(0).integers(vector.single_action_space.n, size=(steps, lanes))

    def chunk() -> int:
        for row in actions:
            vector.step(row)
        return steps * lanes

    return chunk


def inference_of(lanes: int, policy: TorchPolicy) -> Callable[[], int]:
    """The network alone on batches of one size."""
    images = np.random.default_rng(0).integers(256, size=(lanes, 4, 84, 84), dtype=np.uint8)

    def chunk() -> int:
        for _ in range(20):
            policy.q_values(images)
        return 20 * lanes

    return chunk


def speeds(sides: dict[str, Callable[[], int]], rounds: int) -> dict[str, tuple[float, float]]:
    """Steps a second of wall and of CPU time: medians over rounds in which all sides take their turn."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for chunk in sides.values():
        chunk()
    for _ in range(rounds):
        for name, chunk in sides.items():
            steps, began, cpu_began = 0, time.perf_counter(), time.process_time()
            while (seconds := time.perf_counter() - began) < ROUND_SECONDS:
                steps += chunk()
            rates[name].append((steps / seconds, steps / (time.process_time() - cpu_began)))
    return {
        name: (statistics.median(wall for wall, _ in found), statistics.median(cpu for _, cpu in found))
        for name, found in rates.items()
    }


def show(what: str, speed: dict[str, tuple[float, float]], bar: float) -> None:
    """The actor's share of the slowest other side."""
    wall, cpu = (
        speed["actor"][clock] / min(rates[clock] for name, rates in speed.items() if name != "actor")
        for clock in (0, 1)
    )
    figures = ", ".join(f"{name} {rate:,.0f}/s ({cpu_rate:,.0f})" for name, (rate, cpu_rate) in speed.items())
    print(f"{what:32s} {wall:5.2f} wall, {cpu:5.2f} CPU (bar {bar:.1f})   {figures}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=16)
    options = parser.parse_args()
    lanes = options.lanes

    probe = make_vector(ATARI, 1)
    spec = network_spec(probe.spec)
    probe.close()
    weights = UpdateStep(spec, NATURE, seed=0).weights()
    policy = TorchPolicy(spec, NATURE, threads=1)
    policy.load(weights)
    sink = CountingSink()

    speed = speeds(
        {"ALE": raw_of(ATARI, lanes), "actor": actor_of(ATARI, lanes, RandomPolicy(), sink, None)},
        options.rounds,
    )
    show(f"Atari at random, {lanes} lanes", speed, 0.9)
    speed = speeds(
        {
            "ALE": raw_of(ATARI, lanes),
            "network": inference_of(lanes, policy),
            "actor": actor_of(ATARI, lanes, policy, sink, weights),
        },
        options.rounds,
    )
    show(f"Atari with Nature CNN, {lanes} lanes", speed, 0.8)
    for many in (64, 256):
        speed = speeds(
            {
                "native": raw_of(CARTPOLE, many),
                "actor": actor_of(CARTPOLE, many, RandomPolicy(), CountingSink(), None),
            },
            options.rounds,
        )
        show(f"CartPole at random, {many} lanes", speed, 0.6)
    per_row = sink.sent_bytes / sink.rows
    print(f"bytes a transition on Atari: {per_row:,.0f}, {per_row / FRAME_BYTES:.3f} frames (bar 1.2)")


if __name__ == "__main__":
    main()
