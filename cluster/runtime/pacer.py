"""The pacer: how much acting and learning may be granted now.

Owns the sizes of chunks; grants nothing itself. Must not import ray or torch.
"""

from dataclasses import replace

from cluster.control.pacing import Ledger, Pacing, PacingOrigin, slack_samples
from cluster.runtime.run_context import RunContext


class Pacer:
    """Applies Pacing to the run's counters and to the credits in flight."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        config, deterministic = context.config, context.engine.deterministic
        actors, learner = config.actors, config.learner
        # A chunk counts until a shard has acknowledged it, which its actor reports with a later chunk.
        unacknowledged = 0 if deterministic else actors.pushes_in_flight
        self.chunk_transitions = actors.steps_per_chunk * actors.envs_per_actor
        """Transitions in one rollout chunk of one actor."""
        credits_per_role = context.fleet.credits.per_role
        inserting = (credits_per_role + unacknowledged) * actors.num_actors * self.chunk_transitions
        sampling = credits_per_role * learner.updates_per_chunk * learner.batch_size
        self.pacing = Pacing(
            config.pacing.samples_per_insert,
            config.pacing.learning_starts,
            slack_samples(config.pacing.samples_per_insert, inserting, sampling),
            context.counters.pacing_origin,
        )
        # Enough for a batch without repeats; half the capacity if replay is smaller than two batches.
        self._fewest_transitions = min(learner.batch_size, config.replay.capacity // 2)

    def ledger(self) -> Ledger:
        """The totals of the run and the credits in flight."""
        context = self._context
        return Ledger(
            inserted=context.counters.shards.inserted_transitions,
            inserting=context.fleet.credits.inserting,
            sampled=context.counters.sampled_transitions,
            sampling=context.fleet.credits.sampling,
        )

    def begin_here(self) -> None:
        """Paces from the present totals on, because a setting has changed."""
        counters = self._context.counters
        origin = PacingOrigin(counters.shards.inserted_transitions, counters.sampled_transitions)
        counters.pacing_origin = origin
        self.pacing = replace(self.pacing, origin=origin)

    def may_act(self) -> bool:
        """Whether pacing allows another rollout, or replay holds too few transitions after losing a shard."""
        if self._held_transitions() + self._context.fleet.credits.inserting < self._fewest_transitions:
            return True
        return self.pacing.may_insert(self.ledger(), self.chunk_transitions)

    def next_updates(self) -> int:
        """Number of updates in the learning chunk to grant now; 0 if none may be granted."""
        context = self._context
        if context.fleet.granted(context.fleet.learner, "learn") >= context.fleet.credits.per_role:
            return 0
        updates = self._next_chunk()
        transitions = updates * context.config.learner.batch_size
        allowed = self.pacing.may_sample(self.ledger(), transitions)
        return updates if allowed and self._held_transitions() >= self._fewest_transitions else 0

    def _next_chunk(self) -> int:
        """Updates in the next chunk, which ends at stop.updates and at a checkpoint that is due there."""
        config = self._context.config
        granted = (
            self._context.counters.version + self._context.fleet.credits.sampling // config.learner.batch_size
        )
        updates = config.learner.updates_per_chunk
        if config.stop.updates is not None:
            updates = min(updates, config.stop.updates - granted)
        every = config.checkpoint.every_updates
        if every is not None and self._context.engine.deterministic:
            updates = min(updates, every - granted % every)
        return max(0, updates)

    def _held_transitions(self) -> int:
        """Transitions that can be sampled now; a lost shard counts again once its replacement reports."""
        shards = self._context.fleet.shards
        return sum(
            status.count
            for status in self._context.counters.shards.living()
            if status.incarnation == shards[status.shard].incarnation
        )
