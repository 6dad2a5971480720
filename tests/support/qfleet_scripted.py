"""A run without processes: roles that only count, done in an order that chance decides.

The engine asserts on its own that pacing holds, that weights come with the version that they belong to, and
that only roles that are replaced are killed. Tests say who dies, who is silent and where the roles are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from qfleet_configs import VECTOR, resolved_config
from qfleet_reports import evaluation_report, learn_report, rollout_report, shard_status
from qfleet_serial import Recorder

from actors.core import EvaluationReport, RolloutReport
from cluster.control.evaluation import EvaluationRequest, ModelSelection
from cluster.coordinator import Coordinator
from cluster.diagnosis.diagnosis import Diagnosis
from cluster.engines.engine import Handle, Need, Ref, RoleDied
from cluster.engines.process_info import ProcessInfo
from cluster.life import Life, Outcome
from cluster.metrics.counters import Counters
from cluster.record.events import Event
from cluster.record.recorder import Recorder as RunRecorder
from cluster.runtime.fleet import Fleet
from cluster.runtime.run_context import RunContext
from cluster.settings.resolved import ResolvedConfig
from learner.core import LearnerState, LearnReport
from replay_service.messages import ShardStatus

STARTS, BATCH, LANES = 64, 16, 4
NOWHERE = Path("nowhere")
_WORK = ("rollout", "learn", "process_info", "unacknowledged", "start_from", "restore")


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
    """One incarnation of a role. weights: those that an actor was given last."""

    name: str
    dead: bool = False
    calls: list[Call] = field(default_factory=list)
    unacknowledged: list[int] = field(default_factory=list)
    acknowledged_status: tuple[ShardStatus, ...] = ()
    weights: Ref[Any] | None = None
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
        # Whether the learner still waits for the weights with which it begins.
        self.waits_for_weights = False
        self.victims: set[str] = set()
        self.evaluated: list[tuple[int, int]] = []

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
        self.waits_for_weights = self.waits_for_weights or first.method == "start_from"
        return (first, *(Call(role, method.__name__, args, part, first) for part in range(1, returns)))

    def wait(self, refs: list[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        calls: list[Call] = list(refs)  # type: ignore[arg-type]
        assert self.may_end or any(call.method in _WORK for call in calls), "everybody waits for somebody"
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
            return np.full(3, outcome.version if call.method == "learn" else outcome, np.float32)
        if call.role.dead:
            raise RoleDied(call.role.name, "killed by the script")
        return call.outcome

    def put(self, value: Any) -> Any:
        return value

    def play(self, call: Call) -> Any:
        match call.method:
            case "process_info":
                return ProcessInfo(0, "", "")
            case "status":
                return self.status()[0]
            case "unacknowledged":
                call.role.unacknowledged.clear()
                return 0, self.status()
            case "rollout":
                return self.rollout(call.role, *call.args)
            case "learn":
                return self.learn(*call.args)
            case "state":
                return LearnerState(self.updates, {"online": np.full(3, self.updates, np.float32)})
            case "restore":
                state: LearnerState = self.get(call.args[0])
                self.updates = state.version
                return state.version
            case "start_from":
                self.waits_for_weights = False
                return 0
            case "evaluate":
                return self.evaluate(*call.args)
        raise AssertionError(f"nobody has scripted {call.method}")

    def rollout(
        self, role: ScriptedRole, steps: int, version: int, weights: Ref[Any] | None, env_steps: int
    ) -> RolloutReport:
        assert not self.waits_for_weights, "acting began before the learner had its weights"
        if weights is not None:
            assert weights is not role.weights, "the actor has these weights"
            assert self.get(weights)[0] == version
            role.weights, role.acts_with = weights, version
        # It is given weights before its first chunk of that version.
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
        return rollout_report(
            version=version,
            env_steps=transitions,
            transitions_pushed=transitions,
            statuses=role.acknowledged_status,
            unacknowledged_transitions=sum(role.unacknowledged),
        )

    def learn(self, updates: int) -> LearnReport:
        assert not self.waits_for_weights, "learning began before the learner had its weights"
        self.updates += updates
        self.newest = max(self.newest, self.updates)
        self.work += updates
        assert self.work * BATCH <= self.ratio * max(0, self.inserted - STARTS), "learning ran ahead"
        return learn_report(
            version=self.updates, updates=updates, samples=updates * BATCH, statuses=self.status()
        )

    def evaluate(
        self, version: int, weights: Ref[Any], domain: int, episodes: int, max_episode_steps: int
    ) -> EvaluationReport:
        # The weights are the second part of the call that brought this version.
        assert self.get(weights)[0] == version
        self.evaluated.append((version, domain))
        return evaluation_report(
            version=version,
            seed_domain=domain,
            returns=tuple(float(self.chance.randrange(100)) for _ in range(episodes)),
            lengths=(1,) * episodes,
            seconds=0.0,
            start_values=(),
            discounted_returns=(),
            truncated=(),
        )

    @property
    def may_end(self) -> bool:
        """Whether the run may wait for nothing but evaluations, because it may have met a stop condition."""
        stop = self.config.stop
        at_steps = stop.env_steps is not None and self.inserted >= stop.env_steps
        any_time = stop.seconds is not None or stop.target_return is not None
        # A learner that dies in the last evaluation comes back with an older version.
        return self.newest == stop.updates or at_steps or any_time

    @property
    def ratio(self) -> float:
        return self.config.pacing.samples_per_insert

    @property
    def most_owed(self) -> float:
        """Every actor's credits and unacknowledged pushes, the dead ones' too, and the learner's chunks."""
        actors = self.config.actors
        living, pushes = actors.num_actors, actors.pushes_in_flight
        transitions = ((2 + pushes) * living + pushes * self.deaths) * actors.steps_per_chunk * LANES
        return self.ratio * transitions + 2 * self.config.learner.updates_per_chunk * BATCH

    def status(self) -> tuple[ShardStatus, ...]:
        inserted = self.inserted
        return (
            shard_status(
                count=inserted,
                inserted_transitions_total=inserted,
                env_steps_total=inserted,
                evicted_transitions_total=0,
            ),
        )

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
    """A run directory that only remembers, but for its checkpoints."""

    path = logs = replay = NOWHERE

    def __init__(self, checkpoints: Path = NOWHERE) -> None:
        self.checkpoints = checkpoints
        self.evaluations: list[tuple[EvaluationRequest, EvaluationReport]] = []
        self.weights: dict[str, tuple[float, str]] = {}
        self.incarnations: list[Mapping[str, int]] = []

    def write_snapshot(self, snapshot: Any) -> None: ...

    def write_event(self, event: Event) -> None: ...

    def write_evaluation(self, request: EvaluationRequest, report: EvaluationReport) -> None:
        self.evaluations.append((request, report))

    def write_incarnations(self, started: Mapping[str, int]) -> None:
        self.incarnations.append(started)

    def write_weights(self, name: str, flat: np.ndarray, facts: dict[str, str]) -> None:
        self.weights[name] = (float(flat[0]), facts["version"])


