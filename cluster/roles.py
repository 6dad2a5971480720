"""The roles as an engine spawns them: a package's loop, wired to the other roles.

Owns wiring only; imports each package inside the role that needs it, so that actors never load torch.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from actors.core import EnvSpec, EvaluationReport, Policy, RolloutReport
from cluster.config import RunConfig
from cluster.engine import Calls, Handle, Ref
from cluster.presence import Presence, presence
from cluster.resolve import network_spec
from cluster.stacks import answer_stack_requests
from learner.core import LearnReport
from replay_service.block import TransitionBlock
from replay_service.codec import encode
from replay_service.messages import (
    InsertReply,
    PriorityUpdate,
    SampleReply,
    SampleRequest,
    ShardStatus,
)
from replay_service.shard import ReplayShard


@dataclass(frozen=True)
class RoleContext:
    """What every role of a run is told: its name, the resolved config, its environment, the log folder."""

    name: str
    config: RunConfig
    spec: EnvSpec
    logs: Path


class Role:
    """What all roles share: they say where they are, and answer requests for their stack."""

    def __init__(self, context: RoleContext) -> None:
        self._presence = presence()
        answer_stack_requests(context.logs, context.name)

    def presence(self) -> Presence:
        """See presence."""
        return self._presence


@dataclass(frozen=True)
class Seeds:
    """Streams of random numbers of a run, one for each (role, index, incarnation)."""

    run_seed: int

    def stream(self, role: str, index: int, incarnation: int) -> np.random.SeedSequence:
        """A restarted role never repeats an old stream, because its incarnation is part of the key."""
        roles = ("actor", "shard", "learner")
        return np.random.SeedSequence(self.run_seed, spawn_key=(roles.index(role), index, incarnation))


class ShardRole(Role):
    """One replay shard."""

    def __init__(self, context: RoleContext, shard: int, capacity: int) -> None:
        super().__init__(context)
        config = context.config
        self._shard = ReplayShard(
            config.replay,
            context.spec.block_schema(config.actors.n_step),
            shard=shard,
            incarnation=0,
            capacity=capacity,
            seed=Seeds(config.run.seed).stream("shard", shard, 0),
        )

    def insert(self, encoded: np.ndarray) -> InsertReply:
        """See ReplayShard.insert."""
        return self._shard.insert(encoded)

    def exchange(self, update: PriorityUpdate | None, request: SampleRequest) -> SampleReply:
        """See ReplayShard.exchange."""
        return self._shard.exchange(update, request)

    def status(self) -> ShardStatus:
        """See ReplayShard.status."""
        return self._shard.status()


class RoundRobinSink:
    """Pushes an actor's blocks to the shards in turn, a bounded number in flight.

    Each (writer, shard) is a stream of its own, so every shard sees sequences 0, 1, 2, …
    """

    def __init__(
        self, calls: Calls, shards: list[Handle], writer: int, incarnation: int, pushes_in_flight: int
    ) -> None:
        self._calls = calls
        self._shards = shards
        self._writer = writer
        self._incarnation = incarnation
        self._limit = pushes_in_flight
        self._pushed = 0
        self._statuses: dict[int, ShardStatus] = {}
        self._in_flight: collections.deque[tuple[Ref, int]] = collections.deque()

    @property
    def rows_unacknowledged(self) -> int:
        """Rows pushed whose insertion no shard has confirmed yet."""
        return sum(rows for _, rows in self._in_flight)

    def push(self, block: TransitionBlock) -> None:
        """Sends the block; first waits for the oldest push while too many are in flight."""
        while len(self._in_flight) >= self._limit:
            self._acknowledge(self._in_flight.popleft()[0])
        round_, turn = divmod(self._pushed, len(self._shards))
        shard = self._shards[(self._writer + turn) % len(self._shards)]
        block = replace(block, writer=self._writer, incarnation=self._incarnation, sequence=round_)
        (ref,) = self._calls.call(shard, "insert", encode(block))
        self._in_flight.append((ref, block.num_rows))
        self._pushed += 1

    def statuses(self) -> tuple[ShardStatus, ...]:
        """The newest status of each shard, after taking in what has been acknowledged by now."""
        while self._in_flight and self._calls.wait([self._in_flight[0][0]], 0.0):
            self._acknowledge(self._in_flight.popleft()[0])
        return tuple(self._statuses.values())

    def _acknowledge(self, ref: Ref) -> None:
        reply: InsertReply = self._calls.get(ref)
        self._statuses[reply.status.shard] = reply.status


class EngineTransport:
    """replay_service.sampler.ShardTransport over an engine."""

    def __init__(self, calls: Calls, shards: list[Handle]) -> None:
        self._calls = calls
        self._shards = shards

    @property
    def num_shards(self) -> int:
        """S."""
        return len(self._shards)

    def exchange(self, shard: int, update: PriorityUpdate | None, request: SampleRequest) -> Ref:
        """Starts the exchange with one shard."""
        return self._calls.call(self._shards[shard], "exchange", update, request)[0]

    def collect(self, ticket: Ref) -> SampleReply:
        """Waits for its reply."""
        reply: SampleReply = self._calls.get(ticket)
        return reply

    def status(self, shard: int) -> ShardStatus:
        """Asks a shard for its status and waits."""
        status: ShardStatus = self._calls.get(self._calls.call(self._shards[shard], "status")[0])
        return status


class ActorRole(Role):
    """One environment actor."""

    def __init__(
        self, context: RoleContext, calls: Calls, shards: list[Handle], actor: int, incarnation: int
    ) -> None:
        from actors.rollout import EnvActor

        super().__init__(context)
        config = context.config
        self._sink = RoundRobinSink(calls, shards, actor, incarnation, config.actors.pushes_in_flight)
        self._actor = EnvActor(
            config.env,
            config.actors,
            policy=make_policy(config, context.spec),
            sink=self._sink,
            actor=actor,
            incarnation=incarnation,
            num_actors=config.actors.num_actors or 1,
            seed=Seeds(config.run.seed).stream("actor", actor, incarnation),
        )

    def rollout(
        self, steps: int, version: int, weights: np.ndarray, global_env_steps: int
    ) -> tuple[RolloutReport, int]:
        """One chunk; also the rows pushed whose insertion is not confirmed yet."""
        report = self._actor.rollout(steps, version, weights, global_env_steps)
        return report, self._sink.rows_unacknowledged


class LearnerRole(Role):
    """The learner with its sampler."""

    def __init__(self, context: RoleContext, calls: Calls, shards: list[Handle], threads: int) -> None:
        from learner.loop import Learner
        from replay_service.sampler import ReplaySampler

        super().__init__(context)
        config = context.config
        stream = Seeds(config.run.seed).stream("learner", 0, 0)
        torch_seed, sampler_seed = stream.spawn(2)
        sampler = ReplaySampler(
            config.replay,
            EngineTransport(calls, shards),
            batch_size=config.learner.batch_size,
            minibatches_per_request=config.replay.minibatches_per_request or 1,
            prefetch_requests=config.replay.prefetch_requests,
            rng=np.random.default_rng(sampler_seed),
        )
        self._learner = Learner(
            config.learner,
            network_spec(context.spec),
            sampler,
            seed=int(torch_seed.generate_state(1)[0]),
            threads=threads,
        )

    def learn(self, updates: int) -> tuple[LearnReport, np.ndarray]:
        """One chunk of updates, and the flat weights after it."""
        return self._learner.learn(updates)

    def weights(self) -> tuple[int, np.ndarray]:
        """Version and flat weights as they stand."""
        return self._learner.weights()


class EvaluatorRole(Role):
    """Plays greedy episodes of a version, beside training."""

    def __init__(self, context: RoleContext) -> None:
        from actors.evaluation import Evaluator

        super().__init__(context)
        self._policy = make_policy(context.config, context.spec)
        self._evaluator = Evaluator(context.config.env, seed=context.config.run.seed)

    def evaluate(
        self, version: int, weights: np.ndarray, seed_domain: int, episodes: int
    ) -> EvaluationReport:
        """See Evaluator.evaluate."""
        self._policy.load(weights)
        return self._evaluator.evaluate(
            self._policy, version=version, seed_domain=seed_domain, episodes=episodes
        )


def make_policy(config: RunConfig, spec: EnvSpec) -> Policy:
    """The acting policy: numpy where the network is small, torch (imported here) for everything else."""
    from actors.policy import MlpPolicy, TablePolicy

    if config.learner.network == "table":
        return TablePolicy(spec.num_states or 0, spec.num_actions)
    if config.learner.network == "mlp":
        shape = network_spec(spec).observation_shape
        return MlpPolicy((int(np.prod(shape)), *config.learner.hidden_sizes, spec.num_actions))
    from learner.torch_policy import TorchPolicy

    return TorchPolicy(network_spec(spec), config.learner, threads=1)
