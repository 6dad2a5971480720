"""The number of threads follows what updates take, in a simulated machine."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from learner.threads import ThreadChoice


def run(
    choice: ThreadChoice,
    update_seconds: Callable[[int], float],
    *,
    seconds: float,
    free_cores: float = 16.0,
    chunk: int = 8,
) -> list[int]:
    """Lets a learner work; update_seconds: threads -> of an update. Returns the threads of each chunk."""
    used, worked = list[int](), 0.0
    while worked < seconds:
        used.append(choice.threads)
        took = chunk * update_seconds(choice.threads)
        choice.after(chunk, took, free_cores)
        worked += took
    return used


def by_cores(gain: float) -> Callable[[int], float]:
    """Each doubling of threads multiplies the time of an update by `gain`."""
    return lambda threads: 0.01 * gain ** math.log2(threads)


@pytest.mark.parametrize(
    ("most", "gain", "expected"),
    [(2, 0.6, 2), (8, 0.6, 8), (6, 0.6, 6), (8, 0.95, 1), (8, 1.5, 1), (1, 0.5, 1)],
)
def test_more_threads_stay_while_updates_get_faster(most: int, gain: float, expected: int) -> None:
    choice = ThreadChoice(most)
    used = run(choice, by_cores(gain), seconds=60.0)
    assert choice.chosen == expected
    assert max(used) <= most
    assert min(used) == 1


def test_a_larger_number_stops_where_it_no_longer_pays() -> None:
    choice = ThreadChoice(16)
    run(choice, {1: 0.01, 2: 0.006, 4: 0.004, 8: 0.0039, 16: 0.01}.__getitem__, seconds=200.0)
    assert choice.chosen == 4


def test_without_idle_cores_nothing_is_tried() -> None:
    assert set(run(ThreadChoice(8), by_cores(0.5), seconds=60.0, free_cores=1.3)) == {1}


def test_trials_become_rare() -> None:
    choice = ThreadChoice(2)
    used = run(choice, by_cores(1.2), seconds=1_000.0)
    assert 0 < used.count(2) < 0.02 * len(used)


def test_noise_changes_nothing() -> None:
    """Every third chunk takes twice as long, whatever the threads."""
    choice, chunks = ThreadChoice(2), 0

    def noisy(_: int) -> float:
        nonlocal chunks
        chunks += 1
        return 0.02 if chunks % 3 == 0 else 0.01

    run(choice, noisy, seconds=500.0)
    assert choice.chosen == 1


def beside_a_busy_process(threads: int) -> float:
    """Two threads wait for each other; alone an update by one thread takes 10 ms."""
    return 0.2 if threads == 2 else 0.012


def test_a_second_thread_rests_while_others_need_the_core() -> None:
    choice = ThreadChoice(2)
    run(choice, by_cores(0.6), seconds=20.0)
    assert choice.chosen == 2
    used = run(choice, beside_a_busy_process, seconds=5.0, free_cores=1.0)
    assert used.count(2) == 1
    assert set(run(choice, by_cores(0.6), seconds=1.0, free_cores=1.9)[1:]) == {2}


def test_as_many_threads_rest_as_others_use_cores() -> None:
    choice = ThreadChoice(8)
    run(choice, by_cores(0.6), seconds=60.0)
    used = [run(choice, by_cores(0.6), seconds=0.1, free_cores=free)[-1] for free in (1.9, 1.2, 4.0, 7.6)]
    assert used == [2, 1, 4, 8]


def test_a_second_thread_goes_soon_when_updates_are_slow_and_nobody_seen_uses_the_core() -> None:
    choice = ThreadChoice(2)
    run(choice, by_cores(0.6), seconds=20.0)
    used = run(choice, beside_a_busy_process, seconds=5.0)
    assert choice.chosen == 1
    assert used.count(2) == 2
    assert "slower" in choice.reason


def test_a_second_thread_survives_actors_that_act_in_bursts() -> None:
    """They act for 2 of 20 seconds, which shows half a second later; a burst may fall into any trial."""
    choice, now, used = ThreadChoice(2), 0.0, list[int]()
    while now < 600.0:
        bursts = now % 20.0 < 2.0
        took = 8 * (beside_a_busy_process if bursts else by_cores(0.6))(choice.threads)
        now += took
        if now > 300.0 and not bursts:
            used.append(choice.threads)
        choice.after(8, took, 1.0 if (now - 0.5) % 20.0 < 2.0 else 2.0)
    assert choice.chosen == 2
    assert used.count(2) > 0.9 * len(used)


def test_a_trial_ends_without_an_outcome_when_others_begin_to_work() -> None:
    choice = ThreadChoice(2)
    run(choice, by_cores(0.6), seconds=3.5)
    assert (choice.chosen, choice.threads) != (1, 1)
    run(choice, beside_a_busy_process, seconds=5.0, free_cores=1.0)
    assert (choice.chosen, choice.threads, choice.reason) == (1, 1, "")


def test_a_second_thread_that_pays_less_goes_by_a_trial() -> None:
    choice = ThreadChoice(2)
    run(choice, by_cores(0.6), seconds=20.0)
    run(choice, by_cores(1.2), seconds=200.0, free_cores=2.0)
    assert choice.chosen == 1
    assert choice.reason == "2 take 1.20 of the time of 1"


def test_each_change_is_told_once() -> None:
    choice = ThreadChoice(2)
    told = [choice.after(8, 8 * by_cores(0.5)(choice.threads), 2.0) for _ in range(2_000)]
    assert told.count(True) == 1
