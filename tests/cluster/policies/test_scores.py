"""Reference scores of games, and returns relative to them."""

from __future__ import annotations

import pytest

from cluster.policies.scores import Reference, human_comparison, reference


@pytest.mark.parametrize(
    ("env_id", "mean_return", "normalized"),
    [
        ("ALE/Pong-v5", 14.6, 1.0),
        ("ALE/Pong-v5", -20.7, 0.0),
        ("ALE/Breakout-v5", 1.7 + 28.8 / 2, 0.5),
        # Lower than the human's, yet better: scores of Skiing are negative times.
        ("ALE/Skiing-v5", -17_098.1 + 2 * 12_761.2, 2.0),
        ("ALE/MontezumaRevenge-v5", 4753.3, 1.0),
    ],
)
def test_human_normalized_scores(env_id: str, mean_return: float, normalized: float) -> None:
    found = reference(env_id)
    assert found is not None
    assert found.normalized(mean_return) == pytest.approx(normalized)


@pytest.mark.parametrize("env_id", ["CartPole-v1", "ALE/Tetris-v5", "MinAtar/Breakout-v1", "mine:Pong-v5"])
def test_no_score_is_made_up(env_id: str) -> None:
    assert reference(env_id) is None
    assert human_comparison(env_id, 3.0) == ""


def test_every_reference_belongs_to_a_registered_game() -> None:
    pytest.importorskip("ale_py")
    import gymnasium as gym

    ids = [env_id for env_id in gym.registry if env_id.startswith("ALE/")]
    found = [reference(env_id) for env_id in ids]
    assert sum(one is not None for one in found) == 57
    assert all(isinstance(one, Reference) and one.human_return > one.random_return for one in found if one)


def test_a_return_is_put_beside_the_humans() -> None:
    assert human_comparison("ALE/Breakout-v5", 1.7 + 28.8 / 2) == ", 50.0% of human (0 % is random play)"
