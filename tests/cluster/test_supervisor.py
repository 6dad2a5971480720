"""Who is replaced when a role dies, is silent or goes with its machine, and when the run ends instead.

Tests cluster/runtime/failure.py too: a run ends with that exception.
"""

from __future__ import annotations

import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from qfleet_scripted import Call, Notes, ScriptedEngine, config_of, run
from qfleet_serial import Recorder

from actors.core import EnvRestart, RolloutReport
from cluster import supervisor
from cluster.control import timeouts
from cluster.control.timeouts import AwakeClock
from cluster.engines.engine import Handle
from cluster.runtime.failure import RunFailed
from cluster.runtime.fleet import Fleet


@pytest.mark.parametrize(("far", "survives"), [(("a", "a", "a"), True), (("a", "b", "c"), False)])
def test_a_machine_that_goes_costs_one_replacement(far: tuple[str, ...], survives: bool) -> None:
    config = config_of("run.restarts=1", "actors.num_actors=3", "stop.updates=1000")
    engine, recorder = ScriptedEngine(config, random.Random(2), deaths=3), Recorder()
    engine.machines = {f"actor {index}": machine for index, machine in enumerate(far)}
    engine.mortals, engine.each_once = ("actor",), True
    if survives:
        assert run(engine, Notes(), recorder).restarts == 3
    else:
        with pytest.raises(RunFailed, match=r"died, and run.restarts = 1"):
            run(engine, Notes(), recorder)


@pytest.mark.parametrize("name", ["learner", "actor 0"])
def test_a_frozen_role_is_killed_and_replaced(name: str) -> None:
    config = config_of("run.frozen_seconds=5", "actors.num_actors=1", "actors.chunk_deadline_seconds=10")
    engine, recorder = ScriptedEngine(config, random.Random(1), deaths=0), Recorder()
    engine.frozen = {name}
    # A second for each time that nobody answers.
    with patch.object(AwakeClock, "look", lambda clock, now: setattr(clock, "seconds", engine.idle_turns)):
        assert run(engine, Notes(), recorder).final.updates_total == 150
    (text,) = [text for text in recorder.events if text.startswith(f"{name} (process ")]
    assert "was killed" in text or "was ended" in text
    assert "replaced by incarnation 1" in text


def test_nobody_who_answers_is_frozen_however_long_it_is_busy() -> None:
    config = config_of(
        "run.frozen_seconds=200", "actors.chunk_deadline_seconds=400", "stop.updates=4000",
        "pacing.samples_per_insert=32",
    )  # fmt: skip
    engine, recorder = ScriptedEngine(config, random.Random(1), deaths=0), Recorder()
    # A second for each turn: the learner has something to do in all the thousands.
    with patch.object(AwakeClock, "look", lambda clock, now: setattr(clock, "seconds", clock.seconds + 1)):
        assert run(engine, Notes(), recorder).restarts == 0


