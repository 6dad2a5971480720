"""From settings to a vector environment: finding it, choosing a backend, fitting its spaces.

Owns the choice of backend and the messages of EnvError; must not know of policies, transitions or blocks.
"""

import difflib
import importlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs import registration as gym_registration
from gymnasium.envs.registration import EnvSpec as Registration
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import TimeLimit

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs import atari, minatar
from actors.envs.discretize import DiscretizedActions
from actors.envs.errors import EnvError
from actors.envs.guard import AnyVectorEnv, GuardedLane
from actors.envs.guarded_vector import GuardedVector
from actors.envs.images import image_layouts
from actors.envs.native import NoNativeError, make_native
from actors.envs.observations import masks_of, parts_of
from actors.envs.stepper import VectorStepper
from replay_service.block import ACTION_MASK, OBSERVATION

_EXTRAS = {atari.NAMESPACE: "atari", minatar.NAMESPACE: "minatar"}
"""Namespace of ids -> the extra of this project that installs their package."""
_Source = Registration | Callable[..., gym.Env[Any, Any]]


def probe(config: EnvConfig) -> EnvSpec:
    """The properties of an environment; makes one lane to find them, and closes it.

    Raises EnvError, whose message names the cure.
    """
    stepper = make_vector(config, 1)
    stepper.close()
    return stepper.spec


def make_vector(config: EnvConfig, num_envs: int, threads: int = 1) -> VectorStepper:
    """num_envs lanes of an environment; reset it before the first step. ALE steps them in `threads` threads.

    Backend "auto" takes the environment's registered vector form if that plays the same game (see
    `make_native`), else it steps one lane after the other. "async" gives each lane a process.
    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        source = _find(config.id)
        if config.backend in ("auto", "native"):
            try:
                make = partial(make_native, config, source, num_envs, threads)
                native = GuardedVector(make, "array" if atari.is_atari(source) else "int", name=config.id)
                return _stepper(native, config, source, "native")
            except NoNativeError:
                if config.backend == "native":
                    raise
        if atari.is_atari(source):
            raise EnvError(
                f"{config.id} is only played by ALE's vector environment, set env.backend=native: single "
                "environments give raw color frames without preprocessing, which is another game"
            )
        backend = "async" if config.backend == "async" else "sync"
        make = partial(_make_lanes, config, source, num_envs, backend)
        lanes = GuardedVector(make, "list", name=config.id, guarded_lanes=True)
        return _stepper(lanes, config, source, backend)


def make_lane(config: EnvConfig) -> gym.Env[Any, Any]:
    """One environment with Discrete actions, as every lane is.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        return _make_lane(config, _find(config.id))


def make_user_env(config: EnvConfig, **kwargs: Any) -> gym.Env[Any, Any]:
    """One environment with its own spaces, as its user makes it; kwargs are added to env.kwargs.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        return _make_user_env(config, _find(config.id), {**config.kwargs, **kwargs})


def make_atari(config: EnvConfig, **kwargs: Any) -> AnyVectorEnv | None:
    """One lane of the registered Atari vector environment, kwargs over env.kwargs; None for other games.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        source = _find(config.id)
        if not atari.is_atari(source):
            return None
        return make_native(replace(config, kwargs={**config.kwargs, **kwargs}), source, 1, threads=1)


def lane_seeds(seed: np.random.SeedSequence, num_seeds: int) -> np.ndarray:
    """[num_seeds] int64 below 2^31 (every backend takes them); a longer draw begins with a shorter one."""
    return seed.generate_state(num_seeds).astype(np.int64) >> 1


