"""From settings to a vector environment: finding it, choosing a backend, fitting its spaces.

Owns the choice of backend and the messages of EnvError; must not know of policies, transitions or blocks.
"""

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
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
from actors.envs.guarded_vector import GuardedVector, SeedForm
from actors.envs.images import image_layouts
from actors.envs.native import NoNativeError, make_native
from actors.envs.observation_spaces import parts_of
from actors.envs.probing import look, waiting_is_said
from actors.envs.stepper import VectorStepper
from actors.envs.wrapping import WithoutKeys, layers, refuse_statistics, wrapped, wrapper_notes
from replay_service.block import OBSERVATION

_EXTRAS = {atari.NAMESPACE: "atari", minatar.NAMESPACE: "minatar"}
"""Namespace of ids -> the extra of this project that installs their package."""
_Source = Registration | Callable[..., gym.Env[Any, Any]]


@dataclass(frozen=True)
class Probed:
    """What the probe of an environment found.

    config: with the environment's absolute path and the keys to drop chosen. notes: sentences for its user.
    step_seconds: duration of a step of one lane. episodes_end: whether an episode ended within 1,000 random
    steps, or as many as take 2 seconds, at most 5,000; None if the environment states a step limit, or for
    want of time.
    """

    config: EnvConfig
    spec: EnvSpec
    notes: tuple[str, ...]
    step_seconds: float
    episodes_end: bool | None


def probe(config: EnvConfig) -> EnvSpec:
    """The properties of an environment, see `inspect`."""
    return inspect(config).spec


def inspect(config: EnvConfig) -> Probed:
    """The properties of an environment; makes one lane and some 50 steps to find them, and closes it.

    Raises EnvError, whose message names the cure.
    """
    with _explained(config), ExitStack() as stack:
        stack.enter_context(waiting_is_said(config.id))
        # What the environment prints is no part of the answer that a command writes to its standard output.
        stack.enter_context(redirect_stdout(sys.stderr))
        source = _find(config.id)
        vector, backend = _make_vector(config, source, 1, 1)
        stack.callback(lambda: vector.env.close())  # the one that it has then
        try:
            spec = _spec(config, source, vector.env, backend)
            seen = look(vector, spec)
        except EnvError as error:
            raise EnvError(f"{config.id}: {error}") from None
    # One lane is never asynchronous.
    lanes = list(layers(vector.env.envs[0])) if isinstance(vector.env, SyncVectorEnv) else []
    dropped = tuple(key for layer in lanes if isinstance(layer, WithoutKeys) for key in layer.keys)
    notes = [f"{config.id}: {note}" for layer in lanes for note in wrapper_notes(layer)]
    if dropped and config.drop_observation_keys is None:
        notes.append(f"{config.id}: what observations hold as {dropped[0]!r} is a text, which is left out")
    if not seen.repeats:
        notes.append(
            f"{config.id} gives other observations for the same seed and actions: runs will not repeat"
        )
    if seen.bounds.beyond:
        notes.append(seen.bounds.text)
    if seen.codes:
        notes.append(
            f"{config.id}: {', '.join(seen.codes)} has the bounds of pixels, 0 and 255, but is small and "
            "holds no number above 15: it is taken for codes, which networks do not divide by 255"
        )
        spec = replace(spec, pixels=tuple(name for name in spec.pixels if name not in seen.codes))
    if config.action_mask is None:
        spec = replace(spec, action_mask=seen.masks)
    chosen = replace(config, id=_absolute(config.id), drop_observation_keys=dropped)
    return Probed(chosen, spec, tuple(notes), seen.step_seconds, seen.ends)


def make_vector(config: EnvConfig, num_envs: int, threads: int = 1) -> VectorStepper:
    """num_envs lanes of an environment; reset it before the first step. ALE steps them in `threads` threads.

    Backend "auto" takes the environment's registered vector form if that plays the same game (see
    `make_native`), else it steps one lane after the other. "async" gives each lane a process.
    If config.action_mask is None, no action mask is expected, and one that turns up is an error.
    Raises EnvError, whose message names the cure.
    """
    with _explained(config):
        source = _find(config.id)
        return _stepper(*_make_vector(config, source, num_envs, threads), config, source)


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


def _make_vector(
    config: EnvConfig, source: _Source, num_envs: int, threads: int
) -> tuple[GuardedVector, str]:
    """The lanes and the name of their backend."""
    if config.backend in ("auto", "native"):
        try:
            make = partial(make_native, config, source, num_envs, threads)
            form: SeedForm = "array" if atari.is_atari(source) else "int"
            return GuardedVector(make, form, name=config.id), "native"
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
    return GuardedVector(make, "list", name=config.id, guarded_lanes=True), backend


