"""Segments small enough for tests."""

from __future__ import annotations

import pytest

from replay_service.journal import writer


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments of a few blocks each."""
    monkeypatch.setattr(writer, "SEGMENT_BYTES", 4_000)
