"""The places of roles: each rule, the roles without room, and that no machine gives more than it has."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.core import EnvSpec
from cluster.engines.engine import Need
from cluster.engines.machine import Machine
from cluster.engines.placement import Claims, Node, Placement, place, role_name
from cluster.settings.load_config import load_config
from cluster.settings.plan import make_claims, make_plan
from cluster.settings.resolve import resolve

GB = 10**9
CARTPOLE = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", 500, 475.0)
MACHINE = Machine(cores=2, memory_bytes=32 * GB, available_bytes=24 * GB, shm_bytes=16 * GB)


def node(name: str, cpus: float, gpus: float = 0.0, memory: int = 64 * GB) -> Node:
    return Node(name, name, cpus, gpus, memory, gpus_declared=gpus)


def claims(
    shards: int = 1, actors: int = 1, *, gpus: float = 0.0, least: int | None = None, ranks: int = 1
) -> Claims:
    return Claims(
        core={
            **{f"shard {index}": Need(memory_bytes=8 * GB) for index in range(shards)},
            **{role_name("learner", rank): Need(gpus=gpus, memory_bytes=GB) for rank in range(ranks)},
            "evaluator": Need(memory_bytes=GB),
        },
        actors={f"actor {index}": Need(memory_bytes=GB) for index in range(actors)},
        min_actors=actors if least is None else least,
    )


def where(placement: Placement) -> dict[str, str]:
    return {name: node.host for name, node in placement.nodes.items()}


def test_the_learner_takes_the_gpu_and_shards_spread_away_from_it() -> None:
    placed = where(place(claims(shards=2, gpus=1.0), [node("gpu", 8, 1), node("a", 8), node("b", 8)]))
    assert placed["learner"] == "gpu"
    assert {placed["shard 0"], placed["shard 1"]} == {"a", "b"}


@pytest.mark.parametrize("gpus", [0.0, 1.0])
def test_the_ranks_of_a_learner_are_near_each_other(gpus: float) -> None:
    machines = [node("a", 8, 2 * gpus), node("b", 8, 4 * gpus), node("c", 3, 4 * gpus)]
    placed = where(place(claims(shards=2, gpus=gpus, ranks=3), machines))
    hosts = [placed[role_name("learner", rank)] for rank in range(3)]
    assert len(set(hosts)) <= 2
    assert hosts[0] == hosts[1]


def test_actors_go_beside_their_shard_and_then_where_the_fewest_cpus_are_left() -> None:
    machines = [node("a", 2), node("b", 4), node("c", 8), node("d", 5)]
    placement = place(claims(shards=2, actors=7), machines, {"shard 0": "a", "shard 1": "b"})
    placed = where(placement)
    actors = [placed[f"actor {index}"] for index in range(7)]
    # In turn beside either shard, while there is room; the others where the fewest CPUs are left: b, then d.
    assert actors == ["a", "b", "a", "b", "b", "b", "d"]


def test_memory_decides_where_a_shard_fits() -> None:
    placed = where(place(claims(), [node("small", 16, memory=4 * GB), node("large", 4)]))
    assert placed["shard 0"] == "large"


def test_what_is_missing_is_named_and_actors_beyond_the_least_wait() -> None:
    placement = place(claims(shards=1, actors=4, least=2), [node("only", 4)])
    assert set(placement.missing) == {"actor 1"}
    assert placement.waiting_actors == 2
    assert "no room for actor (1 CPU, 1.0 GB of memory)" in placement.text
    assert "2 more actors will join" in placement.text
    assert place(claims(actors=4, least=1), [node("only", 4)]).missing == {}


def test_without_a_gpu_a_learner_that_asks_for_one_is_missing() -> None:
    assert set(place(claims(gpus=1.0), [node("only", 16)]).missing) == {"learner"}


def test_claims_follow_the_plan() -> None:
    overrides = [
        "replay.num_shards=2",
        "actors.num_actors=3",
        "actors.min_actors=1",
        "replay.capacity=100000",
    ]
    config = resolve(load_config(None, overrides), CARTPOLE, cores=2, on_cluster=True)
    assert config.run.runtime == "cluster"
    plan = make_plan(config, CARTPOLE, MACHINE)
    made = make_claims(config, CARTPOLE, plan, learner_gpus=1.0)
    assert list(made.core) == ["shard 0", "shard 1", "learner", "evaluator"]
    assert made.core["shard 0"].memory_bytes > plan.shard_bytes
    assert [need.gpus for need in made.core.values()] == [0.0, 0.0, 1.0, 0.0]
    assert list(made.required) == [*made.core, "actor 0"]
    assert len(made.actors) == 3
    two = resolve(
        load_config(None, [*overrides, "learner.num_learners=2"]), CARTPOLE, cores=2, on_cluster=True
    )
    ranks = make_claims(two, CARTPOLE, make_plan(two, CARTPOLE, MACHINE), learner_gpus=1.0)
    assert ranks.ranks == ["learner", "learner rank 1"]
    assert [ranks.core[name].gpus for name in ranks.ranks] == [1.0, 1.0]
    assert make_plan(two, CARTPOLE, MACHINE).run_bytes > plan.run_bytes


@given(
    shards=st.integers(1, 4),
    actors=st.integers(1, 12),
    cpus=st.lists(st.integers(0, 8), min_size=1, max_size=4),
    gpus=st.sampled_from([0.0, 1.0]),
)
def test_no_machine_gives_more_than_it_has(shards: int, actors: int, cpus: list[int], gpus: float) -> None:
    machines = [node(f"n{index}", count, float(index == 0)) for index, count in enumerate(cpus)]
    asked = claims(shards, actors, gpus=gpus, least=1)
    placement = place(asked, machines)
    needs = {**asked.core, **asked.actors}
    used: Counter[str] = Counter()
    for name, machine in placement.nodes.items():
        used[machine.host] += needs[name].memory_bytes
    assert all(used[machine.host] <= machine.memory_bytes for machine in machines)
    taken = Counter(machine.host for machine in placement.nodes.values())
    assert all(taken[machine.host] <= machine.cpus for machine in machines)
    # As many roles run as there is room for, with memory enough: only CPUs and the GPU bind.
    if gpus == 0.0 and shards * 8 + 2 + actors <= 64:
        assert len(placement.nodes) == min(len(needs), sum(cpus))
