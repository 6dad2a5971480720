"""Whole serial runs against optimal values known from value iteration."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from qfleet_serial import train_serial
from qfleet_test_envs import Chain, MaskedChain

from learner.weights import load_weights

GAMMA = 0.9
COMMON = (
    "run.runtime=serial",
    f"actors.discount={GAMMA}",
    "actors.envs_per_actor=16",
    "actors.steps_per_chunk=64",
    "learner.network=table",
    "learner.batch_size=256",
    "learner.max_grad_norm=null",
    "learner.updates_per_chunk=50",
    "pacing.learning_starts=2000",
    "evaluation.every_updates=1000000",
    "evaluation.episodes=1",
    "stop.target_return=1000000",
)
PRIORITIZED = (
    "replay.num_shards=3",
    "replay.sampling=prioritized",
    # Fully corrected from the start, so that priorities change the speed and not the solution.
    "replay.importance_exponent_start=1",
)


def optimal_q(
    chance: np.ndarray, reward: np.ndarray, ends: np.ndarray, allowed: np.ndarray | None = None
) -> np.ndarray:
    """Value iteration to float64's last digits: three [S, A, S], and the actions allowed [S, A] -> [S, A].

    A state that allows nothing is worth 0.
    """
    q = np.zeros(chance.shape[:2])
    for _ in range(1_000):
        best = q.max(axis=1) if allowed is None else np.where(allowed, q, -np.inf).max(axis=1)
        q = (chance * (reward + GAMMA * ~ends * np.where(np.isfinite(best), best, 0.0))).sum(axis=2)
    return q


def tables(env_id: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """chance, mean reward and end flags [S, A, S] from a toy-text environment's P."""
    env = gym.make(env_id)
    model = env.unwrapped.P  # type: ignore[attr-defined]
    shape = (len(model), len(model[0]), len(model))
    chance, reward, ends = np.zeros(shape), np.zeros(shape), np.zeros(shape, np.bool_)
    for state, actions in model.items():
        for action, outcomes in actions.items():
            for p, after, gain, ended in outcomes:
                chance[state, action, after] += p
                reward[state, action, after] = gain
                ends[state, action, after] |= ended
    env.close()
    return chance, reward, ends


def reachable(chance: np.ndarray, ends: np.ndarray, start: int) -> list[int]:
    """Non-terminal states that can be visited from `start`."""
    found, new = {start}, [start]
    while new:
        state = new.pop()
        for after in np.flatnonzero((chance[state] * ~ends[state]).sum(axis=0)):
            if int(after) not in found:
                found.add(int(after))
                new.append(int(after))
    return sorted(found)


def learned_q(tmp_path: Path, shape: tuple[int, ...], *overrides: str) -> np.ndarray:
    train_serial(tmp_path / "run", [*COMMON, *overrides])
    flat, _ = load_weights(tmp_path / "run" / "weights" / "latest.safetensors")
    return flat.reshape(shape)


FROZEN_LAKE = (
    "env.id=FrozenLake-v1",
    "actors.epsilon_start=0.5",
    "actors.epsilon_end=0.5",
    "replay.capacity=200000",
    "learner.learning_rate=2e-2",
    "learner.target_update_updates=20",
    "pacing.samples_per_insert=8",
)


def check_frozen_lake(tmp_path: Path, updates: int, tolerance: float, *overrides: str) -> None:
    chance, reward, ends = tables("FrozenLake-v1")
    states = reachable(chance, ends, start=0)
    assert len(states) == 11
    steps = (f"stop.updates={updates}", f"learner.learning_rate_decay_updates={updates}")
    q = learned_q(tmp_path, chance.shape[:2], *FROZEN_LAKE, *steps, *overrides)
    error = np.abs(q - optimal_q(chance, reward, ends))[states]
    assert error.max() < tolerance, error.max(axis=1).round(3)


def test_slippery_frozen_lake(tmp_path: Path) -> None:
    # What is tried least is the worst action beside the goal, some 250 times in 130,000 steps. Its target
    # is 1 or about 0.5 by a chance of a third, an sd of 0.25: three standard errors are 0.05, and the
    # states before it take over part of that.
    check_frozen_lake(tmp_path, 4_000, 0.08)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_slippery_frozen_lake_through_prioritized_shards(tmp_path: Path, seed: int) -> None:
    check_frozen_lake(tmp_path, 6_000, 0.08, *PRIORITIZED, f"run.seed={seed}")


