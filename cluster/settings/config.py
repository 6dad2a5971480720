"""The run configuration: one frozen section per role, composed.

Owns the sections that belong to no package and the checks that span sections; must not import torch or ray.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from math import isfinite
from typing import Literal

from actors.config import ActorsConfig, EnvConfig
from learner.config import LearnerConfig
from replay_service.checks import above_zero, at_least, require, within
from replay_service.config import ReplayConfig


@dataclass(frozen=True)
class PacingConfig:
    """The section `pacing`: acting and learning wait for each other.

    cluster/settings/catalog.py says what each means.
    """

    samples_per_insert: float | None = None
    learning_starts: int | None = None

    def __post_init__(self) -> None:
        above_zero("pacing", self, "samples_per_insert")
        at_least(1, "pacing", self, "learning_starts")


@dataclass(frozen=True)
class EvaluationConfig:
    """The section `evaluation`: greedy episodes, twice for the best version.

    cluster/settings/catalog.py says what each means.
    """

    every_updates: int | None = None
    episodes: int | None = None
    num_envs: int | None = None

    def __post_init__(self) -> None:
        at_least(1, "evaluation", self, "every_updates", "episodes", "num_envs")


@dataclass(frozen=True)
class StopConfig:
    """The section `stop`: the run ends at the first of these.

    cluster/settings/catalog.py says what each means.
    """

    env_steps: int | None = None
    updates: int | None = None
    seconds: float | None = None
    target_return: float | Literal["auto"] | None = "auto"

    def __post_init__(self) -> None:
        above_zero("stop", self, "env_steps", "updates", "seconds")


@dataclass(frozen=True)
class CheckpointConfig:
    """The section `checkpoint`: when a run is saved, beside its end.

    cluster/settings/catalog.py says what each means.
    """

    every_seconds: float | None = 300.0
    every_updates: int | None = None
    keep: int = 2
    weights_every_seconds: float = 30.0

    def __post_init__(self) -> None:
        above_zero("checkpoint", self, "every_seconds", "every_updates", "weights_every_seconds")
        at_least(1, "checkpoint", self, "keep")


@dataclass(frozen=True)
class MetricsConfig:
    """The section `metrics`: what is written and served.

    cluster/settings/catalog.py says what each means.
    """

    every_seconds: float = 1.0
    host: str = "127.0.0.1"
    port: int = 0
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()

    def __post_init__(self) -> None:
        require(
            len(set(self.trackers)) == len(self.trackers),
            "metrics.trackers",
            f"{list(self.trackers)}",
            "give each tracker once",
        )
        above_zero("metrics", self, "every_seconds")
        within(0, 65_535, "metrics", self, "port", cure="give 0 (a free port) to 65535")


@dataclass(frozen=True)
class RunSection:
    """The section `run`: the runtime, and what failures it bears.

    cluster/settings/catalog.py says what each means.
    """

    runtime: Literal["auto", "local", "ray", "cluster", "serial"] = "auto"
    preset: str = "auto"
    seed: int = 0
    restarts: int = 10
    stall_seconds: float = 120.0
    frozen_seconds: float = 30.0
    wait_for_cluster_seconds: float = 300.0
    measure_speed: bool | None = None

    def __post_init__(self) -> None:
        at_least(0, "run", self, "wait_for_cluster_seconds", "seed", "restarts")
        above_zero("run", self, "frozen_seconds", "stall_seconds")


@dataclass(frozen=True)
class RunConfig:
    """All settings of a run. Automatic ones that are None are chosen to suit environment and machine."""

    env: EnvConfig = field(default_factory=EnvConfig)
    actors: ActorsConfig = field(default_factory=ActorsConfig)
    replay: ReplayConfig = field(default_factory=ReplayConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    pacing: PacingConfig = field(default_factory=PacingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    run: RunSection = field(default_factory=RunSection)


class ConfigError(ValueError):
    """A configuration that cannot work; the message names the value and the cure."""


def check(config: RunConfig) -> None:
    """Refuses combinations that cannot work. Settings that are None pass, because they are chosen later.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems = [
        *(
            f"{name} is {value}; give a finite number"
            for name, value in _floats(config)
            if not isfinite(value)
        ),
        *_pacing_problems(config),
        *_update_problems(config),
        *_replay_problems(config),
        *_actor_problems(config),
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _pacing_problems(config: RunConfig) -> Iterator[str]:
    starts, limit, batch_size = (
        config.pacing.learning_starts,
        config.stop.env_steps,
        config.learner.batch_size,
    )
    if starts is None:
        return
    if limit is not None and limit <= starts:
        yield (
            f"stop.env_steps is {limit}, not above pacing.learning_starts = {starts}: "
            "the run would end before it learns; raise stop.env_steps or lower learning_starts"
        )
    if starts < batch_size:
        yield (
            f"pacing.learning_starts is {starts}, below learner.batch_size = {batch_size}: "
            "the first batch would repeat the same few transitions; raise learning_starts"
        )


def _update_problems(config: RunConfig) -> Iterator[str]:
    """Whether stop.env_steps allows the first chunk of updates; known once that chunk's size is chosen."""
    limit, starts, ratio, chunk = (
        config.stop.env_steps,
        config.pacing.learning_starts,
        config.pacing.samples_per_insert,
        config.learner.updates_per_chunk,
    )
    if limit is None or chunk is None or starts is None or ratio is None or limit <= starts:
        return
    updates, batch_size = min(chunk, config.stop.updates or chunk), config.learner.batch_size
    allowed = (limit - starts) * ratio
    if allowed < updates * batch_size:
        yield (
            f"stop.env_steps is {limit}, too few for a single update: pacing.learning_starts = {starts} and "
            f"pacing.samples_per_insert = {ratio:g} allow {allowed:,.0f} samples "
            f"by then, and the first chunk of learner.updates_per_chunk = {updates} updates with "
            f"learner.batch_size = {batch_size} takes {updates * batch_size:,}; raise stop.env_steps, or "
            "lower learner.updates_per_chunk"
        )


def _replay_problems(config: RunConfig) -> Iterator[str]:
    capacity, shards = config.replay.capacity, config.replay.num_shards
    batch_size, starts = config.learner.batch_size, config.pacing.learning_starts
    if capacity is None:
        return
    if capacity < batch_size:
        yield (
            f"replay.capacity is {capacity}, below learner.batch_size = {batch_size}: "
            "a batch could never be filled; raise the capacity or lower the batch size"
        )
    if starts is not None and starts > capacity:
        yield (
            f"pacing.learning_starts is {starts}, above replay.capacity = {capacity}: "
            "learning would never start; lower learning_starts or raise the capacity"
        )
    if shards > capacity // batch_size:
        yield (
            f"replay.num_shards is {shards}, but replay.capacity = {capacity} holds only "
            f"{capacity // batch_size} batches of {batch_size}: give each shard room for a batch"
        )
    steps, lanes = config.actors.steps_per_chunk, config.actors.envs_per_actor
    if steps is not None and lanes is not None:
        # A chunk of every lane, and the n-step tails of the chunk before.
        largest_block = (steps + (config.actors.n_step or 1)) * lanes
        if largest_block > capacity // shards:
            yield (
                f"actors.steps_per_chunk is {steps} for actors.envs_per_actor = {lanes}: "
                f"a block of {largest_block} transitions does not fit a shard of {capacity // shards}; "
                "shorten the chunk or raise replay.capacity"
            )


def _actor_problems(config: RunConfig) -> Iterator[str]:
    actors = config.actors
    if actors.min_actors and actors.num_actors and actors.min_actors > actors.num_actors:
        yield (
            f"actors.min_actors is {actors.min_actors}, above actors.num_actors = {actors.num_actors}: "
            "the run begins with at least min_actors and never has more than num_actors"
        )
    if actors.epsilon_end > actors.epsilon_start:
        yield (
            f"actors.epsilon_end is {actors.epsilon_end}, above actors.epsilon_start = "
            f"{actors.epsilon_start}: exploration falls, so swap them"
        )
    if config.run.runtime == "serial" and config.learner.num_learners != 1:
        yield (
            f"learner.num_learners is {config.learner.num_learners} in the serial runtime, which is one "
            "process: set learner.num_learners=1, or another run.runtime"
        )
    if config.run.runtime == "serial" and (actors.num_actors or 1) != 1:
        yield (
            f"actors.num_actors is {actors.num_actors} in the serial runtime, which is one process: "
            "set actors.num_actors=1 and raise actors.envs_per_actor instead"
        )


def _floats(value: object, name: str = "") -> Iterator[tuple[str, float]]:
    """Every float in a config, with its full name."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, tuple):
        for part in value:
            yield from _floats(part, name)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _floats(getattr(value, item.name), f"{name}.{item.name}".lstrip("."))
