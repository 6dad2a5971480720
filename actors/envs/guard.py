"""Environments that misbehave: what is wrong with what they return, and making one of them anew.

Owns those checks and the restart of a single lane; must not know of policies, rows or blocks.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from actors.envs.errors import EnvFailed
from actors.envs.observations import parts_of

RESTART = "qfleet_restart"
"""In the options of a reset: make the lane anew. In infos: it was made anew, and the Failure why."""

_FLOAT32_MAX = float(np.finfo(np.float32).max)
# A row sums at most 64 of them (actors.n_step), and is stored in float32.
_REWARD_MAX = _FLOAT32_MAX / 64
_REWARD_MAX_SQUARED = _REWARD_MAX**2
_JOIN_SECONDS = 2.0
# Looked up for each lane and step.
_ARRAY = np.ndarray
_NUMBERS = (float, int, np.float64, np.float32, np.int64)


@dataclass(frozen=True)
class Failure:
    """What a lane did; story: its traceback where it raised, else a sentence."""

    cause: Literal["raise", "invalid"]
    description: str


def restart_seed(seed: int, restarts: int) -> int:
    """Of what replaces for the restarts-th time what was seeded with `seed`; non-negative, below 2^31."""
    return int(np.random.SeedSequence((seed, restarts)).generate_state(1)[0] >> 1)


class GuardedLane(gym.Wrapper[Any, Any, Any, Any]):
    """One environment that is closed and made anew where it raises or returns another shape or dtype.

    The step or reset that did so returns the new one's first observation, reward 0, no end, and a Failure
    in info[RESTART]. Of the numbers themselves nothing is looked at here; see Soundness.

    The new one is seeded by `restart_seed` from the seed last given, so that no stream is repeated.
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        super().__init__(make())
        self._make = make
        self._seed = 0
        self._restarts = 0
        space = self.env.observation_space
        self._leaves = [_Leaf(part.path, part.of(space)) for part in parts_of(space)]
        # The common cases, told apart without a call for each lane and step.
        plain = isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
        self._shape = space.shape if plain else None
        self._dtype = space.dtype
        self._numbers = (int, np.int64) if isinstance(space, spaces.Discrete) else ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As Env.reset; options[RESTART]: of a new instance, seeded from its own stream.

        Raises EnvFailed where a new instance fails at once.
        """
        if seed is not None:
            self._seed, self._restarts = seed, 0
        if options and RESTART in options:
            return self._made_anew()
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except Exception:  # noqa: BLE001 - whatever a user's code raises; it is told, and counted
            return self._failed(Failure("raise", traceback.format_exc()))
        problem = self._misfit(observation)
        return self._failed(Failure("invalid", problem)) if problem else (observation, info)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As Env.step. Raises EnvFailed where a new instance fails at once."""
        try:
            result = self.env.step(action)
        except Exception:  # noqa: BLE001 - whatever a user's code raises; it is told, and counted
            return self._failed_step(Failure("raise", traceback.format_exc()))
        observation, reward, terminated, truncated, info = result
        kind = observation.__class__
        if reward.__class__ in _NUMBERS and (
            (kind is _ARRAY and observation.dtype is self._dtype and observation.shape == self._shape)
            or kind in self._numbers
        ):
            return result
        problem = self._misfit(observation)
        if problem:
            return self._failed_step(Failure("invalid", problem))
        try:
            return observation, float(reward), terminated, truncated, info
        except (TypeError, ValueError):
            return self._failed_step(Failure("invalid", f"it returned the reward {reward!r}, not a number"))

    def _failed_step(self, failure: Failure) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, info = self._failed(failure)
        return observation, 0.0, False, False, info

    def _failed(self, failure: Failure) -> tuple[Any, dict[str, Any]]:
        """First observation and info of a new instance, with the failure in the latter."""
        try:
            observation, info = self._made_anew()
        except EnvFailed as again:
            raise EnvFailed(f"{failure.description}\nMade anew it failed again:\n{again}") from None
        return observation, {**info, RESTART: failure}

    def _made_anew(self) -> tuple[Any, dict[str, Any]]:
        self._restarts += 1
        with contextlib.suppress(Exception):  # it is broken already
            self.env.close()
        try:
            self.env = self._make()
            observation, info = self.env.reset(seed=restart_seed(self._seed, self._restarts))
        except Exception:  # noqa: BLE001 - as above
            raise EnvFailed(traceback.format_exc()) from None
        problem = self._misfit(observation)
        if problem:
            raise EnvFailed(problem)
        return observation, info

    def _misfit(self, observation: Any) -> str | None:
        """What is wrong with shapes and dtypes of an observation; None where nothing is."""
        for leaf in self._leaves:
            problem = leaf.misfit(observation)
            if problem:
                return problem
        return None


