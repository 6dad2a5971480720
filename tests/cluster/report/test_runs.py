"""Runs are read back as they were, and grouped by what they have in common."""

from __future__ import annotations

import json
from pathlib import Path

from qfleet_recorded_runs import diagnosed, double_and_single, synthetic

from cluster.report.runs import (
    concerns_learning,
    evaluation_steps,
    greedy_curve,
    groups_of,
    periods,
    read_run,
)


def test_what_a_resumed_run_played_again_is_shown_once(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "run", lines=6)
    for name, again in (
        ("metrics", [{"env_steps_total": 200}, {"of": "another version"}, {"env_steps_total": 250}]),
        ("evaluations", [{"version": None, "returns": [3.0]}, {"version": 100, "returns": [7.0]}]),
    ):
        with (path / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in again)
    replaced = read_run(path)  # a learner that was lost goes back, too, but nothing is played again
    assert (len(replaced.metrics), len(replaced.evaluations)) == (9, 8)
    (path / "resumes.jsonl").write_text("{}\n")
    resumed = read_run(path)
    assert [line.get("env_steps_total") for line in resumed.metrics] == [0, 100, 200, None, 250]
    assert [line["version"] for line in resumed.evaluations] == [0, 0, 100]
    assert resumed.evaluations[-1]["returns"] == [7.0]


def test_runs_are_grouped_up_to_their_seeds_and_told_apart_by_what_differs(tmp_path: Path) -> None:
    groups = groups_of([read_run(path) for path in double_and_single(tmp_path)])
    assert [(group.label, [one.settings["run.seed"] for one in group.runs]) for group in groups] == [
        ("double = False", [0, 1, 2, 3]),
        ("double = True", [0, 1, 2, 3]),
    ]


def test_ports_trackers_and_limits_make_no_groups(tmp_path: Path) -> None:
    other = {"metrics": {"port": 9401, "trackers": ["wandb"]}, "stop": {"updates": 9}}
    runs = [synthetic(tmp_path / "a"), synthetic(tmp_path / "b", settings=other)]
    (group,) = groups_of([read_run(path) for path in runs])
    assert len(group.runs) == 2
    assert concerns_learning("learner.double")
    assert concerns_learning("replay.capacity")
    assert not concerns_learning("run.runtime")
    assert not concerns_learning("learner.dense_products")
    # Names that are alike keep their sections.
    settings = [{"a": {"size": size}, "b": {"size": size}} for size in (1, 2)]
    runs = [synthetic(tmp_path / f"c{each['a']['size']}", settings=each) for each in settings]
    assert [group.label for group in groups_of([read_run(path) for path in runs])] == [
        "a.size = 1, b.size = 1",
        "a.size = 2, b.size = 2",
    ]


def test_evaluations_lie_where_their_versions_were_and_confirmations_are_left_out(tmp_path: Path) -> None:
    known = read_run(synthetic(tmp_path / "run"))
    assert evaluation_steps(known).tolist() == [0, 0, 1_000, 1_000, 2_000, 2_000]
    steps, means, episodes = greedy_curve(known)
    assert steps.tolist() == [0, 1_000, 2_000]
    assert means.tolist() == [0.0, 100.0, 200.0]
    assert episodes.tolist() == [[-1.0, 99.0, 199.0], [1.0, 101.0, 201.0]]


def test_what_was_diagnosed_is_told_from_when_to_when(tmp_path: Path) -> None:
    path = synthetic(tmp_path / "run", lines=0)
    said = [
        diagnosed("actors work 90%"),
        diagnosed("actors work 95%", "lag 9"),
        diagnosed("80%", "lag 10", stage="learner"),
        {"verdict": None, "warnings": []},
        diagnosed("70%", stage="learner"),
    ]
    lines = [{"run_seconds": float(second), **line} for second, line in enumerate(said)]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"torn')
    assert [(period.kind, period.began, period.ended, period.text) for period in periods(read_run(path))] == [
        ("verdict", 0.0, 1.0, "acting limits the speed: actors work 95%"),
        ("warning", 1.0, 2.0, "stale data: lag 10. Cause: long chunks. Cure: shorter ones"),
        ("verdict", 2.0, 2.0, "learning limits the speed: 80%"),
        ("verdict", 4.0, 4.0, "learning limits the speed: 70%"),
    ]
