"""A run is one program: the same folder on one machine, the same sources on all."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import learner
from cluster.engines.own_code import OWN_ROOT, PACKAGES
from cluster.engines.process_info import (
    another_checkout,
    code_digest,
    is_alive,
    process_info,
    require_same_code,
    start_ticks,
)


def test_all_packages_come_from_one_root() -> None:
    assert process_info().root == str(Path(learner.__file__).resolve().parent.parent)


def test_a_shadowed_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(learner, "__file__", str(tmp_path / "learner" / "__init__.py"))
    with pytest.raises(ImportError, match="rename") as raised:
        process_info()
    assert str(tmp_path) in str(raised.value)


def test_the_same_program_is_let_in() -> None:
    own = process_info()
    require_same_code(own)
    require_same_code(replace(own, host="elsewhere", root="/another/folder"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"root": "/another/folder"}, "/another/folder"),
        ({"host": "elsewhere", "code": "0"}, "elsewhere runs other code"),
    ],
)
def test_another_program_is_named(change: dict[str, str], words: str) -> None:
    with pytest.raises(ImportError, match=words):
        require_same_code(replace(process_info(), **change))


def test_the_digest_sees_content_names_and_folders(tmp_path: Path) -> None:
    def digest(files: dict[str, str]) -> str:
        root = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
        return code_digest(str(root))

    first = digest({"cluster/a.py": "1", "learner/b.py": "2"})
    assert digest({"learner/b.py": "2", "cluster/a.py": "1", "runs/c.py": "3", "cluster/d.txt": "4"}) == first
    for other in (
        {"cluster/a.py": "1", "learner/b.py": "3"},
        {"cluster/a.py": "1", "learner/c.py": "2"},
        {"cluster/a.py": "1", "actors/b.py": "2"},
        {"cluster/a.py": "1"},
    ):
        assert digest(other) != first


def test_a_checkout_of_other_code_is_found_from_within(tmp_path: Path) -> None:
    for name in PACKAGES:
        shutil.copytree(
            OWN_ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    within = tmp_path / "checkout" / "runs"
    assert another_checkout(within) is None  # its code is that of this process
    code_digest.cache_clear()
    (tmp_path / "checkout" / "learner" / "core.py").write_text("")
    assert another_checkout(within) == tmp_path / "checkout"
    assert another_checkout(OWN_ROOT / "runs") is None
    assert another_checkout(tmp_path) is None


def test_a_process_is_alive_whatever_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    started = start_ticks(os.getpid())
    assert is_alive(os.getpid(), started)
    # The system computes this one from the time of its boot, which a clock that is set takes along.
    shown = psutil.Process().create_time()
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: shown + 300.0)
    assert is_alive(os.getpid(), started)
    assert not is_alive(os.getpid(), started + 1)
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        its_start = start_ticks(child.pid)
        assert its_start >= started
    assert not is_alive(child.pid, its_start)
