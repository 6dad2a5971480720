"""The cgroups that limit this process: where the files of a controller lie.

Owns the paths of cgroups version 1 and 2; must not import anything but the standard library.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PROC = Path("/proc/self/cgroup")
"""Lists the cgroups of this process."""
ROOT = Path("/sys/fs/cgroup")
"""The mount of the cgroup file system; in a container often the container's own group."""


def cgroup_folders(controller: str, proc: Path = PROC, root: Path = ROOT) -> Iterator[Path]:
    """The folders of the groups in which a controller ("cpu", "memory") may limit this process, and of all
    groups around them; of a job on a shared machine these are not the root. Some may not exist."""
    try:
        lines = proc.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        _, controllers, path = line.split(":", 2)
        # Version 2 has a single hierarchy, without a name; version 1 has one for each set of controllers.
        if not controllers:
            mount = root
        elif controller in controllers.split(","):
            mount = root / controllers if (root / controllers).is_dir() else root / controller
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))
        yield from (mount / part for part in (inner, *inner.parents))
