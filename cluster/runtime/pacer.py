"""How much acting and learning may be granted now: pacing over the living fleet.

Owns the sizes of chunks and the number of credits; grants nothing itself. Must not import ray or torch.
"""

from __future__ import annotations

from cluster.control.pacing import Ledger, Pacing, slack_samples
from cluster.runtime.run_context import RunContext

# Two chunks each: one in work, one waiting, so that nobody idles while the coordinator thinks.
_CREDITS_EACH = 2


class Pacer:
    """Looks at what was inserted, sampled and granted, and says what may come on top."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        config, deterministic = context.config, context.engine.deterministic
        actors, learner = config.actors, config.learner
        # Where each call runs when it is made, a second credit would only add policy lag.
        self.credits_each = 1 if deterministic else _CREDITS_EACH
        # A chunk stays outstanding until a shard acknowledges it, which its actor tells with its next chunk.
        unacknowledged = 0 if deterministic else actors.pushes_in_flight
        self.chunk_transitions = actors.steps_per_chunk * actors.envs_per_actor
        """Transitions that one rollout chunk of one actor makes."""
        inserting = (self.credits_each + unacknowledged) * actors.num_actors * self.chunk_transitions
        sampling = self.credits_each * learner.updates_per_chunk * learner.batch_size
        self.pacing = Pacing(
            config.pacing.samples_per_insert,
            config.pacing.learning_starts,
            slack_samples(config.pacing.samples_per_insert, inserting, sampling),
        )
        # A batch that repeats no transition; half of a shard so small that transitions leave it early.
        self._fewest_transitions = min(learner.batch_size, config.replay.capacity // 2)

    def ledger(self) -> Ledger:
        """Totals, and what has been granted on top of them."""
        context = self._context
        return Ledger(
            inserted=context.counters.shards.inserted_transitions,
            inserting=context.fleet.inserting(),
            sampled=context.counters.sampled_transitions,
            sampling=context.fleet.sampling(),
        )

    def may_act(self) -> bool:
        """Whether pacing allows another rollout, or a lost shard has left too few transitions to sample."""
        if self._held_transitions() + self._context.fleet.inserting() < self._fewest_transitions:
            return True
        return self.pacing.may_insert(self.ledger(), self.chunk_transitions)

    def next_updates(self) -> int:
        """The updates of the learning chunk that may be granted now; 0 where none may be."""
        context = self._context
        if context.fleet.granted(context.fleet.learner, "learn") >= self.credits_each:
            return 0
        updates = self._next_chunk()
        transitions = updates * context.config.learner.batch_size
        allowed = self.pacing.may_sample(self.ledger(), transitions)
        return updates if allowed and self._held_transitions() >= self._fewest_transitions else 0

    def _next_chunk(self) -> int:
        """A whole chunk, or what is left until stop.updates or a checkpoint that is due at an update."""
        config = self._context.config
        granted = self._context.counters.version + self._context.fleet.sampling() // config.learner.batch_size
        updates = config.learner.updates_per_chunk
        if config.stop.updates is not None:
            updates = min(updates, config.stop.updates - granted)
        every = config.checkpoint.every_updates
        if every is not None and self._context.engine.deterministic:
            updates = min(updates, every - granted % every)
        return max(0, updates)

    def _held_transitions(self) -> int:
        """Transitions that can be sampled now: a shard that was lost counts again once it is back."""
        shards = self._context.fleet.shards
        return sum(
            status.count
            for status in self._context.counters.shards.living()
            if status.incarnation == shards[status.shard].incarnation
        )
