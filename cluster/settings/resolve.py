"""Automatic settings: chooses those that a configuration leaves out, to suit environment and machine.

Owns the rules and their reasons; must not import torch or ray.
"""

from dataclasses import replace
from typing import Any

from actors.config import EPSILON_DECAY_ENV_STEPS, ActorsConfig
from actors.core import EnvSpec
from cluster.settings.automatic import (
    Scale,
    budget_env_steps,
    epsilon_decay_env_steps,
    evaluation_episodes,
    evaluation_every_updates,
    expected_updates,
    has_no_rates,
    learning_starts,
    rewards_per_transition,
    samples_per_insert,
    sampling,
    speed_of,
    table_rates,
    uses_every_core,
)
from cluster.settings.config import ConfigError, RunConfig, RunSection
from cluster.settings.resolved import (
    ResolvedActors,
    ResolvedConfig,
    ResolvedEnv,
    ResolvedEvaluation,
    ResolvedLearner,
    ResolvedPacing,
    ResolvedReplay,
    ResolvedRun,
    ResolvedStop,
    Runtime,
    narrowed,
)
from learner.config import TARGET_UPDATE_UPDATES, LearnerConfig, NetworkSpec, acts_in_numpy, resolve_network
from replay_service.block import FrameField

_IMAGE_BYTES = 1_024
_DEFAULT_ENV_STEPS = 1_000_000
_REQUEST_BYTES = 16 << 20
_MOST_LANES = 8
_MOST_NATIVE_LANES = 32
_MOST_MINIBATCHES = 64
_SERIAL_MINIBATCHES = 8
_REPLAY_BYTES_AUTO = 2 << 30


def runtime_of(run: RunSection, *, on_cluster: bool) -> Runtime:
    """The runtime that a run gets: for "auto" the cluster if this process is on one, else local processes."""
    if run.runtime == "auto":
        return "cluster" if on_cluster else "local"
    return run.runtime


def resolve(
    config: RunConfig,
    spec: EnvSpec,
    cores: int,
    *,
    on_cluster: bool = False,
    step_seconds: float | None = None,
    most_lanes: int | None = None,
) -> ResolvedConfig:
    """The config with every setting chosen. Pure: equal input gives equal output.

    cores: of the machine that runs the actors. on_cluster: whether the runtime "auto" means "cluster".
    step_seconds: duration of an environment's step, used if run.measure_speed allows; None: not measured.
    most_lanes: environments of the evaluator that memory allows; None: not measured.

    Raises:
        ConfigError: if the configured network does not fit the environment's observations.
    """
    replay, stop = config.replay, config.stop
    runtime = runtime_of(config.run, on_cluster=on_cluster)
    measure = runtime != "serial" if config.run.measure_speed is None else config.run.measure_speed
    if stop.env_steps is None and stop.updates is None and stop.seconds is None:
        stop = replace(stop, env_steps=_DEFAULT_ENV_STEPS)
    target = spec.reward_threshold if stop.target_return == "auto" else stop.target_return
    preset = "none" if config.run.preset == "auto" else config.run.preset
    serial = runtime == "serial"
    scale = _scale(replace(config, stop=stop), spec, cores, step_seconds if measure else None, serial=serial)
    episodes = config.evaluation.episodes or evaluation_episodes(scale)
    capacity = replay.capacity or _capacity(spec, config.learner.batch_size)
    drawn = replay.sampling or sampling(scale.network)
    most = _most_minibatches(config.learner.batch_size, spec, scale.n_step)
    if serial:
        # One, drawn by the newest priorities, or a few where there are none.
        most = 1 if drawn == "prioritized" else min(most, _SERIAL_MINIBATCHES)
    return ResolvedConfig(
        env=narrowed(
            ResolvedEnv, config.env, stack=spec.stack, action_mask=spec.action_mask or config.env.action_mask
        ),
        actors=_actors(config.actors, spec, scale),
        replay=narrowed(
            ResolvedReplay,
            replay,
            capacity=capacity,
            sampling=drawn,
            # Both are upper limits, within which the sampler adapts to measured times. The serial runtime
            # draws only when it needs minibatches, so that the order is fixed.
            minibatches_per_request=replay.minibatches_per_request or most,
            prefetch_requests=0 if serial else replay.prefetch_requests,
            persist=replay.persist or "checkpoint",
        ),
        learner=_learner(config.learner, spec, scale),
        pacing=ResolvedPacing(
            samples_per_insert=scale.samples_per_insert,
            learning_starts=config.pacing.learning_starts
            or learning_starts(scale, config.learner.batch_size, capacity),
        ),
        evaluation=narrowed(
            ResolvedEvaluation,
            config.evaluation,
            every_updates=config.evaluation.every_updates or evaluation_every_updates(scale),
            episodes=episodes,
            num_envs=config.evaluation.num_envs or _evaluated_at_once(episodes, spec, most_lanes),
        ),
        stop=narrowed(ResolvedStop, stop, target_return=target),
        checkpoint=config.checkpoint,
        metrics=config.metrics,
        run=narrowed(ResolvedRun, config.run, runtime=runtime, preset=preset, measure_speed=measure),
    )


