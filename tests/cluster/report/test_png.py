"""Charts as PNG files."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from qfleet_recorded_runs import synthetic

from cluster.report.charts import charts
from cluster.report.report import write_report
from cluster.report.runs import groups_of, read_run
from cluster.settings.config import ConfigError


def test_each_chart_is_a_png_too(real: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = write_report([real], tmp_path / "page.html", tmp_path / "png")
    assert written[0] == tmp_path / "page.html"
    assert len(written) - 1 == len(charts(groups_of([read_run(real)])))
    for path in written[1:]:
        width, height = struct.unpack(">II", path.read_bytes()[16:24])
        assert (width, height) == (960, 600)
    assert written[1].name == "01-greedy-return.png"


def test_the_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"--png needs matplotlib.*\[report\]"):
        write_report([synthetic(tmp_path / "run")], png=tmp_path / "png")
    assert not (tmp_path / "png").exists()
