"""Which version is evaluated next, and which one is the best."""

from __future__ import annotations

import numpy as np
import pytest
from qfleet_reports import evaluation_report

from actors.core import EvaluationReport
from cluster.control.evaluation import Best, EvaluationRequest, ModelSelection, ModelSelectionState
from cluster.settings.resolved import ResolvedEvaluation

CONFIG = ResolvedEvaluation(every_updates=100, episodes=4)


def report(request: EvaluationRequest, mean: float) -> EvaluationReport:
    return evaluation_report(
        version=request.version, seed_domain=request.seed_domain, returns=(mean - 1.0, mean + 1.0)
    )


def play(selection: ModelSelection, version: int, *means: float) -> list[bool]:
    """Answers each request made at `version` with the next mean; what `take` said each time."""
    verdicts = []
    for mean in means:
        request = selection.next_request(version)
        assert request is not None
        verdicts.append(selection.take(request, report(request, mean)))
    return verdicts


def play_equal(selection: ModelSelection, version: int, *values: float) -> None:
    """Answers each request with equal returns, which leave no doubt about their mean."""
    for value in values:
        request = selection.next_request(version)
        assert request is not None
        selection.take(request, evaluation_report(version=version, returns=(value,) * 4))


@pytest.mark.parametrize(
    ("asked", "version", "due", "expected"),
    [
        ([], 0, False, None),
        ([], 99, False, None),
        ([], 100, False, 100),
        ([], 130, False, 130),
        ([], 30, True, 30),
        ([130], 229, False, None),
        ([130], 230, False, 230),
        ([130], 131, True, 131),
        ([130], 130, True, None),  # never the same version twice
    ],
)
def test_a_version_is_screened_every_so_many_updates(
    asked: list[int], version: int, due: bool, expected: int | None
) -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    for earlier in asked:
        play(selection, earlier, 5.0, 5.0)
    request = selection.next_request(version, due=due)
    assert (request.version if request else None) == expected
    if request:
        assert not request.confirms
        assert request.episodes == 4


def test_the_second_evaluation_plays_the_same_version_with_other_seeds() -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    screen = selection.next_request(100)
    assert screen is not None
    assert selection.take(screen, report(screen, 10.0)) is False
    # Training has gone on meanwhile, but the candidate comes first.
    confirmation = selection.next_request(900)
    assert confirmation is not None
    assert (confirmation.version, confirmation.confirms) == (100, True)
    assert confirmation.seed_domain != screen.seed_domain
    assert selection.take(confirmation, report(confirmation, 7.0)) is True
    assert selection.best == Best(100, screened=10.0, score=7.0)


@pytest.mark.parametrize("versions", [range(100, 1_100, 100), range(1, 11)])
def test_no_two_evaluations_of_a_run_share_seeds(versions: range) -> None:
    """Nor do the second evaluation of a version and the first one of the next version."""
    selection = ModelSelection(CONFIG, target_return=None)
    domains = []
    for version in versions:
        for _ in range(2):
            request = selection.next_request(version, due=True)
            if request is not None:
                domains.append(request.seed_domain)
                selection.take(request, report(request, float(version)))
    assert len(set(domains)) == len(domains) == 20


@pytest.mark.parametrize(
    ("first", "second", "best_version"),
    [
        ((50.0, 40.0), (60.0, 30.0), 100),  # a lucky screen does not win
        ((50.0, 40.0), (60.0, 40.0), 100),  # a tie keeps the older one
        ((50.0, 40.0), (45.0, 41.0), 200),  # compared with the confirmed 40, not with the lucky 50
        ((50.0, 40.0), (40.0,), 100),  # a screen that is not above the best is not played again
    ],
)
def test_only_the_confirmed_mean_counts(
    first: tuple[float, ...], second: tuple[float, ...], best_version: int
) -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    play(selection, 100, *first)
    play(selection, 200, *second)
    assert selection.best is not None
    assert selection.best.version == best_version
    assert selection.next_request(200) is None


@pytest.mark.parametrize(
    ("screen", "confirmation", "solved"),
    [(100.0, 100.0, True), (120.0, 99.9, False), (99.9, 120.0, False), (100.0, 130.0, True)],
)
def test_solved_only_if_both_evaluations_pass(screen: float, confirmation: float, solved: bool) -> None:
    selection = ModelSelection(CONFIG, target_return=100.0)
    play_equal(selection, 100, screen, confirmation)
    assert selection.solved is solved


def episodes_until_decided(
    returns: np.ndarray, target: float, screening: tuple[float, ...]
) -> tuple[bool, int]:
    """Whether a version with these returns [M] solves its task, and how many of them that took."""
    config = ResolvedEvaluation(episodes=20)
    selection, played = ModelSelection(config, target), 0
    screen = selection.next_request(1_000)
    assert screen is not None
    selection.take(screen, evaluation_report(version=1_000, returns=screening))
    while (request := selection.next_request(1_000)) is not None:
        assert request.confirms
        drawn = tuple(returns[played : played + request.episodes].tolist())
        played += len(drawn)
        selection.take(request, evaluation_report(version=1_000, returns=drawn))
    assert selection.best is not None
    assert selection.best.score == pytest.approx(returns[:played].mean())
    return selection.solved, played


