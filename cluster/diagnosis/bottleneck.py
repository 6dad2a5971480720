"""The verdict: which part of a run bounds its speed, with the figures that say so and the setting to turn.

Owns the rule and its words (docs/diagnosis.md derives it); pure, imports no engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.metrics.snapshot import Snapshot
from cluster.settings.resolved import ResolvedConfig
from cluster.wording import byte_size

Stage = Literal["actor", "replay", "learner", "pacing", "network", "memory", "evaluation"]

LEAST_MEMORY = 0.05
"""Share of the machine's memory below which it swaps and kills; as in the alert QfleetMemoryLow."""

MOST_SHARED_MEMORY = 0.95
"""Share of /dev/shm above which Ray spills objects to disk; as in the alert QfleetSharedMemoryFull."""

_MOST = 0.5


@dataclass(frozen=True)
class Shares:
    """Where time went, as shares of each role's own: a process that does nothing else has 1.

    actors: work (acting, environments, building rows), push (waiting for shards), idle (without a credit).
    learner: update (drawing minibatches included), wait (for replies of shards), idle (without a credit).
    shards and coordinator: work.

    In the serial runtime all are shares of the one process, evaluation too; drawing counts as waiting, and
    coordinator is what is left.
    """

    actor_work: float
    actor_push: float
    actor_idle: float
    learner_update: float
    learner_wait: float
    learner_idle: float
    shard_work: float
    coordinator_work: float
    evaluation: float = 0.0


def stage_of(window: Sequence[Snapshot], config: ResolvedConfig) -> Stage | None:
    """The stage that bounds the speed over a window [oldest first, not empty]; None until it can be told."""
    if _memory(window[-1]) is not None:
        return "memory"
    now = window[-1]
    shares = shares_between(_before(window), now, serial=_is_serial(config))
    if shares is None:
        return None
    if now.updates_total == 0:
        return "actor" if now.inserted_transitions_total < config.pacing.learning_starts else "learner"
    return bound_by(shares, serial=_is_serial(config))


def sentence(stage: Stage, window: Sequence[Snapshot], config: ResolvedConfig) -> str | None:
    """One line: the stage (up to the first colon, "-bound" behind it), the figures, and what to turn.

    None where there are no figures of that stage any more.
    """
    if stage == "memory":
        return _memory(window[-1])
    before, now = _before(window), window[-1]
    shares = shares_between(before, now, serial=_is_serial(config))
    return None if shares is None else _say(stage, shares, before, now, config)


def bound_by(shares: Shares, *, serial: bool) -> Stage:
    """The stage that bounds the speed.

    In one process it is what takes the most time. Else acting and learning wait for each other by pacing:
    who waits less is behind. Its time is its own work, or goes into rows: shards are busy, or the way long.
    Where both wait for credits most of the time, handing those out is what takes so long.
    """
    if serial:
        taken: dict[Stage, float] = {
            "actor": shares.actor_work,
            "learner": shares.learner_update,
            "replay": shares.actor_push + shares.learner_wait,
            "evaluation": shares.evaluation,
            "pacing": shares.coordinator_work,
        }
        return max(taken, key=lambda stage: taken[stage])
    if shares.actor_idle > _MOST and shares.learner_idle > _MOST:
        return "pacing"
    rows: Stage = "replay" if shares.shard_work >= _MOST else "network"
    if shares.learner_idle < shares.actor_idle:
        return "learner" if shares.learner_update >= shares.learner_wait else rows
    return "actor" if shares.actor_work >= shares.actor_push else rows


def shares_between(before: Snapshot | None, now: Snapshot, *, serial: bool) -> Shares | None:
    """From what roles told between two snapshots (None: the beginning); None where actors told nothing."""
    spent = _spent(before, now)
    actor, learner = spent.get("actor", {}), spent.get("learner", {})
    evaluator, shard = spent.get("evaluator", {}), spent.get("shard", {})
    actors, learners = sum(actor.values()), sum(learner.values())
    seconds = _seconds(before, now)
    if actors <= 0.0 or seconds <= 0.0:
        return None
    worked = actors - actor.get("push", 0.0) - actor.get("idle", 0.0)
    pushed, waited = actor.get("push", 0.0), learner.get("wait", 0.0)
    if serial:
        # In one process nobody waits for a shard: asking it is its work.
        waited += learner.get("draw", 0.0)
    updated = learners - waited - learner.get("idle", 0.0)
    played = evaluator.get("play", 0.0)
    if serial:
        whole = max(seconds, worked + pushed + updated + waited + played)
        return Shares(
            actor_work=worked / whole,
            actor_push=pushed / whole,
            actor_idle=0.0,
            learner_update=updated / whole,
            learner_wait=waited / whole,
            learner_idle=0.0,
            shard_work=sum(shard.values()) / whole,
            coordinator_work=(whole - worked - pushed - updated - waited - played) / whole,
            evaluation=played / whole,
        )
    # One that has not said anything yet has not learned yet: it waits for its first credit.
    learners = max(learners, 1e-9)
    coordinator = spent.get("coordinator", {})
    return Shares(
        actor_work=worked / actors,
        actor_push=pushed / actors,
        actor_idle=actor.get("idle", 0.0) / actors,
        learner_update=updated / learners,
        learner_wait=waited / learners,
        learner_idle=1.0 - (updated + waited) / learners,
        shard_work=sum(shard.values()) / seconds / max(1, len(now.shard_transitions or {})),
        coordinator_work=coordinator.get("work", 0.0) / max(sum(coordinator.values()), 1e-9),
    )


