"""Numbers, durations and sizes as people read them."""

from __future__ import annotations

import pytest

from cluster.wording import byte_size, duration, number, quantity, without_numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.0"),
        (-12.345, "-12.3"),
        (9_999.94, "9,999.9"),
        (12_345.6, "12,346"),
        (-9_876_543.0, "-9,876,543"),
        (12_345_678.0, "12.35 M"),
        (1.5e9, "1.50 G"),
        (2e13, "20.00 T"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_stay_short(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0:00"), (59.6, "1:00"), (754.0, "12:34"), (3_600.0, "1:00:00"), (360_005.0, "100:00:05")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1_500, "1.5 kB"),
        (123_456_789, "123 MB"),
        (2 * 10**9, "2.0 GB"),
        (10**13, "10.0 TB"),
    ],
)
def test_sizes(num_bytes: int, text: str) -> None:
    assert byte_size(num_bytes) == text


def test_nouns_agree_with_their_number() -> None:
    assert [quantity(count, "process", "processes") for count in (1, 2)] == ["1 process", "2 processes"]
    assert [quantity(count, "CPU") for count in (0.5, 1, 2_000)] == ["0.5 CPUs", "1 CPU", "2,000 CPUs"]


def test_texts_that_differ_in_numbers_have_the_same_words() -> None:
    first = without_numbers("checkpoint-000007: 1,024.5 of -inf bytes, 1e-09 s")
    assert first == without_numbers("checkpoint-000012: -3 of 8 bytes, 25 s")
    assert first != without_numbers("checkpoint-000012: -3 of 8 bits, 25 s")