def _find(env_id: str) -> _Source:
    """A registered environment; or, for "module:name", one that the module registers, or its factory."""
    module_name, colon, name = env_id.rpartition(":")
    atari.refuse_raw(env_id)
    if today := _todays_atari(env_id):
        raise EnvError(
            f"{env_id} gives raw color frames without preprocessing, which is another game; take {today}"
        )
    if not colon:
        if env_id.startswith(atari.NAMESPACE):
            importlib.import_module("ale_py")  # registers them
        if env_id.startswith(minatar.NAMESPACE):
            minatar.register()
        return gym.spec(env_id)
    module = _module(module_name)
    if name in gym.registry:
        return gym.spec(name)
    factory = getattr(module, name, None)
    if not callable(factory):
        raise EnvError(
            f"{module_name} neither registers an environment {name!r} nor has a callable of that name"
        )
    return factory  # type: ignore[no-any-return]


def imports_an_environment() -> bool:
    """Whether this is called by a module that is just imported for the sake of its environment."""
    return any(frame.f_code is _module.__code__ for frame, _ in traceback.walk_stack(None))


def _module(name: str) -> ModuleType:
    """An importable module, or that of a file "folder/file.py"."""
    if not name.endswith(".py"):
        return importlib.import_module(name)
    path = Path(name).resolve()
    if not path.is_file():
        raise EnvError(f"env.id names the file {path}, which does not exist")
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules.setdefault(path.stem, module)  # so that processes can be given its objects
    found.loader.exec_module(module)
    return module


def _absolute(env_id: str) -> str:
    """The id with the absolute path of a file, because roles may run in other folders."""
    file, _, name = env_id.rpartition(":")
    return f"{Path(file).resolve()}:{name}" if file.endswith(".py") else env_id


def _todays_atari(env_id: str) -> str | None:
    """The id that plays the game of an old one, as PongNoFrameskip-v4; None if it is no such id."""
    old = re.fullmatch(r"(?:ale_py:)?(\w+?)(?:-ram)?(?:NoFrameskip|Deterministic)?-v[04]", env_id)
    if old is None or (env_id in gym.registry and "ale_py" not in str(gym.registry[env_id].entry_point)):
        return None
    with suppress(ImportError):
        importlib.import_module("ale_py")
    today = f"{atari.NAMESPACE}{old[1]}-v5"
    return today if today in gym.registry else None


def _dropped(config: EnvConfig, source: _Source, space: spaces.Space[Any]) -> tuple[str, ...]:
    """The keys to drop: those of the settings, else the text in which MiniGrid states the mission."""
    if config.drop_observation_keys is not None:
        return config.drop_observation_keys
    minigrid = isinstance(source, Registration) and source.id.startswith(("MiniGrid-", "BabyAI-"))
    return ("mission",) if minigrid and isinstance(space, spaces.Dict) and "mission" in space.spaces else ()


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
    """One environment with its own spaces, in the wrappers of the settings."""
    env: Any
    if isinstance(source, Registration):
        # The checker looks at every step; `qfleet check-env` is the place for that.
        env = gym.make(source, max_episode_steps=config.max_episode_steps, disable_env_checker=True, **kwargs)
        if source.id.startswith(minatar.NAMESPACE):
            env = minatar.FreshStart(env)
    else:
        env = source(**kwargs)
        if not isinstance(env, gym.Env):
            raise EnvError(_no_env(config, env))
        if config.max_episode_steps is not None:
            env = TimeLimit(env, config.max_episode_steps)
    env = wrapped(env, config.wrappers)
    try:
        refuse_statistics(env)
        dropped = _dropped(config, source, env.observation_space)
        return WithoutKeys(env, dropped) if dropped else env
    except EnvError as error:
        env.close()
        raise EnvError(f"{config.id} has {error}") from None


def _no_env(config: EnvConfig, made: object) -> str:
    """What is wrong with an object that is no gymnasium.Env, in words."""
    modules = {kind.__module__.partition(".")[0] for kind in type(made).__mro__}
    text = f"{config.id} returned a {type(made).__name__}"
    if "gym" in modules:
        return (
            f"{text} of the old package gym: wrap it with shimmy.GymV21CompatibilityV0(env=...), or "
            "shimmy.GymV26CompatibilityV0 if its step returns five values"
        )
    if modules & {"dm_env", "dm_control"}:
        return (
            f"{text} of dm_env: wrap it with shimmy.DmControlCompatibilityV0, or shimmy.BSuiteCompatibilityV0"
        )
    return f"{text}; a factory returns a gymnasium.Env"


def _stepper(vector: GuardedVector, backend: str, config: EnvConfig, source: _Source) -> VectorStepper:
    """Closes the vector environment if its spaces do not fit."""
    with ExitStack() as unless_made:
        unless_made.callback(vector.env.close)
        try:
            spec = _spec(config, source, vector.env, backend)
        except EnvError as error:
            raise EnvError(f"{config.id}: {error}") from None
        limit = spec.max_episode_steps if atari.is_atari(source) else None
        late = config.action_mask is None
        stepper = VectorStepper(vector, spec, step_limit=limit, masks_are_errors=late)
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
        action_mask=bool(config.action_mask),
        pixels=tuple(name for name, part in zip(names, parts, strict=True) if part.pixels),
        image_layouts=image_layouts(dict(zip(names, shapes, strict=True)), layout),
    )
