"""The ladder of epsilons over a fleet: which actor has which place on it.

Owns when places change; must not import ray or torch.
"""

from cluster.runtime.fleet import Fleet
from cluster.runtime.member import Member
from cluster.runtime.roles import ActorRole


class Ladder:
    """Spreads the ladder over the actors that are up, so that no part of it is missing with an actor."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._living: list[Member[ActorRole]] = []

    def spread(self) -> None:
        """Tells actors whose place has changed, once the living ones are the same as at the last call.

        While a fleet comes up, each new actor would change the places of all.
        """
        living = [actor for actor in self._fleet.actors if actor.is_up]
        settled, self._living = living == self._living, living
        for index, actor in enumerate(living if settled else ()):
            rank = (index, len(living))
            if actor.rank != rank:
                actor.rank = rank
                self._fleet.grant(actor, ActorRole.set_rank, *rank)
