"""Places on the ladder of epsilons, while actors come up and where some never do."""

from __future__ import annotations

from qfleet_by_hand import UP, ByHand

from cluster.runtime.ladder import Ladder


def test_places_are_spread_over_the_living_once_they_stay_the_same() -> None:
    run = ByHand("actors.num_actors=3")
    ladder = Ladder(run.fleet)
    for name in ("actor 0", "actor 2"):
        run.answer(name, "process_info", UP)
        ladder.spread()
        assert not run.is_asked(name, "set_rank")  # others may be coming up
    ladder.spread()
    ladder.spread()
    told = {call.role: call.args for call in run.asked if call.method == "set_rank"}
    assert told == {"actor 0": (0, 2), "actor 2": (1, 2)}
    assert len([call for call in run.asked if call.method == "set_rank"]) == 2


def test_a_fleet_that_comes_up_slowly_and_whole_is_told_nothing() -> None:
    run = ByHand("actors.num_actors=3")
    ladder = Ladder(run.fleet)
    for name in ("actor 2", "actor 0", "actor 1"):
        run.answer(name, "process_info", UP)
        ladder.spread()
    ladder.spread()
    assert not any(call.method == "set_rank" for call in run.asked)
