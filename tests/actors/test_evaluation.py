"""Greedy evaluation: which episodes are played, and that they can be played again."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from actors.config import EnvConfig
from actors.envs.make import lane_seeds
from actors.evaluation import Evaluator, evaluate
from actors.policy import MlpPolicy


class SeededLength(gym.Env[np.ndarray, int]):
    """Its seed decides its length; a step's reward is the action. Frame i of an episode is [i]."""

    observation_space = spaces.Box(0, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left, self.frame = length_of(seed) if seed is not None else 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left, self.frame = self.left - 1, self.frame + 1
        return np.full(1, self.frame, np.float32), float(action), self.left == 0, False, {}


def length_of(seed: int) -> int:
    return 1 + seed % 9


class StackSum:
    """Takes action 1 while the sum of the frames seen is even."""

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()

    def load(self, flat_weights: np.ndarray) -> None:
        raise AssertionError("evaluation plays what is loaded")

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        self.shapes.add(observations.shape)
        even = observations.reshape(len(observations), -1).sum(axis=1) % 2 == 0
        return np.stack([~even, even], axis=1).astype(np.float32)


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> EnvConfig:
    module = ModuleType("seeded_envs")
    module.SeededLength = SeededLength  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "seeded_envs", module)
    return EnvConfig("seeded_envs:SeededLength", stack=2)


def expected(seed: int, domain: int, episodes: int, stack: int = 2) -> tuple[list[float], list[int]]:
    seeds = lane_seeds(np.random.SeedSequence(seed, spawn_key=(domain,)), episodes).tolist()
    lengths = [length_of(s) for s in seeds]
    returns = [
        float(sum(sum(max(0, i - age) for age in range(stack)) % 2 == 0 for i in range(length)))
        for length in lengths
    ]
    return returns, lengths


@pytest.mark.parametrize("max_lanes", [1, 3, 7, 20, 100])
def test_episode_i_has_the_ith_seed_whatever_the_lanes(env: EnvConfig, max_lanes: int) -> None:
    """So short episodes are not favored: every one of the 20 is reported, in order."""
    policy = StackSum()
    report = evaluate(env, policy, version=9, seed_domain=4, episodes=20, seed=1, max_lanes=max_lanes)
    returns, lengths = expected(seed=1, domain=4, episodes=20)
    assert (list(report.returns), list(report.lengths)) == (returns, lengths)
    assert (report.version, report.seed_domain) == (9, 4)
    assert report.seconds > 0
    assert policy.shapes == {(min(max_lanes, 20), 2, 1)}


def test_more_episodes_begin_with_the_same(env: EnvConfig) -> None:
    few = evaluate(env, StackSum(), version=0, seed_domain=0, episodes=5, seed=1, max_lanes=2)
    many = evaluate(env, StackSum(), version=0, seed_domain=0, episodes=8, seed=1, max_lanes=2)
    assert many.lengths[:5] == few.lengths


def test_domains_and_runs_differ(env: EnvConfig) -> None:
    lengths = {
        evaluate(env, StackSum(), version=0, seed_domain=domain, episodes=20, seed=seed).lengths
        for domain, seed in ((0, 0), (1, 0), (0, 1))
    }
    assert len(lengths) == 3


def test_an_episode_without_end_is_truncated(env: EnvConfig) -> None:
    evaluator = Evaluator(env, seed=1)
    report = evaluator.evaluate(StackSum(), version=0, seed_domain=4, episodes=20, max_episode_steps=4)
    assert list(report.lengths) == [min(length, 4) for length in expected(1, 4, 20)[1]]
    evaluator.close()


