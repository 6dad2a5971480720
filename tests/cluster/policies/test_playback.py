"""Episodes of one environment, played by a greedy policy. Pictures are tested in test_video.py."""

from __future__ import annotations

from dataclasses import replace
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.adapter import plain_adapter
from actors.envs.errors import EnvError
from actors.envs.make import probe
from cluster.policies.playback import GreedyPolicy, PlayedEnv, check_episodes, open_env, play
from cluster.settings.config import ConfigError

CARTPOLE = EnvConfig()


class LooksBack:
    """Q-values that tell which frames of the stack were seen: action = first frame's number."""

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        assert observations.shape == (1, 3, 1)
        self.seen = observations[0, :, 0].tolist()
        return np.eye(10, dtype=np.float32)[[int(observations[0, 0, 0])]]


def test_a_stack_begins_with_the_first_frame_and_is_emptied_by_reset() -> None:
    inner = LooksBack()
    spec = EnvSpec((1,), "<f4", None, 10, 3, "sync", "next_step", None, None)
    policy = GreedyPolicy(inner.q_values, plain_adapter(spec))
    seen = []
    for number in (1, 2, 3, 4):
        action = policy(np.array([number], np.float32))
        seen.append((inner.seen, action))
    assert seen == [([1, 1, 1], 1), ([1, 1, 2], 1), ([1, 2, 3], 1), ([2, 3, 4], 2)]
    policy.reset()
    policy(np.array([7], np.float32))
    assert inner.seen == [7, 7, 7]


def always_left(observations: np.ndarray) -> np.ndarray:
    return np.array([[1.0, 0.0]], np.float32)


def opened(config: EnvConfig) -> tuple[PlayedEnv, EnvSpec]:
    spec = probe(config)
    return open_env(config, spec, pictures=False), spec


def test_an_episode_gives_its_first_observation_and_the_outcome_of_each_step() -> None:
    env, spec = opened(CARTPOLE)
    steps = list(play(env, GreedyPolicy(always_left, plain_adapter(spec)), seed=3, max_steps=500))
    env.close()
    twin = gym.make("CartPole-v1")
    np.testing.assert_array_equal(steps[0].observation, twin.reset(seed=3)[0])
    for step in steps[1:]:
        observation, reward, terminated, _, _ = twin.step(0)
        np.testing.assert_array_equal(step.observation, observation)
        assert (step.reward, step.ended) == (reward, terminated)
    assert [step.ended for step in steps] == [False] * (len(steps) - 1) + [True]


def test_an_episode_is_ended_after_max_steps() -> None:
    env, spec = opened(CARTPOLE)
    policy = GreedyPolicy(always_left, plain_adapter(spec))
    assert [step.ended for step in play(env, policy, seed=3, max_steps=4)] == [False] * 5
    env.close()


def test_atari_shows_the_frames_that_the_policy_was_trained_on() -> None:
    pytest.importorskip("ale_py")
    config = replace(CARTPOLE, id="ALE/Pong-v5", max_episode_steps=5)
    env, spec = opened(config)
    steps = list(play(env, GreedyPolicy(lambda _: np.eye(6)[:1], plain_adapter(spec)), seed=0, max_steps=100))
    env.close()
    assert all(step.observation.shape == spec.observation_shape == (84, 84) for step in steps)
    assert [step.ended for step in steps] == [False] * 5 + [True]
    assert env.frames_per_second == 15.0


def test_a_game_whose_twin_cannot_be_made_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    game = mock.Mock()
    monkeypatch.setattr(
        "cluster.policies.playback.make_atari", mock.Mock(side_effect=[game, EnvError("no screen")])
    )
    spec = EnvSpec(
        (84, 84),
        "|u1",
        None,
        6,
        4,
        "native",
        "next_step",
        None,
        None,
        pixels=("observation",),
        image_layouts={"observation": "HW"},
    )
    with pytest.raises(EnvError, match="no screen"):
        open_env(CARTPOLE, spec, pictures=True)
    game.close.assert_called_once_with()


@pytest.mark.parametrize(("episodes", "seed"), [(0, 0), (1, -1)])
def test_numbers_without_sense_are_refused(episodes: int, seed: int) -> None:
    check_episodes(1, 0)
    with pytest.raises(ConfigError):
        check_episodes(episodes, seed)
