"""The runs of this user, wherever they were started: a folder of links beside that of Prometheus's targets.

Owns these links; must not import torch or ray.
"""

import zlib
from pathlib import Path

from cluster.record.scrape_targets import targets_folder


def remember_run(run_dir: Path) -> None:
    """Links to a run directory. Raises OSError if the folder of links cannot be written."""
    folder, target = _links(), run_dir.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / f"{target.name}-{zlib.crc32(str(target).encode()):08x}"
    if not link.is_symlink():
        link.symlink_to(target)


def known_runs(runs: Path = Path("runs")) -> list[Path]:
    """The run directories that were remembered, and those in `runs`; in no order, each once."""
    try:
        linked = [link.readlink() for link in _links().iterdir() if link.is_symlink()]
    except OSError:
        linked = []
    below = [path.parent.absolute() for path in runs.glob("*/config.yaml")]
    # A folder that is gone, or on storage that is not mounted now, is no run at present.
    return list(dict.fromkeys(path for path in (*linked, *below) if (path / "config.yaml").is_file()))


def _links() -> Path:
    return targets_folder().with_name("runs")
