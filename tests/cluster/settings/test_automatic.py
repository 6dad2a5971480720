"""Automatic settings of learning: classes of speed, the cases of each rule, reasons, what a resume keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from qfleet_configs import ATARI, VECTOR

from actors.core import EnvSpec
from cluster.settings.automatic import (
    BRISK,
    FAST,
    MODERATE,
    SLOW,
    Scale,
    Speed,
    budget_env_steps,
    epsilon_decay_env_steps,
    evaluation_episodes,
    evaluation_every_updates,
    expected_updates,
    keeping_choices,
    learning_starts,
    most_lanes,
    reasons,
    samples_per_insert,
    speed_of,
    step_limit,
    step_limit_note,
    table_rates,
    uses_every_core,
)
from cluster.settings.config import StopConfig
from cluster.settings.load_config import dump_config, load_config, load_resolved
from cluster.settings.resolve import resolve

ENDLESS = EnvSpec((), "<i8", 48, 4, 1, "sync", "next_step", None, None)
"""CliffWalking: 48 numbered states, no step limit."""
SIMULATOR = replace(VECTOR, backend="sync", max_episode_steps=None)
INF = math.inf


@pytest.mark.parametrize(
    ("step_seconds", "speed"),
    [
        (None, FAST),
        (0.0, FAST),
        (20e-6, FAST),
        (1 / 3000, FAST),
        (1 / 2999, BRISK),
        (1e-3, BRISK),
        (1.1e-3, MODERATE),
        (10e-3, MODERATE),
        (11e-3, SLOW),
        (1 / 44, SLOW),
        (30.0, SLOW),
    ],
)
def test_the_class_of_an_environment(step_seconds: float | None, speed: Speed) -> None:
    assert speed_of(step_seconds) is speed


@pytest.mark.parametrize(
    ("spec", "ends", "limit"),
    [
        (ENDLESS, False, 200),
        (ENDLESS, True, None),
        (ENDLESS, None, None),  # not known: it is slow, or has a limit
        (replace(ENDLESS, num_states=500), False, 2_000),
        (SIMULATOR, False, 1_000),
        (SIMULATOR, True, None),
        (replace(SIMULATOR, max_episode_steps=99), False, None),
        (replace(SIMULATOR, backend="native"), False, None),  # it takes no limit
    ],
)
def test_a_step_limit_where_nothing_ends_episodes(
    spec: EnvSpec, ends: bool | None, limit: int | None
) -> None:
    assert step_limit(spec, ends) == limit


def test_the_limit_is_announced_with_its_cause() -> None:
    assert step_limit_note("Cliff", 200) == (
        "Cliff has no step limit, and no episode ended within at least 1,000 random steps: "
        "env.max_episode_steps=200 truncates them, in training and evaluation"
    )


@pytest.mark.parametrize(
    ("stop", "speed", "timed", "budget"),
    [
        (StopConfig(env_steps=5_000), FAST, False, 5_000),
        (StopConfig(seconds=90), SLOW, True, 5_400),
        (StopConfig(seconds=90), SLOW, False, INF),
        (StopConfig(seconds=90, env_steps=100), SLOW, True, 100),
        (StopConfig(seconds=1, env_steps=1_000_000), MODERATE, True, 600),
        (StopConfig(updates=10), FAST, True, INF),
    ],
)
def test_the_budget_in_env_steps(stop: StopConfig, speed: Speed, timed: bool, budget: float) -> None:
    assert budget_env_steps(stop, speed, 2, timed=timed) == budget


@pytest.mark.parametrize(
    ("speed", "network", "num_actors", "ratio"),
    [
        (FAST, "mlp", 1, 8),
        (FAST, "nature_cnn", 64, 8),
        (BRISK, "mlp", 1, 16),
        (BRISK, "mlp", 2, 8),
        (MODERATE, "mlp", 1, 32),
        (MODERATE, "mlp", 2, 32),
        (MODERATE, "mlp", 8, 8),
        (SLOW, "mlp", 1, 64),
        (MODERATE, "mlp", 4, 16),
        (MODERATE, "nature_cnn", 1, 8),
        (SLOW, "table", 2, 64),
        (SLOW, "nature_cnn", 2, 16),
        (SLOW, "nature_cnn", 64, 8),
        (SLOW, "my_nets:make", 1, 32),
    ],
)
def test_samples_per_insert_within_their_limits(
    speed: Speed, network: str, num_actors: int, ratio: float
) -> None:
    assert samples_per_insert(speed, network, num_actors) == ratio


@pytest.mark.parametrize(
    ("stop", "budget", "updates"),
    [
        (StopConfig(), 1_000_000, 125_000),
        (StopConfig(updates=300), 1_000_000, 300),
        (StopConfig(updates=300), INF, 300),
        (StopConfig(), INF, INF),
    ],
)
def test_the_updates_expected(stop: StopConfig, budget: float, updates: float) -> None:
    assert expected_updates(stop, budget, ratio=8.0, batch_size=64) == updates


def scale(speed: Speed, budget: float = INF, updates: float = INF, network: str = "mlp") -> Scale:
    return Scale(speed, network, 1, 1, 8.0, budget, updates)


@pytest.mark.parametrize(
    ("speed", "budget", "decay", "starts"),
    [
        (FAST, INF, 100_000, 1_000),
        (FAST, 1_000_000, 100_000, 1_000),
        (FAST, 100_000, 20_000, 1_000),
        (FAST, 10_000, 2_000, 500),
        (FAST, 3, 1, 64),
        (BRISK, INF, 50_000, 1_000),
        (MODERATE, INF, 10_000, 500),
        (MODERATE, 9_000, 1_800, 450),
        (SLOW, INF, 2_000, 200),
        (SLOW, 5_400, 1_080, 200),
        (SLOW, 1_000, 200, 64),
    ],
)
def test_exploration_and_the_first_update(speed: Speed, budget: float, decay: int, starts: int) -> None:
    assert epsilon_decay_env_steps(scale(speed, budget)) == decay
    assert learning_starts(scale(speed, budget), batch_size=64, capacity=100_000) == starts
    assert learning_starts(scale(speed, budget), batch_size=32, capacity=40) <= 40


@pytest.mark.parametrize(
    ("network", "speed", "updates", "every", "episodes"),
    [
        ("mlp", FAST, INF, 1_000, 20),
        ("mlp", BRISK, INF, 1_000, 20),
        ("table", BRISK, INF, 5_000, 200),
        ("nature_cnn", MODERATE, INF, 2_000, 20),
        ("mlp", SLOW, 500, 2_000, 10),
        ("table", FAST, INF, 5_000, 200),
        ("table", FAST, 30_000, 3_000, 200),
        ("table", FAST, 300, 1_000, 200),
        ("table", SLOW, INF, 5_000, 10),
    ],
)
def test_evaluations(network: str, speed: Speed, updates: float, every: int, episodes: int) -> None:
    assert evaluation_every_updates(scale(speed, updates=updates, network=network)) == every
    assert evaluation_episodes(scale(speed, updates=updates, network=network)) == episodes


@pytest.mark.parametrize(
    ("lane_bytes", "available_bytes", "lanes"),
    [(0, 8 << 30, 8 << 27), (1 << 20, 8 << 30, 1024), (1 << 30, 16 << 30, 2), (4 << 30, 8 << 30, 1)],
)
def test_memory_limits_the_lanes_of_the_evaluator(lane_bytes: int, available_bytes: int, lanes: int) -> None:
    assert most_lanes(lane_bytes, available_bytes) == lanes


@pytest.mark.parametrize(("updates", "decay"), [(INF, 20_000), (50_000, 20_000), (10_000, 6_000), (1, 1)])
def test_a_tables_rate_falls_within_the_run(updates: float, decay: int) -> None:
    assert table_rates(scale(FAST, updates=updates)) == {
        "learning_rate": 0.02,
        "learning_rate_end": 5e-4,
        "learning_rate_decay_updates": decay,
    }


@pytest.mark.parametrize(
    ("given", "rates"),
    [
        ([], (0.02, 5e-4, 20_000)),
        (["learner.learning_rate=1e-3"], (1e-3, 0.0, None)),
        (["learner.learning_rate_decay_updates=7"], (5e-4, 0.0, 7)),
    ],
)
def test_a_tables_rate_is_left_alone_where_a_part_of_it_is_given(
    given: list[str], rates: tuple[float, float, int | None]
) -> None:
    learner = resolve(load_config(None, given), ENDLESS, cores=2).learner
    assert (
        learner.learning_rate,
        learner.learning_rate_end,
        learner.learning_rate_decay_updates,
    ) == rates


def test_a_slow_environment_gets_all_cores_short_chunks_and_much_reuse() -> None:
    config = resolve(load_config(None, ["stop.seconds=90"]), SIMULATOR, cores=2, step_seconds=1 / 44)
    assert (config.actors.num_actors, config.actors.steps_per_chunk) == (2, 4)
    assert (config.pacing.samples_per_insert, config.pacing.learning_starts) == (64, 200)
    assert config.actors.epsilon_decay_env_steps == 1_080
    assert config.learner.updates_per_chunk == 16
    pictures = resolve(load_config(), replace(ATARI, backend="sync"), cores=2, step_seconds=1 / 44)
    assert pictures.actors.num_actors == 1  # the learner needs its core
    assert pictures.actors.steps_per_chunk == 210


@pytest.mark.parametrize(
    ("speed", "network", "cores", "all_of_them"),
    [
        (SLOW, "mlp", 66, True),
        (MODERATE, "mlp", 2, True),
        (MODERATE, "table", 6, True),
        (MODERATE, "mlp", 7, False),  # learning from 7 actors' steps takes more than a quarter of a core
        (BRISK, "mlp", 2, False),
        (FAST, "mlp", 1, False),
        (SLOW, "my_nets:make", 2, True),
        (SLOW, "my_nets:make", 3, False),
        (SLOW, "nature_cnn", 2, False),
    ],
)
def test_actors_take_every_core_where_learning_takes_little(
    speed: Speed, network: str, cores: int, all_of_them: bool
) -> None:
    assert uses_every_core(speed, network, cores) is all_of_them


@pytest.mark.parametrize(
    ("spec", "given", "chosen"),
    [
        (SIMULATOR, [], (3, "prioritized")),
        (ATARI, [], (3, "prioritized")),
        (ENDLESS, [], (1, "uniform")),
        (SIMULATOR, ["actors.n_step=1", "replay.sampling=uniform"], (1, "uniform")),
        (ENDLESS, ["actors.n_step=2", "replay.sampling=prioritized"], (2, "prioritized")),
    ],
)
def test_networks_sum_rewards_and_draw_by_priority_and_tables_do_not(
    spec: EnvSpec, given: list[str], chosen: tuple[int, str]
) -> None:
    config = resolve(load_config(None, given), spec, cores=2)
    assert (config.actors.n_step, config.replay.sampling) == chosen


def test_serial_chooses_nothing_from_timing_unless_it_is_asked_to() -> None:
    serial = ["run.runtime=serial"]
    slow = resolve(load_config(None, serial), SIMULATOR, cores=2, step_seconds=1.0)
    assert slow == resolve(load_config(None, serial), SIMULATOR, cores=2)
    asked = load_config(None, [*serial, "run.measure_speed=true"])
    assert resolve(asked, SIMULATOR, cores=2, step_seconds=1.0).pacing.samples_per_insert == 64
    told_not_to = load_config(None, ["run.measure_speed=false"])
    assert resolve(told_not_to, SIMULATOR, cores=2, step_seconds=1.0).pacing.samples_per_insert == 8


def test_reasons_name_what_was_chosen_and_nothing_that_was_given() -> None:
    given = load_config(None, ["pacing.learning_starts=64", "actors.epsilon_decay_env_steps=9"])
    chosen = resolve(given, ENDLESS, cores=2, step_seconds=0.002)
    rate, speed = reasons(given, chosen, 0.002)
    assert rate == (
        "the network is a table: learner.learning_rate=0.02, falling to 0.0005 over 20,000 updates"
    )
    assert speed.startswith("the environment is moderate, 500 steps/s; this and the run's limits suggest")
    assert "pacing.samples_per_insert=32, evaluation.every_updates=5000" in speed
    assert "learning_starts" not in speed
    assert not list(reasons(chosen, chosen, 0.002))
    serial = load_config(None, ["run.runtime=serial"])
    assert len(list(reasons(serial, resolve(serial, ENDLESS, cores=2), 0.002))) == 1
    (spread,) = reasons(serial, resolve(serial, SIMULATOR, cores=2), 0.002)
    assert spread == (
        "the network is mlp: actors.n_step=3, replay.sampling=prioritized spread what rare rewards teach"
    )


def test_a_resumed_run_keeps_what_was_chosen_for_it() -> None:
    given = load_config(None, ["stop.seconds=60"])
    limited = replace(given, env=replace(given.env, max_episode_steps=200))
    saved = resolve(limited, ENDLESS, cores=2, step_seconds=1 / 44)
    kept = keeping_choices(load_config(None, ["stop.seconds=600", "pacing.samples_per_insert=16"]), saved)
    again = resolve(kept, ENDLESS, cores=2, step_seconds=1e-6)
    assert again.pacing.samples_per_insert == 16
    assert again.env.max_episode_steps == 200
    assert again.stop.seconds == 600
    assert replace(again.pacing, samples_per_insert=saved.pacing.samples_per_insert) == saved.pacing
    assert replace(again.learner, updates_per_chunk=1) == replace(saved.learner, updates_per_chunk=1)
    assert again.actors.epsilon_decay_env_steps == saved.actors.epsilon_decay_env_steps
    assert again.evaluation == saved.evaluation
    assert (again.actors.n_step, again.replay.sampling) == (1, "uniform")
    # As saved, nothing is open.
    assert keeping_choices(load_resolved(dump_config(saved)), saved) == saved
