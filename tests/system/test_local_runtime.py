"""Whole runs on a real local Ray: success, every kind of trouble, and nothing left behind.

Each test follows one `qfleet train` in a process of its own; it waits on what the run says, never on time.
"""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest
from qfleet_processes import LocalRun, set_flags
from qfleet_test_envs import opened_and_left

from cluster.checkpoints.checkpoint import checkpoint_folders, read_checkpoint
from learner.weights import load_weights

ENDLESS = 10_000_000
NO_EVALUATION = "evaluation.every_updates=1000000"


def small(env: str, *overrides: str, updates: int = ENDLESS) -> list[str]:
    """Arguments of a quick run with one actor."""
    return [
        env,
        *set_flags(
            (
                "actors.num_actors=1",
                "actors.envs_per_actor=4",
                "actors.steps_per_chunk=16",
                "learner.hidden_sizes=[16]",
                "learner.batch_size=16",
                "learner.updates_per_chunk=16",
                "pacing.learning_starts=128",
                "pacing.samples_per_insert=4",
                "evaluation.every_updates=100",
                "evaluation.episodes=2",
                "metrics.every_seconds=0.2",
                "stop.target_return=1000000",
                f"stop.updates={updates}",
                *overrides,
            )
        ),
    ]


def weights_version(run_dir: Path) -> int:
    return int(load_weights(run_dir / "weights" / "latest.safetensors")[1]["version"])


