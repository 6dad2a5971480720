"""How an environment would be run: what `qfleet check-env` prints.

Owns the wording; starts no process. Must not import ray or torch.
"""

from __future__ import annotations

import time

import numpy as np

from actors.core import EnvSpec
from actors.envs import make_vector
from cluster.api import prepare
from cluster.config import RunConfig
from cluster.machine import this_machine
from cluster.plan import make_plan

_MEASURED_SECONDS = 1.0


def describe(config: RunConfig) -> str:
    """Spaces, backend, speed with random actions and the automatic settings, one a line."""
    prepared = prepare(config)
    spec, config = prepared.spec, prepared.config
    lanes = config.actors.envs_per_actor or 1
    states = f", {spec.num_states} states" if spec.num_states is not None else ""
    lines = {
        "environment": config.env.id,
        "observation": f"{spec.observation_dtype} {list(spec.observation_shape)}{states}, stack {spec.stack}",
        "actions": str(spec.num_actions),
        "backend": f"{spec.backend}, autoreset {spec.autoreset_mode}",
        "episode limit": str(spec.max_episode_steps or "none"),
        "solved at return": "not stated" if spec.reward_threshold is None else f"{spec.reward_threshold:g}",
        "speed": f"{_steps_per_second(config, spec, lanes):,.0f} env steps/s with random actions",
        "network": config.learner.network,
        "actors": f"{config.actors.num_actors} processes with {lanes} environments each",
        "memory": make_plan(config, spec, this_machine()).short,
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def _steps_per_second(config: RunConfig, spec: EnvSpec, lanes: int) -> float:
    stepper = make_vector(config.env, lanes)
    rng = np.random.default_rng(0)
    try:
        stepper.reset(np.arange(lanes))
        steps, started = 0, time.monotonic()
        while (seconds := time.monotonic() - started) < _MEASURED_SECONDS:
            stepper.step(rng.integers(spec.num_actions, size=lanes))
            steps += lanes
    finally:
        stepper.close()
    return steps / seconds
