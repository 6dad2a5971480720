"""The run configuration: one frozen section per role, composed.

Owns the sections that belong to no package and the checks that span sections; must not import torch or ray.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Literal

from actors.config import ActorsConfig, EnvConfig
from learner.config import LearnerConfig
from replay_service.config import ReplayConfig


@dataclass(frozen=True)
class PacingConfig:
    """samples_per_insert: transitions the learner samples for each one inserted after learning_starts.

    learning_starts: transitions stored before the first update.
    """

    samples_per_insert: float = 8.0
    learning_starts: int = 1_000

    def __post_init__(self) -> None:
        if not self.samples_per_insert > 0.0:
            raise ValueError(f"pacing.samples_per_insert is {self.samples_per_insert}; it must be above 0")
        if self.learning_starts < 1:
            raise ValueError(f"pacing.learning_starts is {self.learning_starts}; give at least 1 transition")


@dataclass(frozen=True)
class EvaluationConfig:
    """A version is evaluated every every_updates updates, with `episodes` greedy episodes.

    A version better than the best so far plays a second evaluation on other seeds; only that
    score counts, because picking the highest of many first scores favours lucky ones.
    """

    every_updates: int = 1_000
    episodes: int = 20

    def __post_init__(self) -> None:
        for name in ("every_updates", "episodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}; give at least 1")


@dataclass(frozen=True)
class StopConfig:
    """The run ends when the first of these is reached; target_return must hold in both evaluations."""

    env_steps: int | None = None
    updates: int | None = None
    seconds: float | None = None
    target_return: float | None = None

    def __post_init__(self) -> None:
        for name in ("env_steps", "updates", "seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"stop.{name} is {value}; it must be above 0")


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint is taken every every_seconds, every every_updates, on a signal and at the end.

    It holds everything that a run needs to go on, replay included, so replay.persist decides whether there
    are any. The newest `keep` stay, and the best one. Only every_updates counts in the serial runtime, which
    goes on from its own checkpoint, so that a run that was interrupted there ends bit for bit the same.

    weights_every_seconds: how often the newest weights alone are written to the run directory.
    """

    every_seconds: float | None = 300.0
    every_updates: int | None = None
    keep: int = 2
    weights_every_seconds: float = 30.0

    def __post_init__(self) -> None:
        for name in ("every_seconds", "every_updates"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"checkpoint.{name} is {value}; it must be above 0")
        if self.keep < 1:
            raise ValueError(f"checkpoint.keep is {self.keep}; give at least 1")
        if not self.weights_every_seconds > 0:
            raise ValueError(
                f"checkpoint.weights_every_seconds is {self.weights_every_seconds}; it must be above 0"
            )


@dataclass(frozen=True)
class MetricsConfig:
    """metrics.jsonl gets a line every every_seconds; http://host:port/metrics serves (port 0: a free one).

    tensorboard: whether TensorBoard's event files are written too (needs the extra of that name).
    """

    every_seconds: float = 1.0
    host: str = "127.0.0.1"
    port: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not self.every_seconds > 0:
            raise ValueError(f"metrics.every_seconds is {self.every_seconds}; it must be above 0")
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"metrics.port is {self.port}; give 0 (a free port) to 65535")


@dataclass(frozen=True)
class RunSection:
    """Where and how the run runs.

    restarts is the budget of dead actors, shards and evaluators that are replaced; stall_seconds is how long
    neither inserts nor updates may advance before the watchdog ends the run. A shard that does not answer for
    frozen_seconds is killed and replaced like a dead one; learners and evaluators have longer, by what their
    work is known to take (see cluster.control.timeouts). Runtime auto is cluster where
    RAY_ADDRESS is set, as in every Ray job, else local. A cluster that has too little room is given
    wait_for_cluster_seconds to get it.
    """

    runtime: Literal["auto", "local", "cluster", "serial"] = "auto"
    seed: int = 0
    restarts: int = 10
    stall_seconds: float = 120.0
    frozen_seconds: float = 30.0
    wait_for_cluster_seconds: float = 300.0

    def __post_init__(self) -> None:
        if self.wait_for_cluster_seconds < 0:
            raise ValueError(
                f"run.wait_for_cluster_seconds is {self.wait_for_cluster_seconds}; give 0 or more"
            )
        if self.seed < 0:
            raise ValueError(f"run.seed is {self.seed}; give 0 or more")
        if self.restarts < 0:
            raise ValueError(f"run.restarts is {self.restarts}; give 0 or more")
        if not self.frozen_seconds > 0:
            raise ValueError(f"run.frozen_seconds is {self.frozen_seconds}; it must be above 0")
        if not self.stall_seconds > 0:
            raise ValueError(f"run.stall_seconds is {self.stall_seconds}; it must be above 0")


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; None in a field means: chosen from the environment and this machine."""

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
    """Refuses combinations that cannot work. Fields still None (chosen later) are passed over.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    problems = list(_problems(config))
    if problems:
        raise ConfigError("\n".join(problems))


