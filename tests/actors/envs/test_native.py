"""Registered vector environments: which are used, and that they play the game of single environments."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.wrappers import TimeLimit

from actors.config import EnvConfig
from actors.envs.errors import EnvError
from actors.envs.make import make_vector, probe


def test_every_native_environment_is_known() -> None:
    """Whoever adds one must check its dynamics and truncation as the tests below do."""
    native = {
        spec.id for spec in gym.registry.values() if spec.vector_entry_point and spec.namespace != "ALE"
    }
    phys2d = {"phys2d/CartPole-v0", "phys2d/CartPole-v1", "phys2d/Pendulum-v0"}
    assert native == {"CartPole-v0", "CartPole-v1"} | phys2d


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (EnvConfig("CartPole-v0"), 200),
        (EnvConfig("CartPole-v1"), 500),
        (EnvConfig("CartPole-v1", max_episode_steps=60), 60),
        (EnvConfig("CartPole-v1", kwargs={"sutton_barto_reward": True}), 500),
    ],
)
def test_native_cartpole_plays_the_single_game(config: EnvConfig, limit: int) -> None:
    """Each step of each lane equals that of a single environment in the same state; episodes end alike.

    The state is taken over at every step, because rounding it grows through an episode.
    """
    num_lanes = 4
    stepper = make_vector(config, num_lanes)
    assert (stepper.spec.backend, stepper.spec.max_episode_steps) == ("native", limit)
    frames = stepper.reset(np.arange(num_lanes))
    singles = [
        TimeLimit(gym.make("CartPole-v1", max_episode_steps=-1, **config.kwargs).unwrapped, limit)
        for _ in range(num_lanes)
    ]
    for single in singles:
        single.reset()
    truncations = terminations = 0
    for _ in range(2 * limit + 50):
        # Lane 0 is pushed to the right until it falls; the others balance until their limit.
        actions = (frames[:, 2] + frames[:, 3] + 0.1 * frames[:, 0] + 0.2 * frames[:, 1] > 0).astype(np.int64)
        actions[0] = 1
        before, step = frames.astype(np.float64), stepper.step(actions)
        frames = step.frames.copy()
        for lane, single in enumerate(singles):
            if step.fake[lane]:
                assert (np.abs(frames[lane]) <= 0.05).all()
                single.reset()
                continue
            single.unwrapped.state = before[lane]  # type: ignore[attr-defined]
            observation, reward, terminated, truncated, _ = single.step(actions[lane])
            assert frames[lane] == pytest.approx(observation, abs=1e-6)
            assert (step.reward[lane], step.terminated[lane], step.truncated[lane]) == (
                reward,
                terminated,
                truncated,
            )
            terminations += terminated
            truncations += truncated
    assert terminations > 1
    assert truncations > 1


def test_phys2d_natives_are_excluded() -> None:
    """Their vector form freezes all lanes while one resets."""
    with pytest.raises(EnvError, match=r"wrong dynamics; set env.backend=sync"):
        probe(EnvConfig("phys2d/CartPole-v1", backend="native"))


@pytest.mark.filterwarnings("ignore:.*is missing AutoresetMode")
def test_a_native_form_is_used_only_where_nothing_prevents_it(registered: dict[str, Registration]) -> None:
    cartpole = gym.spec("CartPole-v1")
    made = {"entry_point": cartpole.entry_point, "vector_entry_point": cartpole.vector_entry_point}
    gym.register("NoLimit-v0", **made)
    assert probe(EnvConfig("NoLimit-v0")).backend == "native"
    assert probe(EnvConfig("NoLimit-v0", max_episode_steps=5)).backend == "sync"
    gym.register("Wrapped-v0", **made, additional_wrappers=(TimeLimit.wrapper_spec(max_episode_steps=3),))
    assert probe(EnvConfig("Wrapped-v0")).backend == "sync"

    class Silent(gym.vector.VectorEnv[Any, Any, Any]):
        metadata = {}  # noqa: RUF012
        single_observation_space = spaces.Box(0, 1, (1,))
        single_action_space: spaces.Space[Any] = spaces.Discrete(2)

        def __init__(self, num_envs: int) -> None:
            self.num_envs = num_envs

    class Continuous(Silent):
        metadata = {"autoreset_mode": gym.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012
        single_action_space = spaces.Box(0, 1, (1,))

    for name, vector, reason in (
        ("Silent-v0", Silent, "does not say how it resets"),
        ("Continuous-v0", Continuous, "which need a wrapper"),
    ):
        gym.register(name, cartpole.entry_point, vector_entry_point=vector)
        assert probe(EnvConfig(name)).backend == "sync"
        with pytest.raises(EnvError, match=reason):
            probe(EnvConfig(name, backend="native"))


def test_actions_for_a_native_form_are_not_checked_again() -> None:
    lanes = 3
    stepper = make_vector(EnvConfig("CartPole-v1"), lanes)
    stepper.reset(np.arange(lanes))
    plain = gym.make_vec("CartPole-v1", lanes, "vector_entry_point")
    plain.reset(seed=0)
    actions = np.array([1, 0, 1])
    with mock.patch.object(spaces.MultiDiscrete, "contains", side_effect=AssertionError):
        frames = stepper.step(actions).frames
    assert np.array_equal(frames, plain.step(actions)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="scheduling policies are Linux's")
def test_stepping_threads_do_not_preempt_the_one_that_wakes_them() -> None:
    pytest.importorskip("ale_py")
    tasks = Path("/proc/self/task")
    before = set(tasks.iterdir())
    stepper = make_vector(EnvConfig("ALE/Pong-v5"), 2, threads=2)
    threads = [int(task.name) for task in set(tasks.iterdir()) - before]
    assert [os.sched_getscheduler(thread) for thread in threads] == [os.SCHED_BATCH] * 2
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    stepper.close()
