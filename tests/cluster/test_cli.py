"""Commands: exit statuses, where words go, and that bad input starts nothing."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from qfleet_processes import set_flags
from qfleet_serial import SMALL

from cluster.api import prepare
from cluster.cli import make_parser, run
from cluster.settings.load_config import load_config, preset_paths

SMALL_FLAGS = set_flags(SMALL)


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["train", "nowhere.yaml"], ["nowhere.yaml: no such file", "cartpole"]),
        (["train", "CartPole-v1", "--set", "learner.batchsize=3"], ["did you mean learner.batch_size?"]),
        (["train", "CartPole-v1", "--seed", "-1"], ["run.seed is -1"]),
        (["train", "CartPole-v1", "--set", "pacing.learning_starts=1"], ["pacing.learning_starts is 1"]),
        (["train", "CartPool-v1"], ["CartPool-v1", "CartPole-v1"]),
        (["train", "Pendulum-v1"], ["continuous actions", "env.discretize"]),
        (["train", "no_such_module:make"], ["no_such_module"]),
        (["train", "qfleet_test_envs:NoSuchThing"], ["NoSuchThing"]),
        (["train", "FrozenLake-v1", "--set", "learner.network=mlp"], ["learner.network is mlp", "table"]),
        (["check-env", "Pendulum-v1"], ["env.discretize"]),
        (["presets", "nosuch"], ["no preset nosuch", "cartpole"]),
    ],
)
def test_bad_input_is_2_on_stderr_and_starts_nothing(
    arguments: list[str],
    facts: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    children = set(psutil.Process().children(recursive=True))
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("qfleet: ")
    assert "Traceback" not in captured.err
    for fact in facts:
        assert fact in captured.err
    assert set(psutil.Process().children(recursive=True)) == children
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["trian"], ["train", "--runtime", "laptop"], ["eval"]])
def test_bad_arguments_are_2_on_stderr(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        run(arguments)
    assert raised.value.code == 2
    captured = capsys.readouterr()
    assert "usage: qfleet" in captured.err
    assert captured.out == ""


def test_every_command_has_examples_that_it_understands(capsys: pytest.CaptureFixture[str]) -> None:
    parser = make_parser()
    with pytest.raises(SystemExit):
        run(["--help"])
    commands = re.findall(r"^    ([a-z-]+)(?: |$)", capsys.readouterr().out, re.MULTILINE)
    assert len(commands) >= 10
    for command in commands:
        with pytest.raises(SystemExit):
            run([command, "--help"])
        examples = re.findall(r"^  qfleet (.+)$", capsys.readouterr().out, re.MULTILINE)
        assert examples, command
        for example in examples:
            parser.parse_args(shlex.split(example))


def test_whole_numbers_are_taken_as_people_write_them() -> None:
    options = make_parser().parse_args(["eval", "runs/a", "--episodes", "10k", "--seed", "1e6"])
    assert (options.episodes, options.seed) == (10_000, 1_000_000)
    # Not through a float, which would round it.
    options = make_parser().parse_args(["train", "--seed", "9007199254740993"])
    assert options.seed == 9_007_199_254_740_993


def test_ray_and_torch_are_not_even_loaded_for_bad_input(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from cluster.cli import run\n"
        "status = run(['train', 'Pendulum-v1'])\n"
        "loaded = {'ray', 'torch'} & set(sys.modules)\n"
        "sys.exit(f'{status} {sorted(loaded)}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.stderr.splitlines()[-1] == "2 []"


def test_a_second_run_in_the_same_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "CartPole-v1", *SMALL_FLAGS, "--set", "stop.updates=8"]
    arguments += ["--run-dir", str(tmp_path / "run")]
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert f"qfleet eval {tmp_path / 'run'}" in out
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert "already holds a run" in captured.err
    assert "--run-dir" in captured.err
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


def test_a_folder_with_something_else_in_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert run(["train", "CartPole-v1", "--runtime", "serial", "--run-dir", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_flags_win_over_set_and_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("run: {seed: 1, runtime: local}\n")
    arguments = ["train", str(config), *SMALL_FLAGS, "--set", "stop.updates=8", "--set", "run.runtime=local"]
    arguments += ["--runtime", "serial", "--seed", "3", "--run-dir", str(tmp_path / "run")]
    assert run(arguments) == 0
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "runtime: serial" in saved
    assert "seed: 3" in saved
    assert "on the serial runtime" in capsys.readouterr().out


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Acrobot-v1", "FrozenLake-v1"])
def test_no_line_of_a_whole_run_is_long_and_nothing_follows_its_end(
    env_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    given = set_flags(("stop.updates=100", "evaluation.episodes=1", "evaluation.every_updates=50"))
    more = set_flags(("pacing.learning_starts=512", "learner.hidden_sizes=[8]", "metrics.every_seconds=0.1"))
    assert run(["train", env_id, "--runtime", "serial", "--run-dir", "my run", *given, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 120
    (end,) = [index for index, line in enumerate(lines) if "| end: " in line]
    assert lines[end].endswith("end: stop.updates = 100 reached")
    following, command = lines[end + 1 :]
    assert following.endswith("evaluate it:")
    assert command == "  qfleet eval 'my run' --episodes 100"


def test_a_run_that_never_learned_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "CartPole-v1", *SMALL_FLAGS, "--run-dir", str(tmp_path / "run")]
    wanted = set_flags(("stop.seconds=0.001", "stop.updates=null", "pacing.learning_starts=9000"))
    assert run([*arguments, *wanted]) == 0
    said = capsys.readouterr().out
    assert "warning: this run has learned nothing: it ended before its first update" in said
    assert "qfleet eval" not in said


def test_without_a_folder_the_run_lands_below_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["train", "qfleet_test_envs:Corridor", *SMALL_FLAGS, "--set", "stop.updates=8"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("qfleet-test-envs-corridor-")


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(preset_paths())
    assert run(["presets", "cartpole"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(preset_paths()["cartpole"].read_text())
    assert "#   num_shards: 1" in shown


def test_a_taken_metrics_port_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["train", "CartPole-v1", *SMALL_FLAGS, "--set", f"metrics.port={port}"]
        assert run([*arguments, "--run-dir", str(tmp_path / "run")]) == 2
    assert f"metrics.port {port}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_an_empty_ray_address_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")
    assert prepare(load_config(None, [])).config.run.runtime == "local"
    assert run(["plan", "CartPole-v1", "--set", "run.runtime=cluster"]) == 0
    assert run(["train", "--runtime", "cluster", "--run-dir", str(tmp_path / "run")]) == 2
    assert "RAY_ADDRESS is not set" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("address", "cure"),
    [
        ("ray://head:10001", "an address for Ray clients"),
        ("local", "names no cluster: unset it"),
        ("http://head:8265", "use ray job submit"),
    ],
)
def test_addresses_that_name_no_cluster_get_a_sentence_of_their_own(
    address: str,
    cure: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert run(["train", "CartPole-v1", "--run-dir", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert f"qfleet: RAY_ADDRESS is {address}: " in said
    assert cure in said
    assert not (tmp_path / "run").exists()
