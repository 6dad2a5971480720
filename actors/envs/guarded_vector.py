"""A vector environment that is restarted, whole or lane by lane, where it misbehaves.

Owns these restarts and their limit; must not import anything of actors but config, core and envs.
"""

import logging
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv

from actors.core import BoundsReport, EnvRestart
from actors.envs.errors import EnvError, EnvFailed
from actors.envs.guard import RESTART, AnyVectorEnv, Failure, describe_workers, discard, restart_seed
from actors.envs.validation import REWARD_MAX, Validator
from replay_service.block import ACTION_MASK

SeedForm = Literal["list", "array", "int"]
VectorStep = tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any], np.ndarray | None]
"""Observations, rewards, terminated, truncated and info as VectorEnv.step returns them, and `broken`."""

_PROBATION_STEPS = 1_000
# One step in so many is looked at, so that it costs actors nothing that could be measured.
_BOUNDS_STEPS = 64
_logger = logging.getLogger(__name__)


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
        space = self.env.single_observation_space
        self._validator = Validator(space)
        self._one_float32 = isinstance(space, spaces.Box) and space.dtype == np.float32
        self._nobody = np.zeros(self.env.num_envs, np.bool_)
        self._seeds = np.zeros(self.env.num_envs, np.int64)
        self._replacements = 0
        self._actions = np.zeros(0, np.int64)
        self._begin_error: Exception | None = None
        self._steps = 0
        self.on_probation: dict[int, int] = {}
        """Lane -> the step at which it was restarted."""
        self._restarts: list[EnvRestart] = []
        self._bounds = BoundsReport()

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
        """The second half of a step, which also handles an error raised in `begin`.

        resetting [N] bool: lanes whose step is an autoreset; their rewards are not validated. Returns what
        VectorEnv.step does, and `broken`: [N] bool, the lanes that were restarted, or None if no lane was.
        A restarted lane's observation and info are those of a reset; its reward and ends mean nothing.
        """
        self._steps += 1
        try:
            if self._begin_error is not None:
                raise self._begin_error
            observations, reward, terminated, truncated, info = (
                self.env.step(self._actions) if self._halves is None else self._halves[1]()
            )
        except (EnvFailed, EnvError):
            raise
        except Exception:  # noqa: BLE001 - a user's code may raise anything; it is reported and counted
            return self.replace(self._raised())
        reward, terminated, truncated = np.asarray(reward), np.asarray(terminated), np.asarray(truncated)
        problems: dict[int, str] = {}
        if not self._is_plain(observations, reward):
            problems = self._validator.problems(observations, np.where(resetting, 0.0, reward))
        if problems and not self._guarded_lanes:
            return self.replace(_first(problems))
        if self._steps % _BOUNDS_STEPS == 1:
            self._bounds += self._validator.bounds(observations)
        broken = None
        if problems or RESTART in info:
            observations, broken = self._restart_lanes(observations, info, problems)
        return observations, reward, terminated, truncated, info, broken

    def replace(self, failure: Failure) -> VectorStep:
        """Restarts all lanes because of a failure; returns the step in which that happens."""
        observations, info = self._replace(failure)
        return observations, np.zeros(len(self._nobody)), self._nobody, self._nobody, info, ~self._nobody

    def end_probation(self, ended: np.ndarray) -> None:
        """Ends the probation of lanes `ended` [N] bool, which have ended an episode."""
        self.on_probation = {lane: at for lane, at in self.on_probation.items() if not ended[lane]}

    def take_restarts(self) -> tuple[EnvRestart, ...]:
        """The restarts since the last call."""
        restarts, self._restarts = self._restarts, []
        return tuple(restarts)

    def take_bounds(self) -> BoundsReport:
        """The observations looked at since the last call."""
        bounds, self._bounds = self._bounds, BoundsReport()
        return bounds

    def _is_plain(self, observations: Any, reward: np.ndarray) -> bool:
        """Whether the most common case applies and all is well: a quick test before the validator's."""
        # NaN fails the comparison.
        return (
            self._one_float32
            and np.count_nonzero(np.isfinite(observations)) == observations.size
            and reward.dtype.kind == "f"
            and float(reward.dot(reward)) <= REWARD_MAX**2
        )

    def _reset(self, seeds: np.ndarray) -> tuple[Any, dict[str, Any]]:
        """See reset."""
        seed: Any = seeds
        if self._seed_form != "array":
            seed = seeds.tolist() if self._seed_form == "list" else int(seeds[0])
        try:
            observations, info = self.env.reset(seed=seed)
        except (EnvFailed, EnvError):
            raise
        except Exception:  # noqa: BLE001 - as in finish
            return self._replace(self._raised())
        problems = self._validator.problems(observations)
        if problems and not self._guarded_lanes:
            return self._replace(_first(problems))
        return self._restart_lanes(observations, info, problems)[0], info

    def _replace(self, failure: Failure) -> tuple[Any, dict[str, Any]]:
        """Replaces the vector environment; returns first observations and info of the new one."""
        self._count(failure, None)
        discard(self.env)
        self.env = self._make()
        self._halves = _halves(self.env)
        self._begin_error = None
        self._replacements += 1
        seeds = [restart_seed(seed, self._replacements) for seed in self._seeds.tolist()]
        return self._reset(np.array(seeds, np.int64))

    def _restart_lanes(
        self, observations: Any, info: dict[str, Any], problems: Mapping[int, str]
    ) -> tuple[Any, np.ndarray]:
        """Restarts the lanes with problems; counts them, and the lanes that info reports as restarted.

        Returns the observations of all lanes and `broken`, see finish; info is brought up to date.
        """
        broken = self._nobody | info.get(f"_{RESTART}", False)
        for lane in np.flatnonzero(broken).tolist():
            self._count(info[RESTART][lane], lane)
        if not problems:
            return observations, broken
        for lane, description in problems.items():
            self._count(Failure("invalid", description), lane)
        lanes = np.isin(np.arange(len(broken)), list(problems))
        observations, fresh = self.env.reset(options={"reset_mask": lanes.copy(), RESTART: True})
        again = self._validator.problems(observations)
        if again:
            raise EnvFailed(f"{_first(again).description}\nIt had just been restarted.")
        _update_info(info, fresh, lanes)
        return observations, broken | lanes

    def _count(self, failure: Failure, lane: int | None) -> None:
        """Counts the restart of one lane, or of all together (None). Raises EnvFailed if on probation."""
        which = "all environments" if lane is None else f"environment {lane}"
        lanes = range(len(self._nobody)) if lane is None else (lane,)
        steps = self._steps - min(self.on_probation.get(each, -_PROBATION_STEPS) for each in lanes)
        if steps < _PROBATION_STEPS:
            raise EnvFailed(f"{failure.description}\nThis is {steps} steps after a restart of {which}.")
        self.on_probation.update(dict.fromkeys(lanes, self._steps))
        self._restarts.append(EnvRestart(failure.cause, lane, failure.description))
        _logger.warning("%s: %s restarted: %s", self.name, which, failure.description)

    def _raised(self) -> Failure:
        """The exception that the vector environment has just raised."""
        description = "\n".join(filter(None, (traceback.format_exc(), describe_workers(self.env))))
        return Failure("raise", description)


