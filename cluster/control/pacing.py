"""Pacing: how far acting may run ahead of learning, and learning ahead of acting.

Owns the two inequalities; pure arithmetic over totals and outstanding credits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ledger:
    """Totals of a run and what has been granted on top of them, in transitions.

    inserted: rows that the shards hold or held. inserting: rows of rollout chunks granted or pushed and
    not yet acknowledged. sampled: rows that the learner consumed. sampling: rows of learning chunks granted
    and not yet reported. Credits of the dead leave inserting and sampling: that is their refund.
    """

    inserted: int
    inserting: int
    sampled: int
    sampling: int


@dataclass(frozen=True)
class Pacing:
    """sampled follows samples_per_insert * (inserted - learning_starts) within fixed bounds.

    Because both bounds are on totals, a stall of one side holds the other, and no burst follows: nothing
    is saved up beyond the bounds (compare Reverb's rate limiter, arXiv:2102.04736, section 3.3).

    Attributes:
        samples_per_insert: the target ratio.
        learning_starts: rows inserted before the first sample.
        slack_samples: how many samples acting may run ahead of learning.
    """

    samples_per_insert: float
    learning_starts: int
    slack_samples: float

    def may_insert(self, ledger: Ledger, rows: int) -> bool:
        """Whether `rows` more may be granted to actors: acting not too far ahead of learning."""
        after = ledger.inserted + ledger.inserting + rows
        owed = self.samples_per_insert * (after - self.learning_starts)
        return owed - ledger.sampled <= self.slack_samples

    def may_sample(self, ledger: Ledger, rows: int) -> bool:
        """Whether `rows` more may be granted to the learner: it never samples beyond the target ratio."""
        if ledger.inserted < self.learning_starts:
            return False
        budget = self.samples_per_insert * (ledger.inserted - self.learning_starts)
        return ledger.sampled + ledger.sampling + rows <= max(budget, 0.0)

    def surplus_samples(self, ledger: Ledger) -> int:
        """By how much learning lies further behind than acting could have come to run ahead of it."""
        owed = self.samples_per_insert * (ledger.inserted - self.learning_starts) - ledger.sampled
        return max(0, math.floor(owed - self.slack_samples))

    def achieved(self, ledger: Ledger) -> float:
        """Samples per insert so far, over the rows inserted after learning could start; 0 before."""
        paced = ledger.inserted - self.learning_starts
        return ledger.sampled / paced if paced > 0 else 0.0


def slack_samples(samples_per_insert: float, rollout_transitions: int, learn_transitions: int) -> float:
    """The least slack with which neither side can wait for the other for ever.

    Learning waits while less than learn_transitions is owed; acting must then still be allowed all the
    rollout_transitions that may be outstanding at a time.
    """
    return samples_per_insert * rollout_transitions + learn_transitions