@pytest.mark.parametrize("runtime", ["local", "ray"])
def test_two_actors_and_three_shards_reach_their_target(
    local_run: LocalRun, runtime: str, tmp_path: Path
) -> None:
    arguments = small(
        "CartPole-v1",
        f"run.runtime={runtime}",
        "actors.num_actors=2",
        "replay.num_shards=3",
        "replay.sampling=prioritized",
        updates=1_000,
    )
    local_run.temp.rmdir()
    local_run.temp = tmp_path / ("t" * 60)  # too long for the sockets of Ray, which go elsewhere
    local_run.temp.mkdir()
    local_run.start(*arguments)
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    local_run.note_shared_memory()
    events = (local_run.run_dir / "logs" / "events.log").read_text()
    assert ("too long for sockets, so Ray's are in /tmp" in events) == (runtime == "ray")
    # Ray's object store has a name in shared memory; the process engine leaves no names anywhere.
    assert bool(local_run.shared_memory) == (runtime == "ray")
    assert local_run.finish() == 0
    assert local_run.errors == ""
    assert local_run.has_line("stop.updates = 1000 reached")
    assert weights_version(local_run.run_dir) == 1_000
    last = json.loads((local_run.run_dir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["updates_total"] == 1_000
    assert last["sampled_transitions_total"] == 16_000
    paced = last["inserted_transitions_total"] - 128
    assert last["sampled_transitions_total"] <= 4 * paced
    assert (local_run.run_dir / "weights" / "best.safetensors").exists()
    local_run.assert_nothing_left()


@pytest.mark.parametrize("head", ["q", "c51"])
def test_a_run_takes_the_memory_that_was_planned(local_run: LocalRun, head: str) -> None:
    local_run.start(*small("CartPole-v1", f"learner.head={head}", "actors.num_actors=3"))
    local_run.wait_for(lambda: local_run.updates() > 200, "updates")
    taken = local_run.memory_bytes()
    local_run.send(signal.SIGTERM)
    assert local_run.finish() == 143
    told = re.search(r"the run takes about (\d+) MB of", "\n".join(local_run.lines))
    assert told is not None
    planned = int(told.group(1)) * 10**6
    assert planned / 4 < taken < planned


def test_every_environment_is_closed_in_its_own_process(local_run: LocalRun, tmp_path: Path) -> None:
    arguments = small("qfleet_test_envs:Counted", f"env.kwargs.folder={tmp_path}", updates=1_000)
    local_run.start(*arguments)
    assert local_run.finish() == 0
    opened, left = opened_and_left(tmp_path)
    # The driver looks at its properties and tries it out; four lanes act, and two evaluate.
    assert opened == 2 + 4 + 2
    assert left == 0


def test_killed_actors_and_evaluators_are_replaced(local_run: LocalRun) -> None:
    # The only actor: reaching the target proves that its replacement acts.
    local_run.start(*small("CartPole-v1", updates=6_000))
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    first = local_run.pid_of("ActorRole")
    os.kill(first, signal.SIGKILL)
    local_run.wait_for(
        lambda: local_run.metrics().get("qfleet_restarts_total") == 1.0, "the replacement in /metrics"
    )
    assert local_run.has_line(f"actor 0 (process {first}) died; replaced by incarnation 1")
    before = local_run.updates()
    second = local_run.pid_of("EvaluatorRole")
    os.kill(second, signal.SIGKILL)
    local_run.wait_for(
        lambda: local_run.metrics().get("qfleet_restarts_total") == 2.0, "the second replacement"
    )
    assert local_run.has_line(f"evaluator (process {second}) died; replaced by incarnation 1, 8 replacements")
    assert local_run.finish() == 0
    assert before < 6_000
    assert local_run.has_line("stop.updates = 6000 reached")
    assert weights_version(local_run.run_dir) == 6_000
    events = (local_run.run_dir / "logs" / "events.log").read_text()
    assert f"actor 0 (process {first}) died" in events
    assert f"evaluator (process {second}) died" in events
    evaluations = (local_run.run_dir / "evaluations.jsonl").read_text().splitlines()
    # The last version is evaluated in any case, here by the evaluator's replacement.
    assert 6_000 in {json.loads(line)["version"] for line in evaluations}
    local_run.assert_nothing_left()


@pytest.mark.parametrize(
    ("num_shards", "persist"),
    [
        (1, "continuous"),
        pytest.param(2, "none", marks=pytest.mark.slow),
        pytest.param(1, "none", marks=pytest.mark.slow),
    ],
)
def test_a_killed_shard_comes_back(local_run: LocalRun, num_shards: int, persist: str) -> None:
    arguments = small(
        "CartPole-v1",
        "actors.num_actors=2",
        f"replay.num_shards={num_shards}",
        f"replay.persist={persist}",
        "replay.sampling=prioritized",
        updates=6_000,
    )
    local_run.start(*arguments)
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    killed = local_run.pids_of("ShardRole")[0]
    os.kill(killed, signal.SIGKILL)
    local_run.wait_for(lambda: local_run.has_line(" is back "), "the shard's replacement")
    before = local_run.updates()
    assert before < 6_000
    (died,) = [line for line in local_run.lines if f"(process {killed}) died with " in line]
    (back,) = [line for line in local_run.lines if " is back " in line]
    lost = int(died.split("died with ")[1].split(" transitions")[0].replace(",", ""))
    assert lost > 0
    if persist == "continuous":
        held = int(back.split("is back with ")[1].split(" transitions")[0].replace(",", ""))
        assert held >= lost
        assert back.endswith("from its journal")
    else:
        assert f"is back and empty: {lost:,} transitions (mass " in back
    assert local_run.finish() == 0
    assert local_run.errors == ""
    assert local_run.has_line("stop.updates = 6000 reached")
    assert weights_version(local_run.run_dir) == 6_000
    lines = metrics_lines(local_run.run_dir)
    assert_totals_never_go_backwards(lines)
    assert_pacing_held(lines)
    assert lines[-1]["restarts_total"] == 1
    local_run.assert_nothing_left()


def test_a_killed_learner_goes_on_from_its_state_of_before(local_run: LocalRun) -> None:
    local_run.start(*small("CartPole-v1", "replay.sampling=prioritized", updates=9_000))
    local_run.wait_for(lambda: local_run.updates() > 1_000, "updates, of which a state is kept")
    process = local_run.pid_of("LearnerRole")
    os.kill(process, signal.SIGKILL)
    local_run.wait_for(lambda: local_run.has_line("learner goes on from version"), "the learner's return")
    assert local_run.has_line(f"learner (process {process}) died; replaced by incarnation 1")
    version, lost = numbers_in(local_run, r"learner goes on from version ([\d,]+); ([\d,]+) updates are lost")
    assert version > 0
    assert local_run.finish() == 0
    assert weights_version(local_run.run_dir) == 9_000
    lines = metrics_lines(local_run.run_dir)
    assert lines[-1]["updates_total"] == 9_000 + lost
    assert_totals_never_go_backwards(lines)
    assert_pacing_held(lines)
    local_run.assert_nothing_left()


@pytest.mark.parametrize("persist", ["checkpoint", pytest.param("continuous", marks=pytest.mark.slow)])
def test_a_killed_run_is_resumed(local_run: LocalRun, persist: str) -> None:
    arguments = small(
        "CartPole-v1",
        "replay.sampling=prioritized",
        "replay.num_shards=2",
        f"replay.persist={persist}",
        "checkpoint.every_seconds=1",
    )
    local_run.start(*arguments)
    checkpoints = local_run.run_dir / "checkpoints"
    local_run.wait_for(lambda: (checkpoints / "checkpoint-000002").is_dir(), "the third checkpoint")
    local_run.send(signal.SIGKILL)
    assert local_run.finish() == -signal.SIGKILL
    shown = metrics_lines(local_run.run_dir)[-1]
    # Ray ends its processes by itself once their driver is gone; the next life need not wait for that.
    local_run.start(*arguments, "--resume", "auto")
    local_run.wait_for(lambda: local_run.has_line("resumed from checkpoint"), "the second life")
    number, version = numbers_in(local_run, r"resumed from checkpoint (\d+), version ([\d,]+)")
    local_run.wait_for(lambda: local_run.updates() > version + 500, "more updates")
    local_run.send(signal.SIGTERM)
    assert local_run.finish() == 143
    assert local_run.errors == ""
    resumed = [line for line in metrics_lines(local_run.run_dir) if line["run_seconds"] > 0]
    resumed = resumed[resumed.index(shown) + 1 :]
    assert_totals_never_go_backwards(resumed)
    assert_pacing_held(resumed)
    assert resumed[0]["updates_total"] >= version
    if persist == "continuous":
        # All that was ever confirmed is there, also what came after the checkpoint.
        assert resumed[-1]["inserted_transitions_total"] >= shown["inserted_transitions_total"]
    # The signal took one more checkpoint, of the very end.
    last = read_checkpoint(checkpoint_folders(checkpoints)[-1]).manifest
    assert last.number > number
    assert last.version == weights_version(local_run.run_dir) == resumed[-1]["updates_total"]
    local_run.temp_folders_of_the_dead()
    # Ray's agents notice by themselves, after a while, that their raylet was killed with its driver.
    local_run.assert_nothing_left(seconds=60.0)


def metrics_lines(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def numbers_in(local_run: LocalRun, pattern: str) -> tuple[int, ...]:
    found = next(filter(None, (re.search(pattern, line) for line in local_run.lines)))
    return tuple(int(group.replace(",", "")) for group in found.groups())


def assert_totals_never_go_backwards(lines: list[dict[str, float]]) -> None:
    for name in ("inserted_transitions_total", "env_steps_total", "updates_total", "episodes_total"):
        values = [line[name] for line in lines]
        assert values == sorted(values), name


def assert_pacing_held(lines: list[dict[str, float]]) -> None:
    """Neither side ran ahead while the other could not work."""
    for line in lines:
        paced = max(0, line["inserted_transitions_total"] - 128)
        assert line["sampled_transitions_total"] <= 4 * paced
    assert lines[-1]["samples_per_insert"] > 3.0


@pytest.mark.slow
def test_no_replacement_left_ends_the_run(local_run: LocalRun) -> None:
    local_run.start(*small("CartPole-v1", "run.restarts=0"))
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    os.kill(local_run.pid_of("ActorRole"), signal.SIGKILL)
    assert local_run.finish() == 1
    assert local_run.errors.startswith("actor 0 died, and run.restarts = 0")
    local_run.assert_nothing_left()


@pytest.mark.parametrize(
    ("how", "description", "error", "last"),
    [
        (
            "raise",
            "Traceback",
            "RuntimeError: the corridor has collapsed",
            "actor 0 raised the error above; actors.env_restarts = 10 were used up",
        ),
        pytest.param(
            "nan",
            "it returned an observation that holds nan",
            "",
            "actor 0 had this problem; actors.env_restarts = 10 were used up",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_an_error_in_a_role_ends_the_run_with_its_traceback(
    local_run: LocalRun, how: str, description: str, error: str, last: str
) -> None:
    # The factory lies in the folder where the command is started, and nothing else says where it is.
    kwargs = f"env.kwargs={{steps: 300, how: {how}}}"
    local_run.start(*small("qfleet_test_envs:BrokenAfter", kwargs, NO_EVALUATION))
    assert local_run.finish() == 1
    # Below the last lines of the role's log.
    assert f"\n{description}" in local_run.errors, local_run.errors
    assert error in local_run.errors
    assert local_run.errors.splitlines()[-1].startswith(last), local_run.errors
    local_run.assert_nothing_left()


def test_ctrl_c_saves_and_leaves_130(local_run: LocalRun) -> None:
    local_run.start(*small("CartPole-v1"))
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    shown = local_run.updates()
    local_run.interrupt_group()
    assert local_run.finish() == 130
    assert local_run.errors == ""
    assert local_run.has_line("stopped by SIGINT")
    assert weights_version(local_run.run_dir) >= shown
    local_run.assert_nothing_left()


@pytest.mark.parametrize("runtime", ["local", "serial"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_leaves_128_and_its_number(
    local_run: LocalRun, number: signal.Signals, runtime: str
) -> None:
    local_run.start(*small("CartPole-v1", f"run.runtime={runtime}"))
    local_run.wait_for(lambda: local_run.updates() > 0, "the first updates")
    shown = local_run.updates()
    local_run.send(number)
    assert local_run.finish() == 128 + number
    assert local_run.errors == ""
    assert local_run.has_line(f"stopped by {number.name}")
    assert weights_version(local_run.run_dir) >= shown
    local_run.assert_nothing_left()


def test_an_environment_that_hangs_is_found_by_the_watchdog(local_run: LocalRun) -> None:
    local_run.start(
        *small(
            "qfleet_test_envs:BrokenAfter",
            "env.kwargs={steps: 300, how: hang}",
            "run.stall_seconds=10",
            NO_EVALUATION,
        )
    )
    assert local_run.finish() == 1
    assert local_run.errors.startswith("nothing was inserted or learned for 10 s (run.stall_seconds = 10)")
    for role in ("actor 0", "shard 0", "learner", "evaluator"):
        assert f"{role} (process " in local_run.errors
    stacks = (local_run.run_dir / "logs" / "actor-0.stacks").read_text()
    assert "wait_for_ever" in stacks
    local_run.assert_nothing_left()
