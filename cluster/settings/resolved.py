"""The configuration of a run that can start: every automatic setting has been chosen.

Owns which settings are no longer None; must not import torch or ray.
"""

from dataclasses import dataclass, field, fields
from typing import Any, Literal, TypeVar

from actors.config import EPSILON_DECAY_ENV_STEPS, ActorsConfig, EnvConfig
from cluster.settings.config import EvaluationConfig, PacingConfig, RunConfig, RunSection, StopConfig
from learner.config import LEARNING_RATE, LearnerConfig, target_period
from replay_service.config import ReplayConfig

_Section = TypeVar("_Section")


Runtime = Literal["local", "ray", "cluster", "serial"]


@dataclass(frozen=True)
class ResolvedEnv(EnvConfig):
    """The environment as the probe found it. action_mask None: it gave no masks, and must not begin to."""

    stack: int = 1


@dataclass(frozen=True)
class ResolvedActors(ActorsConfig):
    """Acting, with the number of actors, of their environments, and of steps per chunk chosen, and with the
    length of exploration and of returns."""

    num_actors: int = 1
    envs_per_actor: int = 1
    steps_per_chunk: int = 1
    epsilon_decay_env_steps: int = EPSILON_DECAY_ENV_STEPS
    n_step: int = 1


@dataclass(frozen=True)
class ResolvedReplay(ReplayConfig):
    """Replay, with capacity, sampling, minibatches per request and persistence chosen."""

    capacity: int = 1
    sampling: Literal["uniform", "prioritized"] = "uniform"
    minibatches_per_request: int = 1
    persist: Literal["none", "checkpoint", "continuous"] = "checkpoint"


@dataclass(frozen=True)
class ResolvedLearner(LearnerConfig):
    """Learning, with updates_per_chunk and learning_rate chosen. network is never "auto"."""

    learning_rate: float = LEARNING_RATE
    updates_per_chunk: int = 1


@dataclass(frozen=True)
class ResolvedPacing(PacingConfig):
    """Pacing, with both numbers chosen."""

    samples_per_insert: float = 8.0
    learning_starts: int = 1_000


@dataclass(frozen=True)
class ResolvedStop(StopConfig):
    """The ends of a run. A limit or target that is None is off."""

    target_return: float | None = None


@dataclass(frozen=True)
class ResolvedEvaluation(EvaluationConfig):
    """Evaluation, with its period, its episodes and the number of environments chosen."""

    every_updates: int = 1_000
    episodes: int = 20
    num_envs: int = 8


@dataclass(frozen=True)
class ResolvedRun(RunSection):
    """The run section. runtime and preset are never "auto"."""

    runtime: Runtime = "local"
    preset: str = "none"
    measure_speed: bool = True


@dataclass(frozen=True)
class ResolvedConfig(RunConfig):
    """A configuration in which every automatic setting is chosen."""

    env: ResolvedEnv = field(default_factory=ResolvedEnv)
    actors: ResolvedActors = field(default_factory=ResolvedActors)
    replay: ResolvedReplay = field(default_factory=ResolvedReplay)
    learner: ResolvedLearner = field(default_factory=ResolvedLearner)
    pacing: ResolvedPacing = field(default_factory=ResolvedPacing)
    stop: ResolvedStop = field(default_factory=ResolvedStop)
    evaluation: ResolvedEvaluation = field(default_factory=ResolvedEvaluation)
    run: ResolvedRun = field(default_factory=ResolvedRun)

    @property
    def target_update_updates(self) -> int:
        """Updates between two copies to the target network."""
        return target_period(self.learner, self.pacing.samples_per_insert)

    @property
    def samples_per_copy(self) -> float:
        """Transitions sampled between two copies to the target network, or while it follows by polyak."""
        polyak = self.learner.target_polyak
        return self.learner.batch_size * (1.0 / polyak if polyak else self.target_update_updates)

    @property
    def lanes(self) -> int:
        """Environments of all actors."""
        return self.actors.num_actors * self.actors.envs_per_actor


def preset_text(config: ResolvedConfig) -> str:
    """The preset that a config stands on, and how to see it and leave it out; empty for none."""
    name = config.run.preset
    if name == "none":
        return ""
    return f"preset {name} (qfleet presets {name} shows it, --set run.preset=none leaves it out)"


def narrowed(kind: type[_Section], section: Any, **chosen: Any) -> _Section:
    """`section` converted to its resolved kind, with the chosen settings in place."""
    settings = {item.name: getattr(section, item.name) for item in fields(section)}
    return kind(**{**settings, **chosen})
