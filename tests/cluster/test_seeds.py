"""`qfleet train --seeds`: a group of runs, its share of the machine, its end, its death and its resumption.

Tests cluster/record/seed_group.py and cluster/report/seed_summary.py, too.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from qfleet_processes import import_path, is_alive, set_flags
from qfleet_serial import SMALL, train_serial

from cluster import seeds
from cluster.cli import run
from cluster.record.events import read_events
from cluster.record.seed_group import read_group
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_config
from learner.weights import load_weights

SHORT = (*SMALL, "stop.updates=40", "evaluation.every_updates=40")


def weights(run_dir: Path) -> bytes:
    flat, _ = load_weights(run_dir / "weights" / "latest.safetensors")
    return flat.tobytes()


def test_each_seed_runs_as_it_would_alone_and_they_are_summarized(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seeds, "_MIN_GAP_SECONDS", 1e6)  # only the runs' ends go on with the command
    group = tmp_path / "group"
    arguments = ["train", "CartPole-v1", *set_flags(SHORT), "--run-dir", str(group)]
    assert run([*arguments, "--seeds", "4", "2", "--parallel", "2"]) == 0
    said = capsys.readouterr().out
    assert "seed 4 ended: stop.updates = 40 reached" in said
    assert "best return over 2 seeds: IQM" in said
    assert read_group(group).seeds == (4, 2)
    summary = json.loads((group / "summary.json").read_text())
    assert [result["seed"] for result in summary["results"]] == [4, 2]
    best = [result["best_return_mean"] for result in summary["results"]]
    assert summary["best_return"]["iqm"] == pytest.approx(sum(best) / 2)
    assert "seed-4" in (group / "report.html").read_text()
    train_serial(tmp_path / "alone", [*SHORT, "env.id=CartPole-v1", "run.preset=cartpole", "run.seed=2"])
    assert weights(group / "seed-2") == weights(tmp_path / "alone")
    assert weights(group / "seed-2") != weights(group / "seed-4")

    # What has ended stays as it is; a further seed is added; the settings are those of the first command.
    assert run([*arguments, "--seeds", "2"]) == 2
    assert "--resume" in capsys.readouterr().err
    before = (group / "seed-4" / "metrics.jsonl").read_bytes()
    assert run(["train", "--run-dir", str(group), "--resume", "--seeds", "7"]) == 0
    said = capsys.readouterr().out
    assert "seed 4: this run has already ended: stop.updates = 40 reached" in said
    assert "seed 7 ended: stop.updates = 40 reached" in said
    assert "best return over 3 seeds" in said
    assert (group / "seed-4" / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_seed_that_fails_is_named_and_does_not_keep_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "group").mkdir()
    (tmp_path / "group" / "group.json").write_text('{"seeds": [0]}')
    broken = tmp_path / "group" / "seed-0"
    broken.mkdir()
    (broken / "thesis.tex").write_text("years of work")
    arguments = ["train", "CartPole-v1", *set_flags(SHORT), "--run-dir", str(tmp_path / "group")]
    assert run([*arguments, "--seeds", "0", "1", "--resume", "auto"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "seed 0 failed with exit status 2" in said
    assert "exists and is not empty" in said
    assert "seed 1 ended: stop.updates = 40 reached" in said
    assert "without a best version: seed 0" in said


@pytest.mark.parametrize(
    ("arguments", "fact"),
    [
        (["--seeds", "0", "0"], "names 0 twice"),
        (["--seeds", "-1"], "a seed is 0 or more"),
        (["--seeds", "0", "--seed", "1"], "--seed is 1"),
        (["--seeds", "0", "--parallel", "0"], "--parallel is 0"),
        (["--parallel", "2"], "name them with --seeds"),
        (
            ["--seeds", "0", "1", "--parallel", "2", "--metrics-addr", "127.0.0.1:9401"],
            "metrics.port is 9401",
        ),
        (["--seeds", "0", "--set", "learner.batchsize=3"], "did you mean learner.batch_size?"),
        (["--seeds", "0", "1", "--parallel", "100000"], "with --parallel 100000, each run gets that share"),
    ],
)
def test_bad_input_starts_nothing(
    arguments: list[str], fact: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", "CartPole-v1", "--run-dir", str(tmp_path / "group"), *arguments]) == 2
    assert fact in capsys.readouterr().err
    assert not (tmp_path / "group").exists()


def test_runs_at_a_time_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10, 18)))
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: given.append(set(cores)))
    monkeypatch.setattr(seeds, "available_cores", lambda: 8)
    with seeds._share(1, parallel=3):
        pass
    assert given == [{12, 13}, set(range(10, 18))]
    given.clear()
    for parallel in (1, 5):  # a single core each is no share
        with seeds._share(0, parallel):
            pass
    assert given == []


def test_a_system_without_descriptors_of_processes_is_asked_for_their_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.delattr(os, "pipe2")
    # In place of runs, which would take seconds.
    monkeypatch.setattr(seeds, "_CODE", "import sys, time; time.sleep(0.3); sys.exit(int(sys.argv[6]))")
    said: list[str] = []
    began = time.monotonic()
    config = load_config("CartPole-v1", [*SMALL, "run.runtime=serial"])
    ended = seeds.train_seeds(config, tmp_path / "group", [0, 3], parallel=2, say=said.append)
    assert ended.failed == (3,)
    assert "seed 0 ended: before it had begun" in said
    assert "seed 3 failed with exit status 3" in "\n".join(said)
    assert time.monotonic() - began < seeds._MIN_GAP_SECONDS


MINE = """
import os
import sys

