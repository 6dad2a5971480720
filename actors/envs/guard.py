"""Environments that misbehave: one lane is restarted, a broken vector environment is discarded.

Owns the guard of a single lane and seeds of restarts; must not know of policies, transitions or blocks.
"""

import contextlib
import logging
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
from actors.envs.observations import checked_mask
from actors.envs.validation import Validator
from replay_service.block import ACTION_MASK

AnyVectorEnv = VectorEnv[Any, Any, Any]

RESTART = "qfleet_restart"
"""Key in the options of a reset that asks for a restart, and in the info of a restarted lane: its Failure."""
_JOIN_SECONDS = 2.0
_logger = logging.getLogger(__name__)
# Constants of the module, because they are looked up for each lane and step.
_ARRAY = np.ndarray
_NUMBERS = (float, int, np.float64, np.float32, np.int64)


@dataclass(frozen=True)
class Failure:
    """An error of an environment. description: its traceback if it raised, else a sentence."""

    cause: Literal["raise", "invalid"]
    description: str


def restart_seed(seed: int, restarts: int) -> int:
    """The seed after so many restarts of an environment that began with `seed`; in [0, 2^31)."""
    return int(np.random.SeedSequence((seed, restarts)).generate_state(1)[0] >> 1)


class GuardedLane(gym.Wrapper[Any, Any, Any, Any]):
    """One environment, replaced by a new instance when it raises or returns another shape or dtype.

    The step or reset in which that happens returns the new instance's first observation, reward 0, no end,
    and a Failure in its info. The numbers themselves are validated by GuardedVector, for all lanes at once.

    The new instance is seeded by `restart_seed` from the seed given last, so that no stream is repeated.

    Of the environment's info only the lives and, if wanted, the action mask are returned: the infos of lanes
    are merged into arrays, which fails where lanes differ in what nobody reads.
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]], *, masks: bool = True) -> None:
        """masks: whether the action mask is wanted."""
        super().__init__(make())
        self._make = make
        self._masks = masks
        self._seed = 0
        self._restarts = 0
        space = self.env.observation_space
        self._validator = Validator(space)
        # The common cases, recognized without a call for each lane and step.
        plain = isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
        self._shape = space.shape if plain else None
        self._dtype = space.dtype
        self._numbers = (int, np.int64) if isinstance(space, spaces.Discrete) else ()
        assert isinstance(self.env.action_space, spaces.Discrete)
        self._num_actions = int(self.env.action_space.n)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Like Env.reset. With the restart key in options, resets a new instance, seeded from its own stream.

        Raises EnvFailed if a new instance fails at once.
        """
        if seed is not None:
            self._seed, self._restarts = seed, 0
        if options and RESTART in options:
            return self._restart()
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except Exception:  # noqa: BLE001 - a user's code may raise anything; it is reported and counted
            return self._recover(Failure("raise", traceback.format_exc()))
        problem = self._validator.misfit(observation)
        return self._recover(Failure("invalid", problem)) if problem else (observation, self._read(info))

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Like Env.step. Raises EnvFailed if a new instance fails at once."""
        try:
            result = self.env.step(action)
        except Exception:  # noqa: BLE001 - as in reset
            return self._recover_step(Failure("raise", traceback.format_exc()))
        observation, reward, terminated, truncated, info = result
        kind = observation.__class__
        if reward.__class__ in _NUMBERS and (
            (kind is _ARRAY and observation.dtype is self._dtype and observation.shape == self._shape)
            or kind in self._numbers
        ):
            if not info and info.__class__ is dict:
                return result
            return observation, reward, terminated, truncated, self._read(info)
        problem = self._validator.misfit(observation)
        if problem:
            return self._recover_step(Failure("invalid", problem))
        try:
            number = float(reward)
        except (TypeError, ValueError):
            return self._recover_step(Failure("invalid", _not_a_number(reward)))
        return observation, number, terminated, truncated, self._read(info)

    def close(self) -> None:
        """Closes the environment. If that raises, a warning says so: other lanes are still to be closed."""
        try:
            super().close()
        except Exception as error:  # noqa: BLE001 - as in reset
            _logger.warning("close() of %s raised %s: %s", self.env, type(error).__name__, error)

    def _recover_step(self, failure: Failure) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, info = self._recover(failure)
        return observation, 0.0, False, False, info

    def _recover(self, failure: Failure) -> tuple[Any, dict[str, Any]]:
        """First observation and info of a new instance, with the failure in info."""
        try:
            observation, info = self._restart()
        except EnvFailed as again:
            raise EnvFailed(f"{failure.description}\nIts replacement failed at once:\n{again}") from None
        return observation, {**info, RESTART: failure}

    def _restart(self) -> tuple[Any, dict[str, Any]]:
        """First observation and info of a new instance."""
        self._restarts += 1
        with contextlib.suppress(Exception):  # it is broken already
            self.env.close()
        try:
            self.env = self._make()
            observation, info = self.env.reset(seed=restart_seed(self._seed, self._restarts))
        except Exception:  # noqa: BLE001 - as in reset
            raise EnvFailed(traceback.format_exc()) from None
        problem = self._validator.misfit(observation)
        if problem:
            raise EnvFailed(problem)
        return observation, self._read(info)

    def _read(self, info: Any) -> dict[str, Any]:
        """The entries of info that are read, lives as a float; those of another type are ignored.

        Raises EnvError for a mask that is not of A actions.
        """
        read: dict[str, Any] = {}
        if not isinstance(info, dict):
            return read
        if isinstance(info.get("lives"), int | float | np.number):
            read["lives"] = float(info["lives"])
        if self._masks and info.get(ACTION_MASK) is not None:
            # Checked here: lanes whose masks differ in shape could not be merged.
            read[ACTION_MASK] = checked_mask(info[ACTION_MASK], self._num_actions)
        return read


def _not_a_number(reward: Any) -> str:
    size = np.size(reward)
    if size < 2:
        return f"it returned the reward {reward!r}, not a number"
    return (
        f"it returned the reward {reward!r}, but one number is needed, not {size}: wrap the environment so "
        "that it adds them up (mo_gymnasium.wrappers.LinearReward does so with weights)"
    )


def describe_workers(env: AnyVectorEnv) -> str:
    """Which worker processes of an asynchronous vector environment have ended, and how; "" if none has."""
    if not isinstance(env, AsyncVectorEnv):
        return ""
    # A worker whose pipe has just broken takes a moment to end.
    ended = wait([process.sentinel for process in env.processes], _JOIN_SECONDS)
    lines = []
    for index, process in enumerate(env.processes):
        if process.sentinel in ended:
            process.join(_JOIN_SECONDS)  # until then its exit status may be unknown
            lines.append(f"worker process {index} ended with exit status {process.exitcode}")
    return "\n".join(lines)


def discard(env: AnyVectorEnv) -> None:
    """Closes a vector environment that failed; kills its worker processes, because they may hang."""
    if isinstance(env, AsyncVectorEnv):
        for process, pipe in zip(env.processes, env.parent_pipes, strict=True):
            process.kill()
            process.join(_JOIN_SECONDS)
            if pipe is not None:  # None if the worker reported an error
                pipe.close()
        env.closed = True
        return
    with contextlib.suppress(Exception):  # it is broken already
        env.close()
