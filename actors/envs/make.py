"""From settings to a vector environment: finding it, choosing a backend, fitting its spaces.

Owns every rule about which environments work; must not know of policies, rows or blocks.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs import registration as gym_registration
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import TimeLimit

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs import atari, minatar
from actors.envs.discretize import DiscretizedActions
from actors.envs.errors import EnvError
from actors.envs.guard import GuardedLane
from actors.envs.observations import masks_of, parts_of
from actors.envs.stepper import VectorStepper
from replay_service.block import ACTION_MASK

__all__ = ["EnvError", "lane_seeds", "make_atari", "make_lane", "make_user_env", "make_vector", "probe"]

_AnyEnv = gym.Env[Any, Any]
_AnyVectorEnv = VectorEnv[Any, Any, Any]
_EXTRAS = {"ALE/": "atari", minatar.NAMESPACE: "minatar"}
"""Whose ids begin so, by the extra of this project that installs them."""
_Source = Registration | Callable[..., _AnyEnv]


def probe(config: EnvConfig) -> EnvSpec:
    """What the rest of the system must know of an environment; makes one lane and closes it.

    Raises EnvError, whose message names the cure.
    """
    stepper = make_vector(config, 1)
    stepper.close()
    return stepper.spec


def make_vector(config: EnvConfig, num_envs: int, threads: int = 1) -> VectorStepper:
    """num_envs lanes of an environment; reset it before the first step. ALE steps them with so many threads.

    Backend "auto" takes the environment's registered vector form where that plays the same game (see
    `_native_obstacle`), else lanes stepped one after the other. "async" gives each lane a process.
    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        source = _find(config.id)
        if config.backend in ("auto", "native"):
            obstacle = _native_obstacle(config, source)
            if obstacle is None:
                assert isinstance(source, Registration)
                env, obstacle = _make_native(config, source, num_envs, threads)
                if env is not None:
                    spec = _spec(config, source, env, "native")
                    remake = partial(_remade_native, config, source, num_envs, threads)
                    if not _is_atari(source):
                        return VectorStepper(env, spec, "int", name=config.id, remake=remake)
                    limit = spec.max_episode_steps
                    return VectorStepper(env, spec, "array", step_limit=limit, name=config.id, remake=remake)
            if config.backend == "native":
                raise EnvError(f"{config.id} {obstacle}; set env.backend=sync")
        if isinstance(source, Registration) and _is_atari(source):
            raise EnvError(
                f"{config.id} is played by ALE's vector environment only, set env.backend=native: single "
                "ones give raw colour frames without preprocessing, which is another game"
            )
        backend = "async" if config.backend == "async" else "sync"
        remake = partial(_make_lanes, config, source, num_envs, backend)
        env = remake()
        spec = _spec(config, source, env, backend)
        return VectorStepper(env, spec, "list", name=config.id, guarded=True, remake=remake)


def make_lane(config: EnvConfig) -> gym.Env[Any, Any]:
    """One environment with Discrete actions, as every lane is.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        return _make_lane(config, _find(config.id))


def make_user_env(config: EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """One environment with its own spaces, as its user makes it; kwargs go beside env.kwargs.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        return _make_user_env(config, _find(config.id), {**config.kwargs, **kwargs})


