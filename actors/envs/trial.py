"""One reset and one step of an environment, before anything is built on it.

Owns the sentences about methods that raise or return something else than Gymnasium asks for; must not know of
policies, transitions or blocks.
"""

import traceback
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from actors.config import EnvConfig
from actors.envs.errors import EnvError
from actors.envs.make import Probed, inspect, make_lane
from actors.envs.validation import Validator
from replay_service.block import ACTION_MASK

_RESET = "it must return (observation, info), where info is a dict"
_STEP = "it must return (observation, reward, terminated, truncated, info)"
_ROOT = Path(__file__).parents[2]
_NOT_THE_USERS = (
    str(Path(gym.__file__).parent),
    *(str(_ROOT / name) for name in ("actors", "cluster", "learner", "qfleet")),
    "<",
)
"""Beginnings of the paths of files that are not the user's own code."""


def try_out(config: EnvConfig) -> Probed:
    """The properties of an environment, after it has been made, reset and stepped.

    Raises EnvError, in one sentence that names the method at fault.
    """
    failure: Exception | None = None
    try:
        probed = inspect(config)
        if probed.spec.backend == "native":
            return probed
    except EnvError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - a user's code may raise anything; it is told in a sentence
        failure = error
    _try_lane(config)
    if isinstance(failure, EnvError):
        raise failure
    if failure is not None:
        raise EnvError(f"{config.id} cannot be used: {told(failure)}") from failure
    return probed


def told(error: BaseException) -> str:
    """An error in one line: its kind, its message, and the line of the user's own code that raised it."""
    message = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {message[0]}" if message else type(error).__name__
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_THE_USERS)
    ]
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def _try_lane(config: EnvConfig) -> None:
    """Makes, resets and steps one environment. Raises EnvError."""
    with closing(_called(config, "making it", make_lane, config)) as env:
        first = _called(config, "reset()", env.reset, seed=0)
        if not (isinstance(first, tuple) and len(first) == 2 and isinstance(first[1], dict)):
            raise EnvError(f"{config.id}: reset() returned {_shape(first)}; {_RESET}")
        validator = Validator(env.observation_space)
        _require_fit(config, validator, "reset()", first[0])
        step = _called(config, "step()", env.step, _an_action(env, first[1]))
        if not (isinstance(step, tuple) and len(step) == 5 and isinstance(step[4], dict)):
            raise EnvError(f"{config.id}: step() returned {_shape(step)}; {_STEP}")
        _require_fit(config, validator, "step()", step[0])
        reward = np.asarray(step[1])
        if reward.size != 1 or reward.dtype.kind not in "iufb":
            raise EnvError(f"{config.id}: step() returned the reward {step[1]!r}; it must be one number")


def _called(config: EnvConfig, method: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    try:
        return call(*args, **kwargs)
    except EnvError:
        raise
    except Exception as error:
        if "values to unpack" in str(error) and error.__traceback__ is not None:
            # A wrapper of Gymnasium's could not take apart what the environment returned.
            wanted = _RESET if method == "reset()" else _STEP
            raise EnvError(f"{config.id}: {method} returned another number of values; {wanted}") from error
        raise EnvError(f"{config.id}: {method} raised {told(error)}") from error


def _an_action(env: gym.Env[Any, Any], info: dict[str, Any]) -> int:
    """The first action that may be taken."""
    start = int(getattr(env.action_space, "start", 0))
    mask = info.get(ACTION_MASK)
    return start if mask is None else start + int(np.argmax(np.asarray(mask).ravel() != 0))


def _require_fit(config: EnvConfig, validator: Validator, method: str, observation: Any) -> None:
    """Raises EnvError if an observation does not fit the space."""
    problem = validator.misfit(observation)
    if problem is not None:
        raise EnvError(f"{config.id}: {method}: {problem}")


def _shape(value: Any) -> str:
    """What was returned, in words: its values may be long."""
    return f"{len(value)} values" if isinstance(value, tuple) else f"a {type(value).__name__}"
