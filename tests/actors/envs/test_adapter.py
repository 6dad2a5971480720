"""Conversions between an environment's own spaces and frames and action numbers."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from actors.config import EnvConfig
from actors.envs.adapter import make_adapter
from actors.envs.make import probe


class Shifted(gym.Env):
    """Discrete spaces that begin at 5 and at -1."""

    observation_space = spaces.Discrete(3, start=5)
    action_space = spaces.Discrete(2, start=-1)

    def reset(self, *, seed=None, options=None):
        return 6, {}

    def step(self, action):
        return 7, 0.0, True, False, {}


class Composite(Shifted):
    """A Dict observation and a MultiDiscrete action."""

    observation_space = spaces.Dict({"b": spaces.Box(0, 1, (2,)), "a": spaces.Discrete(2)})
    action_space = spaces.MultiDiscrete([2, 3])

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, True, False, {}


def adapter_of(**settings):
    config = EnvConfig(**settings)
    return make_adapter(config, probe(config))


def test_native_environment_needs_no_conversion():
    adapter = adapter_of(id="CartPole-v1")
    assert adapter.frame([1, 2, 3, 4]).tolist() == [[1, 2, 3, 4]]
    assert adapter.action(1) == 1


def test_bins_become_the_environments_own_actions():
    adapter = adapter_of(id="Pendulum-v1", discretize=5)
    assert [adapter.action(index).tolist() for index in range(5)] == [[-2], [-1], [0], [1], [2]]
    with gym.make("Pendulum-v1") as env:
        assert env.action_space.contains(adapter.action(3))


def test_discrete_spaces_with_a_start():
    adapter = adapter_of(id=f"{__name__}:Shifted")
    assert adapter.frame(6) == 1
    assert [adapter.action(index) for index in range(2)] == [-1, 0]


def test_composite_observations_become_records():
    adapter = adapter_of(id=f"{__name__}:Composite")
    frame = adapter.frame({"a": 1, "b": np.array([0.25, 0.5], np.float32)})
    assert frame.shape == (1,)
    assert frame["observation.a"].tolist() == [[False, True]]
    assert frame["observation.b"].tolist() == [[0.25, 0.5]]
    assert adapter.action(4).tolist() == [1, 1]


def test_parts_that_are_missing_or_of_another_shape_are_named():
    adapter = adapter_of(id=f"{__name__}:Composite")
    with pytest.raises(ValueError, match="has no 'b'"):
        adapter.frame({"a": 1})
    with pytest.raises(ValueError, match=r"'b' has shape \(3,\); this policy takes \(2,\)"):
        adapter.frame({"a": 1, "b": np.zeros(3)})


def test_masks_are_wanted_exactly_where_the_environment_gives_them():
    masked = adapter_of(id=f"{__name__}:Shifted", action_mask=True)
    frame = masked.frame(6, [1, 0])
    assert (frame["observation"].tolist(), frame["action_mask"].tolist()) == ([1], [[True, False]])
    with pytest.raises(ValueError, match="needs the action mask"):
        masked.frame(6)
    with pytest.raises(ValueError, match=r"shape \(3,\).*each of the 2 actions"):
        masked.frame(6, [1, 0, 1])
    with pytest.raises(ValueError, match="takes no action mask"):
        adapter_of(id=f"{__name__}:Shifted").frame(6, [1, 0])


def test_wrong_shape_is_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"\(3,\).*\(4,\)"):
        adapter_of(id="CartPole-v1").frame(np.zeros(3))