def _problems(config: RunConfig) -> list[str]:
    found = [
        f"{name} is {value}; give a finite number"
        for name, value in _floats(config, "")
        if not math.isfinite(value)
    ]
    limit = config.stop.env_steps
    if limit is not None and limit <= config.pacing.learning_starts:
        found.append(
            f"stop.env_steps is {limit}, not above pacing.learning_starts = {config.pacing.learning_starts}: "
            "the run would end before it learns; raise stop.env_steps or lower learning_starts"
        )
    capacity, batch_size = config.replay.capacity, config.learner.batch_size
    starts, shards = config.pacing.learning_starts, config.replay.num_shards
    if capacity is not None:
        if capacity < batch_size:
            found.append(
                f"replay.capacity is {capacity}, below learner.batch_size = {batch_size}: "
                "a batch could never be filled; raise the capacity or lower the batch size"
            )
        if starts > capacity:
            found.append(
                f"pacing.learning_starts is {starts}, above replay.capacity = {capacity}: "
                "learning would never start; lower learning_starts or raise the capacity"
            )
        if shards > capacity // batch_size:
            found.append(
                f"replay.num_shards is {shards}, but replay.capacity = {capacity} holds only "
                f"{capacity // batch_size} batches of {batch_size}: give each shard room for a batch"
            )
        rows = _block_transitions(config)
        if rows is not None and rows > capacity // shards:
            found.append(
                f"actors.steps_per_chunk is {config.actors.steps_per_chunk} for "
                f"actors.envs_per_actor = {config.actors.envs_per_actor}: a block of {rows} transitions "
                f"does not fit a shard of {capacity // shards}; shorten the chunk or raise replay.capacity"
            )
    if starts < batch_size:
        found.append(
            f"pacing.learning_starts is {starts}, below learner.batch_size = {batch_size}: "
            "the first batch would repeat the same few transitions; raise learning_starts"
        )
    least, most = config.actors.min_actors, config.actors.num_actors
    if least is not None and most is not None and least > most:
        found.append(
            f"actors.min_actors is {least}, above actors.num_actors = {most}: "
            "the run begins with at least min_actors and never has more than num_actors"
        )
    if config.actors.epsilon_end > config.actors.epsilon_start:
        found.append(
            f"actors.epsilon_end is {config.actors.epsilon_end}, above "
            f"actors.epsilon_start = {config.actors.epsilon_start}: exploration falls, so swap them"
        )
    if config.run.runtime == "serial" and (config.actors.num_actors or 1) != 1:
        found.append(
            f"actors.num_actors is {config.actors.num_actors} in the serial runtime, which is one process: "
            "set actors.num_actors=1 and raise actors.envs_per_actor instead"
        )
    return found


def _block_transitions(config: RunConfig) -> int | None:
    """The most rows that one block can have: a chunk of every lane, and the tails of the one before."""
    actors = config.actors
    if actors.steps_per_chunk is None or actors.envs_per_actor is None:
        return None
    return (actors.steps_per_chunk + actors.n_step) * actors.envs_per_actor


def _floats(value: object, name: str) -> Iterator[tuple[str, float]]:
    """Every float below a config, with its full name."""
    if isinstance(value, float):
        yield name, value
    elif isinstance(value, tuple):
        for part in value:
            yield from _floats(part, name)
    elif is_dataclass(value):
        for item in fields(value):
            yield from _floats(getattr(value, item.name), f"{name}.{item.name}".lstrip("."))
