"""Settings of learning that suit an environment's speed, the network and the run's budget, and their reasons.

Owns the classes of speed and the rules, all pure; must not import torch or ray.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from actors.config import EPSILON_DECAY_ENV_STEPS
from actors.core import PROBE_STEPS, EnvSpec
from cluster.settings.config import RunConfig, StopConfig
from cluster.settings.resolved import ResolvedConfig
from cluster.wording import quantity
from learner.config import IMAGE_NETWORKS, LearnerConfig

_Config = TypeVar("_Config", bound=RunConfig)


@dataclass(frozen=True)
class Speed:
    """A class of environments, by the steps that one of them makes per second, and what suits it.

    least, typical: env steps per second, the first one from which on an environment belongs to the class.
    The rest are the settings of their names, where nothing smaller suits the run's budget.
    """

    name: str
    least: float
    typical: float
    epsilon_decay_env_steps: int
    learning_starts: int
    most_samples_per_insert: float
    episodes: int
    steps_per_chunk: int
    updates_per_chunk: int


FAST = Speed("fast", 3_000, 8_000, EPSILON_DECAY_ENV_STEPS, 1_000, 8, 20, 32, 64)
BRISK = Speed("brisk", 1_000, 1_800, 50_000, 1_000, 16, 20, 32, 64)
MODERATE = Speed("moderate", 100, 300, 10_000, 500, 32, 20, 16, 32)
SLOW = Speed("slow", 0, 30, 2_000, 200, 64, 10, 4, 16)

# Shares of the run's env steps, as Stable-Baselines3 and RL Zoo have them, or twice that.
_EXPLORING = 0.2
_COLLECTING = 0.05
_EVALUATIONS = 10
_EVERY_UPDATES = 1_000
# Where steps take long, greedy episodes take much from actors, and each step is learned from more often.
_EVERY_UPDATES_COSTLY = 2_000

_FEWEST_SAMPLES_PER_INSERT = 8.0
# Transitions that a core learns from in a second, about, and the share of that which pacing may ask for.
_LEARNED_PER_SECOND: Mapping[str, float] = {"table": 64_000.0, "mlp": 64_000.0, "minatar_cnn": 20_000.0}
_LEARNED_BY_LARGE = 2_000.0
_LEARNING = 0.5

# The two parts of Rainbow that matter most (Hessel et al. 2018, arXiv:1710.02298): what a rare reward teaches
# goes back three states at once, and is drawn often while it is news. Tables learn well without them, and
# where chance decides, the luckiest and unluckiest transitions would be news for ever.
_N_STEP = 3

# A state's value is learned by itself, so a table needs large steps until values have come from the goal to
# the start, and small ones where chance decides.
_TABLE_RATE = 0.02
_TABLE_RATE_END = 5e-4
_TABLE_DECAY_UPDATES = 20_000
_TABLE_DECAY = 0.6
# Its episodes cost little, and chance often decides them, if only by where they start: one state in a hundred
# that is not learned yet may stay unseen in a hundred episodes.
_TABLE_EPISODES = 200
_TABLE_EVERY_UPDATES = 5_000

_EVALUATOR_MEMORY = 8

_STEP_LIMIT = 1_000
_FEWEST_TABLE_STEPS = 200
_VISITS = 4

_SPEED_SETTINGS = (
    "actors.num_actors",
    "actors.steps_per_chunk",
    "actors.epsilon_decay_env_steps",
    "learner.updates_per_chunk",
    "pacing.learning_starts",
    "pacing.samples_per_insert",
    "evaluation.every_updates",
    "evaluation.episodes",
)
_KEPT = (
    *_SPEED_SETTINGS[2:],
    "actors.n_step",
    "replay.sampling",
    "learner.learning_rate",
    "env.max_episode_steps",
)
"""Automatic settings that a resumed run keeps, because other ones would change what it learns."""


def speed_of(step_seconds: float | None) -> Speed:
    """The class of an environment with steps of this duration; fast if it was not measured."""
    rate = math.inf if not step_seconds else 1.0 / step_seconds
    return next(speed for speed in (FAST, BRISK, MODERATE, SLOW) if rate >= speed.least)


def step_limit(spec: EnvSpec, episodes_end: bool | None) -> int | None:
    """Env steps after which episodes are to be truncated; None if they end by themselves.

    episodes_end: see actors.envs.make.Probed. Where states are numbered, a limit allows four visits of each.
    """
    if episodes_end is not False or spec.max_episode_steps is not None or spec.backend == "native":
        return None
    if spec.num_states is None:
        return _STEP_LIMIT
    return max(_FEWEST_TABLE_STEPS, _VISITS * spec.num_states)


def step_limit_note(env_id: str, limit: int) -> str:
    """The sentence that announces a limit that was chosen."""
    return (
        f"{env_id} has no step limit, and no episode ended within at least "
        f"{quantity(PROBE_STEPS, 'random step')}: env.max_episode_steps={limit} truncates them, in "
        "training and evaluation"
    )


def budget_env_steps(stop: StopConfig, speed: Speed, num_actors: int, *, timed: bool) -> float:
    """Env steps that the run may make, about; infinite if nothing limits them.

    timed: whether the environment's speed is known, without which stop.seconds says nothing.
    """
    by_time = math.inf
    if timed and stop.seconds is not None:
        by_time = stop.seconds * speed.typical * num_actors
    return min(by_time, math.inf if stop.env_steps is None else stop.env_steps)


def samples_per_insert(speed: Speed, network: str, num_actors: int) -> float:
    """A power of 2 from 8 to the most of the class: what takes the learner half its time.

    network: config.learner.network, resolved.
    """
    learned = _LEARNED_PER_SECOND.get(network, _LEARNED_BY_LARGE)
    ratio = _LEARNING * learned / (speed.typical * num_actors)
    allowed = min(speed.most_samples_per_insert, max(_FEWEST_SAMPLES_PER_INSERT, ratio))
    return float(2 ** int(math.log2(allowed)))


def rewards_per_transition(network: str) -> int:
    """actors.n_step: 3, but 1 for tables. network: resolved."""
    return 1 if network == "table" else _N_STEP


def sampling(network: str) -> Literal["uniform", "prioritized"]:
    """replay.sampling: by priority, but uniform for tables. network: resolved."""
    return "uniform" if network == "table" else "prioritized"


def expected_updates(stop: StopConfig, budget: float, ratio: float, batch_size: int) -> float:
    """Updates that the run may make, about; infinite if nothing limits them. ratio: samples per insert."""
    return min(budget * ratio / batch_size, math.inf if stop.updates is None else stop.updates)


@dataclass(frozen=True)
class Scale:
    """What the other settings follow.

    network: resolved. n_step: rewards that a transition sums. budget_env_steps, updates: those that the run
    may make, about; they may be infinite.
    """

    speed: Speed
    network: str
    num_actors: int
    n_step: int
    samples_per_insert: float
    budget_env_steps: float
    updates: float


def epsilon_decay_env_steps(scale: Scale) -> int:
    """Env steps over which epsilon falls: those of the class, or a fifth of the budget."""
    return max(1, int(min(scale.speed.epsilon_decay_env_steps, _EXPLORING * scale.budget_env_steps)))


def learning_starts(scale: Scale, batch_size: int, capacity: int) -> int:
    """Transitions before the first update: those of the class, or a twentieth of the budget."""
    starts = int(min(scale.speed.learning_starts, _COLLECTING * scale.budget_env_steps))
    return min(capacity, max(batch_size, starts))


def has_no_rates(learner: LearnerConfig) -> bool:
    """Whether neither the learning rate nor its decay is given."""
    return learner.learning_rate is None and learner.learning_rate_decay_updates is None


def table_rates(scale: Scale) -> dict[str, Any]:
    """The settings of a table's learning rate, which falls."""
    return {
        "learning_rate": _TABLE_RATE,
        "learning_rate_end": _TABLE_RATE_END,
        "learning_rate_decay_updates": max(1, int(min(_TABLE_DECAY_UPDATES, _TABLE_DECAY * scale.updates))),
    }


