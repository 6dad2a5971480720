"""What every engine promises, asked of each of them.

Tests cluster/engines/engine.py, cluster/engines/serial_engine.py,
cluster/engines/ray_engine.py and cluster/engines/process_engine.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from qfleet_test_roles import Asker, BrokenFromTheStart, Counter, Echo

from cluster.engines.engine import Engine, EngineError, Handle, Need, RoleDied, RoleError
from cluster.engines.serial_engine import SerialEngine

NEED = Need(cpus=0.0)


@pytest.fixture(params=["serial", "process", "ray"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param != "serial":
        yield request.getfixturevalue(f"{request.param}_engine")
    else:
        serial = SerialEngine()
        yield serial
        serial.close()


@pytest.fixture
def counter(engine: Engine) -> Iterator[Handle[Any]]:
    handle = engine.spawn("counter 3", Counter, 100, need=NEED)
    yield handle
    engine.kill(handle)


def ask(engine: Engine, handle: Handle[Any], method: Callable[..., Any], *args: object) -> Any:
    (ref,) = engine.call(handle, method, *args)
    return engine.get(ref)


def ask_until_dead(
    engine: Engine, handle: Handle[Any], method: Callable[..., Any], *args: object
) -> RoleDied:
    """What ends it. Ray kills from beside the queue of calls, so one made after may get through."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        try:
            ask(engine, handle, method, *args)
        except RoleDied as death:
            return death
    raise AssertionError(f"{handle.name} lives on")


def test_calls_to_a_role_run_in_order(engine: Engine, counter: Handle[Any]) -> None:
    refs = [engine.call(counter, Counter.add, value)[0] for value in range(20)]
    assert ask(engine, counter, Counter.history) == [100, *range(20)]
    assert [engine.get(ref) for ref in reversed(refs)] == [
        100 + sum(range(n + 1)) for n in reversed(range(20))
    ]


def test_two_results_have_a_ref_each_and_arrive_as_values_elsewhere(
    engine: Engine, counter: Handle[Any]
) -> None:
    report, weights = engine.call(counter, Counter.two, returns=2)
    assert engine.get(report) == "report"
    np.testing.assert_array_equal(engine.get(weights), np.arange(3, dtype=np.float32))
    assert ask(engine, counter, Counter.total_of, weights, 10) == 30.0


def test_put_gives_a_ref_that_calls_take(engine: Engine, counter: Handle[Any]) -> None:
    ref = engine.put(np.ones(4))
    assert ask(engine, counter, Counter.total_of, ref, 2) == 8.0
    assert ask(engine, counter, Counter.total_of, ref, 3) == 12.0
    np.testing.assert_array_equal(engine.get(ref), np.ones(4))


def test_refs_are_hashable_and_wait_returns_some_of_them(engine: Engine, counter: Handle[Any]) -> None:
    refs = {engine.call(counter, Counter.add, value)[0] for value in range(5)}
    done: set[object] = set()
    while refs - done:
        ready = engine.wait(sorted(refs - done, key=id), 60.0)
        assert ready
        assert set(ready) <= refs - done
        done.update(ready)
    assert done == refs


def test_wait_returns_only_what_it_is_asked_for_as_often_as_it_is_asked(
    engine: Engine, counter: Handle[Any]
) -> None:
    first, second, third = (engine.call(counter, Counter.add, value)[0] for value in range(3))
    assert engine.get(second) == 101
    assert [engine.wait({first: None}, 60.0) for _ in range(2)] == [[first]] * 2
    assert engine.wait([second], 60.0) == [second]
    assert engine.get(third) == 103
    assert engine.wait([third], 60.0) == [third]


def test_an_exception_of_a_role_carries_its_own_traceback(engine: Engine, counter: Handle[Any]) -> None:
    with pytest.raises(RoleError) as raised:
        ask(engine, counter, Counter.fail)
    assert raised.value.role == "counter 3"
    assert "in deep_inside" in raised.value.message
    assert "ZeroDivisionError: seven of nine" in raised.value.message
    # An exception ends the call, not the role.
    assert ask(engine, counter, Counter.add, 1) == 101


def test_an_exception_is_in_every_ref_of_its_call(engine: Engine, counter: Handle[Any]) -> None:
    for ref in engine.call(counter, Counter.fail_in_two, returns=2):
        with pytest.raises(RoleError, match="no pair today"):
            engine.get(ref)


def test_a_constructor_that_raises_shows_at_the_first_get(engine: Engine) -> None:
    handle = engine.spawn("builder", BrokenFromTheStart, need=NEED)
    with pytest.raises(RoleError) as raised:
        ask(engine, handle, BrokenFromTheStart.hello)
    assert raised.value.role == "builder"
    assert "LookupError: nothing to build from" in raised.value.message


