"""The convolutional parts on MinAtar Breakout: what is switched on, and what the table says."""

from __future__ import annotations

import sys
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.minatar import Run, Score  # noqa: E402
from benchmarks.minatar_parts import PARTS, main  # noqa: E402
from benchmarks.recorded_runs import write_runs  # noqa: E402
from cluster.settings.load_config import PRESETS, load_config  # noqa: E402


@pytest.mark.parametrize(
    ("part", "changed"),
    [
        ("pooling", {"pool_size"}),
        ("impala", {"network"}),
        ("impala-spectral-norm", {"network", "spectral_norm"}),
        ("impala-twice-as-wide", {"network", "impala_width"}),
    ],
)
def test_a_part_changes_nothing_else(part: str, changed: set[str]) -> None:
    plain, with_part = (
        load_config(PRESETS / "minatar.yaml", overrides).learner for overrides in ((), PARTS[part])
    )
    names = {field.name for field in fields(plain)}
    assert {name for name in names if getattr(plain, name) != getattr(with_part, name)} == changed


def test_parts_that_were_played_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run("pooling", 0, 300.0, (Score(500_000, 8.04, None), Score(1_000_000, 12.0, 13.5)))
    write_runs(tmp_path / "parts.json", [run])
    main(["pooling", "--data", str(tmp_path / "parts.json")])
    assert capsys.readouterr().out.splitlines()[1:] == [
        "| part | frames | seeds | training return | greedy return | paper's DQN, 5M frames |",
        "|---|---|---|---|---|---|",
        "| pooling | 0.5M | 1 | 8.0 |  | 10 |",
        "| pooling | 1M | 1 | 12.0 | 13.5 | 10 |",
    ]


def test_an_unknown_part_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["dropout", "--data", str(tmp_path / "parts.json")])
    assert "no part dropout; there are: pooling, impala," in capsys.readouterr().err
