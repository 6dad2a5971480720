"""How far ahead a learner draws: minibatches a request, and requests in flight, from measured times.

Owns the rule, a pure function; must not import anything outside the standard library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

REQUEST_SECONDS = 0.1
"""Of learning in one request: a call takes the learner some 1 ms, and 1 % of it is little enough. Where
updates are so short that these are more minibatches than a request may hold (`most`), it costs more."""


@dataclass(frozen=True)
class Prefetch:
    """Requests of `minibatches` minibatches each, `requests` of them in flight (0: drawn when needed)."""

    minibatches: int
    requests: int


def first_prefetch(most: Prefetch) -> Prefetch:
    """What to begin with, before anything was measured; without prefetch nothing is ever changed."""
    if most.requests == 0:
        return most
    return Prefetch(min(4, most.minibatches), min(2, most.requests))


def choose_prefetch(
    current: Prefetch, most: Prefetch, *, update_seconds: float, reply_seconds: float | None
) -> Prefetch:
    """What keeps a learner busy, within `most`.

    A request holds about REQUEST_SECONDS of learning. So many are in flight that the newest of them is
    answered before those ahead of it are learned from, and one more, as answers do not always take as long.

    Args:
        update_seconds: of learning from one minibatch, waiting left out; above 0.
        reply_seconds: between asking and having the answer of a request of current.minibatches; None where
            nobody has waited for one yet, so that the number in flight is enough as it is.
    """
    if most.requests == 0:
        return current
    minibatches = max(1, min(round(REQUEST_SECONDS / update_seconds), most.minibatches))
    # A change costs a wait of its own, and times vary: not for less than a factor of 2, or the limit.
    if minibatches < most.minibatches and 0.5 < minibatches / current.minibatches < 2.0:
        minibatches = current.minibatches
    if reply_seconds is None:
        return Prefetch(minibatches, current.requests)
    # At most: part of an answer's time does not grow with what is asked for.
    expected_seconds = reply_seconds * max(1.0, minibatches / current.minibatches)
    requests = math.ceil(expected_seconds / (minibatches * update_seconds)) + 1
    return Prefetch(minibatches, min(requests, most.requests))
