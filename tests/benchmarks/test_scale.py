"""The load generator: what a crowd notes, and a run that cannot tell it from actors.

Tests benchmarks/crowd.py, benchmarks/process_crowd.py and benchmarks/ray_crowd.py, too.
"""

from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import crowd, ray_crowd, scale


def test_a_version_has_spread_once_every_actor_has_it_or_a_newer_one() -> None:
    arrivals = np.array([(0.0, 1, 1), (0.5, 2, 1), (1.0, 1, 2), (1.5, 2, 3), (2.0, 1, 3)])
    # Version 1 takes 0.5 s, version 2 0.5 s (actor 2 gets 3 instead), version 3 0.5 s.
    assert scale.spread_seconds(arrivals, 2, 0.0, 3.0) == 0.5
    assert math.isnan(scale.spread_seconds(arrivals, 3, 0.0, 3.0))
    assert scale.spread_seconds(np.array([(0.0, 1, 1), (0.7, 2, 1)]), 2, 0.0, 0.5) == pytest.approx(0.7)
    assert math.isnan(scale.spread_seconds(crowd.Heard().arrays()["versions"], 1, 0.0, 3.0))


def test_waits_and_idle_times_are_told_apart() -> None:
    heard, now = crowd.Heard(), 100.0
    with patch.object(crowd.time, "monotonic", lambda: now):
        heard.credit(7)  # two credits at the start follow no chunk
        heard.credit(7)
        assert heard.begin(7, 3) == 0.0
        now = 101.0
        heard.end(7, 0.0, 0.25)
        assert heard.begin(7, 3) == 0.0
        now = 101.5
        heard.credit(7)
        now = 102.0
        heard.end(7, 0.0, 0.0)
        now = 104.0
        assert heard.begin(7, None) == 2.0
    found = heard.arrays()
    assert found["credits"].tolist() == [[101.5, 0.5]]
    assert found["ends"].tolist() == [[101.0, 0.0, 0.25], [102.0, 0.0, 0.0]]
    assert found["versions"].tolist() == [[100.0, 7, 3]]


def test_calls_to_an_actor_of_a_ray_crowd_take_their_turns_though_they_come_in_any_order() -> None:
    handled = []

    async def handle(turns: ray_crowd.Turns, place: int) -> None:
        async with turns.turn(place):
            await asyncio.sleep(0.0)
            handled.append(place)

    async def come() -> None:
        turns = ray_crowd.Turns()
        await asyncio.gather(*(handle(turns, place) for place in (2, 0, 3, 1)))
        await handle(turns, 4)

    asyncio.run(asyncio.wait_for(come(), 10.0))
    assert handled == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.parametrize("over_ray", [False, True])
def test_a_run_cannot_tell_a_crowd_from_actors(over_ray: bool) -> None:
    # So many actors begin at once that calls reach a Ray crowd in another order than they were made in.
    load = scale.Load(1.0, scale.LOADS["fast"].settings, 2.0)
    with patch.object(scale, "_SETTLE_SECONDS", 0.5):
        found = scale.measure(load, 64, 3.0, over_ray=over_ray)
    assert found["chunks/s"] > 0.0
    assert found["coordinator us/chunk"] > 0.0
    assert found["shards"] > 0.0
    assert found["scrape kB"] > 1.0
    assert found["weights s"] > 0.0
