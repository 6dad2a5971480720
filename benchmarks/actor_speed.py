"""How much of an environment's own speed an actor keeps, and what it pushes for a transition.

Run as `python -m benchmarks.actor_speed [--rounds N] [--lanes N]`. Sides take turns in one run, chunk by
chunk, and the tenth percentile of each side's costs counts. Ratios are of wall time and of CPU time; other
work on the machine hardly affects the latter. With the Nature CNN the actor overlaps stepping and inference,
which shows in wall time only. Each group of its lanes then has a thread of ALE's, whereas the environment
alone has one for all lanes: this makes no difference on two cores and favors the actor on more. An actor's
time includes everything but the call to the shard: acting, stepping, building transitions, encoding blocks.
Bars: Atari at random 0.9 of ALE's vector environment with as many threads, with the Nature CNN 0.8 of the
slower of that and of bare batched inference; CartPole's native form 0.6; at most 1.2 frames of 7,056 bytes a
transition.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from actors.config import ActorsConfig, EnvConfig
from actors.core import Policy
from actors.envs.make import make_vector
from actors.rollout import EnvActor
from benchmarks.processor import processor
from cluster.settings.resolve import network_spec
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
"""Vector steps of a chunk, as the automatic settings choose them for three-step returns."""


@dataclass
class CountingSink:
    """Encodes blocks as a real sink does, and counts."""

    transitions: int = 0
    sent_bytes: int = 0

    def push(self, block: TransitionBlock) -> None:
        self.transitions += block.num_transitions
        self.sent_bytes += encode(block).nbytes

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


class RandomPolicy:
    """Stands in for a policy; an actor without weights acts at random and never calls it."""

    def load(self, flat_weights: np.ndarray) -> None: ...

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        raise AssertionError


def actor_of(
    env: EnvConfig,
    lanes: int,
    policy: Policy,
    sink: CountingSink,
    weights: np.ndarray | None,
    overlap: bool = False,
) -> Callable[[], int]:
    """Acts for one chunk; returns the number of env steps."""
    actor = EnvActor(
        env,
        ActorsConfig(envs_per_actor=lanes, n_step=3, epsilon_start=0.1, epsilon_end=0.1),
        policy=policy,
        sink=sink,
        actor=0,
        incarnation=0,
        num_actors=1,
        seed=np.random.SeedSequence(0),
        overlap=overlap,
    )
    return lambda: actor.rollout(CHUNKS[env.id], 1, weights, 0).env_steps


def raw_of(env: EnvConfig, lanes: int) -> Callable[[], int]:
    """Steps the vector environment alone, as often, with actions drawn beforehand."""
    kwargs: dict[str, Any] = {}
    if env is ATARI:
        kwargs = {"stack_num": 1, "reward_clipping": False, "num_threads": 1}
    vector = gym.make_vec(env.id, lanes, "vector_entry_point", **kwargs)
    vector.reset(seed=0)
    steps = CHUNKS[env.id]
    assert isinstance(vector.single_action_space, gym.spaces.Discrete)
    actions = np.random.default_rng(0).integers(vector.single_action_space.n, size=(steps, lanes))

    def chunk() -> int:
        for action in actions:
            vector.step(action)
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
    """Steps per second of wall time and of CPU time. Sides take turns chunk by chunk; the tenth percentile of
    a side's costs counts, because other work on the machine disturbs it least.
    """
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for chunk in sides.values():
        chunk()
    ends_at = time.perf_counter() + rounds * ROUND_SECONDS * len(sides)
    while time.perf_counter() < ends_at:
        for name, chunk in sides.items():
            began, cpu_began = time.perf_counter(), time.process_time()
            steps = chunk()
            seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
            costs[name].append((seconds / steps, cpu_seconds / steps))
    return {
        name: (1 / tenth([wall for wall, _ in found]), 1 / tenth([cpu for _, cpu in found]))
        for name, found in costs.items()
    }


def tenth(costs: list[float]) -> float:
    """The tenth percentile of the costs."""
    return sorted(costs)[len(costs) // 10]


def show(what: str, speed: dict[str, tuple[float, float]], bar: float) -> None:
    """Prints the actor's speed over that of the slowest bare side."""
    bare = [rates for name, rates in speed.items() if name in ("ALE", "network", "native")]
    wall, cpu = (speed["actor"][clock] / min(rates[clock] for rates in bare) for clock in (0, 1))
    rates = ", ".join(f"{name} {rate:,.0f}/s ({cpu_rate:,.0f})" for name, (rate, cpu_rate) in speed.items())
    print(f"{what:32s} {wall:5.2f} wall, {cpu:5.2f} CPU (bar {bar:.1f})   {rates}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lanes", type=int, default=16)
    options = parser.parse_args()
    print(processor(), flush=True)
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
            "one after the other": actor_of(ATARI, lanes, policy, sink, weights),
            "actor": actor_of(ATARI, lanes, policy, sink, weights, overlap=True),
        },
        options.rounds,
    )
    show(f"Atari with Nature CNN, {lanes} lanes", speed, 0.8)
    for many in (16, 64, 256):
        speed = speeds(
            {
                "native": raw_of(CARTPOLE, many),
                "actor": actor_of(CARTPOLE, many, RandomPolicy(), CountingSink(), None),
            },
            options.rounds,
        )
        show(f"CartPole at random, {many} lanes", speed, 0.6)
    per_transition = sink.sent_bytes / sink.transitions
    print(
        f"bytes per Atari transition: {per_transition:,.0f}, "
        f"{per_transition / FRAME_BYTES:.3f} frames (bar 1.2)"
    )


if __name__ == "__main__":
    main()