def test_a_killed_role_has_died(engine: Engine) -> None:
    handle = engine.spawn("victim", Counter, need=NEED)
    assert ask(engine, handle, Counter.add, 1) == 1
    engine.kill(handle)
    assert ask_until_dead(engine, handle, Counter.add, 1).role == "victim"


def test_the_death_behind_a_failed_call_is_named(engine: Engine) -> None:
    dead = engine.spawn("shard 1", Counter, need=NEED)
    asker = engine.spawn("actor 0", Asker, engine.calls, dead, need=NEED)
    assert ask(engine, asker, Asker.ask, Counter.add, 5) == 5
    engine.kill(dead)
    assert ask_until_dead(engine, asker, Asker.ask, Counter.add, 5).role == "shard 1"
    engine.kill(asker)


def test_the_error_behind_a_failed_call_is_named(engine: Engine, counter: Handle[Any]) -> None:
    asker = engine.spawn("actor 0", Asker, engine.calls, counter, need=NEED)
    with pytest.raises(RoleError) as raised:
        ask(engine, asker, Asker.ask, Counter.fail)
    assert raised.value.role == "counter 3"
    assert "in deep_inside" in raised.value.message
    engine.kill(asker)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        np.zeros((0, 3), np.float32),
        np.float64(0.1),
        {"a": [np.arange(5), "x"], "b": (np.ones((3, 4), order="F"), np.arange(10)[::2])},
        b"x" * 5_000_000,
        np.arange(3_000_000, dtype=np.int64),
        [np.full(20_000, n, np.uint8) for n in range(40)],
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_all_sizes_come_back(engine: Engine, value: object) -> None:
    echo = engine.spawn("echo", Echo, need=NEED)
    # Twice: the second one is read where the first was.
    for _ in range(2):
        np.testing.assert_equal(ask(engine, echo, Echo.give, value), value)
    engine.kill(echo)


def test_hundreds_of_calls_are_outstanding(engine: Engine, counter: Handle[Any]) -> None:
    refs = [engine.call(counter, Counter.add, 1)[0] for _ in range(700)]
    assert engine.get(refs[-1]) == 800
    assert [engine.get(ref) for ref in refs] == list(range(101, 801))


def test_a_result_that_is_not_there_yet_can_be_an_argument(engine: Engine, counter: Handle[Any]) -> None:
    echo = engine.spawn("echo", Echo, need=NEED)
    (slow,) = engine.call(echo, Echo.give, np.ones(400_000))
    (total,) = engine.call(counter, Counter.total_of, slow, 2)
    (after,) = engine.call(counter, Counter.add, 1)
    assert engine.get(after) == 101
    assert engine.get(total) == 800_000.0
    engine.kill(echo)


def test_what_cannot_be_sent_is_refused(engine: Engine, counter: Handle[Any]) -> None:
    if engine.own_processes:
        with pytest.raises(TypeError, match="lock"):
            engine.call(counter, Counter.add, threading.Lock())  # type: ignore[arg-type]
        echo = engine.spawn("echo", Echo, need=NEED)
        with pytest.raises(RoleError, match="lock"):
            ask(engine, echo, Echo.lock)
        assert ask(engine, echo, Echo.give, 3) == 3
        engine.kill(echo)
    assert ask(engine, counter, Counter.add, 1) == 101


def test_one_caller_is_served_while_another_one_waits(engine: Engine) -> None:
    shard = engine.spawn("shard 0", Counter, need=NEED)
    askers = [engine.spawn(f"actor {n}", Asker, engine.calls, shard, need=NEED) for n in range(3)]
    refs = [engine.call(asker, Asker.ask, Counter.add, 1)[0] for _ in range(20) for asker in askers]
    assert sorted(engine.get(ref) for ref in refs) == list(range(1, 61))
    for handle in (*askers, shard):
        engine.kill(handle)


def test_serial_get_refuses_what_is_no_ref() -> None:
    with pytest.raises(TypeError, match="no Ref of this engine"):
        SerialEngine().get(3)  # type: ignore[arg-type]


def test_ray_wait_comes_back_at_the_first_result_and_at_its_timeout(ray_engine: Engine) -> None:
    stuck = ray_engine.spawn("stuck", Counter, need=NEED)
    quick = ray_engine.spawn("quick", Counter, need=NEED)
    (never,) = ray_engine.call(stuck, Counter.block)
    (soon,) = ray_engine.call(quick, Counter.add, 1)
    assert ray_engine.wait([never, soon], 60.0) == [soon]
    assert ray_engine.wait([never], 0.05) == []
    ray_engine.kill(stuck)
    # The call that was in flight when its role was killed gives the death, not a hang.
    assert ray_engine.wait([never], 60.0) == [never]
    with pytest.raises(RoleDied, match="stuck"):
        ray_engine.get(never)
    ray_engine.kill(quick)


def test_errors_name_role_and_message_once_each() -> None:
    assert str(EngineError("learner", "gone")) == "learner: gone"
