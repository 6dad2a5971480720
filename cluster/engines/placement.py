"""The placement of a run's roles on a cluster, by their claims and the free resources.

Owns the rules and their wording, all pure; must not import ray or torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from typing import Literal

from cluster.engines.engine import Need
from cluster.wording import byte_size, quantity

RoleKind = Literal["shard", "learner", "actor", "evaluator"]


def role_name(kind: RoleKind, index: int) -> str:
    """The name of a role in messages, logs and checkpoints: "actor 3", "learner", "learner rank 1"."""
    if kind == "learner" and index > 0:
        return f"learner rank {index}"
    return kind if kind in ("learner", "evaluator") else f"{kind} {index}"


@dataclass(frozen=True)
class Node:
    """A machine of the cluster and its free resources. gpus_declared counts the GPUs in use as well."""

    node_id: str
    host: str
    cpus: float
    gpus: float
    memory_bytes: int
    gpus_declared: float = 0.0

    def __str__(self) -> str:
        """Its host, and its GPUs if it has any."""
        return f"{self.host} ({quantity(self.gpus_declared, 'GPU')})" if self.gpus_declared else self.host

    def has_room_for(self, need: Need) -> bool:
        """Whether a role that claims `need` fits now."""
        return self.cpus >= need.cpus and self.gpus >= need.gpus and self.memory_bytes >= need.memory_bytes

    def without(self, need: Need) -> Node:
        """The node after a role that claims `need` has been placed on it."""
        return replace(
            self,
            cpus=self.cpus - need.cpus,
            gpus=self.gpus - need.gpus,
            memory_bytes=self.memory_bytes - need.memory_bytes,
        )


@dataclass(frozen=True)
class Claims:
    """Role name -> the resources that it claims.

    core: shards, learner and evaluator, which every run needs. actors: in the order in which they start; the
    first min_actors must have room before the run begins.
    """

    core: Mapping[str, Need]
    actors: Mapping[str, Need]
    min_actors: int

    @property
    def ranks(self) -> list[str]:
        """The ranks of the learner, which exchange a gradient in each update."""
        return [name for name in self.core if name.startswith("learner")]

    @property
    def required(self) -> dict[str, Need]:
        """The roles that must have room before the run begins."""
        return {**self.core, **dict(list(self.actors.items())[: self.min_actors])}


@dataclass(frozen=True)
class Placement:
    """nodes: role -> machine, of the roles that have room. machines: all, with what was free before."""

    claims: Claims
    nodes: Mapping[str, Node]
    machines: tuple[Node, ...]

    @property
    def missing(self) -> dict[str, Need]:
        """The required roles without room."""
        return {name: need for name, need in self.claims.required.items() if name not in self.nodes}

    @property
    def waiting_actors(self) -> int:
        """Number of actors without room that the run can begin without."""
        absent = sum(name not in self.nodes for name in self.claims.actors)
        return absent - sum(name in self.claims.actors for name in self.missing)

    @property
    def text(self) -> str:
        """A line for each machine with its roles, and one for roles without room."""
        roles: dict[str, list[str]] = {}
        for name in (*self.claims.core, *self.claims.actors):
            if name in self.nodes:
                roles.setdefault(self.nodes[name].node_id, []).append(name)
        lines = [f"{node}: {summary(roles[node.node_id])}" for node in self.machines if node.node_id in roles]
        if self.missing:
            lines.append(f"no room for {summary(self.missing)} ({total(self.missing.values())})")
        if self.waiting_actors:
            lines.append(f"{quantity(self.waiting_actors, 'more actor')} will join when there is room")
        return "\n".join(lines)


def place(claims: Claims, nodes: Sequence[Node], settled: Mapping[str, str] | None = None) -> Placement:
    """Puts each role on a machine with room for it, as RayEngine does.

    The learner goes to a machine that has the GPU that it claims, its other ranks to the same machine or to
    as few as have room. The rest of the core is spread: each role goes to the machine with the fewest roles,
    then to one without GPUs, then to the one with the most free CPUs.
    Actors are packed: each goes beside the shard that it pushes to first, else to a machine without GPUs,
    then to the one with the fewest free CPUs.

    Args:
        settled: role -> node_id of roles that are already placed; `nodes` are without their claims.
    """
    free = {node.node_id: node for node in nodes}
    settled = {name: node_id for name, node_id in (settled or {}).items() if node_id in free}
    load: Counter[str] = Counter(settled.values())
    placed = {name: free[node_id] for name, node_id in settled.items()}

    def put(name: str, need: Need, cost: Callable[[Node], tuple[float, ...]]) -> None:
        """Places a role on the machine with room and the lowest cost, if there is one."""
        if candidates := [node for node in free.values() if node.has_room_for(need)]:
            placed[name] = node = min(candidates, key=cost)
            free[node.node_id] = node.without(need)
            load[node.node_id] += 1

    def spread(node: Node) -> tuple[float, ...]:
        return load[node.node_id], node.gpus_declared > 0, -node.cpus

    def packed(shard: str | None, node: Node) -> tuple[float, ...]:
        return node.node_id != shard, node.gpus_declared > 0, node.cpus

    def beside_ranks(node: Node) -> tuple[float, ...]:
        ranks = sum(placed[name].node_id == node.node_id for name in claims.ranks if name in placed)
        return -ranks, *spread(node)

    for name, need in sorted(claims.core.items(), key=lambda item: (-item[1].gpus, -item[1].memory_bytes)):
        if name not in settled:
            put(name, need, beside_ranks if name in claims.ranks else spread)
    shards = [placed[name].node_id for name in claims.core if name.startswith("shard") and name in placed]
    for (name, need), shard in zip(claims.actors.items(), cycle(shards or [None])):
        put(name, need, partial(packed, shard))
    return Placement(claims, placed, tuple(nodes))


def summary(names: Iterable[str]) -> str:
    """The roles by kind: "learner, 2 shards, 8 actors"."""
    kinds = Counter(name.split()[0] for name in names)
    return ", ".join(kind if count == 1 else f"{count} {kind}s" for kind, count in kinds.items())


def total(needs: Iterable[Need]) -> str:
    """The sum of needs: "3 CPUs, 1 GPU, 2.5 GB of memory"."""
    claimed = list(needs)
    cpus = quantity(sum(need.cpus for need in claimed), "CPU")
    gpus = sum(need.gpus for need in claimed)
    memory = byte_size(sum(need.memory_bytes for need in claimed))
    return f"{cpus}, {quantity(gpus, 'GPU') + ', ' if gpus else ''}{memory} of memory"


def room(nodes: Sequence[Node]) -> str:
    """The free resources of all machines together."""
    cpus = quantity(sum(node.cpus for node in nodes), "CPU")
    gpus = quantity(sum(node.gpus for node in nodes), "GPU")
    memory = byte_size(sum(node.memory_bytes for node in nodes))
    return f"{quantity(len(nodes), 'machine')} with {cpus}, {gpus}, {memory} of memory free"
