"""The verdict: which stage limits the speed of a run, which shares of time show it, which setting to change.

Owns the rule and its texts (docs/diagnosis.md derives them); pure, imports no engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.metrics.snapshot import Snapshot, Stage, Verdict
from cluster.settings.resolved import ResolvedConfig
from cluster.wording import byte_size

LEAST_MEMORY = 0.05
"""Share of the machine's memory below which it swaps and kills; as in the alert QfleetMemoryLow."""

MOST_SHARED_MEMORY = 0.95
"""Share of /dev/shm above which Ray spills objects to disk; as in the alert QfleetSharedMemoryFull."""

# Most of the time.
_MOST = 0.5


@dataclass(frozen=True)
class Shares:
    """Shares of time, from 0 to 1.

    Actors: work (acting, environments, building blocks), push (waiting for shards), idle (without a credit).
    Learner: work (all but the next two), wait (for replies of shards), idle (without a credit); and update,
    the part of its work that the metric learner_update_share measures, and exchange, the part that several
    ranks spend on averaging and waiting for each other. Shards and coordinator: work.

    In the serial runtime all but learner_update are shares of the one process. Drawing minibatches then
    counts as waiting for shards, and the coordinator's share is the rest.
    """

    actor_work: float
    actor_push: float
    actor_idle: float
    learner_work: float
    learner_wait: float
    learner_idle: float
    learner_update: float
    shard_work: float
    coordinator_work: float
    evaluation: float = 0.0
    learner_exchange: float = 0.0


def stage_of(window: Sequence[Snapshot], config: ResolvedConfig) -> Stage | None:
    """The stage that limits the speed over a window [oldest first, not empty]; None until it is known."""
    now = window[-1]
    if _memory(now) is not None:
        return "memory"
    shares = shares_between(_before(window), now, serial=_is_serial(config))
    if shares is None:
        return None
    if now.updates_total == 0:
        return "actor" if now.inserted_transitions_total < config.pacing.learning_starts else "learner"
    return bound_by(shares, serial=_is_serial(config))


def verdict_of(stage: Stage, window: Sequence[Snapshot], config: ResolvedConfig) -> Verdict | None:
    """The verdict for this stage with the newest numbers; None if they no longer show it."""
    if stage == "memory":
        text = _memory(window[-1])
    else:
        before, now = _before(window), window[-1]
        shares = shares_between(before, now, serial=_is_serial(config))
        text = _texts(shares, before, now, config)[stage] if shares else None
    return Verdict(stage, text) if text else None


def bound_by(shares: Shares, *, serial: bool) -> Stage:
    """The stage that limits the speed.

    In one process it is the one that takes the most time. Otherwise pacing makes acting and learning wait for
    each other, and the side that waits less is the slow one. Either its own work limits it, or waiting for
    the shards does: they are busy (replay) or far away (network). Of the learner's own work,
    several ranks may spend most on their exchange (communication). If both sides wait for credits most of the
    time, granting takes too long (pacing).
    """
    if serial:
        taken: dict[Stage, float] = {
            "actor": shares.actor_work,
            "learner": shares.learner_work,
            "replay": shares.actor_push + shares.learner_wait,
            "evaluation": shares.evaluation,
            "pacing": shares.coordinator_work,
        }
        return max(taken, key=lambda stage: taken[stage])
    if shares.actor_idle > _MOST and shares.learner_idle > _MOST:
        return "pacing"
    transport: Stage = "replay" if shares.shard_work >= _MOST else "network"
    if shares.learner_idle < shares.actor_idle:
        if shares.learner_work < shares.learner_wait:
            return transport
        return "communication" if shares.learner_exchange > _MOST * shares.learner_work else "learner"
    return "actor" if shares.actor_work >= shares.actor_push else transport