def config_of(*overrides: str) -> ResolvedConfig:
    """The config of a small run of two actors, 150 updates long."""
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
    return resolved_config(*small, *overrides)


def context_of(engine: Any, config: ResolvedConfig, notes: Notes, recorder: Recorder) -> RunContext:
    """One life of a run over a scripted engine; its roles begin to start."""
    started = time.monotonic()
    fleet = Fleet(
        engine,
        config,
        VECTOR,
        NOWHERE,
        NOWHERE,
        learner_gpus=0.0,
        run_started_at=time.time(),
        incarnations={},
        note_incarnations=notes.write_incarnations,
    )
    return RunContext(
        engine,
        config,
        notes,  # type: ignore[arg-type]
        RunRecorder(notes, (recorder,), started),  # type: ignore[arg-type]
        fleet,
        Counters(
            started=started,
            discount=0.99,
            num_actors=config.actors.num_actors,
        ),
        ModelSelection(config.evaluation, config.stop.target_return),
        started,
    )


def run(
    engine: ScriptedEngine,
    notes: Notes,
    recorder: Recorder,
    *,
    stop_requested: Callable[[], str | None] = lambda: None,
    initial_weights: np.ndarray | None = None,
) -> Outcome:
    """Runs a coordinator over the engine, from the start of its roles to the end."""
    context = context_of(engine, engine.config, notes, recorder)
    coordinator = Coordinator(context, Diagnosis(engine.config), initial_weights=initial_weights)
    outcome = Life(context, coordinator, stop_requested).run()
    assert isinstance(outcome, Outcome)
    return outcome
