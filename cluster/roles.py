"""The roles as an engine spawns them: a package's loop, wired to the other roles.

Owns wiring only; imports each package inside the role that needs it, so that actors never load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from actors.core import EnvSpec, EvaluationReport, Policy, RolloutReport
from cluster.config import RunConfig
from cluster.engine import Calls, Handle
from cluster.presence import Presence, presence
from cluster.resolve import network_spec
from cluster.shard_calls import EngineTransport, RoundRobinSink
from cluster.stacks import answer_stack_requests
from learner.config import acts_in_numpy
from learner.core import LearnReport
from replay_service.durability import SealReply
from replay_service.messages import (
    InsertReply,
    PriorityUpdate,
    SampleReply,
    SampleRequest,
    ShardStatus,
)
from replay_service.recovery import RecoveryReport
from replay_service.shard import ReplayShard


@dataclass(frozen=True)
class RoleContext:
    """What every role of a run is told: its name, the resolved config, its environment, and folders.

    replay: the folder under which shards keep their journals.
    """

    name: str
    config: RunConfig
    spec: EnvSpec
    logs: Path
    replay: Path


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

    def __init__(self, context: RoleContext, shard: int, incarnation: int, capacity: int) -> None:
        super().__init__(context)
        config = context.config
        self._shard = ReplayShard(
            config.replay,
            context.spec.block_schema(config.actors.n_step),
            shard=shard,
            incarnation=incarnation,
            capacity=capacity,
            seed=Seeds(config.run.seed).stream("shard", shard, incarnation),
            folder=context.replay / f"shard-{shard}",
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

    def recovery(self) -> tuple[RecoveryReport | None, ShardStatus]:
        """What this shard found in its journal when it began, if it keeps one; and how it stands."""
        return self._shard.recovery, self._shard.status()

    def seal_slice(self, into: Path) -> SealReply:
        """See ReplayShard.seal_slice."""
        return self._shard.seal_slice(into)


class ActorRole(Role):
    """One environment actor."""

    def __init__(
        self, context: RoleContext, calls: Calls, shards: list[Handle], actor: int, incarnation: int
    ) -> None:
        from actors.rollout import EnvActor

        super().__init__(context)
        config = context.config
        self._sink = RoundRobinSink(calls, shards, actor, incarnation, config.actors.pushes_in_flight)
        seed = Seeds(config.run.seed).stream("actor", actor, incarnation)
        # EnvActor spawns the children 0 and 1 of its seed.
        noise = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2))
        self._actor = EnvActor(
            config.env,
            config.actors,
            policy=make_policy(config, context.spec, noise),
            sink=self._sink,
            actor=actor,
            incarnation=incarnation,
            num_actors=config.actors.num_actors or 1,
            seed=seed,
        )

    def rollout(
        self, steps: int, version: int, weights: np.ndarray, global_env_steps: int
    ) -> tuple[RolloutReport, int]:
        """One chunk; also the rows pushed whose insertion is not confirmed yet."""
        report = self._actor.rollout(steps, version, weights, global_env_steps)
        return report, self._sink.rows_unacknowledged

    def unconfirmed(self) -> tuple[int, tuple[ShardStatus, ...]]:
        """The rows whose insertion is not confirmed yet, and what shards said when they confirmed others."""
        statuses = self._sink.statuses()
        return self._sink.rows_unacknowledged, statuses

    def replace_shard(self, shard: int, handle: Handle) -> int:
        """See RoundRobinSink.replace_shard; returns the rows whose insertion is not confirmed yet."""
        self._sink.replace_shard(shard, handle)
        return self._sink.rows_unacknowledged


class LearnerRole(Role):
    """The learner with its sampler."""

    def __init__(self, context: RoleContext, calls: Calls, shards: list[Handle], threads: int) -> None:
        from learner.health import append_skipped
        from learner.loop import Learner
        from replay_service.sampler import ReplaySampler

        super().__init__(context)
        config = context.config
        stream = Seeds(config.run.seed).stream("learner", 0, 0)
        torch_seed, sampler_seed = stream.spawn(2)
        self._transport = EngineTransport(calls, shards)
        self._sampler = ReplaySampler(
            config.replay,
            self._transport,
            batch_size=config.learner.batch_size,
            minibatches_per_request=config.replay.minibatches_per_request or 1,
            prefetch_requests=config.replay.prefetch_requests,
            rng=np.random.default_rng(sampler_seed),
        )
        self._learner = Learner(
            config.learner,
            network_spec(context.spec),
            self._sampler,
            seed=int(torch_seed.generate_state(1)[0]),
            threads=threads,
            record_skipped=partial(append_skipped, context.logs / f"{context.name}.skipped.jsonl"),
        )

    def learn(self, updates: int) -> tuple[LearnReport, np.ndarray]:
        """One chunk of updates, and the flat weights after it."""
        return self._learner.learn(updates)

    def replace_shard(self, shard: int, handle: Handle) -> None:
        """Samples from another shard under this number from now on."""
        self._transport.replace_shard(shard, handle)
        self._sampler.shard_replaced(shard)


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


def make_policy(config: RunConfig, spec: EnvSpec, noise: np.random.SeedSequence | None = None) -> Policy:
    """The acting policy: numpy where the network is small, torch (imported here) for everything else.

    noise: what noisy networks explore with; None acts by their mean weights.
    """
    from actors.policy import MlpPolicy, TablePolicy

    if not acts_in_numpy(config.learner):
        from learner.torch_policy import TorchPolicy

        return TorchPolicy(network_spec(spec), config.learner, threads=1, noise=noise)
    if config.learner.network == "table":
        return TablePolicy(spec.num_states or 0, spec.num_actions)
    shape = network_spec(spec).observation_shape
    return MlpPolicy((int(np.prod(shape)), *config.learner.hidden_sizes, spec.num_actions))
