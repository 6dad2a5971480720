"""The process of `qfleet`: single-threaded pools before numpy loads, and the user's folder on the path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from cluster.engines.threads import SINGLE_THREADED

ROOT = Path(__file__).resolve().parents[2]


def python(folder: Path, program: str, **env: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name not in SINGLE_THREADED}
    return subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=folder,
        env={**kept, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_thread_counts_are_set_unless_the_user_set_them(tmp_path: Path) -> None:
    program = "import os, cluster.main; print(os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'])"
    assert python(tmp_path, program, MKL_NUM_THREADS="3").stdout == "1 3\n"


def test_a_factory_in_the_users_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import gymnasium\n\ndef make():\n    return gymnasium.make('CartPole-v1')\n"
    )
    program = "import sys; from cluster.main import main; sys.argv[1:] = ['check-env', 'mine:make']; main()"
    checked = python(tmp_path, program)
    assert checked.returncode == 0, checked.stderr
    assert "mine:make" in checked.stdout


def test_a_folder_that_was_removed_is_told_in_a_sentence(tmp_path: Path) -> None:
    program = "import os, cluster.main; os.mkdir('x'); os.chdir('x'); os.rmdir('../x'); cluster.main.main()"
    ended = python(tmp_path, program)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "qfleet: the current folder was removed; change to one that exists\n"
