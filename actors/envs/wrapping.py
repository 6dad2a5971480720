"""Wrappers: those that the settings name, the keys that they leave out, and those that no run may have.

Owns these three; must not import anything of actors but EnvError.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import gymnasium as gym
from gymnasium import spaces
from gymnasium import wrappers as gym_wrappers

from actors.envs.errors import EnvError

AnyEnv = gym.Env[Any, Any]
Wrapper = str | Mapping[str, Mapping[str, Any] | None]
"""A callable that takes an environment, as "package.module:name", or {"package.module:name": arguments}."""

_NORMALIZERS = {
    gym_wrappers.NormalizeObservation: "set learner.normalize_observations=true, whose statistics travel "
    "with the weights",
    gym_wrappers.NormalizeReward: "leave it out: returns are reported raw, and actors.reward_clip or "
    "learner.loss=huber bound what is learned from large rewards",
}
_STATISTICS = "RunningMeanStd"
"""The class of running statistics in gymnasium, Stable-Baselines3, Baselines and their relatives."""


def wrapped(env: AnyEnv, wrappers: Sequence[Wrapper]) -> AnyEnv:
    """The environment in the wrappers that env.wrappers names, the first one innermost.

    Closes it and raises EnvError if there is no such wrapper, or if it does not take the environment.
    """
    for wrapper in wrappers:
        (path, kwargs), *_ = [(wrapper, None)] if isinstance(wrapper, str) else wrapper.items()
        module, _, name = path.partition(":")
        try:
            make = getattr(importlib.import_module(module), name)
            outer = make(env, **(kwargs or {}))
        except Exception as error:
            env.close()
            raise EnvError(
                f"env.wrappers names {path} with {dict(kwargs or {})}, which cannot be used: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not isinstance(outer, gym.Env):
            env.close()
            raise EnvError(
                f"env.wrappers names {path}, which returned a {type(outer).__name__}, no gymnasium.Env"
            )
        env = outer
    return env


class WithoutKeys(gym.ObservationWrapper[Any, Any, Any]):
    """An environment whose Dict observations lack some keys."""

    def __init__(self, env: AnyEnv, keys: Sequence[str]) -> None:
        """Raises EnvError if observations are no Dict, or have no such key, or no other."""
        super().__init__(env)
        space = env.observation_space
        if not isinstance(space, spaces.Dict):
            raise EnvError(
                f"env.drop_observation_keys is {list(keys)}, but observations are {space}, no Dict"
            )
        unknown = [key for key in keys if key not in space.spaces]
        if unknown:
            raise EnvError(
                f"env.drop_observation_keys names {unknown[0]!r}; observations have {', '.join(space.spaces)}"
            )
        self.keys = tuple(keys)
        self.observation_space = spaces.Dict(self.observation(space.spaces))

    def observation(self, observation: Any) -> dict[str, Any]:
        """The observation without these keys."""
        return {key: value for key, value in observation.items() if key not in self.keys}


def layers(env: AnyEnv) -> Iterator[AnyEnv]:
    """An environment's wrappers, outermost first, and the environment itself."""
    yield env
    while isinstance(env, gym.Wrapper):
        env = env.env
        yield env


def refuse_statistics(env: AnyEnv) -> None:
    """Raises EnvError for a wrapper that scales by running statistics, wherever it stands.

    Each lane would have its own, and evaluation, which opens new environments, others than training.
    """
    for layer in layers(env):
        cure = next((cure for kind, cure in _NORMALIZERS.items() if isinstance(layer, kind)), None)
        found = next(
            (name for name, value in vars(layer).items() if type(value).__name__ == _STATISTICS), None
        )
        if cure or found:
            raise EnvError(
                f"the wrapper {type(layer).__name__}, which scales by running statistics: each environment "
                "has its own, so that evaluation and a saved policy see other numbers than training did; "
                + (cure or "remove it; learner.normalize_observations=true normalizes observations")
            )


def wrapper_notes(layer: AnyEnv) -> Iterator[str]:
    """Sentences about a wrapper that changes what is reported."""
    if isinstance(layer, gym_wrappers.TransformReward):
        yield (
            f"the wrapper {type(layer).__name__} changes rewards, and reported returns with them; "
            "actors.reward_clip clips for learning only"
        )