@pytest.mark.parametrize("replay", [(), PRIORITIZED], ids=["uniform", "three prioritized shards"])
def test_cliff_walking_with_truncated_episodes(tmp_path: Path, replay: tuple[str, ...]) -> None:
    # Nothing is random, so the error falls towards float32's rounding (2e-5 was seen), unless the last
    # pairs are found late. A truncated episode that did not bootstrap would cost a value of 1 to 7.
    chance, reward, ends = tables("CliffWalking-v1")
    states = reachable(chance, ends, start=36)
    assert len(states) == 37
    q = learned_q(
        tmp_path,
        chance.shape[:2],
        "env.id=CliffWalking-v1",
        "env.max_episode_steps=60",
        "actors.epsilon_start=0.5",
        "actors.epsilon_end=0.5",
        "replay.capacity=60000",
        "learner.learning_rate=1",
        "learner.learning_rate_end=1e-3",
        "learner.learning_rate_decay_updates=5000",
        "learner.target_update_updates=10",
        "pacing.samples_per_insert=8",
        # Where nothing is random TD errors fall to 0, and with them the chance to be drawn again.
        "replay.priority_epsilon=1e-2",
        "stop.updates=5000",
        *replay,
    )
    error = np.abs(q - optimal_q(chance, reward, ends))[states]
    assert error.max() < 0.05, error.max(axis=1).round(2)


@pytest.mark.parametrize("replay", [(), PRIORITIZED], ids=["uniform", "three prioritized shards"])
def test_a_chain_of_ones_own(tmp_path: Path, replay: tuple[str, ...]) -> None:
    # 192,000 steps over 15 pairs are some 12,800 a pair, whose targets have an sd of about 1: a standard
    # error of 0.009. What the 5 greedy pairs err by together, 1 / sqrt(64,000) = 0.004, comes back in every
    # step of a horizon of about 7: 0.03. Three standard errors of the two are 0.1.
    chain = Chain()
    ends = np.zeros(chain.chance.shape, np.bool_)
    ends[:, :, -1] = True
    q = learned_q(
        tmp_path,
        chain.chance.shape[:2],
        "env.id=qfleet_test_envs:Chain",
        "actors.epsilon_start=1",
        "actors.epsilon_end=1",
        "replay.capacity=200000",
        "pacing.samples_per_insert=2",
        "learner.learning_rate=2e-2",
        "learner.learning_rate_decay_updates=1500",
        "learner.target_update_updates=20",
        "stop.updates=1500",
        *replay,
    )
    error = np.abs(q - optimal_q(chain.chance, chain.reward, ends))[:-1]
    assert error.max() < 0.1, error.round(3)


@pytest.mark.parametrize(
    "settings",
    [(), (*PRIORITIZED, "learner.double=true")],
    ids=["uniform", "double, three prioritized shards"],
)
def test_a_chain_in_which_not_everything_is_allowed(tmp_path: Path, settings: tuple[str, ...]) -> None:
    # 102,000 steps over 9 pairs of rewards of half the range: errors as of the chain above, and smaller.
    chain = MaskedChain()
    ends = np.zeros(chain.chance.shape, np.bool_)
    ends[:, :, -1] = True
    optimal = optimal_q(chain.chance, chain.reward, ends, chain.allowed)
    allowed = chain.allowed[:-1]
    assert 0 < np.count_nonzero(~allowed) < allowed.size / 2
    # What is never tried stays 0: a target over all actions would have learned these values.
    free = optimal_q(chain.chance, chain.reward, ends, np.zeros_like(chain.allowed))
    assert np.abs(free - optimal)[:-1][allowed].max() > 1.0
    q = learned_q(
        tmp_path,
        chain.chance.shape[:2],
        "env.id=qfleet_test_envs:MaskedChain",
        "actors.epsilon_start=1",
        "actors.epsilon_end=1",
        "replay.capacity=200000",
        "pacing.samples_per_insert=2",
        "learner.learning_rate=2e-2",
        "learner.learning_rate_decay_updates=800",
        "learner.target_update_updates=20",
        "stop.updates=800",
        *settings,
    )
    error = np.abs(q - optimal)[:-1][allowed]
    assert error.max() < 0.1, error.round(3)
    assert not q[:-1][~allowed].any()