def shares_between(before: Snapshot, now: Snapshot, *, serial: bool) -> Shares | None:
    """The shares between two snapshots; None if no actor has reported in between."""
    spent = _spent(before, now)
    actor, learner, shard = spent.get("actor", {}), spent.get("learner", {}), spent.get("shard", {})
    acted, learned, seconds = sum(actor.values()), sum(learner.values()), _seconds(before, now)
    if acted <= 0.0 or seconds <= 0.0:
        return None
    pushed, waited = actor.get("push", 0.0), learner.get("wait", 0.0)
    if serial:
        # In one process, drawing includes the shard's work, so it counts as waiting for shards.
        waited += learner.get("draw", 0.0)
    worked = acted - pushed - actor.get("idle", 0.0)
    updated = learned - waited - learner.get("idle", 0.0)
    # A learner that has not reported yet has not learned yet: it waits for its first credit.
    learned = max(learned, 1e-9)
    update_share = learner.get("update", 0.0) / learned
    if serial:
        played = spent.get("evaluator", {}).get("play", 0.0)
        reported = worked + pushed + updated + waited + played
        whole = max(seconds, reported)
        return Shares(
            actor_work=worked / whole,
            actor_push=pushed / whole,
            actor_idle=0.0,
            learner_work=updated / whole,
            learner_wait=waited / whole,
            learner_idle=0.0,
            learner_update=update_share,
            shard_work=sum(shard.values()) / whole,
            coordinator_work=(whole - reported) / whole,
            evaluation=played / whole,
        )
    return Shares(
        actor_work=worked / acted,
        actor_push=pushed / acted,
        actor_idle=actor.get("idle", 0.0) / acted,
        learner_work=updated / learned,
        learner_wait=waited / learned,
        learner_idle=1.0 - (updated + waited) / learned,
        learner_update=update_share,
        shard_work=sum(shard.values()) / seconds / max(1, len(now.shard_transitions or {})),
        coordinator_work=spent["coordinator"].get("work", 0.0) / seconds,
        learner_exchange=learner.get("exchange", 0.0) / learned,
    )


def _before(window: Sequence[Snapshot]) -> Snapshot:
    """The snapshot that begins the window; an empty one, as at the run's start, if chunks take longer."""
    before, now = window[0], window[-1]
    seconds, spent = _seconds(before, now), _spent(before, now)
    roles = ("actor",) if now.updates_total == 0 else ("actor", "learner")
    # In one process each role waits for the others, and reports its idle time with its next chunk.
    reported = all(sum(spent.get(role, {}).values()) >= _MOST * seconds for role in roles)
    return before if reported and seconds > 0.0 else Snapshot()


def _seconds(before: Snapshot, now: Snapshot) -> float:
    """Seconds of the coordinator between two snapshots."""
    return sum(_spent(before, now).get("coordinator", {}).values())


def _spent(before: Snapshot, now: Snapshot) -> Mapping[str, Mapping[str, float]]:
    """Role -> phase -> seconds between two snapshots.

    An actor tells with its next chunk only that pacing has held it back. While the learner has work, actors
    that report nothing are held back by it: that time is idle, too.
    """
    then = before.role_seconds_total or {}
    spent = {
        role: {phase: _increase(then.get(role, {}).get(phase, 0.0), value) for phase, value in phases.items()}
        for role, phases in (now.role_seconds_total or {}).items()
    }
    seconds = sum(spent.get("coordinator", {}).values())
    actor, learner = spent.get("actor", {}), spent.get("learner", {})
    learned = sum(learner.values())
    if learned > 0.0:
        silent = max(0.0, (now.roles_up or {}).get("actor", 0.0) * seconds - sum(actor.values()))
        busy = (learned - learner.get("idle", 0.0)) / max(learned, seconds)
        spent["actor"] = {**actor, "idle": actor.get("idle", 0.0) + busy * silent}
    return spent


def _increase(before: float, now: float) -> float:
    """The growth of a total; a total that is smaller than before was reset when the run resumed."""
    return now - before if now >= before else now


def _memory(now: Snapshot) -> str | None:
    held, free = now.machine_memory_bytes, now.machine_memory_available_bytes
    if held and free is not None and free < LEAST_MEMORY * held:
        return (
            f"{byte_size(free)} of the machine's {byte_size(held)} of memory are free, replay holds "
            f"{byte_size(now.replay_bytes)}; lower replay.capacity or actors.num_actors, or set "
            "replay.compression=lz4"
        )
    shared, used = now.shared_memory_bytes, now.shared_memory_used_bytes
    if shared and used is not None and used > MOST_SHARED_MEMORY * shared:
        return (
            f"/dev/shm is full ({byte_size(used)} of {byte_size(shared)}), so Ray moves objects to disk; "
            "enlarge it (docker run --shm-size)"
        )
    return None


