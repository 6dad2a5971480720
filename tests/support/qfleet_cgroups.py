"""Trees of cgroup files, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def cgroups(folder: Path, groups: str, files: Mapping[str, str]) -> tuple[Path, Path]:
    """Writes what /proc/self/cgroup says, and files below the mount; returns the paths of both."""
    proc, root = folder / "cgroup", folder / "sys"
    proc.write_text(groups)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return proc, root
