"""Resuming from a checkpoint: choosing it, comparing configurations, and restoring replay.

Owns the rules for these; must not import torch, ray or gymnasium.
"""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing
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
from cluster.engines.placement import role_name
from cluster.record.events import EventKind
from cluster.record.line_file import read_objects
from cluster.record.run_dir import EVALUATIONS, RunDir, read_config, read_incarnations, read_spec
from cluster.record.run_lock import RunLock
from cluster.settings.config import ConfigError
from cluster.settings.load_config import load_resolved
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
    "learner.target_update_env_steps",
    "learner.max_grad_norm",
    "learner.num_learners",
    "learner.updates_per_chunk",
    "learner.max_skipped_updates",
    "learner.device",
    "learner.compile",
    "learner.capture",
    "learner.threads",
    "learner.dense_products",
    "learner.convolution_layout",
    "learner.precision",
    "pacing",
    "evaluation",
    "stop",
    "checkpoint",
    "metrics",
    "run.runtime",
    "run.preset",
    "run.restarts",
    "run.measure_speed",
    "run.stall_seconds",
    "run.frozen_seconds",
    "run.wait_for_cluster_seconds",
)

# Up to commit 6afb764 runs did not note their incarnations: more are skipped than they can have used.
_MOST_UNKNOWN = 1 << 16


@dataclass(frozen=True, eq=False)
class Resumed:
    """The state from which a run continues.

    incarnations: role name -> the incarnation to start. paced_anew: whether settings of pacing have changed,
    which hold from here on.
    """

    manifest: Manifest
    learner: LearnerState
    incarnations: Mapping[str, int]
    paced_anew: bool = False


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
    if required or checkpoint_folders(checkpoints):
        read_config(path)
    with ExitStack() as unless_opened:
        # First of all: a process that is about to end may still write its last checkpoint.
        lock = unless_opened.enter_context(closing(RunLock(path.absolute())))
        if checkpoint_folders(checkpoints) or required:
            opened = _go_on(lock, config, spec)
        else:
            run_dir = RunDir.reopen(lock, config, None, {})
            # Transitions without the learner's state that belongs to them are worth nothing.
            shutil.rmtree(path / "replay", ignore_errors=True)
            note = "resumed before its first checkpoint: begins anew"
            opened = OpenedRun(run_dir, None, (("info", note),))
        unless_opened.pop_all()
    return opened


def _go_on(lock: RunLock, config: ResolvedConfig, spec: EnvSpec) -> OpenedRun:
    """Opens the run from its newest good checkpoint. Raises ConfigError before anything is changed."""
    path = lock.path
    checkpoint, problems = newest_good_checkpoint(path / "checkpoints")
    saved_spec, spec_now = dataclasses.asdict(read_spec(path)), dataclasses.asdict(spec)
    if differing := [name for name, value in spec_now.items() if saved_spec[name] != value]:
        raise ConfigError(
            f"{path}: a run can be resumed with its own environment only, and this one differs: "
            + ", ".join(
                f"{name} was {saved_spec[name]!r}, it now is {spec_now[name]!r}" for name in differing
            )
        )
    manifest = checkpoint.manifest
    changed = allowed_changes(load_resolved(manifest.run.config), config)
    given = {change.name: change.given for change in changed}
    run_dir = RunDir.reopen(lock, config, manifest.number, given)
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
        raise ConfigError(
            f"{checkpoints}: holds no checkpoint to resume from; begin the run anew by --resume auto"
        )
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
    manifest: Manifest, config: ResolvedConfig, used: Mapping[str, int], *, exact: bool
) -> Mapping[str, int]:
    """Role name -> the incarnation to start, which selects the role's stream of random numbers.

    used: role name -> the highest incarnation that ever began. exact: the streams that followed the
    checkpoint are repeated; otherwise every stream is new.
    """
    saved = manifest.run.incarnations
    # An added actor must not reuse an incarnation that an earlier one of its number had.
    latest_actor = max((saved[name] for name in saved if name.startswith("actor")), default=-1)
    actors = {role_name("actor", index): latest_actor for index in range(config.actors.num_actors)}
    newest = {**actors, **saved}
    for name in (*newest, *used) if not exact else actors.keys() - saved.keys():
        newest[name] = max(newest.get(name, -1), used.get(name, -1))
    step = 1 if exact or used else _MOST_UNKNOWN
    return {name: incarnation + step for name, incarnation in newest.items()}


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
    saved = manifest.run.selection
    selection = dataclasses.replace(
        saved,
        best=_best(run_dir, saved.best),
        last_domain=saved.last_domain if exact else max(saved.last_domain, _last_domain(run_dir)),
    )
    run = dataclasses.replace(manifest.run, selection=selection)
    incarnations = _next_incarnations(manifest, config, read_incarnations(run_dir), exact=exact)
    paced_anew = load_resolved(manifest.run.config).pacing != config.pacing
    return Resumed(dataclasses.replace(manifest, run=run), checkpoint.learner, incarnations, paced_anew)


def _last_domain(run_dir: Path) -> int:
    """The highest seed domain of evaluations.jsonl; those after the checkpoint are not played again."""
    lines = read_objects(run_dir / EVALUATIONS)
    return max((line["seed_domain"] for line in lines if type(line.get("seed_domain")) is int), default=-1)


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


def _restore_replay(checkpoint: Checkpoint, replay: Path, num_shards: int) -> None:
    """Puts the journals of a checkpoint where shards look for them, in place of what is there."""
    for shard in range(num_shards):
        source, target = shard_folder(checkpoint.folder, shard), replay / f"shard-{shard}"
        # A part of a journal, which a killed process would leave, must not be taken for all of it.
        partial = replay / f"partial-{shard}"
        for folder in (partial, target):
            if folder.exists():
                shutil.rmtree(folder)
        # A segment of a checkpoint is never written again, so a link is as good as a copy.
        partial.mkdir(parents=True)
        for segment in segment_paths(source):
            link_or_copy(segment, partial / segment.name)
        partial.rename(target)


def _is_free(name: str) -> bool:
    return any(name == free or name.startswith(f"{free}.") for free in _FREE)


def _leaves(config: ResolvedConfig) -> Iterator[tuple[str, Any]]:
    def walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
        # The environment's keyword arguments are compared as a whole, like every other value.
        if isinstance(value, dict) and name.count(".") < 1:
            for key, part in value.items():
                yield from walk(part, f"{name}.{key}".lstrip("."))
        elif name in ("env.action_mask", "env.drop_observation_keys"):
            yield name, value or None  # null, false and an empty list mean the same for transitions
        else:
            yield name, value

    return walk(msgspec.to_builtins(dataclasses.asdict(config)), "")
