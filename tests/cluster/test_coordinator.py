"""The coordinator over a scripted engine: any order of completions, late acknowledgments, deaths."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qfleet_serial import Recorder

from actors.core import EnvSpec, EvaluationReport, RolloutReport
from cluster import supervisor
from cluster.checkpoints import recovery
from cluster.control.evaluation import ModelSelection
from cluster.control.timeouts import AwakeClock
from cluster.coordinator import Coordinator, Outcome
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import Handle, Need, RoleDied
from cluster.engines.process_info import ProcessInfo
from cluster.engines.ref import Ref
from cluster.metrics.counters import Counters
from cluster.record.events import Event
from cluster.record.recorder import Recorder as RunRecorder
from cluster.runtime.failure import RunFailed
from cluster.runtime.fleet import Fleet
from cluster.runtime.run_context import RunContext
from cluster.settings.load_config import load_config
from cluster.settings.resolve import resolve
from cluster.settings.resolved import ResolvedConfig
from learner.core import LearnerState, LearnReport
from replay_service.messages import ShardStatus

SPEC = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", 500, None)
STARTS, BATCH, LANES = 64, 16, 4


@dataclass(eq=False)
class Call(Ref[Any]):
    """A call that was made; its outcome is decided when it is taken."""

    role: ScriptedRole
    method: str
    args: tuple[Any, ...]
    part: int = 0
    first: Call | None = None
    outcome: Any = None


@dataclass(eq=False)
class ScriptedRole:
    name: str
    dead: bool = False
    calls: list[Call] = field(default_factory=list)
    unacknowledged: list[int] = field(default_factory=list)
    acknowledged_status: tuple[ShardStatus, ...] = ()
    acts_with: int = 0


class ScriptedEngine:
    """Roles that only count. Chance decides who is done next, what is acknowledged late, and who dies."""

    deterministic = False
    own_processes = True
    gpus = 0.0

    def __init__(self, config: ResolvedConfig, chance: random.Random, deaths: int) -> None:
        self.config = config
        self.chance = chance
        self.deaths = self.deaths_left = deaths
        self.mortals: tuple[str, ...] = ("actor", "evaluator", "learner")
        self.each_once = False
        self.machines: dict[str, str] = {}
        self.leaving: frozenset[str] = frozenset()
        # Roles that come up and then answer nothing, until they are killed.
        self.frozen: set[str] = set()
        self.idle_turns = 0
        self.inserted = 0
        # The learner's version, the newest that there ever was, and all updates that were reported.
        self.updates = self.newest = self.work = 0
        self.victims: set[str] = set()
        self.evaluated: list[tuple[int, int]] = []
        self.weights_of_version: dict[int, Call] = {}

    @property
    def calls(self) -> ScriptedEngine:
        return self

    def spawn(self, name: str, role: Callable[..., object], *args: Any, need: Need) -> Handle[Any]:
        if name == "learner":
            self.updates = 0
        return Handle(name, ScriptedRole(name))

    def call(
        self, handle: Handle[Any], method: Callable[..., object], *args: Any, returns: int = 1
    ) -> tuple[Ref[Any], ...]:
        role: ScriptedRole = handle.target
        first = Call(role, method.__name__, args)
        role.calls.append(first)
        return (first, *(Call(role, method.__name__, args, part, first) for part in range(1, returns)))

    def wait(self, refs: list[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        calls: list[Call] = list(refs)  # type: ignore[arg-type]
        training = any(
            call.method in ("rollout", "learn", "process_info", "unacknowledged") for call in calls
        )
        assert training or self.updates == self.config.stop.updates, "everybody waits for somebody"
        mortal = [call for call in calls if call.role.name.startswith(self.mortals)]
        if self.each_once:
            mortal = [call for call in mortal if call.role.name not in self.victims]
        if self.deaths_left and mortal and self.chance.random() < 0.05:
            self.deaths_left -= 1
            victim = self.chance.choice(mortal).role
            victim.dead = True
            self.victims.add(victim.name)
            return [call for call in calls if call.role is victim]
        # One role's calls are done in order, whatever the others do.
        heads = [
            call
            for call in calls
            if call is call.role.calls[0]
            and (call.method == "process_info" or call.role.name not in self.frozen)
        ]
        if not heads:
            self.idle_turns += 1
            return []
        call = self.chance.choice(heads)
        call.role.calls.pop(0)
        call.outcome = self.play(call)
        return [call]

    def get(self, ref: Any) -> Any:
        if not isinstance(ref, Call):
            return ref  # what was put
        call = ref
        if call.part:
            assert call.first is not None
            outcome = call.first.outcome
            return np.full(3, outcome if call.method == "restore" else outcome.version, np.float32)
        if call.role.dead:
            raise RoleDied(call.role.name, "killed by the script")
        return call.outcome

    def put(self, value: Any) -> Any:
        return value

    def play(self, call: Call) -> Any:
        if call.method == "process_info":
            return ProcessInfo(0, "", "")
        if call.method == "status":
            return self.status()[0]
        if call.method == "unacknowledged":
            call.role.unacknowledged.clear()
            return 0, self.status()
        if call.method == "rollout":
            return self.rollout(call.role, *call.args)
        if call.method == "learn":
            self.updates += call.args[0]
            self.newest = max(self.newest, self.updates)
            self.work += call.args[0]
            assert self.work * BATCH <= self.ratio * max(0, self.inserted - STARTS), "learning ran ahead"
            return LearnReport(
                version=self.updates,
                updates=call.args[0],
                samples=0,
                learning_rate=1e-3,
                seconds={},
                statuses=self.status(),
                loss_mean=1.0,
            )
        if call.method == "state":
            return LearnerState(self.updates, {})
        if call.method == "restore":
            state: LearnerState = self.get(call.args[0])
            self.updates = state.version
            return state.version
        version, weights, domain, episodes = call.args
        # The weights are those of the version that is asked for: Call of that chunk, second part.
        assert self.get(weights)[0] == version
        self.evaluated.append((version, domain))
        returns = tuple(float(self.chance.randrange(100)) for _ in range(episodes))
        return EvaluationReport(version, domain, returns, (1,) * episodes, 0.0)

    def rollout(
        self, role: ScriptedRole, steps: int, version: int, weights: Ref[Any] | None, env_steps: int
    ) -> RolloutReport:
        if weights is not None:
            assert self.get(weights)[0] == version
            role.acts_with = version
        # It is given weights once, and before its first chunk of that version.
        assert version in (0, role.acts_with)
        transitions = steps * LANES
        limit = self.config.actors.pushes_in_flight
        while len(role.unacknowledged) >= limit:
            role.unacknowledged.pop(0)
            role.acknowledged_status = self.status()
        self.inserted += transitions
        owed = self.ratio * (self.inserted - STARTS) - self.work * BATCH
        assert owed <= self.most_owed, "acting ran beyond its slack"
        role.unacknowledged.append(transitions)
        for _ in range(self.chance.randint(0, len(role.unacknowledged)) * (self.chance.random() < 0.5)):
            role.unacknowledged.pop(0)
            role.acknowledged_status = self.status()
        return RolloutReport(
            actor=0,
            incarnation=0,
            version=version,
            env_steps=transitions,
            transitions_pushed=transitions,
            episode_returns=(1.0,),
            episode_lengths=(9,),
            epsilon=0.1,
            seconds={"act": 0.1},
            statuses=role.acknowledged_status,
            unacknowledged_transitions=sum(role.unacknowledged),
        )

    @property
    def ratio(self) -> float:
        return self.config.pacing.samples_per_insert

    @property
    def most_owed(self) -> float:
        """Every actor's credits and unacknowledged pushes, the dead ones' too, and the learner's chunks."""
        actors = self.config.actors
        living, pushes = actors.num_actors or 0, actors.pushes_in_flight
        transitions = ((2 + pushes) * living + pushes * self.deaths) * (actors.steps_per_chunk or 0) * LANES
        return self.ratio * transitions + 2 * (self.config.learner.updates_per_chunk or 0) * BATCH

    def status(self) -> tuple[ShardStatus, ...]:
        return (ShardStatus(0, 0, self.inserted, 1.0, 1.0, self.inserted, self.inserted, 0, 0, 0, 9),)

    def machine_of(self, handle: Handle[Any]) -> str:
        return self.machines.get(handle.name, "")

    def machines_leaving(self) -> frozenset[str]:
        return self.leaving

    def kill(self, handle: Handle[Any]) -> None:
        assert handle.target.dead or handle.name in self.frozen, "only what is replaced is killed"
        self.frozen.discard(handle.name)

    def close(self) -> None:
        raise AssertionError("the coordinator closes nothing")