LUCKY = (1.0,) * 18 + (0.0,) * 2


def test_a_target_is_reached_only_if_the_confidence_bound_reaches_it() -> None:
    """FrozenLake 8x8: its target is 0.85. Policies that earn 0.78 were confirmed by a lucky mean of 20."""
    rng = np.random.default_rng(0)
    worse, better = ((rng.random((400, 320)) < chance).astype(float) for chance in (0.78, 0.97))
    assert np.mean([returns[:20].mean() >= 0.85 for returns in worse]) > 0.1
    assert np.mean([episodes_until_decided(returns, 0.85, LUCKY)[0] for returns in worse]) < 0.01
    decided = [episodes_until_decided(returns, 0.85, LUCKY) for returns in better]
    assert np.mean([solved for solved, _ in decided]) > 0.95
    assert max(played for _, played in decided) <= 320


def test_a_wide_spread_takes_more_episodes_within_a_budget() -> None:
    """Blackjack: returns of -1 and 1 around -0.04; a mean of 0.3 was taken for its value."""
    rng = np.random.default_rng(1)
    games = np.where(rng.random((400, 320)) < 0.48, 1.0, -1.0)
    decided = [episodes_until_decided(returns, 0.3, (1.0,) * 20) for returns in games]
    assert np.mean([solved for solved, _ in decided]) < 0.02
    # Just at the target, no number of episodes decides: it stays open.
    at_target = np.where(np.arange(320) % 2, 1.0, 0.7)
    assert episodes_until_decided(at_target, 0.85, (1.0,) * 20) == (False, 320)


def test_equal_returns_decide_at_once_and_others_as_soon_as_they_can() -> None:
    """CartPole: nearly all episodes of a version that solves it last 500 steps."""
    assert episodes_until_decided(np.full(320, 500.0), 475.0, (500.0,) * 20) == (True, 20)
    mixed = np.where(np.arange(320) % 10 == 0, 440.0, 500.0)
    assert episodes_until_decided(mixed, 475.0, (440.0,) + (500.0,) * 19) == (True, 20)
    # A failure of the screening counts, even if the second evaluation has none.
    assert episodes_until_decided(np.ones(320), 0.95, LUCKY + (1.0,) * 20) == (True, 80)


def test_a_passing_version_is_confirmed_even_below_the_best() -> None:
    selection = ModelSelection(CONFIG, target_return=100.0)
    play(selection, 100, 99.0, 150.0)  # best, but its screen did not pass
    assert not selection.solved
    play_equal(selection, 200, 120.0, 110.0)
    assert selection.solved
    # The best version never falls: its own confirmed score is above the target, too.
    assert selection.best == Best(100, screened=99.0, score=150.0)


def test_a_run_that_goes_on_after_it_was_solved_keeps_the_better_version() -> None:
    before = ModelSelectionState(200, Best(200, screened=120.0, score=110.0))
    selection = ModelSelection(CONFIG, target_return=100.0, state=before)
    play_equal(selection, 300, 130.0, 109.0)
    assert selection.solved
    assert selection.best == before.best


def test_a_lost_confirmation_is_asked_again() -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    play(selection, 100, 10.0)
    lost = selection.next_request(150)
    again = selection.next_request(151)  # its evaluator died: `take` was never called
    assert lost is not None
    assert again is not None
    assert (again.version, again.confirms) == (lost.version, lost.confirms)
    assert selection.take(again, report(again, 9.0)) is True


def test_no_seeds_are_used_for_two_versions_even_if_a_learner_goes_back() -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    requests = []
    # Version 200 comes again after a learner had gone back to 90, and 100 after it had begun anew.
    for version in (100, 100, 200, 200, 90, 200, 200, 0, 100, 100):
        request = selection.next_request(version)
        if request is not None:
            requests.append(request)
            selection.take(request, report(request, 10.0 + len(requests)))
    assert [request.version for request in requests] == [100, 100, 200, 200, 200, 200, 100, 100]
    domains = [request.seed_domain for request in requests]
    assert domains == sorted(set(domains))
    # Nor by a run that goes on from a checkpoint.
    resumed = ModelSelection(CONFIG, None, selection.state())
    request = resumed.next_request(150, due=True)
    assert request is not None
    assert request.seed_domain > max(domains)


def test_after_a_learner_begins_anew_evaluations_come_when_they_are_due() -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    play(selection, 3_000, 10.0, 10.0)
    assert selection.next_request(0) is None
    assert selection.next_request(99) is None
    request = selection.next_request(100)
    assert request is not None
    assert request.version == 100


def test_a_candidate_whose_weights_are_lost_is_not_confirmed_any_more() -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    play(selection, 100, 5.0)
    request = selection.next_request(100)
    assert request is not None
    assert request.confirms
    selection.lost(request)
    selection.withdraw()
    assert selection.next_request(150) is None
    assert selection.best is None
    # The next version that is due has its own chance.
    assert play(selection, 200, 4.0, 4.0) == [False, True]


def test_a_lost_screen_is_passed_over() -> None:
    selection = ModelSelection(CONFIG, target_return=None)
    assert selection.next_request(100) is not None
    assert selection.next_request(101) is None
    later = selection.next_request(200)
    assert later is not None
    assert (later.version, later.confirms) == (200, False)
