"""The process of a role: its pid, its machine and its code.

Owns the check that all processes of a run use the same code; must not import ray.
"""

import hashlib
import os
import platform
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import psutil

from cluster.engines.own_code import OWN_ROOT, PACKAGES, own_code_first


@dataclass(frozen=True)
class ProcessInfo:
    """The process of a role, which it reports once it is up.

    root: the folder that its packages come from. code: a digest of their sources; empty if unknown.
    relays_log: whether the coordinator fetches its log lines, because its machine lacks the run directory.
    """

    pid: int
    host: str
    root: str
    relays_log: bool = False
    code: str = ""


def process_info() -> ProcessInfo:
    """Describes this process. Raises ImportError if one of the packages comes from another folder."""
    own_code_first()
    root = str(OWN_ROOT)
    return ProcessInfo(os.getpid(), platform.node(), root, code=code_digest(root))


def another_checkout(folder: Path) -> Path | None:
    """The checkout that the folder lies in, if its code differs from that of this process; else None."""
    marks = [Path(name) / "__init__.py" for name in PACKAGES if name != "qfleet"]  # older ones lack it
    for above in (folder, *folder.parents):
        if all((above / mark).is_file() for mark in marks):
            same = above == OWN_ROOT or code_digest(str(above)) == code_digest(str(OWN_ROOT))
            return None if same else above
    return None


def require_same_code(other: ProcessInfo) -> None:
    """Raises ImportError if another process runs different code than this one.

    On this machine, the code must come from the same folder, whose files may change during the run. On
    another machine, the files must be equal.
    """
    own = process_info()
    if other.host == own.host and other.root != own.root:
        raise ImportError(f"process {other.pid} runs the code of {other.root}, this one that of {own.root}")
    if other.host != own.host and other.code and other.code != own.code:
        raise ImportError(
            f"process {other.pid} on {other.host} runs other code ({other.root}) than the driver on "
            f"{own.host} ({own.root}): put the same version on every machine, or let Ray ship it with "
            "ray job submit --working-dir ."
        )


def start_ticks(pid: int) -> int:
    """When a process began, in clock ticks since the machine did: no change of the clock moves that.

    Where there is no /proc, in unix seconds. Raises psutil.NoSuchProcess if there is no such process.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return int(psutil.Process(pid).create_time())
    # The name in brackets may hold anything; the start is the 22nd field, the 20th after it.
    return int(status.rpartition(b")")[2].split()[19])


def is_alive(pid: int, started: int) -> bool:
    """Whether pid is alive here and its start_ticks are these (pids are reused)."""
    try:
        return start_ticks(pid) == started and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


@lru_cache(maxsize=2)
def code_digest(root: str) -> str:
    """A digest of names and contents of the packages' sources. Cached: later changes do not count."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((Path(root) / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