def _texts(shares: Shares, before: Snapshot, now: Snapshot, config: ResolvedConfig) -> Mapping[Stage, str]:
    """Stage -> evidence and the setting to change; until the first update only for stages possible then."""
    actors, learner, replay, pacing = config.actors, config.learner, config.replay, config.pacing
    serial = _is_serial(config)
    more_actors = "" if serial else f"actors.num_actors (now {actors.num_actors}) or "
    more_steps = f"raise {more_actors}actors.envs_per_actor (now {actors.envs_per_actor})"
    if now.updates_total == 0:
        filled = f"{now.inserted_transitions_total:,} of {pacing.learning_starts:,}"
        return {
            "actor": f"replay holds too few transitions to start learning ({filled}); lower "
            f"pacing.learning_starts, or {more_steps}",
            "learner": "replay holds enough transitions, but the first updates are not done yet; if that "
            f"lasts, look at logs/, or lower learner.updates_per_chunk (now {learner.updates_per_chunk})",
        }
    local = "; or set run.runtime=local, which gives each role its own process" if serial else ""
    actors_idle = "" if serial else f", pacing holds the actors back {shares.actor_idle:.0%}"
    learner_idle = "" if serial else f", pacing holds the learner back {shares.learner_idle:.0%}"
    waits = (
        f"the learner waits for transitions {shares.learner_wait:.0%}, actors wait for pushes "
        f"{shares.actor_push:.0%} of the time, shards work {shares.shard_work:.0%}"
    )
    moved = (_moved(now) - _moved(before)) / _seconds(before, now)
    uncompressed = "" if replay.compression == "none" else ", or set replay.compression=none"
    uniform = ", or set replay.sampling=uniform" if replay.sampling == "prioritized" else ""
    pauses = (
        f"{shares.coordinator_work:.0%} of the time passes between chunks"
        if serial
        else f"pacing pauses both sides: actors {shares.actor_idle:.0%}, learner {shares.learner_idle:.0%} "
        f"of the time (the coordinator works {shares.coordinator_work:.0%})"
    )
    return {
        "actor": f"actors work {shares.actor_work:.0%} of the time{learner_idle}; {more_steps}, or learn "
        f"more from each step: raise pacing.samples_per_insert (now {pacing.samples_per_insert:g}){local}",
        "learner": f"the learner works {shares.learner_work:.0%} of the time (updates alone "
        f"{shares.learner_update:.0%}){actors_idle}; give it a GPU or more cores, a smaller network or "
        f"learner.batch_size (now {learner.batch_size}), or lower pacing.samples_per_insert (now "
        f"{pacing.samples_per_insert:g}){local}",
        "communication": f"the learner's ranks spend {shares.learner_exchange:.0%} of the time averaging "
        f"gradients and waiting for each other (updates {shares.learner_update:.0%}){actors_idle}; lower "
        f"learner.num_learners (now {learner.num_learners}), or raise learner.batch_size (now "
        f"{learner.batch_size})",
        "replay": f"{waits}; raise replay.num_shards (now {replay.num_shards}){uncompressed}{uniform}{local}",
        "network": f"{waits} while {byte_size(round(moved))}/s move between "
        "processes; place the shards on the learner's machine, or raise replay.minibatches_per_request (now "
        f"{replay.minibatches_per_request})",
        "evaluation": f"evaluations take {shares.evaluation:.0%} of the time; lower evaluation.episodes (now "
        f"{config.evaluation.episodes}) or raise evaluation.every_updates (now "
        f"{config.evaluation.every_updates:,}){local}",
        "pacing": f"{pauses}; raise actors.steps_per_chunk (now {actors.steps_per_chunk}) and "
        f"learner.updates_per_chunk (now {learner.updates_per_chunk})",
    }


def _is_serial(config: ResolvedConfig) -> bool:
    return config.run.runtime == "serial"


def _moved(snapshot: Snapshot) -> int:
    return (snapshot.pushed_bytes_total or 0) + (snapshot.sampled_bytes_total or 0)
