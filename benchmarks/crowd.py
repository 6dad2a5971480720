"""A crowd: one process that speaks for up to a thousand actors.

Owns what an actor of a crowd does, and what a crowd notes. Coordinator, shards and learner cannot tell it
from an actor: it answers the methods of ActorRole, holds its credits, keeps what no shard has acknowledged,
and pushes blocks that a real actor has made in its environment. Only the time that acting takes passes
without work. `process_crowd.py` and `ray_crowd.py` connect a crowd to an engine.
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from dataclasses import dataclass, replace

import numpy as np

from actors.core import EnvSpec, RolloutReport
from actors.policy import TablePolicy
from actors.rollout import EnvActor
from cluster.engines.engine import Calls, Handle
from cluster.engines.process_info import ProcessInfo, process_info
from cluster.runtime.role import RoleContext
from cluster.runtime.shard_calls import RoundRobinSink
from cluster.runtime.shard_role import ShardRole
from cluster.settings.resolved import ResolvedConfig
from replay_service.block import TransitionBlock
from replay_service.messages import ProcessUsage, ShardStatus

RECORDED_CHUNKS = 16
_SPREAD = 0.1
_USAGE_SECONDS = 1.0


@dataclass(frozen=True)
class Recording:
    """Chunks of a real actor: its blocks, and its reports without what belongs to one actor."""

    blocks: tuple[TransitionBlock, ...]
    reports: tuple[RolloutReport, ...]


class _Sink:
    """Keeps the blocks that an actor pushes."""

    def __init__(self) -> None:
        self.blocks: list[TransitionBlock] = []

    def push(self, block: TransitionBlock) -> None:
        self.blocks.append(block)

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


def record(config: ResolvedConfig, spec: EnvSpec) -> Recording:
    """RECORDED_CHUNKS chunks of an actor that acts at random in the config's environment."""
    sink = _Sink()
    actor = EnvActor(
        config.env,
        config.actors,
        policy=TablePolicy(1, spec.num_actions),  # no weights are loaded, so that it is never asked
        sink=sink,
        actor=0,
        incarnation=0,
        num_actors=config.actors.num_actors,
        seed=np.random.SeedSequence(0),
    )
    reports = []
    # The first chunk lacks its last transitions, which wait for rewards.
    while len(sink.blocks) <= RECORDED_CHUNKS:
        reports.append(actor.rollout(config.actors.steps_per_chunk, 0, None, 0))
    actor.close()
    return Recording(tuple(sink.blocks[1:]), tuple(reports[1:]))


class RecordedActor:
    """One actor of the crowd, as its calls see it; see ActorRole for the methods."""

    def __init__(
        self,
        recording: Recording,
        context: RoleContext,
        calls: Calls,
        shards: list[Handle[ShardRole]],
        actor: int,
        incarnation: int,
    ) -> None:
        limit = context.config.actors.pushes_in_flight
        self._sink = RoundRobinSink(calls, shards, actor, incarnation, limit)
        self._limit = limit
        self._recording = recording
        self._actor, self._incarnation = actor, incarnation
        self._chunks = actor  # each begins at another place of the recording
        self._usage_at = time.monotonic()
        self.is_fresh = True
        """Whether it has not acted yet."""

    def process_info(self) -> ProcessInfo:
        return process_info()

    def take_log(self) -> str:
        return ""

    def close(self) -> None:
        pass

    def set_rank(self, rank: int, num_actors: int) -> None:
        pass

    def unacknowledged(self) -> tuple[int, tuple[ShardStatus, ...]]:
        statuses = self._sink.statuses()
        return self._sink.unacknowledged_transitions, statuses

    def replace_shard(self, shard: int, handle: Handle[ShardRole]) -> int:
        self._sink.replace_shard(shard, handle)
        return self._sink.unacknowledged_transitions

    def may_push(self) -> bool:
        """Whether a push would not wait."""
        self._sink.statuses()
        return self._sink.pushes_in_flight < self._limit

    def finish(self, version: int, idle_seconds: float, seconds: float) -> RolloutReport:
        """Ends a chunk: pushes the next recorded block, and reports."""
        recording, now = self._recording, time.monotonic()
        self._sink.push(recording.blocks[self._chunks % len(recording.blocks)])
        report = recording.reports[self._chunks % len(recording.reports)]
        self._chunks += 1
        usage = None
        if now >= self._usage_at:
            self._usage_at = now + _USAGE_SECONDS
            usage = ProcessUsage(time.process_time(), 50_000_000)
        return replace(
            report,
            actor=self._actor,
            incarnation=self._incarnation,
            version=version,
            seconds={"idle": idle_seconds, "act": 0.0, "env": seconds, "build": 0.0, "push": 0.0},
            statuses=self._sink.statuses(),
            pushes_in_flight=self._sink.pushes_in_flight,
            unacknowledged_transitions=self._sink.unacknowledged_transitions,
            process=usage,
        )


def chunk_seconds_of(actor: RecordedActor, mean_seconds: float, rng: np.random.Generator) -> float:
    """How long the next chunk takes: the mean, up to a tenth more or less.

    The first one ends early, as if the run had gone on for long: actors are not in step.
    """
    seconds = mean_seconds * (1.0 + _SPREAD * rng.uniform(-1.0, 1.0))
    if actor.is_fresh:
        actor.is_fresh = False
        seconds *= rng.uniform()
    return float(seconds)


class Heard:
    """What a crowd notes of its actors, which have numbers. Times are on the monotonic clock."""

    def __init__(self) -> None:
        self._credits: list[tuple[float, float]] = []
        self._ends: list[tuple[float, float, float]] = []
        self._versions: list[tuple[float, int, int]] = []
        self._ended_at: dict[int, float] = {}
        self._unanswered: defaultdict[int, deque[float]] = defaultdict(deque)
        self._newest: dict[int, int] = {}

    def credit(self, actor: int) -> None:
        """A call to act has come."""
        now, unanswered = time.monotonic(), self._unanswered[actor]
        if unanswered:
            self._credits.append((now, now - unanswered.popleft()))

    def begin(self, actor: int, version: int | None) -> float:
        """A chunk begins; version: of the weights that came with it. Returns how long the actor has idled."""
        now = time.monotonic()
        if version is not None and version > self._newest.get(actor, -1):
            self._newest[actor] = version
            self._versions.append((now, actor, version))
        return now - self._ended_at.get(actor, now)

    def end(self, actor: int, idle_seconds: float, late_seconds: float) -> None:
        """A chunk is reported; late_seconds: how much later than its time was over."""
        now = self._ended_at[actor] = time.monotonic()
        self._ends.append((now, idle_seconds, late_seconds))
        self._unanswered[actor].append(now)

    def arrays(self) -> dict[str, np.ndarray]:
        """credits [N, 2]: when one came, and the seconds since the end of the chunk that it follows.

        ends [N, 3]: when a chunk ended, how long its actor had idled before, how late the crowd was.
        versions [N, 3]: when weights came, the actor, their version.
        """
        return {
            "credits": np.array(self._credits).reshape(-1, 2),
            "ends": np.array(self._ends).reshape(-1, 3),
            "versions": np.array(self._versions).reshape(-1, 3),
        }
