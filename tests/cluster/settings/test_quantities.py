"""Numbers as people write them."""

from __future__ import annotations

import pytest

from cluster.settings.load_config import load_config
from cluster.settings.quantities import Unit, parsed, unit_of


@pytest.mark.parametrize(
    ("text", "unit", "number"),
    [
        ("100k", "number", 100_000),
        ("1.5M", "number", 1_500_000),
        ("1e6", "number", 1_000_000),
        ("1e-3", "number", 0.001),
        ("1e-30", "number", 1e-30),
        ("1_000", "number", 1_000),
        ("0.29k", "number", 290),
        ("10m", "seconds", 600),
        ("90", "seconds", 90),
        ("1h30m", "seconds", 5_400),
        ("2 hours", "seconds", 7_200),
        ("16GB", "bytes", 16_000_000_000),
        ("2GiB", "bytes", 2 << 30),
        ("512 MB", "bytes", 512_000_000),
        ("100B", "bytes", 100),
        # A unit of something else, or none.
        ("10m", "number", None),
        ("16GB", "number", None),
        ("10k", "seconds", None),
        ("1h30", "seconds", None),
        ("1k2", "number", None),
        ("ten", "number", None),
        ("", "number", None),
        ("k", "number", None),
    ],
)
def test_a_number_is_read(text: str, unit: Unit, number: float | None) -> None:
    assert parsed(text, unit) == number


def test_the_name_of_a_setting_tells_its_unit() -> None:
    names = ["stop.seconds", "checkpoint.every_seconds", "actors.memory_limit_bytes", "stop.env_steps"]
    assert list(map(unit_of, names)) == ["seconds", "seconds", "bytes", "number"]


def test_settings_take_them() -> None:
    given = [
        "stop.seconds=10m",
        "stop.env_steps=100k",
        "replay.capacity=1e6",
        "actors.memory_limit_bytes=16GB",
    ]
    config = load_config(None, [*given, "learner.learning_rate=1e-3"])
    assert (config.stop.seconds, config.stop.env_steps, config.replay.capacity) == (600.0, 100_000, 10**6)
    assert config.actors.memory_limit_bytes == 16 * 10**9
    assert isinstance(config.stop.env_steps, int)
    assert config.learner.learning_rate == 1e-3
