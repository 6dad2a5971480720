"""Returns and lengths of episodes, against sums that anyone can read."""

from __future__ import annotations

import numpy as np
import pytest

from actors.episodes import EpisodeLedger


@pytest.mark.parametrize("next_step", [True, False])
@pytest.mark.parametrize("chunk_steps", [1, 2, 7, 60])
def test_it_sums_what_a_loop_sums_whatever_the_chunks(next_step: bool, chunk_steps: int) -> None:
    """next_step: episodes begin behind an autoreset of their own, else behind the last one's end."""
    steps, num_lanes = 60, 5
    rng = np.random.default_rng(0)
    reward = rng.integers(-4, 5, (steps, num_lanes)) / 4
    ended, starts = np.zeros((2, steps, num_lanes), np.bool_)
    expected, total, length = [], np.zeros(num_lanes), np.zeros(num_lanes, np.int64)
    over = np.zeros(num_lanes, np.bool_)
    for t in range(steps):
        for lane in range(num_lanes):
            if over[lane]:  # an autoreset
                reward[t, lane], starts[t, lane], over[lane] = 0.0, True, False
                total[lane] = length[lane] = 0
                continue
            total[lane] += reward[t, lane]
            length[lane] += 1
            if rng.random() < 0.3:
                expected.append((total[lane], length[lane]))
                ended[t, lane] = True
                over[lane] = next_step
                if not next_step:
                    starts[t, lane] = True
                    total[lane] = length[lane] = 0
    ledger = EpisodeLedger(num_lanes)
    seen: list[tuple[float, int]] = []
    for first in range(0, steps, chunk_steps):
        chunk = slice(first, first + chunk_steps)
        ledger.add(reward[chunk], ended[chunk], starts[chunk])
        seen += zip(*ledger.take_ended(), strict=True)
    assert seen == expected
    assert ledger.longest_open_steps == length.max()
    assert len(expected) > 30


def test_an_episode_that_broke_off_is_none_and_spoils_no_other() -> None:
    ledger = EpisodeLedger(2)
    reward = np.array([[np.inf, 1.0], [0.0, 2.0], [3.0, 4.0], [5.0, 0.0]])
    ended = np.array([[0, 0], [0, 1], [0, 0], [1, 0]], np.bool_)
    starts = np.array([[0, 0], [1, 1], [0, 0], [1, 0]], np.bool_)
    ledger.add(reward, ended, starts)
    assert ledger.take_ended() == ((3.0, 8.0), (2, 2))