def make_atari(config: EnvConfig, **kwargs: Any) -> VectorEnv[Any, Any, Any] | None:
    """One lane of the registered Atari vector environment, kwargs over env.kwargs; None for other games.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        source = _find(config.id)
        if not isinstance(source, Registration) or not _is_atari(source):
            return None
        return _make_native(replace(config, kwargs={**config.kwargs, **kwargs}), source, 1, threads=1)[0]


def lane_seeds(seed: np.random.SeedSequence, num_seeds: int) -> np.ndarray:
    """[num_seeds] int64 below 2^31 (what every backend takes); a longer draw begins with a shorter one."""
    return seed.generate_state(num_seeds).astype(np.int64) >> 1


def _find(env_id: str) -> _Source:
    """A registered environment first, then "module:id" of one that the module registers, then a factory."""
    module_name, colon, name = env_id.partition(":")
    if not colon:
        if env_id.startswith("ALE/"):
            importlib.import_module("ale_py")  # registers them
        if env_id.startswith(minatar.NAMESPACE):
            minatar.register()
        return gym.spec(env_id)
    module = importlib.import_module(module_name)
    if name in gym.registry:
        return gym.spec(name)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise EnvError(
            f"{module_name} neither registers an environment {name!r} nor has a callable of that name"
        )
    return factory  # type: ignore[no-any-return]


@contextmanager
def _explained(config: EnvConfig) -> Iterator[None]:
    """Turns what gymnasium and imports raise into EnvError."""
    try:
        yield
    except gym.error.UnregisteredEnv as error:
        near = difflib.get_close_matches(config.id, gym.registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "is the package that registers it installed?"
        raise EnvError(
            f"no environment {config.id!r}: {hint} An id that a package registers when imported is written "
            "package:id, a factory package.module:factory"
        ) from error
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        extra = next((name for start, name in _EXTRAS.items() if config.id.startswith(start)), None)
        cure = "Install what is missing into this environment, or put your module's folder on PYTHONPATH"
        if extra is not None:
            cure = f"Install it: pip install '.[{extra}]' in the checkout"
        raise EnvError(f"{config.id} cannot be imported: {error}. {cure}") from error
    except gym.error.Error as error:
        raise EnvError(f"no environment {config.id!r}: {error}") from error
    except TypeError as error:
        if not _is_of_the_call(error):
            raise
        raise EnvError(f"{config.id} cannot be made with env.kwargs {config.kwargs}: {error}") from error


def _is_of_the_call(error: TypeError) -> bool:
    """Whether the environment's own code never ran: its arguments did not fit."""
    root: BaseException = error
    while root.__cause__ is not None:  # gym.make raises another one from the first
        root = root.__cause__
    frames = [frame.filename for frame in traceback.extract_tb(root.__traceback__)]
    return frames[-1] in (__file__, gym_registration.__file__)


def _native_obstacle(config: EnvConfig, source: _Source) -> str | None:
    """Why the registered vector form cannot stand in for single environments, or None."""
    if not isinstance(source, Registration) or source.vector_entry_point is None:
        return "has no native vector environment"
    if str(source.vector_entry_point).startswith("gymnasium.envs.phys2d."):
        # FunctionalJaxVectorEnv.step freezes every other lane for the step in which one lane resets.
        return "has a native vector environment with wrong dynamics"
    if source.additional_wrappers:
        return "is registered with wrappers, which its native vector environment lacks"
    if config.max_episode_steps is not None and source.max_episode_steps is None and not _is_atari(source):
        return "has a native vector environment without a time limit"
    return None


def _make_native(
    config: EnvConfig, source: Registration, num_envs: int, threads: int
) -> tuple[_AnyVectorEnv | None, str | None]:
    """The registered vector environment, or None and why its spaces keep it from being used as it is."""
    kwargs = dict(config.kwargs)
    if _is_atari(source):
        kwargs = atari.vector_kwargs(config, threads)
    elif config.max_episode_steps is not None:
        kwargs["max_episode_steps"] = config.max_episode_steps
    with _threads_that_wait_their_turn():
        env: _AnyVectorEnv = gym.make_vec(source, num_envs, "vector_entry_point", **kwargs)
    if not isinstance(env.single_action_space, spaces.Discrete):
        obstacle = f"has actions {env.single_action_space}, which need a wrapper"
    elif "autoreset_mode" not in env.metadata:
        obstacle = "has a native vector environment that does not say how it resets"
    else:
        if type(env.action_space) is spaces.MultiDiscrete:
            env.action_space = _UncheckedActions(env.action_space)
        return env, None
    env.close()
    return None, obstacle


