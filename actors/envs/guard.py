"""Restarts of environments that misbehave: of single lanes, or of a whole vector environment.

Owns restarts, their seeds and their count; must not know of policies, transitions or blocks.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Literal, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, VectorEnv

from actors.core import EnvRestart
from actors.envs.errors import EnvFailed
from actors.envs.validation import Validator
from replay_service.block import ACTION_MASK

AnyVectorEnv = VectorEnv[Any, Any, Any]
SeedForm = Literal["list", "array", "int"]
VectorStep = tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any], np.ndarray | None]
"""Observations, rewards, terminated, truncated and info as VectorEnv.step returns them, and `broken`."""

_RESTART = "qfleet_restart"
"""In the options of a reset: restart the lane. In an info: the lane was restarted, and the Failure why."""
_PROBATION_STEPS = 1_000
_JOIN_SECONDS = 2.0
# Looked up for each lane and step.
_ARRAY = np.ndarray
_NUMBERS = (float, int, np.float64, np.float32, np.int64)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Failure:
    """What an environment did wrong; description: its traceback if it raised, else a sentence."""

    cause: Literal["raise", "invalid"]
    description: str


def restart_seed(seed: int, restarts: int) -> int:
    """The seed after the given number of restarts of what was seeded with `seed`; in [0, 2^31)."""
    return int(np.random.SeedSequence((seed, restarts)).generate_state(1)[0] >> 1)


class GuardedLane(gym.Wrapper[Any, Any, Any, Any]):
    """One environment, replaced by a new instance when it raises or returns another shape or dtype.

    The step or reset in which that happens returns the new instance's first observation, reward 0, no end,
    and a Failure in its info. The numbers themselves are validated by GuardedVector, for all lanes at once.

    The new instance is seeded by `restart_seed` from the seed given last, so that no stream is repeated.
    """

    def __init__(self, make: Callable[[], gym.Env[Any, Any]]) -> None:
        super().__init__(make())
        self._make = make
        self._seed = 0
        self._restarts = 0
        space = self.env.observation_space
        self._validator = Validator(space)
        # The common cases, recognized without a call for each lane and step.
        plain = isinstance(space, spaces.Box | spaces.MultiBinary | spaces.MultiDiscrete)
        self._shape = space.shape if plain else None
        self._dtype = space.dtype
        self._numbers = (int, np.int64) if isinstance(space, spaces.Discrete) else ()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As Env.reset. With the restart key in options, resets a new instance, seeded from its own stream.

        Raises EnvFailed if a new instance fails at once.
        """
        if seed is not None:
            self._seed, self._restarts = seed, 0
        if options and _RESTART in options:
            return self._restart()
        try:
            observation, info = self.env.reset(seed=seed, options=options)
        except Exception:  # noqa: BLE001 - a user's code may raise anything; it is reported and counted
            return self._recover(Failure("raise", traceback.format_exc()))
        problem = self._validator.misfit(observation)
        return self._recover(Failure("invalid", problem)) if problem else (observation, info)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """As Env.step. Raises EnvFailed if a new instance fails at once."""
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
            return result
        problem = self._validator.misfit(observation)
        if problem:
            return self._recover_step(Failure("invalid", problem))
        try:
            return observation, float(reward), terminated, truncated, info
        except (TypeError, ValueError):
            return self._recover_step(Failure("invalid", f"it returned the reward {reward!r}, not a number"))

    def _recover_step(self, failure: Failure) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, info = self._recover(failure)
        return observation, 0.0, False, False, info

    def _recover(self, failure: Failure) -> tuple[Any, dict[str, Any]]:
        """First observation and info of a new instance, with the failure in the latter."""
        try:
            observation, info = self._restart()
        except EnvFailed as again:
            raise EnvFailed(f"{failure.description}\nIts replacement failed at once:\n{again}") from None
        return observation, {**info, _RESTART: failure}

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
        return observation, info