import gymnasium

with open(os.environ["TOLD"], "a") as file:
    print(os.getpid(), os.getppid(), sys.argv[1:2], os.environ.get("OMP_NUM_THREADS"), file=file)


def make():
    return gymnasium.make("CartPole-v1")
"""


def test_local_runs_are_forked_and_import_the_users_environment_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "rollout.py").write_text("raise RuntimeError('not ours')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(seeds, "_start", lambda *_: pytest.fail("it has an interpreter of its own"))
    arguments = ["train", "./mine.py:make", *set_flags(SHORT), "--runtime", "local", "--run-dir", "group"]
    assert run([*arguments, "--seeds", "0", "1"]) == 0, (tmp_path / "group" / "seed-0.txt").read_text()
    said = capsys.readouterr().out
    assert "best return over 2 seeds" in said
    lines = dict.fromkeys((tmp_path / "told").read_text().splitlines())  # a process may import it twice
    told = [line.split(maxsplit=2) for line in lines]
    runs = [pid for pid, parent, facts in told if (parent, facts) == (str(os.getpid()), "['train'] 2")]
    assert len(runs) == 2
    # An actor and an evaluator each.
    roles = [facts for pid, _, facts in told if facts.startswith("[] ") and pid != str(os.getpid())]
    assert roles == ["[] 1"] * 4


class Command:
    """A `qfleet train --seeds` that a test signals; whatever it leaves is ended with the test."""

    def __init__(self, group: Path, runtime: str) -> None:
        self.group = group
        endless = (
            *SMALL,
            f"run.runtime={runtime}",
            "stop.updates=null",
            "stop.target_return=null",
            "metrics.every_seconds=0.1",
        )
        arguments = ["train", "CartPole-v1", *set_flags(endless), "--run-dir", str(group)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cluster.main", *arguments, "--seeds", "0", "1", "2", "--parallel", "2"],
            env={**os.environ, "PYTHONPATH": import_path()},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.until(lambda: all(self.has_learned(seed) for seed in (0, 1)))
        self.runs = psutil.Process(self.process.pid).children(recursive=True)

    def has_learned(self, seed: int) -> bool:
        """Whether the run of a seed has recorded an update."""
        file = self.group / f"seed-{seed}" / "metrics.jsonl"
        whole = file.read_text().rpartition("\n")[0].splitlines() if file.is_file() else []
        return bool(whole) and json.loads(whole[-1])["updates_total"] > 0

    def until(self, fact: Callable[[], bool]) -> None:
        """Waits until `fact` holds."""
        deadline = time.monotonic() + 90.0
        while not fact():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["serial", "local"])
def test_a_signal_reaches_all_runs_and_the_group_goes_on(tmp_path: Path, runtime: str) -> None:
    command = Command(tmp_path / "group", runtime)
    command.process.send_signal(signal.SIGTERM)
    said, _ = command.process.communicate(timeout=90)
    assert command.process.returncode == 143, said
    assert "SIGTERM: the runs save and stop" in said
    assert "seed 1 ended: stopped by SIGTERM" in said
    assert "has not begun" in said
    assert f"qfleet train --run-dir {tmp_path / 'group'} --resume" in said
    assert not any(map(is_alive, command.runs))
    done = [int(json.loads(line)["updates_total"]) for line in last_lines(command.group)]
    arguments = ["train", "--run-dir", str(command.group), "--resume", "--parallel", "2"]
    assert run([*arguments, "--set", f"stop.updates={max(done) + 8}"]) == 0
    assert [json.loads(line)["updates_total"] for line in last_lines(command.group)] == [max(done) + 8] * 3


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["serial", "local"])
def test_runs_save_and_stop_when_their_command_is_killed(
    tmp_path: Path, runtime: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Command(tmp_path / "group", runtime)
    command.process.kill()
    command.process.wait()
    # At once: it waits until the runs have let go of the group.
    arguments = ["train", "--run-dir", str(command.group), "--resume", "--seeds", "0"]
    assert run([*arguments, "--set", "stop.updates=8", "--set", "metrics.every_seconds=60"]) == 0
    assert not any(map(is_alive, command.runs))
    for seed in (0, 1):
        texts = [event.text for event in read_events(command.group / f"seed-{seed}")]
        assert "stopped by SIGTERM" in texts
    assert "best return over" in capsys.readouterr().out


def last_lines(group: Path) -> list[str]:
    """The newest line of metrics of each seed."""
    return [path.read_text().splitlines()[-1] for path in sorted(group.glob("seed-*/metrics.jsonl"))]


def test_a_group_whose_runs_do_not_let_go_is_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.record.run_lock import RunLock

    monkeypatch.setattr(seeds, "_LET_GO_SECONDS", 0.2)
    holder = RunLock(tmp_path)
    (tmp_path / "group.json").write_text('{"seeds": [0]}')
    said: list[str] = []
    with pytest.raises(ConfigError, match="another process is running in it"):
        seeds.train_seeds(load_config("CartPole-v1"), tmp_path, [0], resume="must", say=said.append)
    assert len(said) == 1
    holder.close()
