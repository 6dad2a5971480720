"""The metrics of a run as a table, with pandas and without."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cluster.report.table import load_metrics
from cluster.settings.config import ConfigError

RECORDED = Path(__file__).resolve().parents[2] / "data" / "run_6afb764"
LINES = (
    {
        "env_steps_total": 10,
        "loss": 0.5,
        "role_seconds_total": {"actor": {"act": 1.5, "env": 2}},
        "sample_age_transitions": {"counts": [1, 0], "sum": 3.0},
        "warnings": [{"name": "stale_data"}],
        "verdict": {"stage": "actor", "text": "slow"},
    },
    {"env_steps_total": 20, "shard_bytes": {"0": 7}},
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text("env: {id: CartPole-v1}\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return tmp_path


COLUMNS = {
    "env_steps_total": [10, 20],
    "loss": [0.5, None],
    "role_seconds_total.actor.act": [1.5, None],
    "role_seconds_total.actor.env": [2, None],
    "verdict.stage": ["actor", None],
    "verdict.text": ["slow", None],
    "shard_bytes.0": [None, 7],
}


def test_without_pandas_it_is_a_dict_of_columns(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert load_metrics(str(run)) == COLUMNS


def test_with_pandas_it_is_a_data_frame_of_numbers(run: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = load_metrics(run)
    assert isinstance(table, pandas.DataFrame)
    assert list(table) == list(COLUMNS)
    assert table["loss"].dtype == table["shard_bytes.0"].dtype == "float64"
    assert table["loss"].isna().tolist() == [False, True]
    assert table["env_steps_total"].tolist() == [10, 20]


def test_a_run_of_an_older_version_has_todays_names() -> None:
    table = load_metrics(RECORDED)
    assert "unacknowledged_transitions" in table  # renamed since


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory"):
        load_metrics(tmp_path)
