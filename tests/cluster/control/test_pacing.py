"""The two inequalities of pacing, one by one and under every order of events."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.pacing import Ledger, Pacing, PacingOrigin, slack_samples

PACING = Pacing(samples_per_insert=4.0, learning_starts=100, slack_samples=200.0)


@pytest.mark.parametrize(
    ("inserted", "inserting", "sampled", "transitions", "allowed"),
    [
        (0, 0, 0, 150, True),  # 4 * (150 - 100) = 200, the whole slack
        (0, 0, 0, 151, False),
        (100, 40, 0, 10, True),
        (100, 41, 0, 10, False),  # outstanding transitions count like inserted ones
        (500, 0, 1_600, 50, True),
        (500, 0, 1_599, 50, False),  # learning stands still, so acting waits
        (0, 0, 10_000, 100, True),
    ],
)
def test_acting_waits_at_its_slack(
    inserted: int, inserting: int, sampled: int, transitions: int, allowed: bool
) -> None:
    assert PACING.may_insert(Ledger(inserted, inserting, sampled, sampling=0), transitions) is allowed


@pytest.mark.parametrize(
    ("inserted", "sampled", "sampling", "transitions", "allowed"),
    [
        (99, 0, 0, 1, False),  # before learning_starts
        (100, 0, 0, 1, False),  # nothing is owed yet
        (110, 0, 0, 40, True),
        (110, 0, 0, 41, False),
        (110, 20, 20, 1, False),  # granted samples count like consumed ones
        (110, 20, 10, 10, True),
    ],
)
def test_learning_never_goes_beyond_the_ratio(
    inserted: int, sampled: int, sampling: int, transitions: int, allowed: bool
) -> None:
    assert PACING.may_sample(Ledger(inserted, 999, sampled, sampling), transitions) is allowed


@pytest.mark.parametrize(
    ("inserted", "sampled", "ratio"), [(0, 0, 0.0), (100, 0, 0.0), (150, 100, 2.0), (200, 400, 4.0)]
)
def test_achieved_ratio_counts_transitions_after_learning_could_start(
    inserted: int, sampled: int, ratio: float
) -> None:
    assert PACING.achieved(Ledger(inserted, 7, sampled, 7)) == ratio


@pytest.mark.parametrize("ratio", [0.5, 32.0])
def test_another_ratio_holds_from_its_origin_on(ratio: float) -> None:
    pacing = Pacing(ratio, learning_starts=100, slack_samples=0.0, origin=PacingOrigin(1_000, 3_600))
    assert not pacing.may_sample(Ledger(1_000, 0, 3_600, 0), 1)
    assert pacing.may_sample(Ledger(1_010, 0, 3_600, 0), int(10 * ratio))
    assert not pacing.may_sample(Ledger(1_010, 0, 3_600, 0), int(10 * ratio) + 1)
    assert pacing.surplus_samples(Ledger(1_000, 0, 3_600, 0)) == 0
    assert pacing.achieved(Ledger(1_000, 0, 3_600, 0)) == 0.0
    assert pacing.achieved(Ledger(1_020, 0, 3_600 + int(20 * ratio), 0)) == ratio


def test_a_later_start_of_learning_holds_from_the_origin_on_as_well() -> None:
    pacing = Pacing(4.0, learning_starts=5_000, slack_samples=0.0, origin=PacingOrigin(1_000, 3_600))
    assert not pacing.may_sample(Ledger(4_999, 0, 3_600, 0), 1)
    assert pacing.may_sample(Ledger(5_001, 0, 3_600, 0), 4)


@dataclass
class Run:
    """Actors and a learner under pacing; the caller decides whose chunk ends next and who dies."""

    pacing: Pacing
    actors: int
    rollout_transitions: int
    learn_transitions: int
    credits_per_role: int
    inserted: int = 0
    sampled: int = 0
    rollouts: list[int] = field(default_factory=list)
    learns: int = 0

    def ledger(self) -> Ledger:
        return Ledger(
            self.inserted,
            sum(self.rollouts) * self.rollout_transitions,
            self.sampled,
            self.learns * self.learn_transitions,
        )

    def grant(self) -> None:
        self.rollouts = self.rollouts or [0] * self.actors
        for _ in range(self.credits_per_role):
            for actor in range(self.actors):
                free = self.rollouts[actor] < self.credits_per_role
                if free and self.pacing.may_insert(self.ledger(), self.rollout_transitions):
                    self.rollouts[actor] += 1
        while self.learns < self.credits_per_role and self.pacing.may_sample(
            self.ledger(), self.learn_transitions
        ):
            self.learns += 1

    def check(self) -> None:
        paced = self.inserted - self.pacing.learning_starts
        owed = self.pacing.samples_per_insert * paced - self.sampled
        assert owed <= self.pacing.slack_samples, "acting ran beyond its slack"
        assert self.sampled <= max(0.0, self.pacing.samples_per_insert * paced), "learning ran ahead"
        assert self.learns or any(self.rollouts), "everybody waits for somebody"


@st.composite
def runs(draw: st.DrawFn) -> Run:
    actors, credits_per_role = draw(st.integers(1, 4)), draw(st.integers(1, 2))
    rollout_transitions, learn_transitions = draw(st.integers(1, 60)), draw(st.integers(1, 200))
    ratio = draw(st.sampled_from([0.25, 1.0, 3.0, 8.0, 33.3]))
    slack = slack_samples(
        ratio, credits_per_role * actors * rollout_transitions, credits_per_role * learn_transitions
    )
    pacing = Pacing(ratio, draw(st.integers(1, 300)), slack)
    return Run(pacing, actors, rollout_transitions, learn_transitions, credits_per_role)


@settings(max_examples=150, deadline=None)
@given(run=runs(), seed=st.integers(0, 2**32))
def test_no_order_of_events_leads_to_a_deadlock_or_out_of_bounds(run: Run, seed: int) -> None:
    chance = random.Random(seed)
    run.grant()
    for _ in range(400):
        run.check()
        busy = [actor for actor, chunks in enumerate(run.rollouts) if chunks]
        event = chance.choice(["rollout"] * 6 * bool(busy) + ["learn"] * 6 * bool(run.learns) + ["death"])
        if event == "rollout":
            run.rollouts[chance.choice(busy)] -= 1
            # A chunk may bring fewer transitions than granted: steps in which an environment only reset.
            run.inserted += chance.randint((run.rollout_transitions + 1) // 2, run.rollout_transitions)
        elif event == "learn":
            run.learns -= 1
            run.sampled += run.learn_transitions
        else:  # its credits are refunded, and its transitions are lost
            run.rollouts[chance.randrange(run.actors)] = 0
        run.grant()
    run.check()


@settings(max_examples=50, deadline=None)
@given(run=runs(), seed=st.integers(0, 2**32))
def test_achieved_ratio_comes_to_the_target(run: Run, seed: int) -> None:
    chance = random.Random(seed)
    enough = run.pacing.learning_starts + 50 * math.ceil(
        run.pacing.slack_samples / run.pacing.samples_per_insert
    )
    while run.inserted < enough:
        run.grant()
        busy = [actor for actor, chunks in enumerate(run.rollouts) if chunks]
        if busy and (chance.random() < 0.5 or not run.learns):
            run.rollouts[chance.choice(busy)] -= 1
            run.inserted += run.rollout_transitions
        else:
            run.learns -= 1
            run.sampled += run.learn_transitions
    # Both bounds hold, and they lie slack_samples apart: a fiftieth of what was owed so far.
    target = run.pacing.samples_per_insert
    assert 0.98 * target - 1e-9 <= run.pacing.achieved(run.ledger()) <= target


def test_no_burst_follows_a_stall() -> None:
    run = Run(Pacing(4.0, 100, slack_samples(4.0, 2 * 2 * 16, 2 * 64)), 2, 16, 64, 2)
    most = 0
    for moment in range(600):
        run.grant()
        learning = not 200 <= moment < 400  # the learner stands still for a third of the time
        for actor in range(run.actors):
            if run.rollouts[actor]:
                run.rollouts[actor] -= 1
                run.inserted += run.rollout_transitions
        before = run.sampled
        if learning and run.learns:
            run.sampled += run.learns * run.learn_transitions
            run.learns = 0
        most = max(most, run.sampled - before) if moment >= 400 else most
        if not learning:
            assert (
                run.pacing.samples_per_insert * (run.inserted - 100) - run.sampled <= run.pacing.slack_samples
            )
    # What had piled up is bounded by the slack, so it can only be worked off chunk by chunk.
    assert 0 < most <= run.credits_per_role * run.learn_transitions