class Notes:
    """A run directory that only remembers."""

    path = logs = replay = checkpoints = Path("nowhere")

    def __init__(self) -> None:
        self.evaluations: list[Any] = []
        self.weights: dict[str, tuple[float, str]] = {}

    def write_snapshot(self, snapshot: Any) -> None: ...

    def write_event(self, event: Event) -> None: ...

    def write_evaluation(self, request: Any, report: Any) -> None:
        self.evaluations.append((request, report))

    def write_weights(self, name: str, flat: np.ndarray, facts: dict[str, str]) -> None:
        self.weights[name] = (float(flat[0]), facts["version"])


def config_of(*overrides: str) -> ResolvedConfig:
    small = (
        f"actors.envs_per_actor={LANES}",
        "actors.steps_per_chunk=8",
        "actors.num_actors=2",
        f"learner.batch_size={BATCH}",
        "learner.updates_per_chunk=4",
        f"pacing.learning_starts={STARTS}",
        "pacing.samples_per_insert=4",
        "evaluation.every_updates=20",
        "evaluation.episodes=3",
        "stop.updates=150",
        "metrics.every_seconds=1000000",
        "checkpoint.weights_every_seconds=1000000",
        "replay.persist=none",
        # The watchdog reads the real clock; nothing here takes any time.
        "run.stall_seconds=1e9",
    )
    return resolve(load_config(None, [*small, *overrides]), SPEC, cores=2)


