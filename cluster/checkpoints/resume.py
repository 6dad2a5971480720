"""Going on from a checkpoint: which cut is good, whether the configuration fits it, and what is put back.

Owns those rules; must not import torch, ray or gymnasium.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cluster.checkpoints.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    Manifest,
    checkpoint_folders,
    read_checkpoint,
    shard_folder,
)
from cluster.control.evaluation import Best
from cluster.record.run_dir import RESUMES
from cluster.runtime.fleet import role_name
from cluster.settings import renames
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_resolved
from cluster.settings.renames import renamed
from cluster.settings.resolved import ResolvedConfig
from learner.core import LearnerState
from learner.weights import load_weights
from replay_service.journal.durable_files import link_or_copy
from replay_service.journal.segments import segment_paths

# What may differ from the run that is resumed. Everything else decides what the rows in replay, the weights
# or the streams of random numbers mean.
_FREE = (
    "actors.num_actors",
    "actors.min_actors",
    "actors.envs_per_actor",
    "actors.steps_per_chunk",
    "actors.pushes_in_flight",
    "actors.env_restarts",
    "actors.chunk_deadline_seconds",
    "actors.memory_limit_bytes",
    "actors.epsilon_start",
    "actors.epsilon_end",
    "actors.epsilon_decay_env_steps",
    "actors.epsilon_ladder",
    "replay.importance_exponent_start",
    "replay.importance_anneal_updates",
    "replay.priority_epsilon",
    "replay.priority_exponent",
    "replay.minibatches_per_request",
    "replay.prefetch_requests",
    "replay.compression",
    "replay.persist",
    "replay.on_disk_full",
    "learner.learning_rate",
    "learner.learning_rate_end",
    "learner.learning_rate_decay_updates",
    "learner.target_update_updates",
    "learner.max_grad_norm",
    "learner.updates_per_chunk",
    "learner.max_skipped_updates",
    "learner.device",
    "learner.compile",
    "learner.precision",
    "pacing",
    "evaluation",
    "stop",
    "checkpoint",
    "metrics",
    "run.runtime",
    "run.restarts",
    "run.stall_seconds",
    "run.frozen_seconds",
    "run.wait_for_cluster_seconds",
)


@dataclass(frozen=True, eq=False)
class Resumed:
    """What a run goes on from. incarnations: with which each role begins, by name."""

    manifest: Manifest
    learner: LearnerState
    incarnations: Mapping[str, int]


@dataclass(frozen=True)
class Change:
    """A setting that differs: its full name, and both values."""

    name: str
    saved: Any
    given: Any

    def __str__(self) -> str:
        return f"{self.name}: {self.saved!r} -> {self.given!r}"


def newest_good_checkpoint(checkpoints: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    """The newest cut that is whole, and what is wrong with those that are newer.

    Raises ConfigError if there is none, with the reason for each.
    """
    problems: list[str] = []
    for folder in reversed(checkpoint_folders(checkpoints)):
        try:
            return read_checkpoint(folder), tuple(problems)
        except DamagedCheckpointError as error:
            problems.append(str(error))
    if not problems:
        raise ConfigError(f"{checkpoints}: holds no checkpoint to resume from")
    raise ConfigError("no checkpoint can be used:\n" + "\n".join(problems))


def changes(saved: ResolvedConfig, given: ResolvedConfig) -> tuple[Change, ...]:
    """The settings that differ from those of the run to be resumed.

    Raises ConfigError with the whole list of those that must not.
    """
    before, after = dict(_leaves(saved)), dict(_leaves(given))
    differing = [
        Change(name, before.get(name), after.get(name))
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]
    refused = [change for change in differing if not _is_free(change.name)]
    if refused:
        raise ConfigError(
            "these settings cannot change while a run is resumed; set them back, or begin a new run with "
            "another --run-dir:\n" + "\n".join(f"  {change}" for change in refused)
        )
    return tuple(differing)


def saved_config(manifest: Manifest) -> ResolvedConfig:
    """The resolved config of the run at the cut. Raises ConfigError."""
    return load_resolved(manifest.run.config)


def _next_incarnations(
    manifest: Manifest, config: ResolvedConfig, *, lives_since: int, exact: bool
) -> Mapping[str, int]:
    """With which incarnation each role goes on.

    exact: the life that follows the cut is repeated, stream by stream, whatever came of it before. Otherwise
    every stream is new: those of the lives that began since the cut, each with all its replacements, are
    left out.
    """
    step = 1 if exact else (config.run.restarts + 1) * (1 + lives_since)
    newest = manifest.run.incarnations
    # An actor that joins later must not take an incarnation that one before it had.
    latest_actor = max((newest[name] for name in newest if name.startswith("actor")), default=-1)
    actors = {role_name("actor", index): latest_actor for index in range(config.actors.num_actors)}
    return {name: incarnation + step for name, incarnation in {**actors, **newest}.items()}


def go_on(run_dir: Path, cut: Checkpoint, config: ResolvedConfig) -> Resumed:
    """Puts a cut's replay back in the run directory and says where everybody goes on.

    A continuous journal is newer than any cut and holds it: it stays, except in the serial runtime, which
    repeats what followed the cut bit for bit. Raises OSError.
    """
    exact = config.run.runtime == "serial"
    replay = run_dir / "replay"
    journals = all(segment_paths(replay / f"shard-{shard}") for shard in range(config.replay.num_shards))
    if exact or config.replay.persist != "continuous" or not journals:
        _restore_replay(cut, replay, config.replay.num_shards)
    manifest = cut.manifest
    selection = dataclasses.replace(manifest.run.selection, best=_best(run_dir, manifest.run.selection.best))
    run = dataclasses.replace(manifest.run, selection=selection)
    incarnations = _next_incarnations(
        manifest, config, lives_since=_lives_since(run_dir, manifest.number), exact=exact
    )
    return Resumed(dataclasses.replace(manifest, run=run), cut.learner, incarnations)


def _best(run_dir: Path, at_checkpoint: Best | None) -> Best | None:
    """The version whose weights the run directory holds as the best: perhaps one found after the cut."""
    try:
        _, facts = load_weights(run_dir / "weights" / "best.safetensors")
        version, score = int(facts["version"]), float(facts["return_mean"])
    except (OSError, ValueError, KeyError):
        return None
    return (
        at_checkpoint
        if at_checkpoint is not None and at_checkpoint.version == version
        else Best(version, score, score)
    )


def _lives_since(run_dir: Path, number: int) -> int:
    """How many lives of the run began from this cut or a later one."""
    try:
        lines = (run_dir / RESUMES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(renamed(renames.RESUMES, json.loads(line))["checkpoint"] >= number for line in lines)


def _restore_replay(cut: Checkpoint, replay: Path, num_shards: int) -> None:
    """Puts the journals of a cut where shards look for them, instead of what is there."""
    for shard in range(num_shards):
        source, target = shard_folder(cut.folder, shard), replay / f"shard-{shard}"
        if target.exists():
            shutil.rmtree(target)
        # A segment of a cut is never written again, so a link is as good as a copy.
        target.mkdir(parents=True)
        for segment in segment_paths(source):
            link_or_copy(segment, target / segment.name)


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _leaves(config: ResolvedConfig) -> Iterator[tuple[str, Any]]:
    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        # The environment's keyword arguments are compared as a whole, like every other value.
        if isinstance(value, dict) and name.count(".") < 1:
            for key, part in value.items():
                yield from walk(part, f"{name}.{key}".lstrip("."))
        else:
            yield name, value

    return walk(msgspec.to_builtins(dataclasses.asdict(config)), "")
