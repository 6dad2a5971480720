"""Meters of this process and this machine, and when an actor holds too much memory."""

from __future__ import annotations

import time
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from cluster.engines.machine import Machine
from cluster.metrics.usage import FreeCores, MachineMeter, MemoryMeter, UsageMeter, memory_excess


def test_meters_read_this_process_and_not_too_often() -> None:
    meter = UsageMeter(every_seconds=60.0)
    usage = meter.due()
    assert usage is not None
    assert 0.0 < usage.cpu_seconds <= time.process_time()
    assert usage.resident_bytes > 10_000_000
    assert meter.due() is None
    read = MachineMeter().due()
    assert read is not None
    assert 0 < read[1].machine_memory_available_bytes < read[1].machine_memory_bytes


def test_too_much_memory() -> None:
    roomy, scarce = (Machine(4, 100, available, None) for available in (10, 9))
    assert memory_excess(50, 50, scarce, 4) is None
    assert "above actors.memory_limit_bytes = 50" in (memory_excess(51, 50, roomy, 1) or "")
    # Of two actors each may have a quarter, where there is not enough for all.
    assert memory_excess(99, None, roomy, 2) is None
    assert memory_excess(25, None, scarce, 2) is None
    assert "more than its share" in (memory_excess(26, None, scarce, 2) or "")


def test_the_memory_of_this_process_is_read_now_and_then() -> None:
    meter, later = MemoryMeter(1, 1), time.monotonic() + 10.0
    assert meter.due() is None
    with patch("time.monotonic", lambda: later):
        assert "above actors.memory_limit_bytes = 1" in (meter.due() or "")
        assert meter.due() is None


def test_free_cores_are_idle_ones_and_what_this_process_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    idle, waiting, now = [0.0, 0.0, 0.0], [0.0], [100.0]

    def cpu_times(percpu: bool) -> list[SimpleNamespace]:
        first, *others = (SimpleNamespace(idle=seconds) for seconds in idle)
        first.iowait = waiting[0]  # only Linux has it
        return [first, *others]

    monkeypatch.setattr("psutil.cpu_times", cpu_times)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 2})
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: 0.5 * now[0])
    meter = FreeCores()
    idle, now[0] = [0.1, 0.1, 0.1], 100.1
    assert meter.newest() == 0.0  # too early
    idle, now[0] = [2.0, 2.0, 1.0], 102.0
    assert meter.newest() == pytest.approx(2.0)
    idle, now[0] = [2.4, 2.4, 1.4], 102.4
    assert meter.newest() == pytest.approx(2.0)
    idle, now[0] = [2.6, 4.0, 1.0], 104.0
    assert meter.newest() == pytest.approx(0.8)
    waiting[0], now[0] = 1.0, 106.0
    assert meter.newest() == pytest.approx(1.0)
