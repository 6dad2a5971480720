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
        # Python 3.11.2, Debian 12's, has no filters yet.
        archive.extraction_filter = getattr(tarfile, "data_filter", lambda member, path: member)
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index")
    _checked(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", dist, unpacked, cwd=folder)
    (wheel,) = dist.glob("*.whl")
    installed = Installed(wheel, sdist, environment(folder / "env"))
    _checked(installed.bin / "pip", "install", *offline, wheel, cwd=folder)
    return installed


def environment(folder: Path) -> Path:
    """Makes an environment with pip and all that qfleet needs, but not qfleet; returns its bin folder."""
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python3*/site-packages")
    dependencies = folder / "dependencies"
    dependencies.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if "qfleet" not in entry.name:
            (dependencies / entry.name).symlink_to(entry)
    (packages / "dependencies.pth").write_text(f"{dependencies}\n")
    pip = folder / "bin" / "pip"
    pip.write_text(f'#!/bin/sh\nexec "{folder}/bin/python" -m pip --disable-pip-version-check "$@"\n')
    pip.chmod(0o755)
    return folder / "bin"