@contextmanager
def _threads_that_wait_their_turn() -> Iterator[None]:
    """Threads started within never push aside the one that wakes them, which has a policy to ask or updates
    to make: they take another core, or their turn. Their share of the cores is the same."""
    if sys.platform != "linux" or os.sched_getscheduler(0) != os.SCHED_OTHER:
        yield
        return
    with suppress(OSError):  # some sandboxes forbid it
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # of this thread; new ones inherit it
    try:
        yield
    finally:
        with suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class _UncheckedActions(spaces.MultiDiscrete):
    """A vector environment's actions, each taken for valid: an actor makes no other ones, and the look at
    them is a fourth of what CartPole's vector form does in a step of 16 lanes."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        super().__init__(space.nvec, dtype=space.dtype.type, start=space.start)

    def contains(self, x: Any) -> bool:
        return True


def _remade_native(config: EnvConfig, source: Registration, num_envs: int, threads: int) -> _AnyVectorEnv:
    env, _ = _make_native(config, source, num_envs, threads)
    assert env is not None, "it could be used before"
    return env


def _is_atari(source: Registration) -> bool:
    return source.vector_entry_point == atari.VECTOR_ENTRY_POINT


def _make_lanes(config: EnvConfig, source: _Source, num_envs: int, backend: str) -> _AnyVectorEnv:
    """Single environments side by side, with next-step autoreset: so a final observation passes through
    the same batched forward pass as any other.
    """

    def make_lane() -> _AnyEnv:
        return GuardedLane(partial(_make_lane, config, source))

    if backend == "async" and num_envs > 1:
        return AsyncVectorEnv([make_lane] * num_envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
    return SyncVectorEnv([make_lane] * num_envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)


def _make_user_env(config: EnvConfig, source: _Source, kwargs: dict[str, Any]) -> _AnyEnv:
    """One environment with its own spaces."""
    if isinstance(source, Registration):
        # The checker looks at every step; `qfleet check-env` is the place for that.
        env = gym.make(source, max_episode_steps=config.max_episode_steps, disable_env_checker=True, **kwargs)
        return minatar.FreshStart(env) if source.id.startswith(minatar.NAMESPACE) else env
    env = source(**kwargs)
    if not isinstance(env, gym.Env):
        raise EnvError(f"{config.id} returned a {type(env).__name__}; a factory returns a gymnasium.Env")
    return env if config.max_episode_steps is None else TimeLimit(env, config.max_episode_steps)


def _make_lane(config: EnvConfig, source: _Source) -> _AnyEnv:
    """One environment with Discrete actions and observations that fit frames."""
    env = _make_user_env(config, source, config.kwargs)
    try:
        parts_of(env.observation_space)
        if not isinstance(env.action_space, spaces.Discrete):
            env = DiscretizedActions(env, config.discretize)
    except EnvError as error:
        env.close()
        raise EnvError(f"{config.id} has {error}") from None
    return env


def _spec(config: EnvConfig, source: _Source, env: _AnyVectorEnv, backend: str) -> EnvSpec:
    registration = source if isinstance(source, Registration) else None
    space = env.single_observation_space
    try:
        fields = tuple(part.field for part in parts_of(space))
    except EnvError as error:
        env.close()
        raise EnvError(f"{config.id} has {error}") from None
    shape, dtype = (fields[0].shape, fields[0].dtype) if len(fields) == 1 else ((), "|V")
    assert isinstance(env.single_action_space, spaces.Discrete)
    num_actions = int(env.single_action_space.n)
    default_stack = 1
    limit = config.max_episode_steps
    if limit is None and registration:
        limit = registration.max_episode_steps
    if registration is not None and _is_atari(registration):
        limit = atari.step_limit(config)
        if "stack_num" not in config.kwargs:
            shape = shape[1:]  # its own stack of one
            default_stack = atari.STACK
    return EnvSpec(
        observation_shape=shape,
        observation_dtype=dtype,
        num_states=int(space.n) if isinstance(space, spaces.Discrete) else None,
        num_actions=num_actions,
        stack=config.stack or default_stack,
        backend=backend,
        autoreset_mode=AutoresetMode(env.metadata["autoreset_mode"]).value,
        max_episode_steps=limit,
        reward_threshold=registration.reward_threshold if registration else None,
        parts=fields if len(fields) > 1 else (),
        action_mask=_gives_masks(config, env, num_actions),
    )


def _gives_masks(config: EnvConfig, env: _AnyVectorEnv, num_actions: int) -> bool:
    """Whether info["action_mask"] is to be respected; where the settings leave it open, a reset tells."""
    if config.action_mask is not None:
        return config.action_mask
    _, info = env.reset(seed=0)
    if ACTION_MASK not in info:
        return False
    try:
        masks_of(info, env.num_envs, num_actions)
    except EnvError as error:
        env.close()
        raise EnvError(f"{config.id}: {error}") from None
    return True