@pytest.mark.parametrize(("clip", "reward"), [(None, 1.0), (0.5, 0.5)])
def test_what_values_foretell_is_what_the_learner_gets(
    env: EnvConfig, clip: float | None, reward: float
) -> None:
    evaluator = Evaluator(env, seed=1, max_lanes=3, discount=0.9, reward_clip=clip)
    report = evaluator.evaluate(StackSum(), version=0, seed_domain=4, episodes=20, max_episode_steps=7)
    evaluator.close()
    lengths = expected(1, 4, 20)[1]
    # Frames 0 0, 0 1, 1 2, 2 3 ...: the sum of two is even at the first step only, then never.
    assert report.discounted_returns == (reward,) * 20
    assert report.returns == (1.0,) * 20
    assert report.start_values == (1.0,) * 20
    # An episode of 8 or 9 steps is truncated at 7; one of 7 ends by itself.
    assert report.truncated == tuple(length > 7 for length in lengths)
    played = sum(min(length, 7) for length in lengths)
    assert report.action_counts == (played - 20, 20)
    assert report.idle_seconds >= 0.0


def test_rewards_are_discounted_by_their_step(env: EnvConfig) -> None:
    policy = MlpPolicy([2, 2])
    policy.load(np.array([0, 0, 0, 0, 0.0, 2.0], np.float32))  # always action 1, worth 2
    evaluator = Evaluator(env, seed=1, discount=0.5)
    report = evaluator.evaluate(policy, version=0, seed_domain=4, episodes=20)
    evaluator.close()
    assert report.discounted_returns == pytest.approx([2.0 - 0.5 ** (n - 1) for n in report.lengths])
    assert set(report.start_values) == {2.0}
    assert not any(report.truncated)
    # Between two evaluations an evaluator is idle.
    assert evaluator.evaluate(policy, version=1, seed_domain=5, episodes=1).idle_seconds > 0.0
    evaluator.close()


def test_no_episodes_are_refused(env: EnvConfig) -> None:
    with pytest.raises(ValueError, match="0 evaluation episodes"):
        evaluate(env, StackSum(), version=0, seed_domain=0, episodes=0, seed=0)


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_a_kept_evaluator_repeats_itself(backend: Literal["native", "sync"]) -> None:
    """The second evaluation of a domain equals the first though others were played between."""
    config = EnvConfig("CartPole-v1", backend=backend)
    policy = MlpPolicy([4, 16, 2])
    policy.load(np.random.default_rng(0).normal(size=policy.num_weights).astype(np.float32))
    evaluator = Evaluator(config, seed=3, max_lanes=8)

    def returns(domain: int, episodes: int) -> tuple[float, ...]:
        return evaluator.evaluate(policy, version=0, seed_domain=domain, episodes=episodes).returns

    first = returns(0, 20)
    other = returns(1, 20)
    few = returns(0, 3)
    assert returns(0, 20) == first
    assert returns(1, 20) == other != first
    assert returns(0, 3) == few
    alone = evaluate(config, policy, version=0, seed_domain=0, episodes=20, seed=3, max_lanes=8)
    assert alone.returns == first
    assert len(first) == 20
    evaluator.close()


def test_a_balancing_policy_reaches_cartpoles_limit() -> None:
    """A linear policy that is known to balance; so evaluation neither loses nor adds a step."""
    policy = MlpPolicy([4, 2])
    gains = np.array([0.1, 0.2, 1.0, 1.0])
    policy.load(np.concatenate([-gains, gains, [0.0, 0.0]]).astype(np.float32))
    report = evaluate(EnvConfig("CartPole-v1"), policy, version=0, seed_domain=0, episodes=30, seed=0)
    assert report.returns == (500.0,) * 30
    assert report.lengths == (500,) * 30


def test_it_says_after_each_step_that_it_moves(env: EnvConfig) -> None:
    evaluator = Evaluator(env, seed=3, max_lanes=2)
    parts = list(evaluator.play(StackSum(), version=1, seed_domain=5, episodes=4, max_episode_steps=1_000))
    *moves, report = parts
    assert report is not None
    # Once its environments are made, and after each step that is not the last of a round.
    rounds = [report.lengths[:2], report.lengths[2:]]
    assert moves == [None] * (1 + sum(max(lengths) - 1 for lengths in rounds))
    again = evaluator.evaluate(StackSum(), version=1, seed_domain=5, episodes=4)
    assert (again.returns, again.lengths) == (report.returns, report.lengths)
