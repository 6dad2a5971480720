"""Contents of the files in deploy/: expressions of panels and rules, and the metrics that they name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

DEPLOY = Path(__file__).resolve().parent.parent.parent.parent / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
METRIC = re.compile(r"\b(?:\w+:)?qfleet_\w+(?::\w+)?")


def installed(program: str) -> str:
    """The program's path; the test is skipped where it is missing."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed (Debian: apt-get install prometheus)")
    return found


def dashboards() -> dict[str, dict[str, Any]]:
    """File name -> dashboard."""
    return {
        file.name: json.loads(file.read_text()) for file in (DEPLOY / "grafana/dashboards").glob("*.json")
    }


def panel_expressions() -> list[tuple[str, str]]:
    """(panel's title, expression) of every target, with Grafana's variables filled in."""
    return [
        (panel["title"], filled_in(target["expr"]))
        for dashboard in dashboards().values()
        for panel in dashboard["panels"]
        for target in panel.get("targets", ())
    ]


def filled_in(expression: str) -> str:
    """The expression that Grafana sends if every run is chosen."""
    return expression.replace("$__rate_interval", "1m").replace("$run", ".*").replace("$env", ".*")


def rules() -> list[dict[str, Any]]:
    """Every recording and alert rule."""
    files = [yaml.safe_load(file.read_text()) for file in (PROMETHEUS / "rules").glob("*.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def metrics_named() -> set[str]:
    """Every metric that a panel, a rule or a variable names."""
    texts = [expression for _, expression in panel_expressions()] + [rule["expr"] for rule in rules()]
    for dashboard in dashboards().values():
        texts += [variable.get("definition", "") for variable in dashboard["templating"]["list"]]
    return {metric for text in texts for metric in METRIC.findall(text)}
