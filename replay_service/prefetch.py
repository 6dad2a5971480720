"""How far ahead a learner requests minibatches, chosen from measured times.

Owns the rule, a pure function; must not import anything outside the standard library.
"""

import math
from dataclasses import dataclass

REQUEST_SECONDS = 0.1
"""Learning time that one request should cover. A call through Ray costs the learner about 1 ms: 1 % overhead.
Between processes of one machine it costs less, but smaller requests are no faster there, either.

The overhead is larger where updates are so short that `limits.minibatches` of them take less time."""


@dataclass(frozen=True)
class Prefetch:
    """How many requests are in flight, and for how many minibatches each asks.

    With 0 requests, a minibatch is requested when it is needed.
    """

    minibatches: int
    requests: int


def initial_prefetch(limits: Prefetch) -> Prefetch:
    """The prefetch to begin with, before times are measured; limits: of one request or more."""
    return Prefetch(min(4, limits.minibatches), min(2, limits.requests))


def choose_prefetch(
    current: Prefetch, limits: Prefetch, *, update_seconds: float, reply_seconds: float | None
) -> Prefetch:
    """The prefetch that keeps a learner busy, at most `limits`, which are of one request or more.

    A request covers about REQUEST_SECONDS of learning. Enough requests are in flight that the newest is
    answered before the learner has used up the ones ahead of it, plus one because reply times vary.

    Args:
        update_seconds: learning time of one minibatch without waiting; above 0.
        reply_seconds: time from sending a request of current.minibatches to its reply; None if the learner
            has not had to wait for a reply: enough requests are in flight.
    """
    minibatches = max(1, min(round(REQUEST_SECONDS / update_seconds), limits.minibatches))
    # A change costs a wait of its own and times vary, so only a factor of 2 or the limit justifies one.
    if minibatches < limits.minibatches and 0.5 < minibatches / current.minibatches < 2.0:
        minibatches = current.minibatches
    if reply_seconds is None:
        return Prefetch(minibatches, current.requests)
    # An upper bound: part of the reply time does not grow with the number of minibatches.
    expected_seconds = reply_seconds * max(1.0, minibatches / current.minibatches)
    requests = math.ceil(expected_seconds / (minibatches * update_seconds)) + 1
    return Prefetch(minibatches, min(requests, limits.requests))
