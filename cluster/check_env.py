"""The text that `qfleet check-env` prints: how a run would use an environment.

Owns the wording and the measurement of speed; starts no process. Must not import ray or torch.
"""

import math
import time
from collections.abc import Mapping

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
from cluster.settings.resolve import network_spec
from cluster.settings.resolved import ResolvedConfig, preset_text
from cluster.wording import quantity
from learner.config import NetworkSpec, image_shape
from replay_service.block import OBSERVATION

_MEASURED_SECONDS = 1.0
_BACKENDS: Mapping[str, str] = {
    "native": "its registered vector form steps all environments at once",
    "sync": "environments are stepped one after the other",
    "async": "each environment has a process of its own",
}


def describe(config: RunConfig) -> str:
    """Spaces, backend, speed with random actions, and automatic settings, a line for each."""
    prepared = prepare(config)
    spec, resolved = prepared.spec, prepared.config
    num_actors, lanes = resolved.actors.num_actors, resolved.actors.envs_per_actor
    masked_by = ", masked by info['action_mask']" if spec.action_mask else ""
    lines = {
        "environment": resolved.env.id,
        "preset": preset_text(resolved).removeprefix("preset ") or "none",
        "observation": observation_text(spec),
        "actions": f"{spec.num_actions}{masked_by}",
        "backend": f"{spec.backend}: {_BACKENDS[spec.backend]}",
        "episode limit": quantity(spec.max_episode_steps, "step") if spec.max_episode_steps else "none",
        "solved at return": "not stated" if spec.reward_threshold is None else f"{spec.reward_threshold:g}",
        "speed": f"{_steps_per_second(resolved, spec, lanes):,.0f} env steps/s with random actions",
        "network": resolved.learner.network,
        "actors": f"{quantity(num_actors, 'process', 'processes')} with {quantity(lanes, 'environment')}"
        + (" each" if num_actors > 1 else ""),
        "memory": make_plan(resolved, spec, this_machine()).short,
    }
    lines |= {f"chosen {number}": reason for number, reason in enumerate(prepared.reasons, 1)}
    lines |= {f"note {number}": note for number, note in enumerate(prepared.notes, 1)}
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines.items())


def observation_text(spec: EnvSpec) -> str:
    """Describes an observation: "84 x 84 image, 4 stacked (uint8, divided by 255)"; several arrays with their
    names."""
    if spec.num_states is not None:
        return f"a state number, {quantity(spec.num_states, 'state')}"
    arrays = network_spec(spec).arrays
    texts = {name: _array_text(array) for name, array in arrays.items()}
    return "; ".join(f"{name}: {text}" for name, text in texts.items()) if spec.parts else texts[OBSERVATION]


def _array_text(array: NetworkSpec) -> str:
    kind = np.dtype(array.observation_dtype).name
    shape, layout, image = array.frame_shape, array.image_layouts.get(OBSERVATION), image_shape(array)
    text = f"{' x '.join(map(str, shape))} numbers" if len(shape) > 1 else ""
    if array.is_pixels and image is not None:
        text = f"{image.height} x {image.width} image"
        if len(shape) == 4:
            text += f", a stack of {shape[0]}"
        if layout != "HW":
            channels = shape[-1] if image.channels_last else shape[-3]
            text += f", {quantity(channels, 'channel')} ({'last' if image.channels_last else 'first'})"
    elif layout == "unknown":
        text += " (env.image_layout would say which axis holds channels)"
    text = text or quantity(math.prod(shape), "number")
    stacked = f", {array.stack} stacked" if array.stack > 1 else ""
    return f"{text}{stacked} ({kind}{', divided by 255' if array.is_pixels else ''})"


def _steps_per_second(config: ResolvedConfig, spec: EnvSpec, lanes: int) -> float:
    stepper = make_vector(config.env, lanes, env_threads(available_cores(), config.actors.num_actors))
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
