"""An installation of qfleet from a wheel, in an environment that sees its dependencies, not the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 150


@dataclass(frozen=True)
class Installed:
    """wheel, sdist: what was built. bin: the folder of the environment's python and qfleet."""

    wheel: Path
    sdist: Path
    bin: Path

    @property
    def packages(self) -> Path:
        """The environment's folder of packages."""
        (found,) = self.bin.parent.glob("lib/python3*/site-packages")
        return found

    def run(self, *command: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of the environment, such as "qfleet" or "python", to its end."""
        return subprocess.run(
            [self.bin / command[0], *command[1:]],
            cwd=cwd,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | env,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )


def _checked(*command: str | Path, cwd: Path) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def tracked_copy(folder: Path) -> Path:
    """A copy of what git tracks, so that nothing is built from files that a checkout merely holds."""
    names = _checked("git", "ls-files", "-z", cwd=ROOT).split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def install(folder: Path) -> Installed:
    """Builds the sdist, the wheel from the sdist, and an environment with the wheel; needs no network."""
    source, dist = tracked_copy(folder / "source"), folder / "dist"
    build = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
    dist.mkdir()
    _checked(sys.executable, "-c", build, dist, cwd=source)
    (sdist,) = dist.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    _checked(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", dist, unpacked, cwd=folder)
    (wheel,) = dist.glob("*.whl")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    installed = Installed(wheel, sdist, folder / "env" / "bin")
    _checked(*pip, "--python", installed.bin / "python", "install", *offline, wheel, cwd=folder)
    # A folder that a .pth file names is searched, but its own .pth files, the editable one, are not read.
    (installed.packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return installed