def run(engine: ScriptedEngine, notes: Notes, recorder: Recorder) -> Outcome:
    config, started = engine.config, time.monotonic()
    counters = Counters(started=started, discount=0.99, num_actors=config.actors.num_actors)
    fleet = Fleet(
        engine, config, SPEC, Path("nowhere"), Path("nowhere"),
        learner_gpus=0.0, run_started_at=time.time(), incarnations={},
    )  # fmt: skip
    context = RunContext(
        engine,
        config,
        notes,  # type: ignore[arg-type]
        RunRecorder(notes, (recorder,), started),  # type: ignore[arg-type]
        fleet,
        counters,
        ModelSelection(config.evaluation, config.stop.target_return),
        started,
    )
    coordinator = Coordinator(context, Diagnosis(config), stop_requested=lambda: None)
    outcome = coordinator.run()
    assert isinstance(outcome, Outcome)
    return outcome


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    actors=st.integers(1, 3),
    pushes=st.sampled_from([1, 2, 8]),
    steps=st.sampled_from([1, 8, 64]),
    ratio=st.sampled_from([0.5, 4.0, 32.0]),
    chunk=st.integers(1, 8),
    deaths=st.integers(0, 5),
    keep_seconds=st.sampled_from([0.0, 1e9]),
)
def test_every_order_of_events_comes_to_the_end(
    seed: int,
    actors: int,
    pushes: int,
    steps: int,
    ratio: float,
    chunk: int,
    deaths: int,
    keep_seconds: float,
) -> None:
    config = config_of(
        f"actors.num_actors={actors}",
        f"actors.pushes_in_flight={pushes}",
        f"actors.steps_per_chunk={steps}",
        f"pacing.samples_per_insert={ratio}",
        f"learner.updates_per_chunk={chunk}",
    )
    engine, notes, recorder = ScriptedEngine(config, random.Random(seed), deaths), Notes(), Recorder()
    with patch.object(recovery, "KEEP_STATE_SECONDS", keep_seconds):
        outcome = run(engine, notes, recorder)
    assert outcome.reason == "stop.updates = 150 reached"
    # A learner that dies during the last evaluation need not be back for the end.
    assert engine.newest == 150
    assert outcome.final.updates_total == engine.work
    assert outcome.restarts == deaths - engine.deaths_left
    assert len([text for text in recorder.events if "died; replaced" in text]) == outcome.restarts
    assert outcome.final.inserted_transitions_total <= engine.inserted
    assert notes.weights["latest"] == (150.0, "150")
    requests = [request for request, _ in notes.evaluations]
    # A first evaluation that dies with its evaluator is not repeated, the last one's neither; nor is there
    # one where the last learner died just then.
    assert engine.victims & {"evaluator", "learner"} or 150 in {request.version for request in requests}
    confirmed = [
        (float(np.mean(report.returns)), -request.version)
        for request, report in notes.evaluations
        if request.confirms
    ]
    if confirmed:
        score, negative_version = max(confirmed)
        assert (outcome.best_return_mean, outcome.best_version) == pytest.approx((score, -negative_version))
        assert notes.weights["best"] == (float(-negative_version), str(-negative_version))
    # No two evaluations that were reported share their seeds.
    domains = [request.seed_domain for request in requests]
    assert len(set(domains)) == len(domains)


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


def test_a_machine_that_is_about_to_go_is_told_of_once() -> None:
    config = config_of("stop.updates=500")
    engine, recorder = ScriptedEngine(config, random.Random(1), deaths=0), Recorder()
    engine.machines, engine.leaving = {"learner": "b", "actor 1": "c"}, frozenset({"b", "d"})
    with patch.object(supervisor, "_ASK_MACHINES_SECONDS", 0.0):
        run(engine, Notes(), recorder)
    said = [text for text in recorder.events if "about to go" in text]
    assert said == ["warning: a machine is about to go, with learner; replay.persist = none takes none"]


@pytest.mark.parametrize("budget", [0, 1, 3])
def test_the_budget_of_replacements_is_kept(budget: int) -> None:
    config = config_of(f"run.restarts={budget}", "stop.updates=2000")
    engine, recorder = ScriptedEngine(config, random.Random(1), deaths=50), Recorder()
    with pytest.raises(RunFailed, match=rf"died, and run.restarts = {budget}"):
        run(engine, Notes(), recorder)
    assert engine.deaths_left == 50 - budget - 1
    assert len([text for text in recorder.events if "died; replaced" in text]) == budget
