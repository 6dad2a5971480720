"""The GPU's benchmark runs from its first line to its last, with the processor in place of a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import gpu  # noqa: E402


def test_all_parts_print_their_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "BATCHES", (2,))
    monkeypatch.setattr(gpu, "ACTING_BATCHES", (2, 3))
    monkeypatch.setattr(gpu, "TURNS", 1)
    monkeypatch.setattr(gpu, "COMPARED_UPDATES", 2)
    monkeypatch.setattr(gpu, "WAYS", {way: gpu.WAYS[way] for way in ("eager", "recorded")})
    gpu.main(["--device", "cpu", "--seconds", "0.01"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("no GPU: the processor stands for it; torch ")
    found = [line.split() for line in lines if line.startswith(gpu.NETWORKS)]
    assert [words[0] for words in found] == [*gpu.NETWORKS] * 3
    assert all(float(cell) > 0 for words in found[:2] for cell in words[3:])
    assert all(float(cell.replace(",", "")) > 0 for words in found[2:4] for cell in words[1:])
    assert [(words[1], float(words[2])) for words in found[4:]] == [("recorded", 0.0)] * 2
