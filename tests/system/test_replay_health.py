"""Replay's metrics move as predicted when a setting is turned: real runs, in one process.

Tests cluster/metrics/counters.py and replay_service/shard_meter.py too.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from qfleet_serial import SMALL, Recorder

from cluster.api import train
from cluster.metrics.snapshot import Snapshot
from cluster.settings.load_config import load_config

BASE = (
    *SMALL,
    *("env.id=CartPole-v1", "actors.epsilon_ladder=null", "actors.epsilon_end=1.0"),
    *("replay.capacity=1000", "replay.sampling=uniform", "learner.target_update_updates=50"),
    *("stop.updates=1000", "evaluation.every_updates=1000", "metrics.every_seconds=0.05"),
)
"""Four environments, 16 transitions an update, each sampled four times on average."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("health")


def played(folder: Path, *turned: str) -> Recorder:
    recorder = Recorder()
    name = "-".join(turned).replace(".", "_")
    train(load_config(None, [*BASE, *turned]), folder / f"run-{name}", view=lambda *_: recorder)
    return recorder


def check(now: Snapshot, *, capacity: int, lanes: int, reuse: float, copies_every: int) -> None:
    """Sampling is uniform, so a transition is drawn Poisson(reuse) times before it is evicted."""
    assert now.lane_transitions == capacity / lanes
    assert now.lane_episodes is not None
    assert now.train_length_mean is not None
    assert now.lane_episodes == pytest.approx(capacity / lanes / now.train_length_mean)
    assert now.target_age_env_steps == pytest.approx(copies_every * 16 / reuse, rel=0.05)
    count, undrawn = now.evicted_transitions_total, math.exp(-reuse)
    assert count is not None
    assert count > 1_000
    # Five standard errors; the first transitions waited longer than others for the first draw.
    error = 5 * math.sqrt(undrawn * (1 - undrawn) / count)
    assert now.evicted_undrawn_share == pytest.approx(undrawn, abs=error)
    # (mean)^2 / mean of squares of Poisson(reuse).
    assert now.evicted_draws_effective_ratio == pytest.approx(reuse / (1 + reuse), abs=0.05)


def test_as_it_is(folder: Path) -> None:
    check(played(folder).snapshots[-1], capacity=1_000, lanes=4, reuse=4.0, copies_every=50)


def test_a_lower_ratio_leaves_transitions_undrawn(folder: Path) -> None:
    now = played(folder, "pacing.samples_per_insert=1").snapshots[-1]
    check(now, capacity=1_000, lanes=4, reuse=1.0, copies_every=50)


def test_more_environments_have_less_each_and_a_rarer_copy_is_older(folder: Path) -> None:
    turned = ("actors.envs_per_actor=16", "learner.target_update_updates=100")
    check(played(folder, *turned).snapshots[-1], capacity=1_000, lanes=16, reuse=4.0, copies_every=100)


def test_few_episodes_per_lane_are_found_until_capacity_is_turned(folder: Path) -> None:
    # Nothing is learned at this rate, and episodes at random have some 22 steps.
    rate = ("learner.learning_rate=1e-9", "learner.learning_rate_end=1e-9")
    # A line of metrics for every evaluation, however fast the run is: the finding counts them by lines.
    often = ("evaluation.every_updates=40", "metrics.every_seconds=0.001")
    lanes = ("actors.envs_per_actor=16", *often, *rate)
    few = played(folder, *lanes, "replay.capacity=400")
    # Values that stay where they began are told, too.
    (finding,) = [each for each in few.snapshots[-1].warnings if each.name == "few_episodes_per_lane"]
    capacity = finding.cure.partition("replay.capacity=")[2].partition(" ")[0]
    assert int(capacity) == pytest.approx(16 * 22 * 4, rel=0.2)
    enough = played(folder, *lanes, f"replay.capacity={capacity}")
    assert "few_episodes_per_lane" not in {each.name for each in enough.snapshots[-1].warnings}
