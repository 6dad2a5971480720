"""Resuming from a checkpoint: choosing it, comparing configurations, and restoring replay.

Owns the rules for these; must not import torch, ray or gymnasium.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from actors.core import EnvSpec
from cluster.checkpoints.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    Manifest,
    checkpoint_folders,
    read_checkpoint,
    shard_folder,
)
from cluster.control.evaluation import Best
from cluster.record.events import EventKind
from cluster.record.run_dir import RESUMES, RunDir, read_config, read_spec
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

# Settings that may differ from the run that is resumed. All others decide what the transitions in replay,
# the weights or the streams of random numbers mean.
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
    "run.preset",
    "run.restarts",
    "run.stall_seconds",
    "run.frozen_seconds",
    "run.wait_for_cluster_seconds",
)


@dataclass(frozen=True, eq=False)
class Resumed:
    """The state from which a run continues. incarnations: role name -> the incarnation to start."""

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


@dataclass(frozen=True, eq=False)
class OpenedRun:
    """An opened run directory. resumed: the state to continue from; None: begin. notes: events to record."""

    run_dir: RunDir
    resumed: Resumed | None
    notes: tuple[tuple[EventKind, str], ...]


def reopen(path: Path, config: ResolvedConfig, spec: EnvSpec, *, required: bool) -> OpenedRun:
    """Opens a run directory to resume its run. Raises ConfigError before anything is changed.

    A run without a checkpoint begins anew, unless `required` asks for one.
    """
    checkpoints = path / "checkpoints"
    read_config(path)
    if not checkpoint_folders(checkpoints) and not required:
        run_dir = RunDir.reopen(path.absolute(), config, None, {})
        # Transitions without the learner's state that belongs to them are worth nothing.
        shutil.rmtree(path / "replay", ignore_errors=True)
        return OpenedRun(run_dir, None, (("info", "resumed before its first checkpoint: begins anew"),))
    if (saved_spec := read_spec(path)) != spec:
        raise ConfigError(
            f"{path}: the environment was {saved_spec}, it now is {spec}; a run can be "
            "resumed with its own environment only"
        )
    checkpoint, problems = newest_good_checkpoint(checkpoints)
    manifest = checkpoint.manifest
    changed = allowed_changes(load_resolved(manifest.run.config), config)
    given = {change.name: change.given for change in changed}
    run_dir = RunDir.reopen(path.absolute(), config, manifest.number, given)
    notes: list[tuple[EventKind, str]] = [
        ("warning", f"{each}; an older checkpoint is taken") for each in problems
    ]
    if changed:
        notes.append(("info", "changed since: " + ", ".join(map(str, changed))))
    notes.append(("info", f"resumed from checkpoint {manifest.number}, version {manifest.version:,}"))
    return OpenedRun(run_dir, restore_run(path, checkpoint, config), tuple(notes))


def newest_good_checkpoint(checkpoints: Path) -> tuple[Checkpoint, tuple[str, ...]]:
    """The newest checkpoint without damage, and a description of the damage in newer ones.

    Raises ConfigError if there is none, with the damage in each.
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


def allowed_changes(saved: ResolvedConfig, given: ResolvedConfig) -> tuple[Change, ...]:
    """The settings that differ from those of the run to be resumed.

    Raises ConfigError with a list of all those that must not differ.
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


def _next_incarnations(
    manifest: Manifest, config: ResolvedConfig, *, lives_since: int, exact: bool
) -> Mapping[str, int]:
    """Role name -> the incarnation to start, which selects the role's stream of random numbers.

    exact: the streams that followed the checkpoint are repeated. Otherwise every stream is new: those of
    lives that began since the checkpoint, each with all its replacements, are skipped.
    """
    step = 1 if exact else (config.run.restarts + 1) * (1 + lives_since)
    newest = manifest.run.incarnations
    # An added actor must not reuse an incarnation that an earlier one of its number had.
    latest_actor = max((newest[name] for name in newest if name.startswith("actor")), default=-1)
    actors = {role_name("actor", index): latest_actor for index in range(config.actors.num_actors)}
    return {name: incarnation + step for name, incarnation in {**actors, **newest}.items()}


def restore_run(run_dir: Path, checkpoint: Checkpoint, config: ResolvedConfig) -> Resumed:
    """Restores a checkpoint's replay in the run directory and returns the state to continue from.

    A continuous journal stays, because it is newer than any checkpoint and holds its transitions; except in
    the serial runtime, which repeats what followed the checkpoint bit for bit. Raises OSError.
    """
    exact = config.run.runtime == "serial"
    replay = run_dir / "replay"
    journals = all(segment_paths(replay / f"shard-{shard}") for shard in range(config.replay.num_shards))
    if exact or config.replay.persist != "continuous" or not journals:
        _restore_replay(checkpoint, replay, config.replay.num_shards)
    manifest = checkpoint.manifest
    selection = dataclasses.replace(manifest.run.selection, best=_best(run_dir, manifest.run.selection.best))
    run = dataclasses.replace(manifest.run, selection=selection)
    incarnations = _next_incarnations(
        manifest, config, lives_since=_lives_since(run_dir, manifest.number), exact=exact
    )
    return Resumed(dataclasses.replace(manifest, run=run), checkpoint.learner, incarnations)


def _best(run_dir: Path, at_checkpoint: Best | None) -> Best | None:
    """The best version, as weights/best.safetensors has it; it may be newer than the checkpoint."""
    try:
        _, facts = load_weights(run_dir / "weights" / "best.safetensors")
        version, score = int(facts["version"]), float(facts["return_mean"])
    except (OSError, ValueError, KeyError):
        return None
    if at_checkpoint is not None and at_checkpoint.version == version:
        return at_checkpoint
    return Best(version, score, score)


def _lives_since(run_dir: Path, number: int) -> int:
    """Number of lives of the run that began from this checkpoint or a later one."""
    try:
        lines = (run_dir / RESUMES).read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(renamed(renames.RESUMES, json.loads(line))["checkpoint"] >= number for line in lines)


def _restore_replay(checkpoint: Checkpoint, replay: Path, num_shards: int) -> None:
    """Puts the journals of a checkpoint where shards look for them, in place of what is there."""
    for shard in range(num_shards):
        source, target = shard_folder(checkpoint.folder, shard), replay / f"shard-{shard}"
        if target.exists():
            shutil.rmtree(target)
        # A segment of a checkpoint is never written again, so a link is as good as a copy.
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