@dataclass(frozen=True)
class _Leaf:
    """One array of an observation: the keys that lead to it, and its space."""

    path: tuple[Any, ...]
    space: spaces.Space[Any]

    def of(self, observation: Any) -> Any:
        for key in self.path:
            observation = observation[key]
        return observation

    @property
    def name(self) -> str:
        return (
            f"an observation whose {'.'.join(map(str, self.path))!r}" if self.path else "an observation that"
        )

    def misfit(self, observation: Any) -> str | None:
        """What is wrong with shape or dtype of this array of a single observation."""
        try:
            array = np.asarray(self.of(observation))
        except (KeyError, IndexError, TypeError, ValueError) as error:
            return f"it returned {self.name} is missing or no array ({type(error).__name__}: {error})"
        if array.shape != self.space.shape:
            return f"it returned {self.name} has shape {array.shape}, where its space has {self.space.shape}"
        dtype = np.dtype(self.space.dtype)
        if array.dtype != dtype and not np.can_cast(array.dtype, dtype, "same_kind"):
            return f"it returned {self.name} is of {array.dtype}, where its space is of {dtype}"
        return None

    def unsound(self, array: np.ndarray) -> np.ndarray | None:
        """[N, ...] bool: values of a batch [N, ...] that are not finite or out of range; None: none is.

        Of floats only finiteness counts: that bounds of a Box are missed is common, and does no harm.
        """
        match self.space:
            case spaces.Discrete():
                low, size = np.asarray(self.space.start), np.asarray(self.space.n)
            case spaces.MultiDiscrete():
                low, size = self.space.start, self.space.nvec
            case _:
                if array.dtype.kind != "f":
                    return None
                # What is more than float32 can hold becomes infinite in a frame.
                sound = np.isfinite(array) if array.itemsize <= 4 else np.abs(array) <= _FLOAT32_MAX
                return None if np.count_nonzero(sound) == sound.size else ~sound
        # Below low wraps around to what is far above.
        sound = (array - low).astype(np.int64, copy=False).view(np.uint64) < size.astype(np.uint64)
        return None if np.count_nonzero(sound) == sound.size else ~sound


class Soundness:
    """Looks at the numbers that a vector environment returns."""

    def __init__(self, space: spaces.Space[Any]) -> None:
        """space: of single observations."""
        leaves = [_Leaf(part.path, part.of(space)) for part in parts_of(space)]
        self._leaves = [leaf for leaf in leaves if not _is_exact(leaf.space)]
        self._one_float32 = isinstance(space, spaces.Box) and space.dtype == np.float32

    def is_plain(self, observations: Any, reward: np.ndarray) -> bool:
        """Whether all is well at first sight, in the most common case: a quick test before `problems`."""
        # NaN fails the comparison.
        return (
            self._one_float32
            and np.count_nonzero(np.isfinite(observations)) == observations.size
            and reward.dtype.kind == "f"
            and float(reward.dot(reward)) <= _REWARD_MAX_SQUARED
        )

    def problems(self, observations: Any, reward: np.ndarray | None = None) -> dict[int, str]:
        """Lane -> what is wrong with its observation, or its reward [N]; empty where all is well."""
        found: dict[int, str] = {}
        for leaf in self._leaves:
            unsound = leaf.unsound(np.asarray(leaf.of(observations)))
            if unsound is not None:
                for lane in np.flatnonzero(unsound.reshape(len(unsound), -1).any(axis=1)).tolist():
                    value = np.asarray(leaf.of(observations))[lane][unsound[lane]].flat[0]
                    limits = "" if isinstance(leaf.space, spaces.Box) else f", outside of {leaf.space}"
                    found[lane] = f"it returned {leaf.name} holds {value}{limits}"
        if reward is not None and reward.dtype.kind == "f":
            for lane in np.flatnonzero(~(np.abs(reward) <= _REWARD_MAX)).tolist():
                found[lane] = f"it returned the reward {reward[lane]}, which float32 sums cannot hold"
        return found


def is_finite(frames: np.ndarray) -> bool:
    """Whether all floats are, of plain frames or records."""
    names = frames.dtype.names
    fields = [frames] if names is None else [frames[name] for name in names]
    return all(bool(np.isfinite(field).all()) for field in fields if field.dtype.kind == "f")


def _is_exact(space: spaces.Space[Any]) -> bool:
    """Whether every value of the dtype belongs to the space."""
    return isinstance(space, spaces.MultiBinary) or (
        isinstance(space, spaces.Box) and np.dtype(space.dtype).kind != "f"
    )


def describe_workers(env: VectorEnv[Any, Any, Any]) -> str:
    """Which worker processes of an asynchronous vector environment have ended; empty where none has."""
    if not isinstance(env, AsyncVectorEnv):
        return ""
    # One whose pipe has just broken takes a moment to end.
    wait([process.sentinel for process in env.processes], _JOIN_SECONDS)
    return "\n".join(
        f"worker process {index} ended with exit status {process.exitcode}"
        for index, process in enumerate(env.processes)
        if process.exitcode is not None
    )


def discard(env: VectorEnv[Any, Any, Any]) -> None:
    """Closes a vector environment that failed, its worker processes by force: they may hang."""
    if isinstance(env, AsyncVectorEnv):
        for process, pipe in zip(env.processes, env.parent_pipes, strict=True):
            process.kill()
            process.join(_JOIN_SECONDS)
            if pipe is not None:  # that of a worker whose error was reported
                pipe.close()
        env.closed = True
        return
    with contextlib.suppress(Exception):  # it is broken already
        env.close()
