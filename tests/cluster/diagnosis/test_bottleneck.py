"""The verdict: the rule by hand-made times, its words, and runs that are slow in each way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from qfleet_configs import resolved_config
from qfleet_serial import Recorder

from cluster.api import train
from cluster.diagnosis.bottleneck import shares_between, stage_of, verdict_of
from cluster.diagnosis.diagnosis import LOOKS, Diagnosis
from cluster.metrics.snapshot import Snapshot, Stage, Verdict
from cluster.metrics.usage import MachineUsage
from cluster.settings.load_config import load_config

LOCAL = resolved_config("run.runtime=local", "actors.num_actors=2", "actors.envs_per_actor=8")
SERIAL = resolved_config("run.runtime=serial")
Seconds = Mapping[str, Mapping[str, float]]


def at(seconds: float, spent: Seconds, **changes: object) -> Snapshot:
    """A snapshot after so many seconds, of which roles spent these shares in each phase; two actors."""
    processes = {"actor": 2.0}
    role_seconds = {
        role: {phase: share * seconds * processes.get(role, 1.0) for phase, share in phases.items()}
        for role, phases in spent.items()
    }
    role_seconds.setdefault("coordinator", {"wait": 0.9 * seconds, "work": 0.1 * seconds})
    known = replace(
        Snapshot(),
        run_seconds=seconds,
        updates_total=100,
        roles_up={"actor": 2.0, "learner": 1.0},
        shard_transitions={"0": 1.0},
        role_seconds_total=role_seconds,
    )
    return replace(known, **changes)


def spent(
    actor: Sequence[float], learner: Sequence[float], shard: float, evaluator: float = 0.0
) -> dict[str, dict[str, float]]:
    """Shares of work, push, idle; of update, wait, idle, draw and exchange; of work; of play."""
    return {
        "actor": {"env": actor[0], "push": actor[1], "idle": actor[2]},
        "learner": dict(zip(("update", "wait", "idle", "draw", "exchange"), learner, strict=False)),
        "shard": {"sample": shard},
        "evaluator": {"play": evaluator},
    }


@pytest.mark.parametrize(
    ("actor", "learner", "shard", "stage"),
    [
        # One side works all the time, the other one waits for it.
        ((0.95, 0.05, 0.0), (0.1, 0.0, 0.9), 0.1, "actor"),
        ((0.1, 0.0, 0.9), (0.9, 0.1, 0.0), 0.1, "learner"),
        ((0.1, 0.0, 0.9), (0.3, 0.4, 0.0, 0.3), 0.1, "learner"),
        # The ranks of the learner exchange less than half of its work, and more.
        ((0.1, 0.0, 0.9), (0.5, 0.0, 0.1, 0.0, 0.4), 0.1, "learner"),
        ((0.1, 0.0, 0.9), (0.4, 0.0, 0.1, 0.0, 0.5), 0.1, "communication"),
        # The side that is behind spends its time on transport: shards are busy, or they are not.
        ((0.1, 0.0, 0.9), (0.3, 0.7, 0.0), 0.8, "replay"),
        ((0.1, 0.0, 0.9), (0.3, 0.7, 0.0), 0.2, "network"),
        ((0.2, 0.8, 0.0), (0.1, 0.0, 0.9), 0.9, "replay"),
        ((0.2, 0.8, 0.0), (0.1, 0.0, 0.9), 0.1, "network"),
        # Nobody has anything to do.
        ((0.3, 0.1, 0.6), (0.2, 0.1, 0.7), 0.1, "pacing"),
        # Both are busy: who waits less.
        ((0.6, 0.0, 0.4), (0.7, 0.0, 0.3), 0.1, "learner"),
        ((0.8, 0.0, 0.2), (0.7, 0.0, 0.3), 0.1, "actor"),
    ],
)
def test_who_waits_less_is_behind(
    actor: Sequence[float], learner: Sequence[float], shard: float, stage: Stage
) -> None:
    told = spent(actor, learner, shard)
    window = [at(10.0, told), at(20.0, told)]
    assert stage_of(window, LOCAL) == stage
    verdict = verdict_of(stage, window, LOCAL)
    assert verdict is not None
    assert verdict.line.endswith(f" limits the speed: {verdict.text}")
    assert "(now " in verdict.text
    assert "\n" not in verdict.text


@pytest.mark.parametrize(
    ("actor", "learner", "evaluator", "stage"),
    [
        ((0.5, 0.1, 0.4), (0.2, 0.1, 0.7), 0.0, "actor"),
        ((0.2, 0.1, 0.7), (0.5, 0.1, 0.4), 0.0, "learner"),
        ((0.2, 0.2, 0.6), (0.2, 0.3, 0.5), 0.0, "replay"),
        ((0.2, 0.2, 0.6), (0.2, 0.0, 0.5, 0.3), 0.0, "replay"),
        ((0.2, 0.1, 0.7), (0.2, 0.1, 0.7), 0.4, "evaluation"),
        ((0.1, 0.0, 0.9), (0.1, 0.0, 0.9), 0.1, "pacing"),
    ],
)
def test_in_one_process_it_is_what_takes_most_time(
    actor: Sequence[float], learner: Sequence[float], evaluator: float, stage: Stage
) -> None:
    told = {role: dict(phases) for role, phases in spent(actor, learner, 0.1, evaluator).items()}
    told["actor"] = {phase: share / 2 for phase, share in told["actor"].items()}  # there is one actor
    window = [at(10.0, told), at(20.0, told)]
    assert stage_of(window, SERIAL) == stage
    verdict = verdict_of(stage, window, SERIAL)
    assert verdict is not None
    assert verdict.stage == stage


def test_the_window_counts_and_not_what_was_before() -> None:
    idle_first = spent((0.0, 0.0, 1.0), (1.0, 0.0, 0.0), 0.1)
    before = at(100.0, idle_first)
    then = spent((1.0, 0.0, 0.0), (0.0, 0.0, 1.0), 0.1)
    now = at(160.0, then)
    summed = {
        role: {
            phase: before.role_seconds_total[role][phase] + 0.375 * seconds  # type: ignore[index]
            for phase, seconds in phases.items()
        }
        for role, phases in now.role_seconds_total.items()  # type: ignore[union-attr]
    }
    assert stage_of([before, replace(now, role_seconds_total=summed)], LOCAL) == "actor"
    # Chunks longer than the window: nobody has told anything of it yet, so all that is known counts.
    silent = replace(now, role_seconds_total={**before.role_seconds_total, "coordinator": {"wait": 160.0}})  # type: ignore[dict-item]
    assert stage_of([before, silent], LOCAL) == "learner"


def test_actors_that_report_nothing_while_the_learner_works_are_held_back() -> None:
    told = {
        "actor": {"env": 1.0, "push": 4.0, "idle": 0.0},
        "learner": {"update": 20.0, "wait": 0.1, "idle": 9.0},
        "shard": {"insert": 1.0},
        "coordinator": {"wait": 30.0},
    }
    # Two actors pushed a large first chunk, for which the learner waited, and have had no credit since.
    held_back = at(30.0, {}, role_seconds_total=told)
    assert stage_of([held_back], LOCAL) == "learner"
    # Their next chunks tell of it. Nothing is counted twice.
    told_late = {**told, "actor": {"env": 2.0, "push": 8.0, "idle": 50.0}}
    shares = shares_between(Snapshot(), replace(held_back, role_seconds_total=told_late), serial=False)
    assert shares is not None
    assert shares.actor_idle == pytest.approx(50.0 / 60.0)
    # A learner that waits for its next transitions holds nobody back.
    waiting = {**told, "learner": {"update": 1.0, "wait": 0.1, "idle": 28.0}}
    assert stage_of([at(30.0, {}, role_seconds_total=waiting)], LOCAL) == "network"


def test_before_the_first_update_the_transitions_are_counted() -> None:
    told = {"actor": {"env": 1.0, "push": 0.0, "idle": 0.0}}
    window = [at(2.0, told, updates_total=0, inserted_transitions_total=400)]
    assert stage_of(window, LOCAL) == "actor"
    verdict = verdict_of("actor", window, LOCAL)
    assert verdict is not None
    assert "(400 of 1,000); lower pacing.learning_starts" in verdict.text
    full = [replace(window[0], inserted_transitions_total=1_000)]
    assert stage_of(full, LOCAL) == "learner"
    verdict = verdict_of("learner", full, LOCAL)
    assert verdict is not None
    assert "the first updates are not done yet" in verdict.text


def test_nothing_is_said_before_anybody_worked() -> None:
    assert stage_of([Snapshot()], LOCAL) is None
    assert shares_between(Snapshot(), Snapshot(), serial=True) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"machine_memory_bytes": 10 * 10**9, "machine_memory_available_bytes": 499_000_000},
            "499 MB of the machine's 10.0 GB of memory are free",
        ),
        (
            {"shared_memory_bytes": 10**9, "shared_memory_used_bytes": 960_000_000},
            "/dev/shm is full (960 MB of 1.0 GB)",
        ),
    ],
)
def test_memory_comes_first(changes: dict[str, int], words: str) -> None:
    window = [at(20.0, spent((1.0, 0.0, 0.0), (0.1, 0.0, 0.9), 0.1), **changes)]
    assert stage_of(window, LOCAL) == "memory"
    verdict = verdict_of("memory", window, LOCAL)
    assert verdict is not None
    assert words in verdict.text
    enough = {name: value * (0.9 if "used" in name else 1.1) for name, value in changes.items()}
    if "machine_memory_bytes" in changes:
        enough["machine_memory_bytes"] = changes["machine_memory_bytes"]
    else:
        enough["shared_memory_bytes"] = changes["shared_memory_bytes"]
    assert stage_of([replace(window[0], **enough)], LOCAL) == "actor"


def test_the_verdict_changes_once_it_is_sure() -> None:
    diagnosis = Diagnosis(LOCAL)
    acting, learning = (
        spent((1.0, 0.0, 0.0), (0.1, 0.0, 0.9), 0.1),
        spent((0.1, 0.0, 0.9), (1.0, 0.0, 0.0), 0.1),
    )

    def said(told: Seconds) -> str:
        # No time passes between the snapshots, so that each counts from the beginning, by itself.
        verdict = diagnosis.take(at(10.0, told)).snapshot.verdict
        assert verdict is not None
        return verdict.stage

    assert said(acting) == "actor"
    assert [said(learning) for _ in range(LOOKS - 1)] == ["actor"] * (LOOKS - 1)
    assert said(acting) == "actor"
    assert [said(learning) for _ in range(LOOKS)] == ["actor"] * (LOOKS - 1) + ["learner"]


def test_before_the_first_update_the_verdict_changes_at_once() -> None:
    """A text that says "too few transitions" beside numbers that say enough would contradict itself."""
    diagnosis = Diagnosis(LOCAL)
    told = {"actor": {"env": 1.0, "push": 0.0, "idle": 0.0}}
    for inserted, words in ((400, "too few transitions"), (1_000, "holds enough transitions")):
        taken = at(2.0, told, updates_total=0, inserted_transitions_total=inserted)
        verdict = diagnosis.take(taken).snapshot.verdict
        assert verdict is not None
        assert words in verdict.text


SLOW = ("metrics.every_seconds=0.2", "stop.target_return=1000000000.0", "evaluation.every_updates=100000")


def final_verdict(folder: Path, *overrides: str) -> Verdict:
    """The last verdict on a run before it ended."""
    recorder = Recorder()
    config = load_config(None, [*SLOW, *overrides])
    train(config, folder / "run", view=lambda *_: recorder)
    # The last snapshot comes after the end, when everybody rests.
    verdict = recorder.snapshots[-2].verdict
    assert verdict is not None
    return verdict


RUNS: dict[Stage, tuple[str, ...]] = {
    "actor": (
        "env.id=qfleet_diagnosis_envs:busy_cartpole",
        "env.kwargs.seconds=0.002",
        "actors.envs_per_actor=4",
        "pacing.learning_starts=100",
        "pacing.samples_per_insert=4",
        "learner.batch_size=32",
        "learner.updates_per_chunk=8",
        "stop.updates=600",
    ),
    "learner": (
        "learner.hidden_sizes=[1024, 1024]",
        "learner.batch_size=256",
        "learner.updates_per_chunk=8",
        # Few steps for each update: acting computes the same large network.
        "pacing.samples_per_insert=64",
        "stop.updates=120",
    ),
    # Large transitions that shards unpack, and a network that looks at next to nothing of them.
    "replay": (
        "env.id=qfleet_diagnosis_envs:Wide",
        "learner.network=qfleet_diagnosis_envs:narrow_network",
        "learner.batch_size=256",
        "learner.updates_per_chunk=8",
        "replay.capacity=2000",
        "replay.compression=lz4",
        "replay.minibatches_per_request=2",
        "actors.envs_per_actor=4",
        "actors.steps_per_chunk=16",
        "pacing.learning_starts=500",
        "pacing.samples_per_insert=64",
        "stop.updates=150",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", RUNS)
@pytest.mark.parametrize("runtime", ["serial", "local"])
def test_runs_that_are_made_slow(
    tmp_path: Path, stage: Stage, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2] / "support"))  # for the roles' processes
    said = final_verdict(tmp_path, *RUNS[stage], f"run.runtime={runtime}", "actors.num_actors=1")
    assert said.stage == stage, said


@pytest.mark.slow
def test_chunks_so_small_that_pacing_pauses_both_sides(tmp_path: Path) -> None:
    said = final_verdict(
        tmp_path,
        *("run.runtime=local", "actors.num_actors=1", "actors.envs_per_actor=1", "actors.steps_per_chunk=1"),
        *("learner.updates_per_chunk=1", "learner.batch_size=1", "learner.hidden_sizes=[4]"),
        *("pacing.learning_starts=64", "pacing.samples_per_insert=8", "replay.capacity=1000"),
        "stop.seconds=30",
    )
    assert said.stage == "pacing", said


@pytest.mark.slow
def test_a_machine_without_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = MachineUsage(10**10, 10**8, None, None)
    monkeypatch.setattr("cluster.metrics.usage.machine_usage", lambda: full)
    said = final_verdict(tmp_path, "run.runtime=serial", "stop.updates=300", "metrics.every_seconds=0.02")
    assert said.line.startswith("memory limits the speed: 100 MB of the machine's 10.0 GB"), said
