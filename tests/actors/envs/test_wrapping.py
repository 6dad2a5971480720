"""Wrappers by setting, keys that are left out, and wrappers that no run may have."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium import wrappers as gym_wrappers
from gymnasium.envs.registration import EnvSpec as Registration

from actors.config import EnvConfig
from actors.envs.adapter import make_adapter
from actors.envs.errors import EnvError
from actors.envs.make import inspect, make_user_env, make_vector, probe


class RunningMeanStd:
    """As several packages call it."""


class OwnNormalizer(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper of somebody's own with running statistics."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self.statistics = RunningMeanStd()


class Panel(gym.Env[Any, Any]):
    """A Dict with a text that nobody can learn from; closing is noted."""

    observation_space = spaces.Dict(
        {
            "image": spaces.Box(0, 255, (40, 40, 3), np.uint8),
            "mission": spaces.Text(100),
            "speed": spaces.Box(-1.0, 1.0, (2,)),
        }
    )
    action_space = spaces.Discrete(2)
    left: ClassVar[list[int]] = []

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.observation(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation(), 0.0, False, False, {}

    def observation(self) -> dict[str, Any]:
        image = np.full((40, 40, 3), 9, np.uint8)
        return {"image": image, "mission": "go to the door", "speed": np.zeros(2, np.float32)}

    def close(self) -> None:
        self.left.append(1)


@pytest.fixture(autouse=True)
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("my_envs")
    made.Panel = Panel  # type: ignore[attr-defined]
    made.OwnNormalizer = OwnNormalizer  # type: ignore[attr-defined]
    made.broken = lambda env: 3  # type: ignore[attr-defined]
    made.wrapped = lambda inner, outer=(): _chain(gym.make("CartPole-v1"), inner, *outer)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_envs", made)
    Panel.left.clear()
    return made


def _chain(env: Any, *wrappers: Any) -> Any:
    for wrapper in wrappers:
        env = wrapper(env)
    return env


ONLY_SPEED: dict[str, Any] = {"gymnasium.wrappers:FilterObservation": {"filter_keys": ["speed"]}}


def test_wrappers_by_setting_are_applied_innermost_first() -> None:
    config = EnvConfig(
        "my_envs:Panel",
        wrappers=(
            {"gymnasium.wrappers:FilterObservation": {"filter_keys": ["speed"]}},
            "gymnasium.wrappers:FlattenObservation",
        ),
    )
    assert probe(config).observation_shape == (2,)
    assert make_user_env(config).observation_space.shape == (2,)
    frame = make_adapter(config, probe(config)).frame(np.array([0.5, 0.25], np.float32))
    assert frame.tolist() == [[0.5, 0.25]]


def test_wrappers_replace_the_native_vector_form() -> None:
    config = EnvConfig("CartPole-v1", wrappers=("gymnasium.wrappers:TimeAwareObservation",))
    spec = probe(config)
    assert (spec.backend, spec.observation_shape) == ("sync", (5,))
    with pytest.raises(EnvError, match=r"env.wrappers or keys to drop.*set env.backend=sync"):
        probe(EnvConfig("CartPole-v1", wrappers=config.wrappers, backend="native"))


@pytest.mark.parametrize(
    ("wrapper", "complaint"),
    [
        ("my_envs:Missing", "AttributeError"),
        ("no_such_package:Wrapper", "ModuleNotFoundError"),
        ({"gymnasium.wrappers:ResizeObservation": {"size": 3}}, "TypeError"),
        ("my_envs:broken", "returned a int, no gymnasium.Env"),
    ],
)
def test_a_wrapper_that_cannot_be_used_is_one_sentence(wrapper: Any, complaint: str) -> None:
    with pytest.raises(EnvError, match=rf"env.wrappers names .*{complaint}"):
        probe(EnvConfig("my_envs:Panel", wrappers=(wrapper,)))
    assert Panel.left == [1]


@pytest.mark.parametrize("wrapper", ["gymnasium.wrappers.FlattenObservation", {"a:b": {}, "c:d": {}}, {}])
def test_a_wrapper_that_is_no_path_is_refused(wrapper: Any) -> None:
    with pytest.raises(ValueError, match=r"env.wrappers is .*give package.module:name"):
        EnvConfig("my_envs:Panel", wrappers=(wrapper,))


def test_keys_are_left_out() -> None:
    config = EnvConfig("my_envs:Panel", drop_observation_keys=("mission", "speed"))
    spec = probe(config)
    assert spec.observation_shape == (40, 40, 3)
    assert spec.image_layouts == {"observation": "HWC"}
    # A policy is given the environment's own observation, with or without them.
    adapter = make_adapter(config, spec)
    assert adapter.frame(Panel().observation()).shape == (1, 40, 40, 3)
    assert adapter.frame(make_user_env(config).reset()[0]).shape == (1, 40, 40, 3)


@pytest.mark.parametrize(
    ("env", "keys", "complaint"),
    [
        ("my_envs:Panel", ("missions",), "names 'missions'; observations have image, mission, speed"),
        ("CartPole-v1", ("x",), "no Dict"),
        ("my_envs:Panel", None, "'mission': Text.*env.drop_observation_keys"),
    ],
)
def test_keys_that_cannot_be_left_out_or_must_be_are_named(
    env: str, keys: tuple[str, ...] | None, complaint: str
) -> None:
    with pytest.raises(EnvError, match=complaint):
        probe(EnvConfig(env, drop_observation_keys=keys, backend="sync"))


def test_the_mission_of_minigrid_is_left_out_and_that_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "MiniGrid-Test-v0", Registration("MiniGrid-Test-v0", entry_point=Panel))
    probed = inspect(EnvConfig("MiniGrid-Test-v0"))
    assert [part.name for part in probed.spec.parts] == ["image", "speed"]
    assert probed.config.drop_observation_keys == ("mission",)
    assert probed.notes == (
        "MiniGrid-Test-v0: what observations hold as 'mission' is a text, which is left out",
    )
    assert make_vector(EnvConfig("MiniGrid-Test-v0"), 2).spec == probed.spec
    flat = inspect(
        EnvConfig(
            "MiniGrid-Test-v0",
            wrappers=({"gymnasium.wrappers:FilterObservation": {"filter_keys": ["speed"]}},),
        )
    )
    assert (flat.config.drop_observation_keys, flat.notes) == ((), ())


@pytest.mark.parametrize(
    "inner", [gym_wrappers.NormalizeObservation, gym_wrappers.NormalizeReward, OwnNormalizer]
)
@pytest.mark.parametrize(
    "outer", [(), (gym_wrappers.RecordEpisodeStatistics, gym_wrappers.FlattenObservation)]
)
def test_running_statistics_are_refused_by_name_wherever_they_stand(inner: Any, outer: Any) -> None:
    with pytest.raises(EnvError, match=rf"{inner.__name__}, which scales by running statistics") as refused:
        probe(EnvConfig("my_envs:wrapped", {"inner": inner, "outer": outer}))
    cure = "returns are reported raw" if "Reward" in inner.__name__ else "learner.normalize_observations=true"
    assert cure in str(refused.value)


def test_running_statistics_by_setting_are_refused_too() -> None:
    with pytest.raises(EnvError, match="NormalizeObservation, which scales"):
        probe(EnvConfig("CartPole-v1", wrappers=("gymnasium.wrappers:NormalizeObservation",)))


@pytest.mark.parametrize(
    "inner",
    [
        gym_wrappers.RecordEpisodeStatistics,
        lambda env: gym_wrappers.TimeLimit(env, 5),
        lambda env: gym_wrappers.TransformObservation(env, lambda x: x / 2, env.observation_space),
        lambda env: gym_wrappers.FrameStackObservation(env, 2),
    ],
)
def test_other_wrappers_pass(inner: Any) -> None:
    assert inspect(EnvConfig("my_envs:wrapped", {"inner": inner})).notes == ()


def test_changed_rewards_are_noted() -> None:
    (note,) = inspect(
        EnvConfig("my_envs:wrapped", {"inner": lambda env: gym_wrappers.ClipReward(env, -1, 1)})
    ).notes
    assert "ClipReward changes rewards, and reported returns with them" in note
