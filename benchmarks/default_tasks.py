"""The ten tasks of `benchmarks.defaults`: their ids, and their environments as each side sees them.

Owns nothing else; must not import qfleet's packages, because Stable-Baselines3's side loads it without them.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium as gym

MOST_STEPS = 1_000
"""Scored episodes end there at the latest, because a greedy policy may walk in circles for ever."""
SCORE_SEED = 1_000_000
"""The seed of the first scored episode; each further one has the next."""


@dataclass(frozen=True)
class Task:
    """env_id: as `qfleet train` takes it. good: the mean return that counts as the optimum, None if it is not
    known. episodes: of a score.
    """

    env_id: str
    good: float | None = None
    episodes: int = 100


TASKS: Mapping[str, Task] = {
    "Taxi": Task("Taxi-v4", 7.5),
    "CliffWalking": Task("CliffWalking-v1", -13.0),
    # The best policy that does not count steps reaches the goal in 0.886 of the episodes of 200 steps.
    "FrozenLake8x8": Task("FrozenLake8x8-v1", 0.836),
    "DoorKey-5x5": Task("minigrid:MiniGrid-DoorKey-5x5-v0", 0.95),
    "Empty-5x5": Task("minigrid:MiniGrid-Empty-5x5-v0", 0.95),
    "FlappyBird": Task("flappy_bird_gymnasium:FlappyBird-v0"),
    "highway-fast": Task("highway_env:highway-fast-v0", episodes=30),
    "MinAtar Breakout": Task("MinAtar/Breakout-v1"),
    "bsuite catch": Task("benchmarks.default_tasks:catch", 1.0),
    "bsuite deep_sea": Task("benchmarks.default_tasks:deep_sea", 0.99),
}


def catch() -> gym.Env[Any, Any]:
    """bsuite's catch/0: move a paddle under a falling ball; 1 or -1 after nine steps."""
    return _bsuite("catch/0")


def deep_sea() -> gym.Env[Any, Any]:
    """bsuite's deep_sea/0: only ten right moves one after another earn 1, each of which costs 0.001."""
    return _bsuite("deep_sea/0")


def make_env(task: Task) -> gym.Env[Any, Any]:
    """The task's environment with its own spaces."""
    if task.env_id.startswith("MinAtar/"):
        from minatar.gym import register_envs

        register_envs()
    module, colon, name = task.env_id.rpartition(":")
    found = getattr(importlib.import_module(module), name, None) if colon else None
    return found() if callable(found) else gym.make(name, disable_env_checker=True)


def mean_return(
    env: gym.Env[Any, Any],
    act: Callable[[Any, dict[str, Any]], Any],
    begin: Callable[[], None],
    episodes: int,
    seed: int,
) -> float:
    """Mean return of episodes with seeds seed, seed + 1, …

    act: makes an action of an observation and its info. begin: called before each episode.
    """
    total = 0.0
    for episode in range(episodes):
        observation, info = env.reset(seed=seed + episode)
        begin()
        for _ in range(MOST_STEPS):
            observation, reward, terminated, truncated, info = env.step(act(observation, info))
            total += float(reward)
            if terminated or truncated:
                break
    return total / episodes


def _bsuite(bsuite_id: str) -> gym.Env[Any, Any]:
    import bsuite
    import shimmy

    env: gym.Env[Any, Any] = shimmy.BSuiteCompatibilityV0(bsuite.load_from_id(bsuite_id))
    return env
