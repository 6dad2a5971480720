"""Roles that benchmarks call, and engines to call them through.

In a module of its own, because the processes of the roles import it.
"""

import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.config import ActorsConfig
from actors.core import EnvSpec
from benchmarks.replay_data import random_block
from cluster.engines.engine import Calls, Engine, Handle, Need
from cluster.engines.process_engine import ProcessEngine
from cluster.engines.ray_engine import RayEngine
from cluster.runtime.preload import fork_servers
from cluster.runtime.role import RoleContext
from cluster.runtime.shard_calls import RoundRobinSink
from cluster.runtime.shard_role import ShardRole
from cluster.settings.config import RunConfig
from cluster.settings.resolve import resolve
from learner.config import LearnerConfig, NetworkSpec
from replay_service.block import BlockSchema
from replay_service.config import ReplayConfig


@contextmanager
def both_engines() -> Iterator[dict[str, Engine]]:
    """The process engine and a private Ray, both started: name -> engine."""
    with ExitStack() as stack:
        processes = stack.enter_context(closing(ProcessEngine(fork_servers())))
        private_ray = stack.enter_context(closing(RayEngine(private=True)))
        processes.start()
        private_ray.start()
        yield {"processes": processes, "Ray": private_ray}


class Target:
    """Answers calls and calls another one."""

    def __init__(self, calls: Calls | None = None, other: "Handle[Target] | None" = None) -> None:
        self._calls = calls
        self._other = other

    def nothing(self) -> None:
        """Returns at once."""

    def take(self, array: np.ndarray) -> int:
        """Returns the size of what it gets."""
        return array.nbytes

    def zeros(self, num_bytes: int) -> np.ndarray:
        """A new array, [num_bytes] uint8."""
        return np.zeros(num_bytes, np.uint8)

    def push(self, num_bytes: int, rounds: int) -> float:
        """Median seconds until the other role has acknowledged an array of this size."""
        assert self._calls is not None
        assert self._other is not None
        array, seconds = np.ones(num_bytes, np.uint8), []
        for _ in range(rounds):
            began = time.perf_counter()
            self._calls.get(self._calls.call(self._other, Target.take, array)[0])
            seconds.append(time.perf_counter() - began)
        return statistics.median(seconds)

    def pid(self) -> int:
        """The pid of this process."""
        return os.getpid()

    def sleep(self) -> None:
        """Returns after minutes."""
        time.sleep(1000.0)


class Writer:
    """Pushes blocks of 512 transitions as an actor does: several in flight."""

    def __init__(self, calls: Calls, shard: Handle[ShardRole], schema: BlockSchema) -> None:
        self._block = random_block(schema, 512)
        self._sink = RoundRobinSink(calls, [shard], writer=0, incarnation=0, pushes_in_flight=4)

    def push(self, blocks: int) -> int:
        """Returns the number of transitions pushed."""
        for _ in range(blocks):
            self._sink.push(self._block)
        return blocks * self._block.num_transitions


@dataclass(frozen=True)
class ServedShard:
    """A shard full of random transitions, its writer, and the context of a learner that learns from it."""

    shard: Handle[ShardRole]
    writer: Handle[Writer]
    context: RoleContext


def served_shard(
    engine: Engine,
    network: NetworkSpec,
    learner: LearnerConfig,
    schema: BlockSchema,
    replay: ReplayConfig,
    folder: Path,
) -> ServedShard:
    """Makes a shard with its writer, and waits until it is full."""
    (field,) = schema.frame_fields
    spec = EnvSpec(
        field.shape, field.dtype, None, network.num_actions, schema.stack, "sync", "next_step", None, None,
        pixels=network.pixels, image_layouts=network.image_layouts,
    )  # fmt: skip
    actors = ActorsConfig(n_step=schema.n_step)
    config = resolve(RunConfig(actors=actors, learner=learner, replay=replay), spec, 2)
    context = RoleContext("learner", config, spec, logs=folder, replay=folder)
    own, capacity = replace(context, name="shard 0"), config.replay.capacity
    shard = engine.spawn("shard 0", ShardRole, own, 0, 0, capacity, need=Need())
    writer = engine.spawn("writer", Writer, engine.calls, shard, schema, need=Need())
    engine.get(engine.call(writer, Writer.push, capacity // 512 + 1)[0])
    return ServedShard(shard, writer, context)
