"""The files of deploy/ against the schemas of the programs that read them, and their promises of security."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KUBERAY = json.loads((Path(__file__).parent / "data" / "kuberay.json").read_text(encoding="utf-8"))
RAY_CLUSTERS = ("ray-cluster.yaml", "ray-cluster-aws.yaml")


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))


def kuberay_errors(document: dict[str, Any]) -> list[str]:
    schema = {"$ref": f"#/$defs/{document['kind']}", "$defs": KUBERAY["$defs"]}
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(document)]


def ray_cluster_spec(name: str) -> dict[str, Any]:
    document = load(name)
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def container_of(group: dict[str, Any]) -> dict[str, Any]:
    (container,) = group["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_ray_accepts_its_cluster_files(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = load(name)
    validate_config(prepare_config(json.loads(json.dumps(config))))
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config({**config, "idle_timeout_minute": 3}))


@pytest.mark.parametrize("name", RAY_CLUSTERS)
def test_every_machine_gets_code_and_token_and_asks_for_it(name: str) -> None:
    config = load(name)
    assert config["file_mounts"]["~/qfleet"] == "."
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    for part in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [line for line in config[part] if "ray start" in line]
        assert "RAY_AUTH_MODE=token ray start" in start or "RAY_AUTH_MODE=token RAY_JOB" in start
    assert any("--dashboard-host=127.0.0.1" in line for line in config["head_start_ray_commands"])


@pytest.mark.parametrize("name", ["kuberay/ray-cluster.yaml", "kuberay/ray-job.yaml"])
def test_kuberay_accepts_its_manifests(name: str) -> None:
    document = load(name)
    assert kuberay_errors(document) == []
    # The schema is strict: a wrong word and a wrong type are seen, deep down as well.
    wrong = json.loads(json.dumps(document))
    spec = wrong["spec"] if wrong["kind"] == "RayCluster" else wrong["spec"]["rayClusterSpec"]
    spec["workerGroupSpecs"][0]["maxReplica"] = 3
    assert any("maxReplica" in error for error in kuberay_errors(wrong))
    del spec["workerGroupSpecs"][0]["maxReplica"]
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["livenessProbe"]["periodSeconds"] = "ten"
    assert any("ten" in error for error in kuberay_errors(wrong))


def test_both_manifests_make_the_same_cluster() -> None:
    assert ray_cluster_spec("kuberay/ray-cluster.yaml") == ray_cluster_spec("kuberay/ray-job.yaml")


def test_the_cluster_of_the_manifests() -> None:
    spec = ray_cluster_spec("kuberay/ray-cluster.yaml")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    head, learner, actors = groups(spec)
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert actors["minReplicas"] < actors["maxReplicas"]
    limits = [
        group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in (learner, actors)
    ]
    assert limits[0]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in limits[1]
    for group in (head, learner, actors):
        pod = group["template"]["spec"]
        container = container_of(group)
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        assert set(container["resources"]) == {"requests", "limits"}
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        claims = [
            each["persistentVolumeClaim"]["claimName"]
            for each in pod["volumes"]
            if "persistentVolumeClaim" in each
        ]
        assert claims == [load("kuberay/runs-volume.yaml")["metadata"]["name"]]
        mounted = {each["mountPath"] for each in container["volumeMounts"]}
        assert mounted == {"/runs", "/dev/shm"}
    annotations = head["template"]["metadata"]["annotations"]
    assert annotations["prometheus.io/scrape"] == "true"
    assert (
        f"--metrics-addr 0.0.0.0:{annotations['prometheus.io/port']}"
        in load("kuberay/ray-job.yaml")["spec"]["entrypoint"]
    )


def test_the_jobs_command_is_one_that_the_program_takes() -> None:
    from cluster.cli import make_parser
    from cluster.settings.config import check
    from cluster.settings.load_config import load_config

    entrypoint = load("kuberay/ray-job.yaml")["spec"]["entrypoint"].split()
    assert entrypoint[:3] == ["python", "-m", "qfleet"]
    options = make_parser().parse_args(entrypoint[3:])
    assert options.run_dir.is_relative_to("/runs")
    assert options.resume == "auto"
    check(load_config(ROOT / options.source, options.set))


def test_stopping_a_job_leaves_time_to_save_and_a_pod_lives_longer() -> None:
    spec = ray_cluster_spec("kuberay/ray-cluster.yaml")
    pod = spec["headGroupSpec"]["template"]["spec"]
    environment = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}
    assert 3 < int(environment["RAY_JOB_STOP_WAIT_TIME_S"]) < pod["terminationGracePeriodSeconds"]
    assert int(load("job-runtime-env.yaml")["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 3


def test_plain_kubernetes_objects() -> None:
    volume, policy = load("kuberay/runs-volume.yaml"), load("kuberay/network-policy.yaml")
    assert (volume["apiVersion"], volume["kind"]) == ("v1", "PersistentVolumeClaim")
    assert set(volume["spec"]) == {"accessModes", "resources"}
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    assert all(set(rule) <= {"from", "ports"} and rule["from"] for rule in policy["spec"]["ingress"])


def test_the_dockerfile_has_no_complaint_from_hadolint() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    linted = subprocess.run([hadolint, DEPLOY / "Dockerfile"], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout, linted.stderr) == (0, "", "")


def test_the_image_holds_code_only_and_belongs_to_no_root() -> None:
    lines = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER 1000:1000"]
    copied = {line.split()[1] for line in lines if line.startswith("COPY") and "--from" not in line}
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied - {"constraints.txt"} <= allowed
    assert {"actors", "cluster", "configs", "learner", "qfleet", "replay_service"} <= copied
    assert all((ROOT / name).exists() for name in allowed)


def test_the_image_takes_its_extras_by_argument_and_reaps_its_children() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    (chosen,) = re.findall(r"^ARG EXTRAS=(.*)$", text, re.MULTILINE)
    assert chosen == "atari,minatar"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    assert {"cluster", *chosen.split(",")} <= extras.keys()
    (installed,) = re.findall(r"--editable (\".+\")", text)
    for value, expected in ((chosen, ".[cluster,atari,minatar]"), ("", ".[cluster]")):
        shown = subprocess.run(
            ["sh", "-c", f"echo {installed}"], env={"EXTRAS": value}, capture_output=True, text=True
        )
        assert shown.stdout == f"{expected}\n"
    assert re.findall(r"^ENTRYPOINT (.*)$", text, re.MULTILINE) == ['["tini", "--", "qfleet"]']
    assert re.search(r"^ +&& apt-get install .* tini=", text, re.MULTILINE)


def test_what_ray_ships_is_the_code_and_little_else(tmp_path: Path) -> None:
    from ray._private.runtime_env.packaging import create_package

    source = tmp_path / "checkout"
    skipped = shutil.ignore_patterns(".venv", ".git", "__pycache__", "runs", ".*cache", ".hypothesis")
    shutil.copytree(ROOT, source, ignore=skipped, ignore_dangling_symlinks=True)
    for bulky in (
        ".venv/lib/torch.so",
        "runs/old/replay/segment",
        ".git/objects/pack",
        "actors/__pycache__/x.pyc",
    ):
        (source / bulky).parent.mkdir(parents=True, exist_ok=True)
        (source / bulky).write_bytes(bytes(5_000_000))
    package = tmp_path / "package.zip"
    create_package(str(source), package, include_gitignore=True)
    names = set(zipfile.ZipFile(package).namelist())
    assert {"cluster/main.py", "configs/apex.yaml", "actors/core.py", "qfleet/__main__.py"} <= names
    tops = {name.split("/")[0] for name in names if "/" in name}
    assert not tops & {".venv", "runs", ".git", "tests", "docs", "benchmarks"}
    assert not [name for name in names if "__pycache__" in name]
    assert package.stat().st_size < 2_000_000
