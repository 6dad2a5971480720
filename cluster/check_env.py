"""How an environment would be run: what `qfleet check-env` prints.

Owns the wording; starts no process. Must not import ray or torch.
"""

from __future__ import annotations

import time

import numpy as np

from actors.core import EnvSpec
from actors.envs.make import make_vector
from actors.envs.observations import masked, split
from actors.exploration import epsilon_greedy
from cluster.api import prepare
from cluster.engines.machine import this_machine
from cluster.engines.threads import available_cores, env_threads
from cluster.settings.config import RunConfig
from cluster.settings.plan import make_plan
from cluster.settings.resolved import ResolvedConfig

_MEASURED_SECONDS = 1.0


def describe(config: RunConfig) -> str:
    """Spaces, backend, speed with random actions and the automatic settings, one a line."""
    prepared = prepare(config)
    spec, resolved = prepared.spec, prepared.config
    lanes = resolved.actors.envs_per_actor
    masked_by = ", masked by info['action_mask']" if spec.action_mask else ""
    lines = {
        "environment": resolved.env.id,
        "observation": _observation(spec),
        "actions": f"{spec.num_actions}{masked_by}",
        "backend": f"{spec.backend}, autoreset {spec.autoreset_mode}",
        "episode limit": str(spec.max_episode_steps or "none"),
        "solved at return": "not stated" if spec.reward_threshold is None else f"{spec.reward_threshold:g}",
        "speed": f"{_steps_per_second(resolved, spec, lanes):,.0f} env steps/s with random actions",
        "network": resolved.learner.network,
        "actors": f"{resolved.actors.num_actors} processes with {lanes} environments each",
        "memory": make_plan(resolved, spec, this_machine()).short,
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def _observation(spec: EnvSpec) -> str:
    if spec.parts:
        arrays = ", ".join(f"{part.name} {part.dtype} {list(part.shape)}" for part in spec.parts)
    else:
        states = f", {spec.num_states} states" if spec.num_states is not None else ""
        arrays = f"{spec.observation_dtype} {list(spec.observation_shape)}{states}"
    return f"{arrays}, stack {spec.stack}"


def _steps_per_second(config: ResolvedConfig, spec: EnvSpec, lanes: int) -> float:
    stepper = make_vector(config.env, lanes, env_threads(available_cores(), config.actors.num_actors or 1))
    rng = np.random.default_rng(0)
    try:
        frames = stepper.reset(np.arange(lanes))
        no_q = np.zeros((lanes, spec.num_actions), np.float32)
        steps, started = 0, time.monotonic()
        while (seconds := time.monotonic() - started) < _MEASURED_SECONDS:
            _, allowed = split(frames)
            actions = epsilon_greedy(masked(no_q, allowed), 1.0, rng, allowed)
            frames = stepper.step(actions).frames
            steps += lanes
    finally:
        stepper.close()
    return steps / seconds
