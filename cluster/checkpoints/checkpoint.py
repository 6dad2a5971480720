"""Checkpoints on disk: one folder each, with a manifest that lists every file and its checksum.

Owns the format, its atomic commit and its checks; reading executes nothing. Must not import torch or ray.
"""

import os
import re
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cluster.control.evaluation import ModelSelectionState
from cluster.metrics.counters import CountersState
from cluster.settings.renames import CHECKPOINT_PREFIXES, renamed_manifest
from learner.core import LearnerState
from learner.weights import load_tensors, save_tensors
from replay_service.journal.durable_files import crc32_of, sync_folder
from replay_service.journal.writer import SegmentFact

FORMAT = 1
_MANIFEST = "manifest.json"
_LEARNER = "learner.safetensors"
_NAME = re.compile(rf"({'|'.join(CHECKPOINT_PREFIXES)})(\d{{6,}})")
_PARTIAL = ".partial"


@dataclass(frozen=True)
class FileFact:
    """A file of a checkpoint: its name below the folder, size, and CRC-32 of all its bytes."""

    name: str
    num_bytes: int
    crc32: int


@dataclass(frozen=True)
class RunState:
    """The coordinator's part of a checkpoint, beside the learner's and the shards'.

    seconds: on the run's clock. incarnations: role name -> incarnation. config: the
    resolved configuration as YAML.
    """

    seconds: float
    incarnations: Mapping[str, int]
    counters: CountersState
    selection: ModelSelectionState
    config: str


@dataclass(frozen=True)
class Manifest:
    """The contents of a checkpoint. version: the learner's; written: seconds since 1970."""

    format: int
    number: int
    written: float
    version: int
    run: RunState
    files: tuple[FileFact, ...]


@dataclass(frozen=True)
class _Sealed:
    """The manifest on disk, with a checksum over exactly these bytes."""

    crc32: int
    manifest: msgspec.Raw


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A checkpoint whose files have all been read and checked."""

    folder: Path
    manifest: Manifest
    learner: LearnerState


@dataclass(frozen=True)
class SavedCheckpoint:
    """A checkpoint that is on disk. new_bytes: of files that the previous one did not hold."""

    number: int
    num_bytes: int
    new_bytes: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        return _name(self.number)


class DamagedCheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names its folder and what is wrong."""


class CheckpointStore:
    """Writes one checkpoint at a time; keeps the newest ones and the best one."""

    def __init__(self, folder: Path, keep: int) -> None:
        """folder: created by the first checkpoint. keep: number of newest checkpoints to keep."""
        self._folder = folder
        self._keep = keep
        self._next = max((checkpoint_number(path) for path in checkpoint_folders(folder)), default=-1) + 1

    def begin(self) -> Path:
        """Removes unfinished checkpoints and creates the folder for the next one. Raises OSError."""
        for leftover in self._folder.glob(f"*{_PARTIAL}"):
            shutil.rmtree(leftover)
        partial = self._folder / f"{_name(self._next)}{_PARTIAL}"
        partial.mkdir(parents=True)
        self._next += 1
        return partial

    def abandon(self, partial: Path) -> None:
        """Removes a checkpoint that failed."""
        shutil.rmtree(partial, ignore_errors=True)

    def commit(
        self,
        partial: Path,
        run: RunState,
        learner: LearnerState,
        segments: Mapping[int, tuple[SegmentFact, ...]],
    ) -> SavedCheckpoint:
        """Completes the folder that `begin` made, renames it to its final name, and removes old checkpoints.

        segments: shard -> the segments that it has put below its `shard_folder`.

        Raises DamagedCheckpointError if a shard's files are missing (on another machine's disk), OSError.
        """
        before = _files_of_newest(checkpoint_folders(self._folder))
        save_tensors(partial / _LEARNER, learner.tensors, {"version": str(learner.version)})
        files = [_fact(partial / _LEARNER, _LEARNER)]
        for shard, facts in sorted(segments.items()):
            folder = shard_folder(partial, shard)
            for fact in facts:
                file = folder / fact.name
                if not file.is_file() or file.stat().st_size != fact.num_bytes:
                    raise DamagedCheckpointError(
                        f"{file} is not there, though shard {shard} wrote it: give --run-dir a folder that "
                        "all machines share, or set replay.persist=none"
                    )
                files.append(FileFact(f"{folder.name}/{fact.name}", fact.num_bytes, fact.crc32))
        number = checkpoint_number(partial)
        manifest = Manifest(FORMAT, number, time.time(), learner.version, run, tuple(files))
        _write_manifest(partial / _MANIFEST, manifest)
        sync_folder(partial)
        partial.rename(partial.with_name(_name(number)))
        sync_folder(self._folder)
        self._remove_old()
        new = sum(file.num_bytes for file in files if before.get(file.name) != file)
        return SavedCheckpoint(number, sum(file.num_bytes for file in files), new)

    def _remove_old(self) -> None:
        """Removes all but the newest ones and the one with the highest mean return in its last evaluation."""
        folders = checkpoint_folders(self._folder)
        best = max(reversed(folders), key=_score)  # of equals the newest, which stays anyway
        for folder in folders[: -self._keep]:
            if folder != best:
                # Renamed first: a folder that is half removed must never look like a checkpoint.
                doomed = folder.with_name(f"{folder.name}{_PARTIAL}")
                folder.rename(doomed)
                shutil.rmtree(doomed)


