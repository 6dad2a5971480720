"""qfleet from its wheel, in a folder of a user's with modules of the same names.

Tests qfleet/__main__.py and cluster/settings/presets.py as they are when nothing of the checkout is in reach.
"""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from qfleet_installed import ROOT, Installed
from qfleet_processes import set_flags

import qfleet
from cluster.settings.presets import presets_folder

SMALL = set_flags(
    (
        "stop.env_steps=1500",
        "pacing.learning_starts=200",
        "evaluation.every_updates=100",
        "evaluation.episodes=2",
        "learner.updates_per_chunk=16",
    )
)


def test_the_wheel_holds_the_packages_and_their_data_only(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    code = {
        path.relative_to(ROOT).as_posix()
        for package in ("actors", "cluster", "learner", "qfleet", "replay_service")
        for path in (ROOT / package).rglob("*.py")
    }
    presets = {f"qfleet/presets/{path.name}" for path in (ROOT / "configs").glob("*.yaml")}
    typed = {f"{name.split('/')[0]}/py.typed" for name in code}
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == code | presets | typed | {"cluster/report/report.html.j2"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_sdist_builds_and_holds_no_tests(installed: Installed) -> None:
    with tarfile.open(installed.sdist) as archive:
        tops = {name.split("/")[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "constraints.txt", "configs", "qfleet"} <= tops
    assert not tops & {"tests", "docs", "benchmarks", "deploy", "runs"}


def test_the_installation_is_on_its_own(installed: Installed, foreign: Path) -> None:
    files = "*(sys.modules[name].__file__ for name in ('qfleet', 'learner'))"
    program = f"import qfleet, sys; print({files}, *sys.path)"
    ran = installed.run("python", "-c", program, cwd=foreign)
    own, learner, *searched = ran.stdout.split()
    assert Path(own).is_relative_to(installed.packages), ran.stderr
    assert Path(learner).is_relative_to(installed.packages)
    assert str(ROOT) not in searched


def test_version_and_presets(installed: Installed, foreign: Path) -> None:
    for command in (("qfleet",), ("python", "-m", "qfleet")):
        assert installed.run(*command, "--version", cwd=foreign).stdout == f"qfleet {qfleet.__version__}\n"
    listed = installed.run("qfleet", "presets", cwd=foreign).stdout
    assert [line.split()[0] for line in listed.splitlines()] == sorted(
        path.stem for path in (ROOT / "configs").glob("*.yaml")
    )
    assert presets_folder(installed.packages) == installed.packages / "qfleet" / "presets"
    assert presets_folder() == ROOT / "configs"


def test_an_atari_game_is_checked_with_its_preset(installed: Installed, foreign: Path) -> None:
    checked = installed.run("qfleet", "check-env", "ALE/Pong-v5", cwd=foreign)
    assert checked.returncode == 0, checked.stderr
    assert re.search(r"^preset +atari ", checked.stdout, re.MULTILINE)


@pytest.mark.parametrize("runtime", ["serial", "local"])
def test_a_run_beside_modules_of_the_same_names(installed: Installed, foreign: Path, runtime: str) -> None:
    trained = installed.run(
        *("qfleet", "train", "mine:make", "--runtime", runtime, "--run-dir", "run", *SMALL), cwd=foreign
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    if runtime == "local":
        return
    played = installed.run("qfleet", "eval", "run", "--episodes", "3", "--json", cwd=foreign)
    assert json.loads(played.stdout)["episodes"] == 3, played.stderr
    assert installed.run("qfleet", "report", "run", cwd=foreign).returncode == 0
    assert (foreign / "run" / "report.html").is_file()
    exported = installed.run("qfleet", "export", "run", "--format", "onnx", cwd=foreign)
    assert exported.returncode == 0, exported.stderr
    assert (foreign / "run" / "policy.onnx").is_file()
    program = "import qfleet; print(len(qfleet.load_metrics('run')), qfleet.evaluate('run', 2).weights)"
    assert int(installed.run("python", "-c", program, cwd=foreign).stdout.split()[0]) >= 1


@pytest.mark.parametrize("runtime", ["serial", "local"])
def test_an_environment_that_imports_theirs_late_is_refused(
    installed: Installed, foreign: Path, runtime: str
) -> None:
    failed = installed.run(
        *("qfleet", "train", "mine:late", "--runtime", runtime, "--run-dir", "run"),
        *(*SMALL, *set_flags(["actors.env_restarts=0"])),
        cwd=foreign,
    )
    assert failed.returncode == 1
    said = failed.stdout + failed.stderr
    assert f"{foreign / 'mine.py'} imports `cluster`" in said
    assert f"rename {foreign / 'cluster.py'}" in said
    assert str(installed.packages / "cluster") in said


def test_in_another_checkout_it_says_so_before_anything_starts(installed: Installed, tmp_path: Path) -> None:
    for name in ("actors", "cluster", "learner", "replay_service"):
        (tmp_path / "checkout" / name).mkdir(parents=True)
        (tmp_path / "checkout" / name / "__init__.py").touch()
    within = tmp_path / "checkout" / "runs"
    within.mkdir()
    refused = installed.run("qfleet", "train", "CartPole-v1", cwd=within)
    assert refused.returncode == 2
    assert refused.stdout == ""
    (line,) = refused.stderr.splitlines()
    assert str(installed.packages) in line
    assert f"cd {tmp_path / 'checkout'} && python -m qfleet" in line
    assert list(within.iterdir()) == []