class UncheckedActions(spaces.MultiDiscrete):
    """A vector environment's action space that takes every action as valid. A GuardedVector is given no
    invalid ones, and the check takes a fourth of a step of 16 lanes of CartPole's vector form."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        super().__init__(space.nvec, dtype=space.dtype.type, start=space.start)

    def contains(self, x: Any) -> bool:
        return True


def _halves(env: Any) -> tuple[Callable[[np.ndarray], Any], Callable[[], tuple[Any, ...]]] | None:
    """The two halves of a step, if env has them; lanes step in between, without the caller."""
    if isinstance(env, AsyncVectorEnv):
        return env.step_async, env.step_wait
    return (env.send, env.recv) if hasattr(env, "send") else None  # ALE's vector environment


def _first(problems: Mapping[int, str]) -> Failure:
    lane, description = next(iter(problems.items()))
    return Failure("invalid", f"Environment {lane}: {description}")


def _update_info(info: dict[str, Any], fresh: Mapping[str, Any], lanes: np.ndarray) -> None:
    """Replaces the entries of lanes [N] bool in a vector environment's info by those in `fresh`."""
    for key in (ACTION_MASK, "lives"):  # nothing else is ever read
        if key in info and key in fresh:
            for name in (key, f"_{key}"):
                info[name][lanes] = fresh[name][lanes]
        elif key in info:
            info[f"_{key}"][lanes] = False
        elif key in fresh:
            info.update({key: fresh[key], f"_{key}": fresh[f"_{key}"]})
