"""Snapshots as lines of metrics.jsonl, and their metrics in the tests."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import msgspec
import pytest
from qfleet_snapshots import FINDING, FULL, VERDICT

from cluster.metrics.snapshot import Snapshot, known_metrics
from replay_service.histogram import BOUNDS


def test_a_line_of_metrics_is_plain_json() -> None:
    line = json.loads(msgspec.json.encode(known_metrics(FULL)))
    assert line["role_seconds_total"]["role_a"]["phase_b"] == FULL.role_seconds_total["role_a"]["phase_b"]  # type: ignore[index]
    assert line["sample_age_transitions"]["counts"] == list(range(len(BOUNDS) + 1))
    assert line["verdict"] == {"stage": "actor", "text": "actors work 97% of the time"}
    assert line["warnings"][0]["name"] == "stale_data"
    assert set(line) == {item.name for item in dataclasses.fields(Snapshot)}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_is_no_number_is_null_in_a_line(loss: float) -> None:
    assert (
        json.loads(msgspec.json.encode(known_metrics(dataclasses.replace(FULL, loss=loss))))["loss"] is None
    )


def test_verdict_and_findings_in_one_line() -> None:
    assert VERDICT.line == "acting limits the speed: actors work 97% of the time"
    assert FINDING.title == "stale data"
    assert FINDING.text == "stale data: transitions are old. Cause: long chunks. Cure: shorter ones"
    assert dataclasses.replace(FINDING, name="diverging_q").title == "diverging Q"


def test_a_metric_that_is_not_known_yet_is_in_no_line() -> None:
    line = known_metrics(Snapshot())
    assert line["updates_total"] == 0
    assert not {"loss", "epsilon", "best_return_mean", "policy_lag_updates", "verdict"} & set(line)


def test_help_texts_stand_alone() -> None:
    texts = [item.metadata["help"] for item in dataclasses.fields(Snapshot)]
    assert len(set(texts)) == len(texts)
    assert not [
        text for text in texts if re.search(r"^(It|Its|The same|What|Of)\b|\b(those|them|that it)\b", text)
    ]


def names_in(folder: Path, leave_out: Path) -> set[str]:
    """Every identifier in the test files below a folder, also within strings, but for one file."""
    texts = (path.read_text("utf-8") for path in folder.rglob("test_*.py") if path != leave_out)
    return {name.removeprefix("qfleet_") for text in texts for name in re.findall(r"\w+", text)}


def test_every_metric_occurs_in_a_test() -> None:
    tests = Path(__file__).resolve().parents[2]
    metrics = {item.name for item in dataclasses.fields(Snapshot)}
    assert metrics - names_in(tests, leave_out=Path(__file__).resolve()) == set()


def test_a_metric_that_no_test_names_is_found(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text('assert snapshot.loss == query("qfleet_q_mean")')
    (tmp_path / "test_b.py").write_text("assert snapshot.loss_max")
    named = names_in(tmp_path, leave_out=tmp_path / "test_b.py")
    assert {"loss", "q_mean", "loss_max"} - named == {"loss_max"}