def _scale(
    config: RunConfig, spec: EnvSpec, cores: int, step_seconds: float | None, *, serial: bool
) -> Scale:
    """What the automatic settings of learning follow. step_seconds: None if it is not to be used."""
    speed, network = speed_of(step_seconds), _network(spec, config.learner)
    # Each rank of the learner keeps one core for itself. One actor is enough for cheap native environments,
    # but not for images, whose network takes an actor as long as the steps do.
    one = serial or (spec.backend == "native" and not _is_image(spec))
    spare = cores if uses_every_core(speed, network, cores) else cores - config.learner.num_learners
    num_actors = config.actors.num_actors or (1 if one else max(1, spare))
    ratio = config.pacing.samples_per_insert or samples_per_insert(speed, network, num_actors)
    budget = budget_env_steps(config.stop, speed, num_actors, timed=step_seconds is not None)
    updates = expected_updates(config.stop, budget, ratio, config.learner.batch_size)
    n_step = config.actors.n_step or rewards_per_transition(network)
    return Scale(speed, network, num_actors, n_step, ratio, budget, updates)


def _actors(actors: ActorsConfig, spec: EnvSpec, scale: Scale) -> ResolvedActors:
    # A lane repeats stack + n_step - 1 frames in each block. Chunks of images are so long that this is below
    # 3.5 %, and that a transition takes below 1.05 frames with all that it stores.
    steps = 30 * (spec.stack + scale.n_step) if _is_image(spec) else scale.speed.steps_per_chunk
    # A ladder does not use it.
    decay = EPSILON_DECAY_ENV_STEPS if actors.epsilon_ladder else epsilon_decay_env_steps(scale)
    return narrowed(
        ResolvedActors,
        actors,
        num_actors=scale.num_actors,
        envs_per_actor=actors.envs_per_actor or (16 if spec.backend == "native" else 8),
        steps_per_chunk=actors.steps_per_chunk or steps,
        n_step=scale.n_step,
        epsilon_decay_env_steps=actors.epsilon_decay_env_steps or decay,
    )


def _learner(learner: LearnerConfig, spec: EnvSpec, scale: Scale) -> ResolvedLearner:
    rates: dict[str, Any] = {"learning_rate": learner.first_rate}
    if scale.network == "table" and has_no_rates(learner):
        rates = table_rates(scale)
    return narrowed(
        ResolvedLearner,
        learner,
        network=scale.network,
        target_update_updates=target_updates(learner),
        updates_per_chunk=learner.updates_per_chunk
        or (8 if _is_image(spec) else scale.speed.updates_per_chunk),
        **rates,
    )


def _capacity(spec: EnvSpec, batch_size: int) -> int:
    room = _REPLAY_BYTES_AUTO // max(1, _frame_bytes(spec))
    return max(batch_size, min(100_000, room))


def target_updates(learner: LearnerConfig) -> int | None:
    """Updates between two copies to the target network; None where env steps are given instead.

    Those stay in the unit in which they were given, so that a resumed run with other pacing follows them.
    """
    if learner.target_update_env_steps is not None:
        return None
    return learner.target_update_updates or TARGET_UPDATE_UPDATES


def _most_minibatches(batch_size: int, spec: EnvSpec, n_step: int) -> int:
    """Largest number of minibatches per request: at most 64, and at most 16 MiB of frames."""
    window = spec.block_schema(n_step).window
    room = _REQUEST_BYTES // (batch_size * window * max(1, _frame_bytes(spec)))
    return max(1, min(_MOST_MINIBATCHES, room))


def _evaluated_at_once(episodes: int, spec: EnvSpec, most_lanes: int | None) -> int:
    """Environments of the evaluator: few, because single ones may be large processes, and as many as share
    the episodes evenly. The lanes of a native vector environment are light, and many step as fast as few.
    """
    most = _MOST_NATIVE_LANES if spec.backend == "native" else _MOST_LANES
    most = most if most_lanes is None else min(most, most_lanes)
    return -(-episodes // -(-episodes // most))


def acts_with_torch(config: ResolvedConfig, spec: EnvSpec) -> bool:
    """Whether policies compute the network by torch, because numpy does not suffice for it."""
    return not acts_in_numpy(network_spec(spec), config.learner)


def network_spec(spec: EnvSpec) -> NetworkSpec:
    """The shapes that the learner's network must fit."""
    stack = () if spec.stack == 1 else (spec.stack,)
    parts = tuple(FrameField(part.name, part.dtype, (*stack, *part.shape)) for part in spec.parts)
    shape = () if parts else (*stack, *spec.observation_shape)
    return NetworkSpec(
        shape,
        spec.observation_dtype,
        spec.num_states,
        spec.num_actions,
        spec.stack,
        parts,
        spec.pixels,
        spec.image_layouts,
    )


def _network(spec: EnvSpec, learner: LearnerConfig) -> str:
    try:
        return resolve_network(network_spec(spec), learner)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _frame_bytes(spec: EnvSpec) -> int:
    return sum(field.bytes_per_frame for field in spec.block_schema(1).frame_fields)


def _is_image(spec: EnvSpec) -> bool:
    return _frame_bytes(spec) > _IMAGE_BYTES