def _find(env_id: str) -> _Source:
    """A registered environment; or, for "module:name", one that the module registers, or its factory."""
    module_name, colon, name = env_id.partition(":")
    atari.refuse_raw(env_id)
    if not colon:
        if env_id.startswith(atari.NAMESPACE):
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
    except (gym.error.DependencyNotInstalled, ImportError) as error:
        extra = next((name for start, name in _EXTRAS.items() if config.id.startswith(start)), None)
        cure = "Install what is missing into this environment, or put your module's folder on PYTHONPATH"
        if extra is not None:
            cure = f"Install it: pip install 'qfleet[{extra}]'"
        raise EnvError(f"{config.id} cannot be imported: {error}. {cure}") from error
    except gym.error.Error as error:
        if config.id in gym.registry:
            raise EnvError(f"{config.id} cannot be made: {error}") from error
        near = difflib.get_close_matches(config.id, gym.registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "is the package that registers it installed?"
        raise EnvError(
            f"no environment {config.id!r}: {hint} Write package:id for an id that a package registers when "
            "it is imported, package.module:factory for a factory"
        ) from error
    except TypeError as error:
        if not _is_wrong_call(error):
            raise
        raise EnvError(f"{config.id} cannot be made with env.kwargs {config.kwargs}: {error}") from error


def _is_wrong_call(error: TypeError) -> bool:
    """Whether the arguments did not fit, so that the environment's own code never ran."""
    root: BaseException = error
    while root.__cause__ is not None:  # gym.make raises another one from the first
        root = root.__cause__
    frames = [frame.filename for frame in traceback.extract_tb(root.__traceback__)]
    return frames[-1] in (__file__, gym_registration.__file__)


def _make_lanes(config: EnvConfig, source: _Source, num_envs: int, backend: str) -> AnyVectorEnv:
    """Single environments side by side, with next-step autoreset: a final observation then passes through
    the same batched forward pass as any other.
    """

    def make_lane() -> gym.Env[Any, Any]:
        return GuardedLane(partial(_make_lane, config, source), masks=config.action_mask is not False)

    if backend == "async" and num_envs > 1:  # one lane needs no process of its own
        return AsyncVectorEnv([make_lane] * num_envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
    with ExitStack() as unless_made:
        lanes = [unless_made.enter_context(make_lane()) for _ in range(num_envs)]
        take = iter(lanes).__next__
        env = SyncVectorEnv([take] * num_envs, copy=False, autoreset_mode=AutoresetMode.NEXT_STEP)
        unless_made.pop_all()
    return env


def _make_lane(config: EnvConfig, source: _Source) -> gym.Env[Any, Any]:
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


def _make_user_env(config: EnvConfig, source: _Source, kwargs: dict[str, Any]) -> gym.Env[Any, Any]:
    """One environment with its own spaces."""
    if isinstance(source, Registration):
        # The checker looks at every step; `qfleet check-env` is the place for that.
        env = gym.make(source, max_episode_steps=config.max_episode_steps, disable_env_checker=True, **kwargs)
        return minatar.FreshStart(env) if source.id.startswith(minatar.NAMESPACE) else env
    env = source(**kwargs)
    if not isinstance(env, gym.Env):
        raise EnvError(f"{config.id} returned a {type(env).__name__}; a factory returns a gymnasium.Env")
    return env if config.max_episode_steps is None else TimeLimit(env, config.max_episode_steps)


def _stepper(vector: GuardedVector, config: EnvConfig, source: _Source, backend: str) -> VectorStepper:
    """Closes the vector environment if its spaces do not fit, or its first reset fails."""
    with ExitStack() as unless_made:
        unless_made.callback(vector.env.close)
        try:
            spec = _spec(config, source, vector.env, backend)
        except EnvError as error:
            raise EnvError(f"{config.id}: {error}") from None
        limit = spec.max_episode_steps if atari.is_atari(source) else None
        stepper = VectorStepper(vector, spec, step_limit=limit)
        unless_made.pop_all()
    return stepper


def _spec(config: EnvConfig, source: _Source, env: AnyVectorEnv, backend: str) -> EnvSpec:
    space = env.single_observation_space
    parts = parts_of(space)
    fields = tuple(part.field for part in parts)
    shape, dtype = (fields[0].shape, fields[0].dtype) if len(fields) == 1 else ((), "|V")
    assert isinstance(env.single_action_space, spaces.Discrete)
    num_actions = int(env.single_action_space.n)
    default_stack, limit, threshold = 1, config.max_episode_steps, None
    if isinstance(source, Registration):
        limit = limit or source.max_episode_steps
        threshold = source.reward_threshold
    if atari.is_atari(source):
        limit = atari.step_limit(config)
        if "stack_num" not in config.kwargs:
            shape = shape[1:]  # its own stack of one
            default_stack = atari.STACK
    layout = config.image_layout
    if isinstance(source, Registration) and source.id.startswith(minatar.NAMESPACE):
        layout = layout or minatar.IMAGE_LAYOUT
    names = [field.name for field in fields] if len(fields) > 1 else [OBSERVATION]
    shapes = [field.shape for field in fields] if len(fields) > 1 else [shape]
    return EnvSpec(
        observation_shape=shape,
        observation_dtype=dtype,
        num_states=int(space.n) if isinstance(space, spaces.Discrete) else None,
        num_actions=num_actions,
        stack=config.stack or default_stack,
        backend=backend,
        autoreset_mode=AutoresetMode(env.metadata["autoreset_mode"]).value,
        max_episode_steps=limit,
        reward_threshold=threshold,
        parts=fields if len(fields) > 1 else (),
        action_mask=_gives_masks(config, env, num_actions),
        pixels=tuple(name for name, part in zip(names, parts, strict=True) if part.pixels),
        image_layouts=image_layouts(dict(zip(names, shapes, strict=True)), layout),
    )


def _gives_masks(config: EnvConfig, env: AnyVectorEnv, num_actions: int) -> bool:
    """Whether info["action_mask"] restricts actions: as the settings say, else if a reset returns one."""
    if config.action_mask is not None:
        return config.action_mask
    _, info = env.reset(seed=0)
    if ACTION_MASK not in info:
        return False
    masks_of(info, env.num_envs, num_actions)
    return True
