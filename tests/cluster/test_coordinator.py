"""The coordinator over a scripted engine: any order of completions, late acknowledgments, every way to stop.

Tests cluster/life.py, cluster/runtime/run_context.py and cluster/runtime/snapshots.py too: every run here
goes through them.
"""

from __future__ import annotations

import random
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from qfleet_scripted import Notes, ScriptedEngine, config_of, run
from qfleet_serial import Recorder

from cluster.checkpoints import recovery
from cluster.engines.engine import EngineDied, Ref
from cluster.runtime.failure import RunFailed
from cluster.runtime.pacer import Pacer


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
# The learner dies in the last evaluation and goes on from an older version.
@example(seed=124911638, actors=1, pushes=1, steps=8, ratio=4.0, chunk=3, deaths=1, keep_seconds=0.0)
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


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["stop.env_steps=400"], "stop.env_steps = 400 reached"),
        (["stop.updates=7"], "stop.updates = 7 reached"),
        (["stop.seconds=1e-9"], "stop.seconds = 1e-09 reached"),
        (["stop.target_return=0"], "the target return 0 was reached and confirmed"),
    ],
)
def test_a_run_ends_at_the_first_of_its_stop_conditions(overrides: list[str], reason: str) -> None:
    config, recorder = config_of("stop.updates=1000", *overrides), Recorder()
    engine = ScriptedEngine(config, random.Random(3), 0)
    outcome = run(engine, Notes(), recorder)
    assert outcome.reason == reason
    assert outcome.solved == ("target" in reason)
    assert recorder.events[-1] == f"end: {reason}"
    if reason == "stop.updates = 7 reached":
        assert engine.newest == 7  # the last chunk is shortened


def test_a_run_that_is_asked_to_stop_plays_no_last_evaluation() -> None:
    engine, notes = ScriptedEngine(config_of("evaluation.every_updates=1000"), random.Random(3), 0), Notes()
    outcome = run(
        engine, notes, Recorder(), stop_requested=lambda: "interrupted" if engine.updates >= 40 else None
    )
    assert outcome.reason == "interrupted"
    assert engine.evaluated == []
    assert notes.weights["latest"] == (outcome.final.weights_version, str(outcome.final.weights_version))


def test_nothing_begins_before_the_learner_has_its_initial_weights() -> None:
    # The engine asserts that nobody acts or learns meanwhile.
    engine, notes = ScriptedEngine(config_of(), random.Random(4), 0), Notes()
    assert run(engine, notes, Recorder(), initial_weights=np.zeros(3, np.float32)).final.updates_total == 150
    # Weights that were given are worth an evaluation; random ones are not.
    assert engine.evaluated[0][0] == 0


def test_pacing_is_asked_once_for_all_actors_that_it_keeps_waiting() -> None:
    # Of 40 actors nearly all wait for the learner at any time.
    config = config_of("actors.num_actors=40", "actors.pushes_in_flight=1", "pacing.samples_per_insert=32")
    engine, asked = ScriptedEngine(config, random.Random(1), 0), 0
    may_act = Pacer.may_act

    def ask(pacer: Pacer) -> bool:
        nonlocal asked
        asked += 1
        return may_act(pacer)

    with patch.object(Pacer, "may_act", ask):
        outcome = run(engine, Notes(), Recorder())
    turns = outcome.final.updates_total / 4 + engine.inserted / 32 + engine.idle_turns
    assert asked < 6 * turns


class DyingEngine(ScriptedEngine):
    """What runs its roles dies once they have learned; the roles live on."""

    objects_gone = died = False

    def wait(self, refs: list[Ref[Any]], timeout_seconds: float) -> list[Ref[Any]]:
        if self.work >= 60 and not self.died:
            self.died = True
            raise EngineDied("raylet (process 7) died", objects_gone=self.objects_gone)
        return super().wait(refs, timeout_seconds)


def dying_engine() -> DyingEngine:
    return DyingEngine(config_of("stop.seconds=1e9"), random.Random(1), 0)


def test_a_run_whose_engine_dies_saves_and_says_what_died() -> None:
    engine, notes, recorder = dying_engine(), Notes(), Recorder()
    with pytest.raises(RunFailed, match=r"raylet \(process 7\) died"):
        run(engine, notes, recorder)
    assert notes.weights["latest"][0] == engine.newest
    assert "failed: raylet (process 7) died" in recorder.events


def test_a_run_that_was_told_to_stop_ends_by_that_although_its_engine_dies() -> None:
    engine, notes, recorder = dying_engine(), Notes(), Recorder()
    outcome = run(
        engine, notes, recorder, stop_requested=lambda: "stopped by SIGTERM" if engine.died else None
    )
    assert outcome.reason == "stopped by SIGTERM"
    assert notes.weights["latest"][0] == engine.newest


def test_weights_that_died_with_the_engine_are_those_of_the_state_that_was_kept() -> None:
    engine, notes, recorder = dying_engine(), Notes(), Recorder()
    engine.objects_gone = True
    with patch.object(recovery, "KEEP_STATE_SECONDS", 0.0), pytest.raises(RunFailed):
        run(engine, notes, recorder)
    version, _ = notes.weights["latest"]
    assert 0 < version <= engine.newest
