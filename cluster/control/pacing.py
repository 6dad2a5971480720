"""Pacing: how far acting may run ahead of learning, and learning ahead of acting.

Owns the two inequalities; pure arithmetic over totals and outstanding credits.
"""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ledger:
    """Totals of a run and the credits granted on top of them, in transitions.

    Attributes:
        inserted: transitions that the shards have taken in.
        inserting: transitions of rollout chunks that are granted, or pushed and not yet acknowledged.
        sampled: transitions that the learner has consumed.
        sampling: transitions of learning chunks that are granted and not yet reported.

    Credits of a dead role are refunded by leaving them out of inserting and sampling.
    """

    inserted: int
    inserting: int
    sampled: int
    sampling: int


@dataclass(frozen=True)
class PacingOrigin:
    """The totals from which on the ratio holds, in transitions: at the newest change of a pacing setting."""

    inserted: int = 0
    sampled: int = 0


@dataclass(frozen=True)
class Pacing:
    """Keeps sampled near samples_per_insert * (inserted - learning_starts), within fixed bounds.

    Both bounds are on totals. So a stall of one side pauses the other, and no burst follows, because neither
    can get ahead by more than its bound (compare Reverb's rate limiter, arXiv:2102.04736, section 3.3).

    Attributes:
        samples_per_insert: the target ratio.
        learning_starts: transitions inserted before the first sample.
        slack_samples: how many samples acting may run ahead of learning.
        origin: both totals are counted from there, so that a new ratio does not hold for what was before.
    """

    samples_per_insert: float
    learning_starts: int
    slack_samples: float
    origin: PacingOrigin = PacingOrigin()

    def may_insert(self, ledger: Ledger, transitions: int) -> bool:
        """Whether acting stays within its bound if it inserts this many transitions more."""
        ahead = self._owed(ledger.inserted + ledger.inserting + transitions) - ledger.sampled
        return ahead <= self.slack_samples

    def may_sample(self, ledger: Ledger, transitions: int) -> bool:
        """Whether learning stays within the target ratio if it samples this many transitions more."""
        if ledger.inserted < self.learning_starts:
            return False
        return ledger.sampled + ledger.sampling + transitions <= max(self._owed(ledger.inserted), 0.0)

    def surplus_samples(self, ledger: Ledger) -> int:
        """The samples by which learning is farther behind than the bounds allow; 0 within them."""
        return max(0, math.floor(self._owed(ledger.inserted) - ledger.sampled - self.slack_samples))

    def achieved(self, ledger: Ledger) -> float:
        """Samples per insert since the origin, over the transitions inserted while learning could; or 0."""
        paced = ledger.inserted - self._first_paced
        return (ledger.sampled - self.origin.sampled) / paced if paced > 0 else 0.0

    def _owed(self, inserted: int) -> float:
        """Number of samples that the target ratio allows after `inserted` transitions."""
        return self.origin.sampled + self.samples_per_insert * (inserted - self._first_paced)

    @property
    def _first_paced(self) -> int:
        return max(self.learning_starts, self.origin.inserted)


def slack_samples(samples_per_insert: float, rollout_transitions: int, learn_transitions: int) -> float:
    """The smallest slack without deadlock, in which each side waits for the other.

    Learning waits while it is allowed fewer than learn_transitions. Even then, acting must be allowed all
    rollout_transitions that may be outstanding at a time.
    """
    return samples_per_insert * rollout_transitions + learn_transitions