def shard_folder(checkpoint: Path, shard: int) -> Path:
    """The folder of a shard's segments in a checkpoint's folder."""
    return checkpoint / f"shard-{shard}"


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The finished checkpoints of a folder, oldest first."""
    if not checkpoints.is_dir():
        return []
    return sorted(
        (path for path in checkpoints.iterdir() if _NAME.fullmatch(path.name)), key=checkpoint_number
    )


def checkpoint_number(folder: Path) -> int:
    """The number in the name of a checkpoint's folder."""
    return int(folder.name.removesuffix(_PARTIAL).rpartition("-")[2])


def read_manifest(folder: Path) -> Manifest:
    """Reads the manifest of a checkpoint and checks it. Raises DamagedCheckpointError."""
    try:
        sealed = msgspec.json.decode((folder / _MANIFEST).read_bytes(), type=_Sealed)
        if zlib.crc32(sealed.manifest) != sealed.crc32:
            raise DamagedCheckpointError(f"{folder}: {_MANIFEST} was altered (its checksum differs)")
        manifest = msgspec.convert(renamed_manifest(msgspec.json.decode(sealed.manifest)), Manifest)
    except (OSError, msgspec.MsgspecError) as error:
        raise DamagedCheckpointError(f"{folder}: {_MANIFEST} cannot be read: {error}") from None
    if manifest.format != FORMAT:
        raise DamagedCheckpointError(
            f"{folder}: {_MANIFEST} is of format {manifest.format}, this version reads format {FORMAT}"
        )
    if manifest.number != checkpoint_number(folder):
        raise DamagedCheckpointError(f"{folder}: holds checkpoint {manifest.number}, not the one of its name")
    return manifest


def read_checkpoint(folder: Path) -> Checkpoint:
    """Reads a checkpoint and compares every file with the manifest.

    Raises DamagedCheckpointError naming what differs.
    """
    manifest = read_manifest(folder)
    for expected in manifest.files:
        if Path(expected.name).is_absolute() or ".." in Path(expected.name).parts:
            raise DamagedCheckpointError(
                f"{folder}: {_MANIFEST} names {expected.name}, outside of its folder"
            )
        try:
            found = _fact(folder / expected.name, expected.name)
        except OSError as error:
            raise DamagedCheckpointError(
                f"{folder}: {expected.name} cannot be read: {error.strerror}"
            ) from None
        if found != expected:
            raise DamagedCheckpointError(
                f"{folder}: {expected.name} is not the file of this checkpoint: it has {found.num_bytes} "
                f"bytes with checksum {found.crc32:08x}, expected {expected.num_bytes} with "
                f"{expected.crc32:08x}"
            )
    if _LEARNER not in {file.name for file in manifest.files}:
        raise DamagedCheckpointError(f"{folder}: {_MANIFEST} does not name {_LEARNER}")
    try:
        tensors, _ = load_tensors(folder / _LEARNER)
    except ValueError as error:
        raise DamagedCheckpointError(f"{folder}: {error}") from None
    return Checkpoint(folder, manifest, LearnerState(manifest.version, tensors))


def newest_learner_state(checkpoints: Path) -> LearnerState | None:
    """The newest learner state whose checksum is right, if any; the files of replay are not checked."""
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            manifest = read_manifest(folder)
            if _fact(folder / _LEARNER, _LEARNER) in manifest.files:
                return LearnerState(manifest.version, load_tensors(folder / _LEARNER)[0])
        except (OSError, ValueError):
            continue
    return None


def _name(number: int) -> str:
    return f"{CHECKPOINT_PREFIXES[0]}{number:06d}"


def _files_of_newest(folders: Sequence[Path]) -> Mapping[str, FileFact]:
    try:
        return {file.name: file for folder in folders[-1:] for file in read_manifest(folder).files}
    except DamagedCheckpointError:
        return {}


def _score(folder: Path) -> float:
    try:
        evaluated = read_manifest(folder).run.counters.evaluation_return_mean
    except DamagedCheckpointError:
        return -float("inf")
    return -float("inf") if evaluated is None else evaluated


def _fact(path: Path, name: str) -> FileFact:
    """Size and CRC-32 of a file. Raises OSError."""
    with path.open("rb") as file:
        return FileFact(name, os.fstat(file.fileno()).st_size, crc32_of(file))


def _write_manifest(path: Path, manifest: Manifest) -> None:
    body = msgspec.json.encode(manifest)
    with path.open("wb") as file:
        file.write(msgspec.json.encode(_Sealed(zlib.crc32(body), msgspec.Raw(body))))
        file.flush()
        os.fsync(file.fileno())