def _before(window: Sequence[Snapshot]) -> Snapshot | None:
    """Where the window begins; None (where counting began) where chunks of work are longer than it."""
    now, before = window[-1], window[0]
    seconds, spent = _seconds(before, now), _spent(before, now)
    roles = ("actor",) if now.updates_total == 0 else ("actor", "learner")
    # In one process each role waits for the others, and its idle time is told with its next chunk.
    told = all(sum(spent.get(role, {}).values()) >= _MOST * seconds for role in roles)
    return before if told and seconds > 0.0 else None


def _seconds(before: Snapshot | None, now: Snapshot) -> float:
    """How long the coordinator went on in between."""
    return sum(_spent(before, now).get("coordinator", {}).values())


def _spent(before: Snapshot | None, now: Snapshot) -> Mapping[str, Mapping[str, float]]:
    """Role -> phase -> seconds in between."""
    totals = now.role_seconds_total or {}
    then = (before.role_seconds_total or {}) if before else {}
    return {
        role: {phase: value - then.get(role, {}).get(phase, 0.0) for phase, value in phases.items()}
        for role, phases in totals.items()
    }


def _memory(now: Snapshot) -> str | None:
    held, free = now.machine_memory_bytes, now.machine_memory_available_bytes
    if held and free is not None and free < LEAST_MEMORY * held:
        return (
            f"memory-bound: {byte_size(free)} of the machine's {byte_size(held)} are left, replay holds "
            f"{byte_size(now.replay_bytes)}; lower replay.capacity or actors.num_actors, or set "
            "replay.compression=lz4"
        )
    shared, used = now.shared_memory_bytes, now.shared_memory_used_bytes
    if shared and used is not None and used > MOST_SHARED_MEMORY * shared:
        return (
            f"memory-bound: /dev/shm is full ({byte_size(used)} of {byte_size(shared)}), so objects go to "
            "disk; enlarge it (docker run --shm-size)"
        )
    return None


def _say(stage: Stage, shares: Shares, before: Snapshot | None, now: Snapshot, config: ResolvedConfig) -> str:
    actors, pacing, learner = config.actors, config.pacing, config.learner
    serial = _is_serial(config)
    alone = "; or run.runtime=local, where roles share no process" if serial else ""
    if stage == "actor":
        if now.updates_total == 0:
            filled = f"{now.inserted_transitions_total:,} of {pacing.learning_starts:,}"
            return (
                f"actor-bound: learning waits for its first transitions ({filled}); lower "
                f"pacing.learning_starts, or {_more_actors(config)}"
            )
        idle = "" if serial else f", the learner has nothing to do {shares.learner_idle:.0%}"
        return (
            f"actor-bound: actors work {shares.actor_work:.0%} of the time{idle}; {_more_actors(config)}, or "
            "learn more from each step by a higher pacing.samples_per_insert (now "
            f"{pacing.samples_per_insert:g}){alone}"
        )
    if stage == "learner":
        if now.updates_total == 0:
            return (
                "learner-bound: there are transitions enough, and the first updates are not done yet; see "
                f"logs/ if that lasts, or lower learner.updates_per_chunk (now {learner.updates_per_chunk})"
            )
        idle = "" if serial else f", actors may not act {shares.actor_idle:.0%}"
        return (
            f"learner-bound: updates take {shares.learner_update:.0%} of the time{idle}; give it a GPU or "
            f"more cores, a smaller network or learner.batch_size (now {learner.batch_size}), or lower "
            "pacing.samples_per_insert "
            f"(now {pacing.samples_per_insert:g}){alone}"
        )
    waits = (
        f"the learner waits for rows {shares.learner_wait:.0%}, actors push {shares.actor_push:.0%} of the "
        "time"
    )
    if stage == "replay":
        return (
            f"replay-bound: {waits}, shards work {shares.shard_work:.0%}; raise replay.num_shards (now "
            f"{config.replay.num_shards})"
            + (", or replay.compression=none" if config.replay.compression != "none" else "")
            + (", or replay.sampling=uniform" if config.replay.sampling == "prioritized" else "")
            + alone
        )
    if stage == "network":
        seconds = max(_seconds(before, now), 1e-9)
        moved = _moved(now) - (_moved(before) if before else 0)
        return (
            f"network-bound: {waits}, shards work only {shares.shard_work:.0%} while "
            f"{byte_size(round(moved / seconds))}/s go to and fro; put shards on the learner's machine, or "
            f"raise replay.minibatches_per_request (now {config.replay.minibatches_per_request})"
        )
    if stage == "evaluation":
        return (
            f"evaluation-bound: greedy episodes take {shares.evaluation:.0%} of the time; lower "
            f"evaluation.episodes (now {config.evaluation.episodes}) or raise evaluation.every_updates (now "
            f"{config.evaluation.every_updates:,}){alone}"
        )
    chunks = (
        f"raise actors.steps_per_chunk (now {actors.steps_per_chunk}) and learner.updates_per_chunk (now "
        f"{learner.updates_per_chunk})"
    )
    if serial:
        return f"pacing-bound: {shares.coordinator_work:.0%} of the time passes between chunks; {chunks}"
    return (
        f"pacing-bound: actors wait for leave to act {shares.actor_idle:.0%}, the learner for leave to "
        f"learn {shares.learner_idle:.0%} of the time (the coordinator works {shares.coordinator_work:.0%}); "
        f"{chunks}"
    )


def _more_actors(config: ResolvedConfig) -> str:
    if _is_serial(config):
        return f"raise actors.envs_per_actor (now {config.actors.envs_per_actor})"
    return (
        f"raise actors.num_actors (now {config.actors.num_actors}) or actors.envs_per_actor (now "
        f"{config.actors.envs_per_actor})"
    )


def _is_serial(config: ResolvedConfig) -> bool:
    return config.run.runtime == "serial"


def _moved(snapshot: Snapshot) -> int:
    return (snapshot.pushed_bytes_total or 0) + (snapshot.sampled_bytes_total or 0)