def evaluation_every_updates(scale: Scale) -> int:
    """Updates between two evaluations; more where steps take long, and for tables, but for these at least ten
    evaluations in the updates expected."""
    if scale.network != "table":
        return _EVERY_UPDATES if scale.speed in (FAST, BRISK) else _EVERY_UPDATES_COSTLY
    return int(min(_TABLE_EVERY_UPDATES, max(_EVERY_UPDATES, scale.updates / _EVALUATIONS)))


def evaluation_episodes(scale: Scale) -> int:
    """Greedy episodes of an evaluation."""
    fast_table = scale.network == "table" and scale.speed in (FAST, BRISK)
    return _TABLE_EPISODES if fast_table else scale.speed.episodes


def most_lanes(lane_bytes: int, available_bytes: int) -> int:
    """Environments of the evaluator that an eighth of the free memory holds; actors have more of them."""
    return max(1, available_bytes // _EVALUATOR_MEMORY // max(1, lane_bytes))


def uses_every_core(speed: Speed, network: str, cores: int) -> bool:
    """Whether actors may take the learner's core, too: learning takes a quarter of it at most."""
    learned = speed.typical * cores * _FEWEST_SAMPLES_PER_INSERT
    within = learned <= _LEARNING / 2 * _LEARNED_PER_SECOND.get(network, _LEARNED_BY_LARGE)
    return within and network not in IMAGE_NETWORKS


def keeping_choices(config: _Config, saved: ResolvedConfig) -> _Config:
    """The config of a run that is resumed, with what was chosen for it where the config leaves it open."""
    for name in _KEPT:
        section, _, field = name.partition(".")
        part = getattr(config, section)
        if getattr(part, field) is not None:
            continue
        kept = {field: getattr(getattr(saved, section), field)}
        if name == "learner.learning_rate" and has_no_rates(part):
            decay = ("learning_rate_end", "learning_rate_decay_updates")
            kept |= {each: getattr(saved.learner, each) for each in decay}
        config = replace(config, **{section: replace(part, **kept)})
    return config


def reasons(given: RunConfig, chosen: ResolvedConfig, step_seconds: float) -> Iterator[str]:
    """A sentence for each cause of settings that `given` left open and `chosen` has."""
    speed, learner = speed_of(step_seconds), chosen.learner
    if learner.network == "table" and has_no_rates(given.learner):
        decay = quantity(learner.learning_rate_decay_updates or 0, "update")
        yield (
            f"the network is a table: learner.learning_rate={learner.learning_rate:g}, falling to "
            f"{learner.learning_rate_end:g} over {decay}"
        )
    names = [name for name in ("actors.n_step", "replay.sampling") if _value(given, name) is None]
    if learner.network != "table" and names:
        texts = ", ".join(f"{name}={_value(chosen, name)}" for name in names)
        yield f"the network is {learner.network}: {texts} spread what rare rewards teach"
    names = [name for name in _SPEED_SETTINGS if _value(given, name) is None]
    if not chosen.run.measure_speed or not names:
        return
    texts = ", ".join(f"{name}={_value(chosen, name):g}" for name in names)
    yield (
        f"the environment is {speed.name}, {1.0 / step_seconds:,.0f} steps/s; this and the run's limits "
        f"suggest {texts}"
    )


def _value(config: RunConfig, name: str) -> Any:
    section, _, field = name.partition(".")
    return getattr(getattr(config, section), field)
