"""Selectors: exact strata, exact chances, wrap-round and eviction."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from replay_service.selectors import PrioritizedSelector, UniformSelector


class _SameDraw:
    """Stands in for a Generator: every integer drawn is `value`."""

    def __init__(self, value: int) -> None:
        self._value = value

    def integers(self, low: int, high: int, size: int) -> np.ndarray:
        assert low <= self._value < high
        return np.full(size, self._value)


def _proportional(capacity: int, first_key: int = 0) -> PrioritizedSelector:
    return PrioritizedSelector(capacity, first_key, exponent=1.0, epsilon=1e-30)


@pytest.mark.parametrize(("num_keys", "count"), [(1, 5), (5, 1), (5, 3), (7, 7), (3, 10), (1000, 64)])
def test_uniform_chances_are_exactly_equal(num_keys: int, count: int) -> None:
    selector = UniformSelector(40)
    selector.insert(40, np.zeros(num_keys), 40)
    drawn: Counter[int] = Counter()
    for value in range(num_keys):
        keys, probability = selector.draw((count,), _SameDraw(value))  # type: ignore[arg-type]
        drawn.update(keys.tolist())
        assert (probability == 1.0 / num_keys).all()
    assert drawn == dict.fromkeys(range(40, 40 + num_keys), count)


def test_uniform_strata() -> None:
    selector = UniformSelector(0)
    selector.insert(0, np.zeros(10), 0)
    keys, _ = selector.draw((5, 0, 10, 20), np.random.default_rng(0))
    assert (keys[:5] // 2).tolist() == list(range(5))
    assert keys[5:15].tolist() == list(range(10))
    assert keys[15:].tolist() == np.repeat(np.arange(10), 2).tolist()


def test_prioritized_strata_and_chances() -> None:
    selector = _proportional(5)
    selector.insert(0, np.array([1.0, 5.0, 2.0, 1.0, 1.0]), 0)
    # Ten strata of mass 1 each: every key is drawn exactly as often as its priority says, in both samples.
    keys, probability = selector.draw((10, 20), np.random.default_rng(0))
    once = [0, 1, 1, 1, 1, 1, 2, 2, 3, 4]
    assert keys[:10].tolist() == once
    assert keys[10:].tolist() == np.repeat(once, 2).tolist()
    np.testing.assert_allclose(probability, np.array([0.1, 0.5, 0.2, 0.1, 0.1])[keys], rtol=1e-15)


def test_priority_is_a_power_of_the_error() -> None:
    selector = PrioritizedSelector(2, 0, exponent=0.5, epsilon=0.25)
    selector.insert(0, np.array([2.0, 0.0], np.float32), 0)
    assert selector.mass == pytest.approx(1.5 + 0.5, rel=1e-15)
    assert selector.min_priority == 0.5
    selector.set_priorities(np.array([1, 1]), np.array([0.0, 3.75], np.float32))
    assert selector.mass == pytest.approx(1.5 + 2.0, rel=1e-15)


NOTHING = np.zeros(0)


def test_wrap_round_and_eviction() -> None:
    selector = _proportional(4, first_key=2)
    selector.insert(2, np.array([1.0, 2.0, 4.0]), 2)
    selector.insert(5, np.array([8.0, 16.0, 32.0]), 4)  # keys 4..7 are held, in slots 0..3
    assert selector.mass == 60.0
    selector.insert(8, NOTHING, 6)
    assert selector.mass == 48.0
    keys, _ = selector.draw((3,), np.random.default_rng(0))
    assert keys.tolist() == [6, 7, 7]
    selector.insert(8, np.array([3.0]), 8)  # all others leave early
    assert (selector.mass, selector.min_priority) == (3.0, 3.0)
    selector.insert(9, NOTHING, 9)
    assert (selector.mass, selector.min_priority) == (0.0, np.inf)

    uniform = UniformSelector(2)
    uniform.insert(2, np.zeros(3), 2)
    uniform.insert(5, np.zeros(3), 4)
    assert uniform.mass == 4.0
    uniform.insert(8, NOTHING, 6)
    assert uniform.draw((2,), np.random.default_rng(0))[0].tolist() == [6, 7]
    uniform.insert(8, NOTHING, 8)
    assert (uniform.mass, uniform.min_priority) == (0.0, np.inf)


@pytest.mark.parametrize("value", [np.nan, -0.5, np.inf])
def test_refused_errors_change_nothing(value: float) -> None:
    selector = _proportional(4)
    selector.insert(0, np.ones(2), 0)
    with pytest.raises(ValueError, match="is refused"):
        selector.set_priorities(np.array([0, 1]), np.array([3.0, value]))
    with pytest.raises(ValueError, match="is refused"):
        selector.insert(2, np.array([value]), 0)
    assert selector.mass == 2.0


def test_a_negative_error_is_refused_even_where_epsilon_would_hide_it() -> None:
    selector = PrioritizedSelector(4, 0, exponent=1.0, epsilon=1.0)
    with pytest.raises(ValueError, match=r"absolute TD error -0\.5 is refused"):
        selector.insert(0, np.array([1.0, -0.5]), 0)