def test_the_roles_are_looked_through_ten_times_a_second_however_often_somebody_answers() -> None:
    engine = ScriptedEngine(config_of("stop.updates=2000"), random.Random(1), deaths=0)
    turns, looks = 0, 0
    frozen = Fleet.frozen

    def tick(clock: AwakeClock, now: float) -> None:
        nonlocal turns
        turns += 1
        clock.seconds = turns / 1_000

    def look(fleet: Fleet) -> Any:
        nonlocal looks
        looks += 1
        return frozen(fleet)

    with patch.object(AwakeClock, "look", tick), patch.object(Fleet, "frozen", look):
        run(engine, Notes(), Recorder())
    assert turns > 500
    assert looks in (turns // 100, turns // 100 - 1)


def test_a_machine_that_is_about_to_go_is_told_of_once() -> None:
    config = config_of("stop.updates=500")
    engine, recorder = ScriptedEngine(config, random.Random(1), deaths=0), Recorder()
    engine.machines, engine.leaving = {"learner": "b", "actor 1": "c"}, frozenset({"b", "d"})
    with patch.object(supervisor, "ASK_MACHINES_SECONDS", 0.0):
        run(engine, Notes(), recorder)
    said = [text for text in recorder.events if "about to go" in text]
    assert said == [
        "warning: a machine is about to go, with learner; no checkpoint is taken: replay.persist is none"
    ]


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_the_budget_of_replacements_is_kept(budget: int) -> None:
    config = config_of(f"run.restarts={budget}", "stop.updates=2000")
    engine, recorder = ScriptedEngine(config, random.Random(1), deaths=50), Recorder()
    with pytest.raises(RunFailed, match=rf"died, and run.restarts = {budget}"):
        run(engine, Notes(), recorder)
    assert engine.deaths_left == 50 - budget - 1
    assert len([text for text in recorder.events if "died; replaced" in text]) == budget


def test_one_that_dies_before_it_is_up_has_no_process_to_name() -> None:
    class Stillborn(ScriptedEngine):
        def wait(self, refs: list[Any], timeout_seconds: float) -> list[Any]:
            first = [ref for ref in refs if ref.role.name == "actor 0" and ref.method == "process_info"]
            if not self.deaths_left or not first:
                return super().wait(refs, timeout_seconds)
            self.deaths_left, first[0].role.dead = 0, True
            return first

    engine, recorder = Stillborn(config_of("stop.updates=100"), random.Random(1), deaths=1), Recorder()
    engine.mortals = ()
    run(engine, Notes(), recorder)
    (told,) = [text for text in recorder.events if "replaced" in text]
    assert told.startswith("actor 0 died; replaced by incarnation 1")


class SilentEngine(ScriptedEngine):
    """From the 40th update on nobody answers any more."""

    def play(self, call: Call) -> object:
        if self.updates >= 40:
            self.frozen = {"shard 0", "learner", "actor 0", "actor 1", "evaluator"}
        return super().play(call)


def test_a_run_that_stands_still_ends_with_the_names_of_its_roles() -> None:
    engine, recorder = SilentEngine(config_of("run.stall_seconds=0.2"), random.Random(1), 0), Recorder()
    with pytest.raises(RunFailed) as ended:
        run(engine, Notes(), recorder)
    assert 40 <= engine.updates < 150
    first, *lines, last = str(ended.value).splitlines()
    assert first == "nothing was inserted or learned for 0.2 s (run.stall_seconds = 0.2):"
    names = ("shard 0", "learner", "actor 0", "actor 1", "evaluator")
    for name, line in zip(names, lines, strict=True):
        assert re.fullmatch(rf"  {name} \(process 0\): \d+ calls in flight", line)
    assert "learner (process 0): 0 calls" not in lines[1]
    assert last == "The stacks of the roles on this machine are in nowhere."
    assert (ended.value.role, ended.value.logs) == (None, Path("nowhere"))
    assert recorder.events[-1].startswith("failed: ")


def test_a_run_that_was_suspended_has_not_stood_still() -> None:
    class Suspended(ScriptedEngine):
        """Nobody answers for ten waits, and before the last of them the whole run sleeps for an hour."""

        slept_seconds = 0.0
        waits = 0

        def wait(self, refs: list[Any], timeout_seconds: float) -> list[Any]:
            self.waits += self.updates >= 40
            if not 0 < self.waits <= 10:
                return super().wait(refs, timeout_seconds)
            self.slept_seconds = 3_600.0 * (self.waits == 10)
            return []

    engine = Suspended(config_of("run.stall_seconds=120"), random.Random(1), 0)
    awake = time.monotonic
    with patch.object(time, "monotonic", lambda: awake() + engine.slept_seconds):
        assert run(engine, Notes(), Recorder()).final.updates_total == 150
    assert engine.slept_seconds


def test_a_role_that_never_comes_up_is_named_as_well() -> None:
    class NoRoom(ScriptedEngine):
        def wait(self, refs: list[Any], timeout_seconds: float) -> list[Any]:
            return super().wait([ref for ref in refs if ref.role.name != "learner"], timeout_seconds)

    engine = NoRoom(config_of("run.stall_seconds=0.2", "pacing.learning_starts=100000"), random.Random(1), 0)
    engine.frozen = {"shard 0", "actor 0", "actor 1", "evaluator"}
    with (
        patch.object(timeouts, "FIRST_TIMES_FROZEN", 0.0),
        pytest.raises(RunFailed, match=r"  learner: has not started; are CPUs free for it\?"),
    ):
        run(engine, Notes(), Recorder())


class CloudyEngine(ScriptedEngine):
    """Each of the first rollouts brings a restart of an environment, or finds too much memory taken."""

    restarts = 0
    hungry = 0

    def rollout(self, *args: Any) -> RolloutReport:
        report = super().rollout(*args)
        if self.restarts:
            self.restarts -= 1
            return replace(
                report, env_restarts=(EnvRestart("raise", 1, "Traceback:\nRuntimeError: a cloud"),)
            )
        if self.hungry:
            self.hungry -= 1
            return replace(report, memory_excess="2.0 GB, 1.0 GB are allowed")
        return report

    def kill(self, handle: Handle[Any]) -> None:
        handle.target.dead = True
        super().kill(handle)


@pytest.mark.parametrize("restarts", [2, 3])
def test_the_budget_of_restarted_environments_is_kept(restarts: int) -> None:
    engine, recorder = CloudyEngine(config_of("actors.env_restarts=2"), random.Random(1), 0), Recorder()
    engine.restarts = restarts
    if restarts == 3:
        with pytest.raises(RunFailed, match=r"a cloud\nactor \d raised .*env_restarts = 2 were used up"):
            run(engine, Notes(), recorder)
    else:
        outcome = run(engine, Notes(), recorder)
        assert outcome.final.env_restarts_total["raise"] == 2
        assert outcome.restarts == 0
    told = [text for text in recorder.events if "environment 1 made anew" in text]
    left = [text.rpartition(", ")[2] for text in told]
    assert left == [f"{number} restarts of environments left" for number in (1, 0)]


def test_an_actor_that_takes_too_much_memory_is_replaced_at_no_cost_of_run_restarts() -> None:
    config = config_of("run.restarts=0", "actors.env_restarts=1")
    engine, recorder = CloudyEngine(config, random.Random(1), 0), Recorder()
    engine.hungry = 1
    outcome = run(engine, Notes(), recorder)
    assert outcome.final.role_restarts_total["actor"]["memory"] == 1
    assert outcome.final.env_restarts_total["memory"] == 1
    (text,) = [text for text in recorder.events if "replaced by incarnation 1" in text]
    assert "was ended" in text
