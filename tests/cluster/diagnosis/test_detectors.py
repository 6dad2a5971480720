"""Diagnosis: thresholds by hand-made snapshots, hysteresis, runs that fail in each way, runs that learn.

Tests cluster/diagnosis/diagnosis.py too: it says when a finding begins and ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from qfleet_configs import resolved_config
from qfleet_serial import Recorder

import replay_service.shard_meter
from cluster.api import train
from cluster.diagnosis.detectors import DETECTORS, Reading
from cluster.diagnosis.diagnosis import LOOKS, Diagnosed, Diagnosis
from cluster.metrics.snapshot import Snapshot, known_metrics
from cluster.report.runs import Run, periods
from cluster.settings.load_config import PRESETS, load_config
from cluster.settings.resolved import ResolvedConfig
from cluster.show.status import snapshot_of
from replay_service.histogram import Histogram

READ = {detector.name: detector.read for detector in DETECTORS}
HEALTHY = replace(
    Snapshot(),
    run_seconds=10.0,
    env_steps_total=50_000,
    updates_total=10_000,
    inserted_transitions_total=50_000,
    sampled_transitions_total=200_000,
    replay_transitions=5_000,
    lane_transitions=312.5,
    lane_episodes=3.125,
    train_length_mean=100.0,
    discount=0.99,
    learning_rate=1e-3,
    loss=1.0,
    loss_max=2.0,
    q_min=-1.0,
    q_max=60.0,
    reward_abs_mean=1.0,
    reward_abs_max=1.0,
    first_return_mean=20.0,
    best_return_mean=220.0,
    best_return_std=20.0,
    best_version=9_000,
    evaluation_version=10_000,
    evaluation_episodes=20,
    evaluation_return_mean=200.0,
    evaluation_return_std=20.0,
    evaluation_start_value_mean=60.0,
    evaluation_discounted_return_mean=62.0,
    evaluation_start_value_error_std=5.0,
    evaluation_truncation_discount_mean=0.0,
    evaluation_action_entropy_ratio=0.9,
    sample_policy_lag_updates=Histogram((0,) * 5 + (100,) + (0,) * 19, 100 * 500.0),
    sample_age_transitions=Histogram((0,) * 5 + (100,) + (0,) * 19, 100 * 2_500.0),
    shard_capacity_transitions={"0": 5_000},
    shard_transitions={"0": 5_000},
    shard_mass={"0": 5_000.0},
    shard_priority_effective_ratio={"0": 0.5},
)
"""A run in which all is well."""

CONFIG = resolved_config(
    "replay.capacity=5000",
    "replay.sampling=prioritized",
    "learner.updates_per_chunk=8",
    "learner.target_update_updates=40",
    "evaluation.every_updates=100",
)


def window(now: Snapshot, count: int = 16, **trends: Sequence[float]) -> list[Snapshot]:
    """`count` snapshots a second apart, the last one `now`; trends: name -> its first and its last value."""
    shares = [step / (count - 1) for step in range(count)]
    return [
        replace(
            now,
            run_seconds=now.run_seconds - count * (1 - share),
            updates_total=round(now.updates_total - 1_000 * (1 - share)),
            inserted_transitions_total=round(now.inserted_transitions_total - 5_000 * (1 - share)),
            sample_policy_lag_updates=now.sample_policy_lag_updates if share == 1 else Histogram(),
            sample_age_transitions=now.sample_age_transitions if share == 1 else Histogram(),
            **{name: low + share * (high - low) for name, (low, high) in trends.items()},
        )
        for share in shares
    ]


def strength(
    name: str, config: ResolvedConfig = CONFIG, trends: Mapping[str, Any] = {}, **changes: Any
) -> float:
    reading = READ[name](window(replace(HEALTHY, **changes), **trends), config)  # type: ignore[index]
    assert isinstance(reading, Reading)
    return reading.strength


def test_all_is_silent_where_all_is_well() -> None:
    for detector in DETECTORS:
        reading = detector.read(window(HEALTHY), CONFIG)
        assert reading is not None, detector.name
        assert reading.strength < 0.7, (detector.name, reading)


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        # Bound 1 / 0.01; twice that is the threshold, downwards, too, and for rewards of any size.
        ("diverging_q", {"q_max": 200.0}, 1.0),
        ("diverging_q", {"q_min": -500.0}, 2.5),
        ("diverging_q", {"q_max": 200.0, "reward_abs_max": 10.0}, 0.1),
        # First weights' values beyond the bound of tiny rewards.
        ("diverging_q", {"q_min": 0.0, "q_max": 0.5, "reward_abs_max": 1e-4}, 0.5),
        # 100 of the 200 that were learned are gone; 80 of them are not half.
        ("catastrophic_forgetting", {"evaluation_return_mean": 120.0}, 1.0),
        ("catastrophic_forgetting", {"evaluation_return_mean": 140.0}, 0.8),
        # As far, but by chance: so few episodes that vary so much say nothing.
        (
            "catastrophic_forgetting",
            {"evaluation_return_mean": 120.0, "evaluation_return_std": 100.0, "evaluation_episodes": 3},
            0.0,
        ),
        # Nothing was learned that could be forgotten.
        ("catastrophic_forgetting", {"first_return_mean": 220.0, "evaluation_return_mean": 0.0}, 0.0),
        # Values have not come forward from ends of episodes yet.
        ("catastrophic_forgetting", {"evaluation_version": 1_000, "evaluation_return_mean": 20.0}, 0.0),
        ("overestimation", {"evaluation_version": 1_000, "evaluation_start_value_mean": 90.0}, 0.0),
        # Scale 1 / 0.01, a tenth of it 10; least surplus 28 - 3.5794 * 5 / sqrt(19).
        ("overestimation", {"evaluation_start_value_mean": 90.0}, 2.3894),
        # Of the surplus 20 may lie behind time limits: 0.2 * 1 / 0.01.
        (
            "overestimation",
            {"evaluation_start_value_mean": 90.0, "evaluation_truncation_discount_mean": 0.2},
            0.3894,
        ),
        # Replay is 5,000 * 0.2 updates deep; 2,500 * 0.2 of the lag is age.
        ("stale_data", {}, 0.0),
        (
            "stale_data",
            {"sample_policy_lag_updates": Histogram((0,) * 5 + (100,) + (0,) * 19, 100 * 1_500.0)},
            1.0,
        ),
        # Two episodes of each lane are just enough, and fewer while evaluations become better.
        ("few_episodes_per_lane", {"lane_episodes": 0.5, "evaluation_version": 9_990}, 0.0),
        ("few_episodes_per_lane", {"lane_episodes": 2.0}, 1.0),
        ("few_episodes_per_lane", {"lane_episodes": 0.5}, 4.0),
        ("collapsed_action_choice", {"evaluation_action_entropy_ratio": 0.0}, 0.0),
        (
            "collapsed_action_choice",
            {
                "evaluation_action_entropy_ratio": 0.05,
                "evaluation_return_mean": 9.0,
                "evaluation_return_std": 1.0,
            },
            1.0,
        ),
        (
            "collapsed_action_choice",
            {"evaluation_return_mean": 9.0, "evaluation_return_std": 1.0},
            0.05 / 0.9,
        ),
        ("reward_scale", {"evaluation_discounted_return_mean": 600.0}, 1.0),
        ("reward_scale", {"evaluation_discounted_return_mean": -1_200.0}, 2.0),
        ("reward_scale", {"reward_abs_max": 1e-4 * 128**0.5, "learning_rate": 1e-2}, 1.0),
        # A minibatch of 64 against 6,400, 64 and 32 effective transitions.
        ("degenerate_priorities", {"shard_priority_effective_ratio": {"0": 64 / 5_000}}, 1.0),
        ("degenerate_priorities", {"shard_priority_effective_ratio": {"0": 32 / 5_000}}, 2.0),
        # Standard deviation over mean of 1 %.
        ("degenerate_priorities", {"shard_priority_effective_ratio": {"0": 1 / (1 + 1e-4)}}, 1.0),
        # Two shards of which one has all the mass: half of the transitions count.
        (
            "degenerate_priorities",
            {
                "shard_transitions": {"0": 64, "1": 64},
                "shard_mass": {"0": 64.0, "1": 1e-9},
                "shard_priority_effective_ratio": {"0": 1.0, "1": 1.0},
            },
            1.0,
        ),
    ],
)
def test_thresholds(name: str, changes: dict[str, Any], expected: float) -> None:
    assert strength(name, **changes) == pytest.approx(expected, rel=1e-3, abs=1e-9)


def test_values_that_fall_do_not_diverge_and_those_that_grow_with_the_loss_do_below_the_threshold() -> None:
    assert strength("diverging_q", q_max=300.0, trends={"q_max": (900.0, 300.0)}) == 0.0
    grow = {"q_max": (10.0, 120.0)}
    assert strength("diverging_q", trends=grow) == pytest.approx(0.6)
    assert strength("diverging_q", trends={**grow, "loss": (1.0, 90.0)}) == 1.0
    assert strength("diverging_q", trends={"q_max": (10.0, 90.0), "loss": (1.0, 90.0)}) == pytest.approx(0.45)


def test_updates_that_are_not_finite_diverge() -> None:
    assert strength("diverging_q", trends={"skipped_updates_total": (0, 3)}) >= 1.0


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("diverging_q", {"discount": 1.0}),
        ("diverging_q", {"reward_abs_max": 0.0}),
        ("diverging_q", {"q_max": None}),
        ("catastrophic_forgetting", {"best_return_mean": None}),
        ("catastrophic_forgetting", {"evaluation_episodes": 1}),
        ("overestimation", {"evaluation_start_value_mean": None}),
        ("overestimation", {"evaluation_truncation_discount_mean": 0.5, "discount": 1.0}),
        ("stale_data", {"replay_transitions": 100}),
        ("few_episodes_per_lane", {"replay_transitions": 100}),
        ("few_episodes_per_lane", {"lane_episodes": None}),
        ("few_episodes_per_lane", {"best_version": None}),
        ("collapsed_action_choice", {"evaluation_action_entropy_ratio": None}),
        ("reward_scale", {"reward_abs_max": None}),
        ("degenerate_priorities", {"shard_priority_effective_ratio": {}}),
        ("degenerate_priorities", {"sampled_transitions_total": 10}),
    ],
)
def test_what_cannot_be_judged_is_not(name: str, changes: dict[str, Any]) -> None:
    assert READ[name](window(replace(HEALTHY, train_length_mean=100.0, **changes)), CONFIG) is None  # type: ignore[index]


def test_atoms_that_do_not_reach_the_returns() -> None:
    config = resolved_config("learner.head=c51", "learner.value_range=[0, 50]")
    reading = READ["reward_scale"](window(HEALTHY), config)
    assert reading is not None
    assert reading.strength > 1.0
    assert "learner.value_range=[0, 93]" in reading.cure


def looks(diagnosis: Diagnosis, *q_max: float, first_update: int) -> list[Diagnosed]:
    """What diagnosis says of snapshots with these Q-values, ten updates apart."""
    return [
        diagnosis.take(replace(HEALTHY, updates_total=first_update + 10 * index, q_max=value))
        for index, value in enumerate(q_max)
    ]


def holds(seen: Sequence[Diagnosed], name: str = "diverging_q") -> list[bool]:
    """Whether a finding holds after each look."""
    return [diagnosed.snapshot.diagnosis_active[name] == 1 for diagnosed in seen]  # type: ignore[index]


def test_a_finding_begins_late_holds_through_doubt_and_ends_late() -> None:
    diagnosis = Diagnosis(CONFIG)
    assert not any(holds(looks(diagnosis, *[60.0] * 8, first_update=100)))
    # On and off at the threshold: never three times running.
    assert not any(holds(looks(diagnosis, 230.0, 190.0, 230.0, 230.0, 190.0, first_update=200)))
    began = looks(diagnosis, *[230.0] * LOOKS, first_update=300)
    assert holds(began) == [False] * (LOOKS - 1) + [True]
    assert [len(diagnosed.begun) for diagnosed in began] == [0] * (LOOKS - 1) + [1]
    (finding,) = began[-1].begun
    assert finding.text.startswith("diverging Q: |Q| is up to 230, 2.3 times")
    assert began[-1].snapshot.warnings == (finding,)
    assert finding.since_updates == 300
    # Between half of the threshold and the threshold it goes on; below, it takes three looks; said once each.
    doubt = looks(diagnosis, *[150.0, 101.0, 220.0, 99.0, 99.0, 101.0, 99.0, 99.0], first_update=400)
    assert all(holds(doubt))
    assert not any(diagnosed.begun or diagnosed.over for diagnosed in doubt)
    (ended,) = looks(diagnosis, 99.0, first_update=500)
    assert not any(holds([ended]))
    assert [(over.title, over.since_updates) for over in ended.over] == [("diverging Q", 300)]


def test_no_look_without_news() -> None:
    diagnosis = Diagnosis(CONFIG)
    for _ in range(10):  # ten snapshots of one evaluation
        diagnosed = diagnosis.take(replace(HEALTHY, evaluation_return_mean=20.0))
    assert diagnosed.snapshot.warnings == ()
    for version in (10_001, 10_002):
        diagnosed = diagnosis.take(replace(HEALTHY, evaluation_return_mean=20.0, evaluation_version=version))
    assert [finding.name for finding in diagnosed.snapshot.warnings] == ["catastrophic_forgetting"]


def test_shards_that_count_from_0_again_in_a_new_life_are_counted_from_there() -> None:
    stale = Histogram((0,) * 5 + (100,) + (0,) * 19, 100 * 1_500.0)
    fresh = replace(HEALTHY, sample_policy_lag_updates=stale)
    before = replace(fresh, sample_policy_lag_updates=stale + stale, sample_age_transitions=stale + stale)
    first = replace(before, updates_total=9_000, inserted_transitions_total=45_000)
    reading = READ["stale_data"]([first, fresh], CONFIG)  # type: ignore[index]
    assert reading is not None
    assert reading.strength == pytest.approx(1.0)


def test_words_reach_the_file_the_status_and_the_report(tmp_path: Path) -> None:
    diagnosis, lines = Diagnosis(CONFIG), []
    for version in range(5):
        completed = diagnosis.take(
            replace(
                HEALTHY,
                run_seconds=float(version),
                evaluation_return_mean=20.0,
                evaluation_version=version + 10_000,
            )
        ).snapshot
        lines.append(json.loads(msgspec.json.encode(known_metrics(completed))))
    assert snapshot_of(lines[-1]).warnings == completed.warnings
    run = Run.__new__(Run)
    object.__setattr__(run, "metrics", tuple(lines))
    ((kind, began, ended),) = [(period.kind, period.began, period.ended) for period in periods(run)]
    assert (kind, began, ended) == ("warning", 2.0, 4.0)


SMALL = (
    "actors.envs_per_actor=8",
    "actors.steps_per_chunk=16",
    "learner.hidden_sizes=[32]",
    "learner.batch_size=32",
    "learner.updates_per_chunk=16",
    "pacing.learning_starts=200",
    "evaluation.every_updates=100",
    "evaluation.episodes=10",
    "stop.target_return=1000000000.0",
)
NAIVE = (
    "replay.capacity=20_000",
    "evaluation.every_updates=200",
    "evaluation.episodes=10",
    "stop.env_steps=null",
)


def run(folder: Path, preset: str | None, *overrides: str) -> Recorder:
    """A serial run with many looks a second."""
    recorder = Recorder()
    path = None if preset is None else PRESETS / preset
    config = load_config(path, ["run.runtime=serial", "metrics.every_seconds=0.02", *overrides])
    train(config, folder / "run", view=lambda *_: recorder)
    return recorder


def titles(recorder: Recorder) -> list[str]:
    """What was found, in order."""
    return [event.split(": ")[1] for event in recorder.events if event.startswith("warning: ")]


def event(recorder: Recorder, title: str) -> str:
    return next(text for text in recorder.events if text.startswith(f"warning: {title}: "))


def test_replay_without_a_frozen_copy_diverges_and_overestimates(tmp_path: Path) -> None:
    recorder = run(tmp_path, "cartpole_naive.yaml", *NAIVE, "stop.updates=1000")
    assert set(titles(recorder)) == {"diverging Q", "overestimation"}
    assert "what rewards of at most 1 can sum up to (100)" in event(recorder, "diverging Q")
    assert "learner.target_update_updates=200 (now 1)" in event(recorder, "diverging Q")
    events = (tmp_path / "run" / "logs" / "events.log").read_text()
    assert "WARNING" in events
    assert "overestimation: Q predicts" in events


def test_steps_that_kill_the_network_collapse_its_choice(tmp_path: Path) -> None:
    recorder = run(
        tmp_path,
        "cartpole_naive.yaml",
        *NAIVE,
        *("learner.learning_rate=1.0", "learner.target_update_updates=4", "stop.updates=1400"),
    )
    assert "collapsed action choice" in titles(recorder)
    assert "learner.learning_rate=0.1 (now 1)" in event(recorder, "collapsed action choice")


def test_one_action_that_is_the_best_is_no_collapse(tmp_path: Path) -> None:
    recorder = run(
        tmp_path,
        None,
        *SMALL,
        *("env.id=qfleet_diagnosis_envs:OneWay", "actors.discount=0.9", "learner.target_update_updates=10"),
        "stop.updates=700",
    )
    last = recorder.snapshots[-1]
    assert last.evaluation_action_entropy_ratio == 0.0
    assert last.evaluation_return_mean == 10.0
    assert titles(recorder) == []


@pytest.mark.parametrize(
    ("scale", "cure"),
    [("10000.0", "divide the rewards by about 1e+04"), ("0.000001", "multiply the rewards by about 1e+06")],
)
def test_rewards_out_of_scale(tmp_path: Path, scale: str, cure: str) -> None:
    recorder = run(
        tmp_path,
        None,
        *SMALL,
        *("env.id=qfleet_diagnosis_envs:scaled_cartpole", f"env.kwargs.scale={scale}"),
        *("learner.target_update_updates=10", "actors.n_step=10", "stop.updates=620"),
    )
    assert "reward scale" in titles(recorder)
    assert "diverging Q" not in titles(recorder)
    assert cure in event(recorder, "reward scale")


@pytest.mark.parametrize(
    ("overrides", "evidence"),
    [
        (
            ("env.id=qfleet_diagnosis_envs:Jackpot", "replay.priority_exponent=1.0"),
            "have nearly all the priority mass",
        ),
        (("env.id=CartPole-v1", "replay.priority_epsilon=10000"), "of their mean"),
    ],
)
def test_priorities_that_say_too_much_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], evidence: str
) -> None:
    monkeypatch.setattr(replay_service.shard_meter, "_SUMMARY_SECONDS", 0.05)
    monkeypatch.setattr("cluster.coordinator._ASK_SHARDS_SECONDS", 0.05)
    recorder = run(
        tmp_path,
        None,
        *SMALL,
        *("replay.sampling=prioritized", "replay.capacity=4000", "pacing.learning_starts=1000", *overrides),
        *("evaluation.every_updates=1000", "stop.updates=500"),
    )
    assert titles(recorder) == ["degenerate priorities"]
    assert evidence in event(recorder, "degenerate priorities")


def test_chunks_of_learning_that_are_longer_than_replay_is_deep(tmp_path: Path) -> None:
    recorder = run(
        tmp_path,
        None,
        *SMALL,
        *(
            "env.id=CartPole-v1",
            "actors.envs_per_actor=4",
            "learner.batch_size=16",
            "learner.hidden_sizes=[16]",
        ),
        *("learner.updates_per_chunk=600", "replay.capacity=128", "pacing.learning_starts=64"),
        *("evaluation.every_updates=4200", "stop.updates=4200"),
    )
    assert titles(recorder) == ["stale data"]
    assert "learner.updates_per_chunk=" in event(recorder, "stale data")


def test_a_run_that_learns_is_left_alone(tmp_path: Path) -> None:
    recorder = run(tmp_path, "cartpole.yaml", "evaluation.episodes=10", "stop.updates=1200")
    assert recorder.snapshots[-1].best_return_mean is not None
    assert titles(recorder) == []


@pytest.mark.slow
def test_a_small_replay_forgets(tmp_path: Path) -> None:
    recorder = run(
        tmp_path,
        "cartpole.yaml",
        *("replay.capacity=2000", "actors.envs_per_actor=16", "pacing.learning_starts=500"),
        *(
            "pacing.samples_per_insert=16",
            "learner.batch_size=32",
            "learner.learning_rate_decay_updates=null",
        ),
        *("learner.target_update_updates=20", "evaluation.every_updates=200", "evaluation.episodes=20"),
        *("stop.updates=15000", "stop.target_return=501"),
    )
    assert "catastrophic forgetting" in titles(recorder)
    assert "replay.capacity=20000" in event(recorder, "catastrophic forgetting")


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("preset", ["cartpole.yaml", "acrobot.yaml", "lunarlander.yaml"])
def test_presets_are_left_alone(tmp_path: Path, preset: str, seed: int) -> None:
    recorder = run(tmp_path, preset, f"run.seed={seed}", "metrics.every_seconds=1")
    # LunarLander's own observations leave their bounds now and then: a fact of the environment.
    assert [
        title for title in titles(recorder) if not title.endswith("leave the bounds of their space")
    ] == []
