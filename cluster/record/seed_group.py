"""The folder of a group of seeds: a run for each seed, what they have in common, and their summary.

Owns the names of its files; must not import torch or ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cluster.record.run_dir import holds_run
from cluster.settings.config import ConfigError
from replay_service.journal.durable_files import write_whole

_GROUP = "group.json"


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed only, each in a folder of its own below `path`."""

    path: Path
    seeds: tuple[int, ...]

    @property
    def settings(self) -> Path:
        """The settings of all its runs, as YAML; each run has a seed of its own."""
        return self.path / "settings.yaml"

    @property
    def summary(self) -> Path:
        """The summary of its runs, as JSON."""
        return self.path / "summary.json"

    def run_dir(self, seed: int) -> Path:
        """The run directory of a seed."""
        return self.path / f"seed-{seed}"

    def output(self, seed: int) -> Path:
        """What the run of a seed printed."""
        return self.path / f"seed-{seed}.txt"

    def write(self) -> None:
        """Notes which seeds belong to the group. Raises OSError."""
        write_whole(self.path / _GROUP, msgspec.json.encode({"seeds": self.seeds}))


def holds_group(path: Path) -> bool:
    """Whether the folder holds a group of seeds."""
    return (path / _GROUP).is_file()


def read_group(path: Path) -> SeedGroup:
    """The group in a folder. Raises ConfigError if it holds none."""
    try:
        seeds = msgspec.json.decode((path / _GROUP).read_bytes(), type=dict[str, tuple[int, ...]])["seeds"]
    except FileNotFoundError:
        raise ConfigError(f"{path}: holds no group of seeds ({_GROUP} is missing)") from None
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        raise ConfigError(f"{path / _GROUP}: cannot be read: {error!r}") from None
    return SeedGroup(path, seeds)


def with_groups_expanded(paths: Sequence[Path]) -> Iterator[Path]:
    """The run directories that are meant: in the place of a group, those of its seeds that began a run."""
    for path in paths:
        if not holds_group(path):
            yield path
            continue
        group = read_group(path)
        begun = [run_dir for run_dir in map(group.run_dir, group.seeds) if holds_run(run_dir)]
        if not begun:
            raise ConfigError(f"{path}: none of its seeds has begun a run yet")
        yield from begun
