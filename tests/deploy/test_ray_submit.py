"""`ray up`, `ray submit` and `ray down` with deploy/ray-cluster.yaml, through an ssh server on loopback."""

from __future__ import annotations

import getpass
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from qfleet_ray_head import RAY, ROOT, free_ports, wait_for
from qfleet_sshd import SshHost, what_is_missing

from learner.weights import load_weights

pytestmark = pytest.mark.slow


@pytest.fixture
def ssh_host() -> Iterator[SshHost]:
    reason = what_is_missing()
    if reason is not None:
        pytest.skip(reason)
    (port,) = free_ports(1)
    with closing(SshHost(port, str(RAY.parent))) as host:
        wait_for(lambda: answers(port), f"sshd: {host.log()}", 20)
        yield host


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def cluster_file(host: SshHost) -> Path:
    """deploy/ray-cluster.yaml with the blanks filled in: one machine, ports, and what is installed on it."""
    config = yaml.safe_load((ROOT / "deploy" / "ray-cluster.yaml").read_text())
    gcs, dashboard, agent, agent_grpc, metrics, client = map(str, free_ports(6))
    config["provider"].update(head_ip="127.0.0.1", worker_ips=[])
    config["auth"] = {"ssh_user": getpass.getuser(), "ssh_private_key": str(host.key)}
    config["min_workers"] = config["max_workers"] = 0
    # The programs are here already; everything else is as it stands in the file.
    config["setup_commands"] = []
    (start,) = [line for line in config["head_start_ray_commands"] if "ray start" in line]
    own = (
        f"--num-cpus=4 --dashboard-port={dashboard} --dashboard-agent-listen-port={agent} "
        f"--dashboard-agent-grpc-port={agent_grpc} --metrics-export-port={metrics} "
        f"--ray-client-server-port={client} --temp-dir={host.folder / 'ray'} --object-store-memory=200000000"
    )
    start = start.replace("--port=6379", f"--port={gcs} --node-ip-address=127.0.0.1 {own}")
    config["head_start_ray_commands"] = ["ray stop", start]
    path = host.folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def test_ray_submit_solves_cartpole(ssh_host: SshHost) -> None:
    def ray(*command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [RAY, *command], cwd=ROOT, env=ssh_host.env, capture_output=True, text=True, timeout=200
        )

    assert ray("get-auth-token", "--generate").returncode == 0
    token = ssh_host.home / ".ray" / "auth_token"
    assert token.is_file()
    config = str(cluster_file(ssh_host))
    up = ray("up", "--yes", "--no-config-cache", config)
    assert up.returncode == 0, up.stdout[-3000:] + up.stderr[-3000:]
    run_dir = ssh_host.folder / "run"
    arguments = ["train", "configs/cartpole.yaml", "--run-dir", str(run_dir)]
    submitted = ray("submit", "--no-config-cache", config, "deploy/on_head.py", *arguments)
    said = submitted.stdout
    assert submitted.returncode == 0, said[-3000:] + submitted.stderr[-3000:]
    assert "CartPole-v1 on the cluster runtime" in said
    assert "the target return 490 was reached and confirmed" in said
    assert float(load_weights(run_dir / "weights" / "best.safetensors")[1]["return_mean"]) >= 490
    # The exit status of the run is that of the command.
    wrong = ray("submit", "--no-config-cache", config, "deploy/on_head.py", "train", "nowhere.yaml")
    assert wrong.returncode != 0
    assert "nowhere.yaml: no such file" in wrong.stdout + wrong.stderr
    down = ray("down", "--yes", config)
    assert down.returncode == 0, down.stdout[-2000:] + down.stderr[-2000:]
