"""The sum tree against a list, over mixed magnitudes, and with refused values."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from replay_service.sum_tree import SumTree

CAPACITIES_AND_ROOTS = st.tuples(st.integers(1, 70), st.integers(1, 9))


def _naive_find(priorities: list[float], prefix: float) -> int:
    running = 0.0
    for slot, priority in enumerate(priorities):
        running += priority
        if running > prefix:
            return slot
    raise AssertionError("prefix beyond the total")


@given(CAPACITIES_AND_ROOTS, st.data())
@settings(max_examples=150, deadline=None)
def test_same_as_a_list_under_random_operations(sizes: tuple[int, int], data: st.DataObject) -> None:
    capacity, root_width = sizes
    tree = SumTree(capacity, root_width=root_width)
    twin = [0.0] * capacity
    slot = st.integers(0, capacity - 1)
    # Whole numbers: sums are exact, so both sides must agree in every bit.
    value = st.integers(1, 1000).map(float)
    for _ in range(data.draw(st.integers(1, 8))):
        match data.draw(st.sampled_from(["set", "set_range", "clear_range"])):
            case "set":
                pairs = data.draw(st.lists(st.tuples(slot, value), max_size=20))
                tree.set(np.array([s for s, _ in pairs], np.int64), np.array([v for _, v in pairs]))
                for s, v in pairs:
                    twin[s] = v
            case "set_range":
                start = data.draw(slot)
                values = data.draw(st.lists(value, max_size=capacity - start))
                tree.set_range(start, np.array(values))
                twin[start : start + len(values)] = values
            case "clear_range":
                start = data.draw(slot)
                end = data.draw(st.integers(start, capacity))
                tree.clear_range(start, end)
                twin[start:end] = [0.0] * (end - start)
        assert tree.total == sum(twin)
        assert tree.minimum == min((v for v in twin if v > 0.0), default=math.inf)
        if tree.total:
            prefixes = np.array(data.draw(st.lists(st.integers(0, int(tree.total) - 1), max_size=20)), float)
            slots, priorities = tree.find(prefixes)
            assert slots.tolist() == [_naive_find(twin, prefix) for prefix in prefixes]
            assert priorities.tolist() == [twin[s] for s in slots]


def test_last_of_duplicates_wins() -> None:
    tree = SumTree(5000, root_width=64)
    slots = np.tile(np.arange(100), 7)
    tree.set(slots, np.arange(1.0, 701.0))
    found, priorities = tree.find(np.cumsum(np.arange(601.0, 701.0)) - 1.0)
    assert found.tolist() == list(range(100))
    assert priorities.tolist() == list(range(601, 701))


def test_a_million_updates_of_mixed_magnitude_leave_no_drift() -> None:
    rng = np.random.default_rng(0)
    capacity = 3000
    tree = SumTree(capacity, root_width=16)
    leaves = np.zeros(capacity)
    for _ in range(200):
        slots = rng.integers(0, capacity, 5000)
        priorities = 10.0 ** rng.uniform(-12.0, 12.0, 5000)
        tree.set(slots, priorities)
        leaves[slots] = priorities
    # A sum of n positive numbers in any order is within n * 2^-53 of the exact one.
    assert tree.total == pytest.approx(math.fsum(leaves), rel=capacity * 2.0**-53)
    assert tree.minimum == leaves[leaves > 0.0].min()
    tree.clear_range(0, capacity)
    assert tree.total == 0.0
    assert tree.minimum == math.inf


def test_an_empty_slot_is_never_found() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        tree = SumTree(257, root_width=4)
        held = rng.choice(257, 20, replace=False)
        tree.set(held, 10.0 ** rng.uniform(-18.0, 18.0, 20))
        edges = np.cumsum(10.0 ** rng.uniform(-18.0, 18.0, 500))
        slots, priorities = tree.find(np.concatenate([[0.0, tree.total], edges / edges[-1] * tree.total]))
        assert set(slots.tolist()) <= set(held.tolist())
        assert priorities.all()


def test_rounding_in_a_tie_does_not_lead_to_an_empty_slot() -> None:
    # x = 2^52 + 3 is below fl(1.5 + r) = 2^52 + 4 for r = 2^52 + 2, yet fl(x - 1.5) = r is not below r.
    tree = SumTree(4, root_width=1)
    tree.set(np.array([0, 2]), np.array([1.5, 2.0**52 + 2.0]))
    assert tree.find(np.array([2.0**52 + 3.0]))[0].tolist() == [2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 0.0])
def test_refuses_by_name_and_changes_nothing(value: float) -> None:
    tree = SumTree(10)
    tree.set(np.arange(3), np.ones(3))
    priorities = np.array([2.0, value])
    with pytest.raises(ValueError, match=f"priority {value} is refused"):
        tree.set(np.array([0, 1]), priorities)
    with pytest.raises(ValueError, match=f"priority {value} is refused"):
        tree.set_range(0, priorities)
    assert tree.total == 3.0


def test_refuses_slots_outside_and_finding_in_nothing() -> None:
    # Ten slots in blocks of four: the arrays are longer than the capacity.
    tree = SumTree(10, root_width=3)
    for slot in (-1, 10):
        with pytest.raises(IndexError):
            tree.set(np.array([slot]), np.ones(1))
        with pytest.raises(IndexError):
            tree.set_range(slot, np.ones(1))
    with pytest.raises(IndexError):
        tree.clear_range(9, 11)
    with pytest.raises(ValueError, match="nothing can be found"):
        tree.find(np.zeros(1))
    with pytest.raises(ValueError, match="capacity"):
        SumTree(0)
