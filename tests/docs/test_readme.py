"""The README's commands, each as it stands there, but those whose block says why not."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest
from qfleet_documents import blocks
from qfleet_installed import ROOT, SECONDS, Installed, environment, install, tracked_copy

BLOCKS = blocks(ROOT / "README.md")


def commands() -> list[str]:
    """The README's commands that run here."""
    shown = [block for block in BLOCKS if block.language == "sh" and block.runs]
    return [command for block in shown for command in block.commands()]


def test_every_command_is_known() -> None:
    assert {command.split()[0] for command in commands()} == {"pip", "qfleet", "curl"}
    assert len(commands()) >= 20
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    shown = {command for block in BLOCKS for command in block.commands()}
    made = {command for command in shown if command.startswith("make ")}
    assert made == {"make train", "make test", "make install"}
    assert all(command in ci for command in made)


def test_every_way_to_install_works_from_the_checkout(tmp_path: Path) -> None:
    source, bin_folder = tracked_copy(tmp_path / "source"), environment(tmp_path / "env")
    # Everything but qfleet is there, so that nothing is fetched.
    env = {"PATH": f"{bin_folder}:/usr/bin:/bin", "PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0"}
    for command in [command for command in commands() if command.startswith("pip ")]:
        ran = subprocess.run(
            ["sh", "-c", command], cwd=source, env=env, capture_output=True, text=True, timeout=SECONDS
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        assert "does not provide the extra" not in ran.stderr
        ran = subprocess.run(["qfleet", "presets"], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert "cartpole" in ran.stdout, ran.stderr


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a user's with the environment and the runs that the README names."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "my_package").mkdir()
    (folder / "my_package" / "my_module.py").write_text(
        "import gymnasium\n\n\ndef make_env():\n    return gymnasium.make('FrozenLake-v1')\n"
    )
    (folder / "my_settings.yaml").write_bytes((ROOT / "configs" / "cartpole.yaml").read_bytes())
    return folder


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install(tmp_path_factory.mktemp("installed"))


class Command:
    """A command that runs in the project; its output goes to a file."""

    def __init__(self, installed: Installed, project: Path, command: str) -> None:
        first, *rest = shlex.split(command)
        self._command = command
        self._said = Path(tempfile.mkstemp(dir=project, prefix="said-")[1])
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                [installed.bin / first if first == "qfleet" else first, *rest],
                cwd=project,
                env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def until(self, words: str) -> re.Match[str]:
        """Waits until the output matches; the command must still run then, or have ended well."""
        deadline = time.monotonic() + SECONDS
        while (found := re.search(words, self._said.read_text())) is None:
            assert self._process.poll() in (None, 0), self._told()
            assert time.monotonic() < deadline, f"waited in vain for {words!r}: {self._told()}"
            time.sleep(0.1)
        return found

    def stop(self) -> None:
        """Stops it by SIGINT, as a user would."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        assert self._process.wait(SECONDS) in (0, 130), self._told()

    def end(self) -> str:
        """Waits for its end, which must be a good one; returns the output."""
        assert self._process.wait(SECONDS) == 0, self._told()
        return self._said.read_text()

    def _told(self) -> str:
        return f"{self._command}\n{self._said.read_text()}"


@pytest.mark.slow
def test_runs_are_trained_and_looked_at(installed: Installed, project: Path) -> None:
    def start(command: str) -> Command:
        return Command(installed, project, command)

    def run_for_a_while(command: str) -> None:
        running = start(command)
        running.until(r"updates [1-9]" if "--resume" not in command else r"steps [1-9]")
        running.stop()

    run_for_a_while("qfleet train CartPole-v1 --run-dir runs/a --set stop.target_return=null")
    run_for_a_while("qfleet train CartPole-v1 --run-dir runs/b --set stop.target_return=null --seed 2")
    trains = [command for command in commands() if command.startswith("qfleet train ")]
    assert len(trains) >= 6
    for command in trains:
        run_for_a_while(command)
    for command in commands():
        if command.startswith("qfleet ") and command not in trains and "HOST:PORT" not in command:
            assert start(command.replace("RUN_DIR", "runs/b")).end().strip(), command
    assert all((project / path).is_file() for path in ("page.html", "runs/b/policy.onnx", "runs/b/video.gif"))

    followed = start("qfleet train CartPole-v1 --runtime serial --set stop.target_return=null")
    port = followed.until(r"http://127\.0\.0\.1:(\d+)/metrics")[1]
    for command in commands():
        if "PORT" in command:
            looking = start(command.replace("HOST", "127.0.0.1").replace("PORT", port))
            looking.until("updates")
            looking.stop()
    followed.stop()


@pytest.mark.slow
def test_the_python_code_runs(installed: Installed, project: Path) -> None:
    (code,) = [block.text for block in BLOCKS if block.language == "python"]
    shown = code + "import json\nprint(json.dumps([len(returns), len(metrics), str(result.run_dir)]))\n"
    ran = installed.run("python", "-c", shown, cwd=project)
    assert ran.returncode == 0, ran.stderr
    episodes, snapshots, run_dir = json.loads(ran.stdout.splitlines()[-1])
    assert episodes == 20
    assert snapshots >= 1
    assert (project / run_dir / "weights").is_dir()
