"""The sums over the calls in flight, against sums over the calls themselves."""

from __future__ import annotations

import random
from collections import Counter

from qfleet_by_hand import Asked, ByHand

from cluster.runtime.credits import Credits
from cluster.runtime.member import Credit, CreditKind, nothing

KINDS: tuple[CreditKind, ...] = ("rollout", "learn", "log")


def test_sums_are_those_over_the_calls_in_flight() -> None:
    credits_, chance, calls = Credits(2), random.Random(0), list[Asked]()
    run = ByHand()
    run.come_up()
    member = run.fleet.evaluator
    for number in range(200):
        if calls and chance.random() < 0.4:
            call = calls.pop(chance.randrange(len(calls)))
            assert credits_.remove(call) is not None
            assert credits_.remove(call) is None
            assert call not in credits_
        else:
            calls.append(Asked("evaluator", f"call {number}", ()))
            kind = chance.choice(KINDS)
            credits_.add(calls[-1], Credit(member, kind, nothing, nothing, chance.randrange(5)))
        assert list(credits_) == calls
        assert len(credits_) == len(calls)
        assert all(call in credits_ for call in calls)
        assert +credits_.number == Counter(credit.kind for credit in credits_.values())
        expected = dict.fromkeys(KINDS, 0)
        for credit in credits_.values():
            expected[credit.kind] += credit.transitions
        assert (credits_.inserting, credits_.sampling) == (expected["rollout"], expected["learn"])
        assert member.in_flight == {call for call in calls if credits_[call].kind != "log"}
        assert member.chunks == credits_.number["rollout"] + credits_.number["learn"]
