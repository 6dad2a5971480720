"""The files of Prometheus and Grafana: promtool accepts them, rules fire, the dashboard is complete."""

from __future__ import annotations

import itertools
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from deployed_files import (
    DEPLOY,
    PROMETHEUS,
    dashboards,
    installed,
    metrics_named,
    panel_expressions,
    rules,
)

from cluster.record.scrape_targets import targets_folder

PANELS = [(name, panel) for name, dashboard in dashboards().items() for panel in dashboard["panels"]]


def accepted(*arguments: str | Path) -> None:
    command = [installed("promtool"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_configuration_and_its_rules() -> None:
    accepted("check", "config", PROMETHEUS / "prometheus.yml")
    accepted("check", "rules", *sorted((PROMETHEUS / "rules").iterdir()))


def test_rules_pass_their_unit_tests() -> None:
    accepted("test", "rules", *sorted((PROMETHEUS / "tests").iterdir()))


def test_every_alert_is_seen_to_fire_and_to_stay_silent() -> None:
    alerts = {rule["alert"]: rule for rule in rules() if "alert" in rule}
    (file,) = (PROMETHEUS / "tests").iterdir()
    cases = [
        case for test in yaml.safe_load(file.read_text())["tests"] for case in test.get("alert_rule_test", ())
    ]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == set(alerts)
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == set(alerts)
    for name, rule in alerts.items():
        assert rule["labels"]["severity"] in ("warning", "critical"), name
        assert {"summary", "cure"} <= set(rule["annotations"]), name


def test_every_panel_asks_what_prometheus_understands(tmp_path: Path) -> None:
    expressions = [expression for _, expression in panel_expressions()]
    assert not [expression for expression in expressions if "$" in expression]
    asked = [{"record": f"panel:{number}:asked", "expr": text} for number, text in enumerate(expressions)]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    accepted("check", "rules", file)


def test_panels_stand_in_the_order_of_the_questions() -> None:
    (dashboard,) = dashboards().values()
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == [
        "Is it learning?",
        "Where does time go?",
        "Is the data fresh?",
        "Is anything dying?",
    ]
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "env", "run"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for place in places:
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
    for a, b in itertools.combinations(places, 2):
        apart = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        assert apart or a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"], (a, b)


@pytest.mark.parametrize(("name", "panel"), PANELS, ids=[panel["title"] for _, panel in PANELS])
def test_every_panel_is_whole(name: str, panel: dict[str, Any]) -> None:
    if panel["type"] == "row":
        return
    assert panel["type"] in ("timeseries", "stat", "heatmap")
    assert panel["title"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert len(references) == len(set(references))
    for target in panel["targets"]:
        assert "$run" in target["expr"]
        assert target["legendFormat"]
        assert target["datasource"] == panel["datasource"]


def test_what_is_recorded_is_used() -> None:
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    texts = " ".join(
        [expression for _, expression in panel_expressions()] + [rule["expr"] for rule in rules()]
    )
    assert not {name for name in recorded if name not in texts}
    # A name with a colon is a rule's, and there must be one that makes it.
    assert {name for name in metrics_named() if ":" in name} == recorded


def test_compose_mounts_what_is_there_and_listens_on_loopback_only() -> None:
    file = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())
    services = file["services"]
    for service in services.values():
        assert service["network_mode"] == "host"
        assert ":" in service["image"]
        assert not service["image"].endswith(":latest")
        for volume in service["volumes"]:
            source = volume["source"] if isinstance(volume, dict) else volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), source
            elif not source.startswith(("/", "$")):
                assert source in file["volumes"]
    assert "--web.listen-address=127.0.0.1:9090" in services["prometheus"]["command"]
    assert services["grafana"]["environment"]["GF_SERVER_HTTP_ADDR"] == "127.0.0.1"


def test_compose_reads_targets_where_runs_write_them(monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["prometheus"][
        "volumes"
    ]
    (targets,) = [volume for volume in volumes if isinstance(volume, dict)]
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    source = targets["source"].replace("${XDG_STATE_HOME:-${HOME}/.local/state}", "/state")
    assert source == str(targets_folder())
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    files = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in config["scrape_configs"]}
    # Relative to the configuration, which is mounted beside them.
    assert files["qfleet"] == [f"{Path(targets['target']).name}/*.json"]
    assert files["ray"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def test_grafana_is_provisioned_with_the_dashboard_and_its_source() -> None:
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://127.0.0.1:9090"
    interval = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
    (provider,) = yaml.safe_load((provisioning / "dashboards/qfleet.yml").read_text())["providers"]
    mounted = yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounted
