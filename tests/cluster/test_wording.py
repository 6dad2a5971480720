"""Numbers, durations and sizes as people read them."""

from __future__ import annotations

import pytest

from cluster.wording import byte_size, duration, quantity


@pytest.mark.parametrize(
    ("number", "nouns", "text"),
    [
        (0, ["shard"], "0 shards"),
        (1, ["shard"], "1 shard"),
        (1.0, ["CPU"], "1 CPU"),
        (0.5, ["CPU"], "0.5 CPUs"),
        (27_000, ["step"], "27,000 steps"),
        (1, ["process", "processes"], "1 process"),
        (2, ["process", "processes"], "2 processes"),
    ],
)
def test_a_noun_agrees_with_its_number(number: float, nouns: list[str], text: str) -> None:
    assert quantity(number, *nouns) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (59.6, "1:00"), (3_599, "59:59"), (3_661, "1:01:01")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (999, "999 bytes"),
        (1_000, "1.0 kB"),
        (99_949, "99.9 kB"),
        (123_456_789, "123 MB"),
        (2 * 10**12, "2.0 TB"),
    ],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert byte_size(num_bytes) == text
