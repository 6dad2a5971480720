"""A checkpoint of the serial runtime waits for episodes longer than half of the life that it ends."""

from __future__ import annotations

import pytest
from qfleet_reports import rollout_report

from actors.core import MOST_EPISODE_STEPS
from cluster.control.open_episodes import OpenEpisodes

LANES = 4


@pytest.mark.parametrize(
    ("chunks", "longest", "held"),
    [
        # Steps of each lane in each chunk; the longest episode that is open at its end; whether it holds.
        ([10], [10], [True]),
        ([10, 10, 10], [0, 10, 20], [False, False, True]),
        ([30, 30, 1], [30, 30, 31], [True, False, True]),
        ([500, 500], [500, 0], [True, False]),
        # An episode without an end is given up.
        ([MOST_EPISODE_STEPS - 1, 1], [MOST_EPISODE_STEPS - 1, MOST_EPISODE_STEPS], [True, False]),
    ],
)
def test_when_a_checkpoint_waits(chunks: list[int], longest: list[int], held: list[bool]) -> None:
    episodes = OpenEpisodes(LANES)
    assert not episodes.hold_checkpoint
    found = []
    for steps, open_steps in zip(chunks, longest, strict=True):
        episodes.take(rollout_report(env_steps=LANES * steps, longest_open_steps=open_steps))
        found.append(episodes.hold_checkpoint)
    assert found == held
    assert episodes.lane_steps == sum(chunks)
