"""What a run reserves on a Ray cluster, tried on a private Ray of one node.

tests/deploy/test_cluster_runtime.py tries it on a cluster.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ray

from cluster.engines.engine import Engine, Need
from cluster.engines.placement import Claims
from cluster.engines.ray_placement import Reservation, free_nodes

CORE = {"shard 0": Need(cpus=0.25), "learner": Need(cpus=0.25), "evaluator": Need(cpus=0.25)}


@pytest.fixture
def reservation(ray_engine: Engine) -> Iterator[Reservation]:
    made = Reservation()
    yield made
    made.release()


def claims(actor_cpus: float) -> Claims:
    return Claims(core=CORE, actors={"actor 0": Need(cpus=actor_cpus)}, min_actors=1)


def test_the_core_is_reserved_and_actors_get_a_preferred_node(reservation: Reservation) -> None:
    (before,) = free_nodes()
    said: list[str] = []
    reservation.make(claims(0.25), wait_seconds=60.0, say=said.append, stopped=lambda: False)
    assert said == [f"{before.host}: shard, learner, evaluator, actor"]
    assert free_nodes()[0].cpus == before.cpus - 0.75

    own = Need(cpus=7.0)
    learner, actor = reservation.options("learner", own), reservation.options("actor 0", own)
    assert (learner["num_cpus"], actor["num_cpus"]) == (0.25, 0.25)
    assert learner["scheduling_strategy"].placement_group_bundle_index == 0
    assert actor["scheduling_strategy"].node_id == before.node_id == ray.get_runtime_context().get_node_id()
    reservation.forget_node("actor 0")
    assert "scheduling_strategy" not in reservation.options("actor 0", own)
    assert reservation.options("actor 1", own) == {"num_cpus": 7.0, "num_gpus": 0.0}


def test_a_wait_for_room_says_what_is_missing_and_ends_in_time(reservation: Reservation) -> None:
    said: list[str] = []
    with pytest.raises(TimeoutError, match=r"actors\.min_actors to begin with fewer"):
        reservation.make(claims(1_000.0), wait_seconds=0.5, say=said.append, stopped=lambda: False)
    assert said[0].startswith("waiting up to 0.5 s for room: the run needs 1,000.75 CPUs")


def test_a_stopped_run_waits_no_longer(reservation: Reservation) -> None:
    reservation.make(claims(1_000.0), wait_seconds=600.0, say=lambda text: None, stopped=lambda: True)
