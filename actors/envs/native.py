"""Registered vector environments: when one can stand in for single environments, and how it is made.

Owns these rules; must not know of single lanes, policies or blocks.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import gymnasium as gym
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec as Registration

from actors.config import EnvConfig
from actors.envs import atari
from actors.envs.errors import EnvError
from actors.envs.guard import AnyVectorEnv
from actors.envs.guarded_vector import UncheckedActions


class NoNativeError(EnvError):
    """No vector environment is registered that plays the same game as single environments do."""


def make_native(config: EnvConfig, source: object, num_envs: int, threads: int) -> AnyVectorEnv:
    """The vector environment that a registration names; ALE steps its lanes in `threads` threads.

    Raises NoNativeError, also for a source that is no registration.
    """
    if not isinstance(source, Registration) or source.vector_entry_point is None:
        raise _no_native(config, "no native vector environment")
    is_atari = atari.is_atari(source)
    if str(source.vector_entry_point).startswith("gymnasium.envs.phys2d."):
        # FunctionalJaxVectorEnv.step freezes every other lane for the step in which one lane resets.
        raise _no_native(config, "a native vector environment with wrong dynamics")
    if config.wrappers or config.drop_observation_keys:
        raise _no_native(
            config, "env.wrappers or keys to drop, which its native vector environment cannot have"
        )
    if source.additional_wrappers:
        raise _no_native(config, "wrappers in its registration, which its native vector environment lacks")
    kwargs = dict(config.kwargs)
    if is_atari:
        kwargs = atari.vector_kwargs(config, threads)
    elif config.max_episode_steps is not None:
        if source.max_episode_steps is None:
            raise _no_native(config, "a native vector environment without a time limit")
        kwargs["max_episode_steps"] = config.max_episode_steps
    with _batch_scheduling():
        env: AnyVectorEnv = gym.make_vec(source, num_envs, "vector_entry_point", **kwargs)
    if isinstance(env.single_action_space, spaces.Discrete) and "autoreset_mode" in env.metadata:
        if type(env.action_space) is spaces.MultiDiscrete:
            env.action_space = UncheckedActions(env.action_space)
        return env
    env.close()
    if "autoreset_mode" in env.metadata:
        raise _no_native(config, f"actions {env.single_action_space}, which need a wrapper")
    raise _no_native(config, "a native vector environment that does not say how it resets")


def _no_native(config: EnvConfig, obstacle: str) -> NoNativeError:
    return NoNativeError(f"{config.id} has {obstacle}; set env.backend=sync")


@contextmanager
def _batch_scheduling() -> Iterator[None]:
    """Threads started inside never preempt the thread that wakes them, which computes Q-values or updates:
    they run on another core, or later. Their share of CPU time stays the same."""
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
