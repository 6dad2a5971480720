"""Meters of this process and this machine."""

from __future__ import annotations

import time

from cluster.metrics.usage import MachineMeter, UsageMeter


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
