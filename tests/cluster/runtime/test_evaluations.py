"""Evaluations granted one at a time: with which weights, and what happens where one is lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from qfleet_by_hand import ByHand, Given, weights
from qfleet_reports import evaluation_report, rollout_report

from actors.core import EnvRestart
from cluster.runtime.evaluations import Evaluations


class Playing:
    """A run of which only the evaluator matters. Versions are evaluated every 20 updates."""

    def __init__(self) -> None:
        self.run = ByHand()
        self.run.come_up()
        self.restarts: list[tuple[str, EnvRestart]] = []
        self.evaluations = Evaluations(self.run.context, self._count)

    def _count(self, member: Any, restarts: Any) -> None:
        self.restarts += [(member.name, restart) for restart in restarts]

    def at(self, version: int, flat: Given | None, *, due: bool = False) -> bool:
        """Whether an evaluation is granted now that this version is the newest."""
        self.run.context.counters.version = version
        return self.evaluations.grant(flat, due=due)

    @property
    def asked(self) -> tuple[int, Any]:
        """The version that is being played, and with which weights."""
        version, flat, *_ = self.run.call("evaluator", "evaluate").args
        return version, flat

    def report(self, mean: float, **changes: Any) -> None:
        version, _, domain, *_ = self.run.call("evaluator", "evaluate").args
        self.run.answer(
            "evaluator",
            "evaluate",
            evaluation_report(version=version, seed_domain=domain, returns=(mean, mean), **changes),
        )


def test_a_confirmation_plays_the_weights_of_the_first_evaluation() -> None:
    playing, first, newer = Playing(), weights(20), weights(33)
    assert playing.at(20, first)
    assert playing.asked == (20, first)
    playing.report(5.0)
    assert playing.at(33, newer)
    assert playing.asked == (20, first)
    playing.report(4.0)
    assert playing.run.notes.weights["best"] == (20.0, "20")
    best = playing.run.context.selection.best
    assert best is not None
    assert (best.version, best.screened, best.score) == (20, 5.0, 4.0)
    assert playing.at(40, newer)
    assert playing.asked == (40, newer)


@pytest.mark.parametrize("case", ["not up", "busy", "no weights", "not due", "due"])
def test_one_evaluation_at_a_time_with_weights_when_it_is_due(case: str) -> None:
    playing = Playing()
    if case == "not up":
        playing.run.die(playing.run.fleet.evaluator)
    if case == "busy":
        assert playing.at(20, weights(20))
    version = 3 if case in ("not due", "due") else 40
    flat = None if case == "no weights" else weights(version)
    assert playing.at(version, flat, due=case == "due") == (case == "due")


def test_an_evaluation_of_many_chunks_goes_on_until_it_has_its_report() -> None:
    playing = Playing()
    assert playing.at(20, weights(20))
    playing.run.answer("evaluator", "evaluate", None)
    for _ in range(3):
        assert not playing.at(40, weights(40))
        playing.run.answer("evaluator", "go_on", None)
    playing.run.answer("evaluator", "go_on", evaluation_report(version=20, returns=(5.0, 5.0)))
    assert [request.version for request, _ in playing.run.notes.evaluations] == [20]
    # Between two chunks its evaluator may die.
    assert playing.at(20, weights(20))
    playing.run.answer("evaluator", "evaluate", None)
    playing.run.die(playing.run.fleet.evaluator)
    playing.run.come_up()
    assert playing.at(21, weights(21))
    assert playing.asked[0] == 20


def test_an_evaluation_that_died_with_its_evaluator_is_asked_for_again() -> None:
    playing, flat, newer = Playing(), weights(20), weights(21)
    assert playing.at(20, flat)
    playing.run.die(playing.run.fleet.evaluator)
    playing.run.come_up()
    assert playing.at(21, newer)
    assert playing.asked == (21, newer)


def test_a_confirmation_that_died_with_its_evaluator_is_asked_for_again() -> None:
    playing, flat = Playing(), weights(20)
    assert playing.at(20, flat)
    playing.report(5.0)
    assert playing.at(21, weights(21))
    playing.run.die(playing.run.fleet.evaluator)
    playing.run.come_up()
    assert playing.at(22, weights(22))
    assert playing.asked == (20, flat)


def test_weights_that_are_lost_on_the_way_to_their_confirmation_are_withdrawn() -> None:
    playing, newer = Playing(), weights(22)
    assert playing.at(20, weights(20))
    playing.report(5.0)
    assert playing.at(21, weights(21))
    playing.run.lose_value("evaluator", "evaluate")
    assert not playing.at(22, newer)  # nothing waits to be confirmed, and 40 is the next that is due
    assert playing.at(40, newer)
    assert playing.asked == (40, newer)
    assert "best" not in playing.run.notes.weights


def test_weights_that_are_lost_before_they_are_the_best_are_withdrawn() -> None:
    playing, flat = Playing(), weights(20)
    assert playing.at(20, flat)
    playing.report(5.0)
    assert playing.at(21, weights(21))
    flat.lost = True
    playing.report(6.0)
    assert playing.run.context.selection.best is None
    assert "best" not in playing.run.notes.weights
    assert not playing.at(22, weights(22))


def test_restarted_environments_and_the_time_it_took_are_told() -> None:
    playing = Playing()
    restart = EnvRestart("raise", 0, "a cloud")
    assert playing.at(20, weights(20))
    playing.report(1.0, env_restarts=(restart,), seconds=2.0)
    assert playing.restarts == [("evaluator", restart)]
    assert playing.run.context.counters.clock.longest_evaluation_seconds == 2.0
    assert [request.version for request, _ in playing.run.notes.evaluations] == [20]


@pytest.mark.parametrize(
    ("limit", "lengths", "expected"),
    [
        (500, (7, 20_000), 27_000),  # the environment itself truncates
        (None, (), 1_000),
        (None, (7, 300), 1_000),
        (None, (7, 5_000), 5_000),
        (None, (90_000,), 27_000),
    ],
)
def test_greedy_episodes_without_a_limit_are_no_longer_than_training_episodes(
    limit: int | None, lengths: tuple[int, ...], expected: int
) -> None:
    playing = Playing()
    playing.run.fleet.spec = replace(playing.run.fleet.spec, max_episode_steps=limit)
    playing.run.context.counters.take_rollout(
        rollout_report(episode_returns=(1.0,) * len(lengths), episode_lengths=lengths)
    )
    assert playing.at(20, weights(20))
    assert playing.run.call("evaluator", "evaluate").args[-1] == expected
