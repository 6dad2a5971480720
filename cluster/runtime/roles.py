"""The roles of actors and learner, which connect the packages' loops to the shards.

Owns wiring only; imports each package inside the role that needs it, so that actors never load torch.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from functools import partial

import numpy as np

from actors.core import EnvSpec, Policy, RolloutReport
from actors.soft_values import GREEDY, SoftValues, Values
from cluster.engines.engine import Calls, Handle, PeerLost, ValueT
from cluster.engines.threads import available_cores, env_threads
from cluster.metrics.usage import FreeCores, MemoryMeter
from cluster.record.logs import log_path
from cluster.runtime.role import Role, RoleContext, Seeds
from cluster.runtime.shard_calls import EngineTransport, RoundRobinSink
from cluster.runtime.shard_role import ShardRole
from cluster.settings.resolve import acts_with_torch, network_spec
from cluster.settings.resolved import ResolvedConfig
from cluster.wording import quantity
from learner.config import LearnerConfig, acts_in_numpy, part_sizes
from learner.core import LearnerState, LearnReport, Meeting, Note
from learner.threads import ThreadChoice
from replay_service.messages import ShardStatus

_PEER_LOST_SECONDS = 1.0


class ActorRole(Role):
    """One environment actor."""

    def __init__(
        self,
        context: RoleContext,
        calls: Calls,
        shards: list[Handle[ShardRole]],
        actor: int,
        incarnation: int,
    ) -> None:
        from actors.rollout import EnvActor

        super().__init__(context)
        config = context.config
        self._sink = RoundRobinSink(calls, shards, actor, incarnation, config.actors.pushes_in_flight)
        seed = Seeds(config.run.seed).stream("actor", actor, incarnation)
        # EnvActor spawns the children 0 and 1 of its seed.
        noise = np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, 2))
        num_actors = config.actors.num_actors
        # On a cluster an actor uses the one core that it claims.
        cores = 1 if config.run.runtime == "cluster" else available_cores()
        actors_here = min(num_actors, available_cores()) if config.run.runtime == "cluster" else num_actors
        # In the serial runtime the roles' memory cannot be told apart.
        self._memory = MemoryMeter(config.actors.memory_limit_bytes, actors_here) if context.source else None
        threads = env_threads(cores, num_actors)
        self._actor = EnvActor(
            config.env,
            config.actors,
            policy=make_policy(config, context.spec, noise),
            sink=self._sink,
            actor=actor,
            incarnation=incarnation,
            num_actors=num_actors,
            seed=seed,
            env_threads=threads,
            # Overlap does not pay with a numpy policy, which answers at once, nor on a single core. A serial
            # run never overlaps, so that it is the same on any number of cores.
            overlap=threads > 1 and context.source is not None and acts_with_torch(config, context.spec),
            values=target_values(config.learner),
        )

    def rollout(
        self, steps: int, version: int, weights: np.ndarray | None, global_env_steps: int
    ) -> RolloutReport:
        """Acts for one chunk; see EnvActor.rollout."""
        report = self._actor.rollout(steps, version, weights, global_env_steps, self._chunk_seconds)
        return dataclasses.replace(
            report,
            pushes_in_flight=self._sink.pushes_in_flight,
            unacknowledged_transitions=self._sink.unacknowledged_transitions,
            process=self._usage.due() if self._usage else None,
            memory_excess=self._memory.due() if self._memory else None,
        )

    def close(self) -> None:
        """Closes the environments; nothing may follow."""
        self._actor.close()

    def set_rank(self, rank: int, num_actors: int) -> None:
        """See EnvActor.set_rank."""
        self._actor.set_rank(rank, num_actors)

    def unacknowledged(self) -> tuple[int, tuple[ShardStatus, ...]]:
        """Number of transitions that no shard has acknowledged yet, and the newest status of each shard."""
        statuses = self._sink.statuses()
        return self._sink.unacknowledged_transitions, statuses

    def replace_shard(self, shard: int, handle: Handle[ShardRole]) -> int:
        """See RoundRobinSink.replace_shard; returns how many transitions no shard has acknowledged yet."""
        self._sink.replace_shard(shard, handle)
        return self._sink.unacknowledged_transitions


class LearnerRole(Role):
    """One rank of the learner, with its sampler. Only rank 0 publishes weights; those of others are empty."""

    def __init__(
        self,
        context: RoleContext,
        calls: Calls,
        shards: list[Handle[ShardRole]],
        incarnation: int,
        rank: int = 0,
    ) -> None:
        from learner.loop import Learner
        from learner.ranks import ONE_RANK, SeveralRanks
        from learner.skipped_updates import append_skipped
        from replay_service.sampler import ReplaySampler

        super().__init__(context)
        config = context.config
        seeds, size = Seeds(config.run.seed), config.learner.num_learners
        # All ranks begin with the same weights, and draw different transitions.
        torch_seed, _ = seeds.stream("learner", 0, incarnation).spawn(2)
        _, sampler_seed = seeds.stream("learner", rank, incarnation).spawn(2)
        self._name, self._calls = context.name, calls
        self._several = SeveralRanks(rank, size)
        self._publishes = rank == 0
        skipped = log_path(context.logs, context.name).with_suffix(".skipped.jsonl")
        self._transport = EngineTransport(calls, shards)
        self._sampler = ReplaySampler(
            config.replay,
            self._transport,
            batch_size=part_sizes(config.learner.batch_size, size)[rank],
            minibatches_per_request=config.replay.minibatches_per_request,
            prefetch_requests=config.replay.prefetch_requests,
            rng=np.random.default_rng(sampler_seed),
            adaptive=True,
        )
        threads = config.learner.threads
        # Serial runs are the same on any number of cores and on any day, and ranks must round alike.
        measures = context.source is not None and size == 1
        self._learner = Learner(
            config.learner,
            network_spec(context.spec),
            self._sampler,
            seed=int(torch_seed.generate_state(1)[0]),
            threads=threads or 1,
            record_skipped=partial(append_skipped, skipped),
            samples_per_insert=config.pacing.samples_per_insert,
            ranks=self._several if size > 1 else ONE_RANK,
            measures=measures,
        )
        chooses = threads is None and measures and self._learner.step.device.type == "cpu"
        self._threads = (ThreadChoice(available_cores()), FreeCores()) if chooses else None

    def open_meeting(self) -> Meeting:
        """Where the other ranks find this one, which is rank 0."""
        return self._several.open_meeting(self._calls.host)

    def meet(self, meeting: Meeting) -> None:
        """Connects all ranks; each must be asked. Nothing may be learned before."""
        step, host = self._learner.step, self._calls.host
        self._with_others(lambda: self._several.meet(meeting, host, step.device, step.gradient_bytes))

    def learn(self, updates: int) -> tuple[LearnReport, np.ndarray]:
        """One chunk of `updates` updates, or fewer if they take long, and the flat weights after it."""
        report, weights = self._with_others(lambda: self._learner.learn(updates, self._chunk_seconds))
        if report.updates:
            busy_seconds = sum(report.seconds[phase] for phase in ("draw", "update", "other"))
            self._sampler.adapt(busy_seconds / report.updates)
            report = self._with_threads(report, busy_seconds)
        report = dataclasses.replace(
            report,
            prefetched_requests=self._sampler.requests_in_flight,
            process=self._usage.due() if self._usage else None,
        )
        return report, self._published(weights)

    def state(self) -> LearnerState:
        """See UpdateStep.state."""
        return self._learner.step.state()

    def start_from(self, weights: np.ndarray) -> tuple[int, np.ndarray]:
        """Loads weights to begin with; returns version 0 and the flat weights [P] float32."""
        self._learner.step.start_from(weights)
        return 0, self._published(self._learner.step.weights())

    def restore(self, state: LearnerState) -> tuple[int, np.ndarray]:
        """Loads a state; returns its version and flat weights [P] float32."""
        self._learner.step.restore(state)
        return state.version, self._published(self._learner.step.weights())

    def replace_shard(self, shard: int, handle: Handle[ShardRole]) -> None:
        """Makes the sampler call the replacement of a shard."""
        self._transport.replace_shard(shard, handle)
        self._sampler.shard_replaced(shard)

    def _with_threads(self, report: LearnReport, busy_seconds: float) -> LearnReport:
        """Chooses the number of threads for the next chunk; the report says so if the choice changes."""
        if self._threads is None:
            return report
        choice, free_cores = self._threads
        is_new = choice.after(report.updates, busy_seconds, free_cores.newest())
        self._learner.use_threads(choice.threads)
        if not is_new:
            return report
        note = Note("info", f"updates use {quantity(choice.chosen, 'thread')} from here on: {choice.reason}")
        return dataclasses.replace(report, notes=(*report.notes, note))

    def _published(self, weights: np.ndarray) -> np.ndarray:
        """The weights to return: the other ranks have the same, and nobody reads theirs."""
        return weights if self._publishes else weights[:0]

    def _with_others(self, work: Callable[[], ValueT]) -> ValueT:
        """What `work` returns. Raises PeerLost if another rank is gone."""
        from learner.ranks import RankLostError

        try:
            return work()
        except RankLostError as error:
            # The engine knows how that rank ended: it is to tell the coordinator first.
            time.sleep(_PEER_LOST_SECONDS)
            raise PeerLost(self._name, f"another rank of the learner is gone: {error}") from error


def target_values(learner: LearnerConfig) -> Values:
    """The values that the learner's targets are made of, for initial priorities."""
    if not learner.munchausen:
        return GREEDY
    return SoftValues(learner.munchausen_alpha, learner.munchausen_temperature, learner.munchausen_clip)


def make_policy(config: ResolvedConfig, spec: EnvSpec, noise: np.random.SeedSequence | None = None) -> Policy:
    """The acting policy: in numpy for small networks, else in torch, which is imported here.

    noise: the seed of noisy networks' noise; None: act by their mean weights.
    """
    from actors.policy import MlpPolicy, TablePolicy

    fitted = network_spec(spec)
    if not acts_in_numpy(fitted, config.learner):
        from learner.torch_policy import TorchPolicy

        return TorchPolicy(fitted, config.learner, threads=1, noise=noise)
    if config.learner.network == "table":
        return TablePolicy(spec.num_states or 0, spec.num_actions)
    sizes = (math.prod(fitted.observation_shape), *config.learner.hidden_sizes, spec.num_actions)
    normalized = math.prod(fitted.frame_shape) if config.learner.normalize_observations else 0
    return MlpPolicy(sizes, normalized, pixels=fitted.is_pixels)