class GuardedVector:
    """A vector environment that restarts what misbehaves: single lanes if it can, else all of them.

    An environment misbehaves if it raises or returns what no frame can hold. A restarted lane is on probation
    until it has ended an episode or made 1,000 steps: another failure before that is a bug, and raises
    EnvFailed. asynchronous: lanes step between `begin` and `finish`, in threads or processes of their own.
    """

    def __init__(
        self, make: Callable[[], AnyVectorEnv], seed_form: SeedForm, *, name: str, guarded_lanes: bool = False
    ) -> None:
        """make: makes the vector environment, now and for each restart of all lanes.

        seed_form: how its reset takes a seed for each lane ("int": one seed for all lanes). name: the
        environment's, for messages. guarded_lanes: its lanes are GuardedLanes.
        """
        self.env = make()
        self.name = name
        self._make = make
        self._seed_form = seed_form
        self._guarded_lanes = guarded_lanes
        self._halves = _halves(self.env)
        self.asynchronous = self._halves is not None
        self._validator = Validator(self.env.single_observation_space)
        self._nobody = np.zeros(self.env.num_envs, np.bool_)
        self._seeds = np.zeros(self.env.num_envs, np.int64)
        self._replacements = 0
        self._actions = np.zeros(0, np.int64)
        self._begin_error: Exception | None = None
        self._steps = 0
        # Lane -> the step at which it was restarted.
        self._on_probation: dict[int, int] = {}
        self._restarts: list[EnvRestart] = []

    def reset(self, seeds: np.ndarray) -> tuple[Any, dict[str, Any]]:
        """Observations and info of new episodes in all lanes, seeded with seeds [N] int64."""
        self._seeds, self._replacements = seeds, 0
        return self._reset(seeds)

    def begin(self, actions: np.ndarray) -> None:
        """The first half of a step with the environment's own actions [N]; `finish` must follow."""
        self._actions = actions
        if self._halves is not None:
            try:
                self._halves[0](actions)
            except Exception as error:  # noqa: BLE001 - whatever it is, `finish` handles it
                self._begin_error = error

    def finish(self, resetting: np.ndarray) -> VectorStep:
        """The second half of a step, which also handles what `begin` met.

        resetting [N] bool: lanes whose step is an autoreset; their rewards are not validated. Returns what
        VectorEnv.step does, and `broken`: [N] bool, the lanes that were restarted, or None if no lane was.
        A restarted lane's observation and info are those of a reset; its reward and ends mean nothing.
        """
        self._steps += 1
        error, self._begin_error = self._begin_error, None
        try:
            if error is not None:
                raise error
            observations, reward, terminated, truncated, info = (
                self.env.step(self._actions) if self._halves is None else self._halves[1]()
            )
        except EnvFailed:
            raise
        except Exception:  # noqa: BLE001 - a user's code may raise anything; it is reported and counted
            return self.replace(self._raised())
        reward, terminated, truncated = np.asarray(reward), np.asarray(terminated), np.asarray(truncated)
        problems: dict[int, str] = {}
        if not self._validator.is_plain(observations, reward):
            problems = self._validator.problems(observations, np.where(resetting, 0.0, reward))
        if problems and not self._guarded_lanes:
            return self.replace(_first(problems))
        broken = None
        if problems or _RESTART in info:
            observations, broken = self._restart_lanes(observations, info, problems)
        return observations, reward, terminated, truncated, info, broken

    def replace(self, failure: Failure) -> VectorStep:
        """Restarts all lanes because of a failure; the step in which that happens."""
        observations, info = self._replace(failure)
        return observations, np.zeros(len(self._nobody)), self._nobody, self._nobody, info, ~self._nobody

    def end_probation(self, ended: np.ndarray) -> None:
        """Takes note that lanes `ended` [N] bool have ended an episode."""
        if self._on_probation and np.count_nonzero(ended):
            self._on_probation = {lane: at for lane, at in self._on_probation.items() if not ended[lane]}

    def take_restarts(self) -> tuple[EnvRestart, ...]:
        """The restarts since the last call."""
        restarts, self._restarts = self._restarts, []
        return tuple(restarts)

    def _reset(self, seeds: np.ndarray) -> tuple[Any, dict[str, Any]]:
        """See reset."""
        seed: Any = seeds
        if self._seed_form != "array":
            seed = seeds.tolist() if self._seed_form == "list" else int(seeds[0])
        try:
            observations, info = self.env.reset(seed=seed)
        except EnvFailed:
            raise
        except Exception:  # noqa: BLE001 - as in finish
            return self._replace(self._raised())
        problems = self._validator.problems(observations)
        if problems and not self._guarded_lanes:
            return self._replace(_first(problems))
        return self._restart_lanes(observations, info, problems)[0], info

    def _replace(self, failure: Failure) -> tuple[Any, dict[str, Any]]:
        """Replaces the vector environment; first observations and info of the new one."""
        self._count(failure, None)
        discard(self.env)
        self.env = self._make()
        self._halves = _halves(self.env)
        self._replacements += 1
        seeds = [restart_seed(seed, self._replacements) for seed in self._seeds.tolist()]
        return self._reset(np.array(seeds, np.int64))

    def _restart_lanes(
        self, observations: Any, info: dict[str, Any], problems: Mapping[int, str]
    ) -> tuple[Any, np.ndarray]:
        """Restarts the lanes with problems; counts them, and the lanes that info reports as restarted.

        Returns the observations of all lanes and `broken`, see finish; info is brought up to date.
        """
        broken = self._nobody | info.get(f"_{_RESTART}", False)
        for lane in np.flatnonzero(broken).tolist():
            self._count(info[_RESTART][lane], lane)
        if not problems:
            return observations, broken
        for lane, description in problems.items():
            self._count(Failure("invalid", description), lane)
        lanes = np.isin(np.arange(len(broken)), list(problems))
        observations, fresh = self.env.reset(options={"reset_mask": lanes.copy(), _RESTART: True})
        again = self._validator.problems(observations)
        if again:
            raise EnvFailed(f"{_first(again).description}\nIt had just been restarted.")
        _update_info(info, fresh, lanes)
        return observations, broken | lanes

    def _count(self, failure: Failure, lane: int | None) -> None:
        """Counts the restart of one lane, or of all together (None). Raises EnvFailed if on probation."""
        which = "all environments" if lane is None else f"environment {lane}"
        lanes = range(len(self._nobody)) if lane is None else (lane,)
        steps = self._steps - min(self._on_probation.get(each, -_PROBATION_STEPS) for each in lanes)
        if steps < _PROBATION_STEPS:
            raise EnvFailed(f"{failure.description}\nThis is {steps} steps after a restart of {which}.")
        self._on_probation.update(dict.fromkeys(lanes, self._steps))
        self._restarts.append(EnvRestart(failure.cause, lane, failure.description))
        _logger.warning("%s: %s restarted: %s", self.name, which, failure.description)

    def _raised(self) -> Failure:
        """The exception that the vector environment has just raised."""
        description = "\n".join(filter(None, (traceback.format_exc(), describe_workers(self.env))))
        return Failure("raise", description)


def _halves(env: Any) -> tuple[Callable[[np.ndarray], Any], Callable[[], tuple[Any, ...]]] | None:
    """The two halves of a step, if env has them; lanes step in between, without the caller."""
    if isinstance(env, AsyncVectorEnv):
        return env.step_async, env.step_wait
    return (env.send, env.recv) if hasattr(env, "send") else None  # ALE's vector environment


def _first(problems: Mapping[int, str]) -> Failure:
    lane, description = next(iter(problems.items()))
    return Failure("invalid", f"Environment {lane}: {description}")


def _update_info(info: dict[str, Any], fresh: Mapping[str, Any], lanes: np.ndarray) -> None:
    """Replaces what a vector environment's info says of lanes [N] bool by what `fresh` says."""
    for key in (ACTION_MASK, "lives"):  # nothing else is ever read
        if key in info and key in fresh:
            for name in (key, f"_{key}"):
                info[name][lanes] = fresh[name][lanes]
        elif key in info:
            info[f"_{key}"][lanes] = False
        elif key in fresh:
            info.update({key: fresh[key], f"_{key}": fresh[f"_{key}"]})


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
