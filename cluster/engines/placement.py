"""Where the roles of a run go on a cluster, from what they claim and what its machines have free.

Owns the arithmetic and its wording, all pure; must not import ray or torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.engines.engine import Need
from cluster.wording import byte_size


@dataclass(frozen=True)
class Node:
    """A machine of the cluster and what is free on it; gpus_declared counts those in use, too."""

    node_id: str
    host: str
    cpus: float
    gpus: float
    memory_bytes: int
    gpus_declared: float = 0.0

    def has_room_for(self, need: Need) -> bool:
        """Whether the role could be put here now."""
        return self.cpus >= need.cpus and self.gpus >= need.gpus and self.memory_bytes >= need.memory_bytes

    def without(self, need: Need) -> Node:
        """What is left when the role is here."""
        return replace(
            self,
            cpus=self.cpus - need.cpus,
            gpus=self.gpus - need.gpus,
            memory_bytes=self.memory_bytes - need.memory_bytes,
        )


@dataclass(frozen=True)
class Claims:
    """What the roles of a run claim, by name.

    core: shards, learner and evaluator, without which there is no run. actors: in the order in which they
    are wanted; the first min_actors must have room before the run begins.
    """

    core: Mapping[str, Need]
    actors: Mapping[str, Need]
    min_actors: int

    @property
    def required(self) -> dict[str, Need]:
        """What must have room before the run begins."""
        return {**self.core, **dict(list(self.actors.items())[: self.min_actors])}


@dataclass(frozen=True)
class Placement:
    """nodes: where each role goes; one without room is absent. machines: what was free before."""

    claims: Claims
    nodes: Mapping[str, Node]
    machines: tuple[Node, ...]

    @property
    def missing(self) -> dict[str, Need]:
        """The required roles without room."""
        return {name: need for name, need in self.claims.required.items() if name not in self.nodes}

    @property
    def waiting_actors(self) -> int:
        """Actors that the run can begin without and that have no room yet."""
        absent = sum(name not in self.nodes for name in self.claims.actors)
        return absent - sum(name in self.claims.actors for name in self.missing)

    @property
    def text(self) -> str:
        """One line for each machine with its roles, and one for what has no room."""
        by_node: dict[str, list[str]] = {}
        for name in (*self.claims.core, *self.claims.actors):
            if name in self.nodes:
                by_node.setdefault(self.nodes[name].node_id, []).append(name)
        hosts = {node.node_id: node for node in self.nodes.values()}
        lines = [
            f"{hosts[node_id].host}{_gpu(hosts[node_id])}: {summary(names)}"
            for node_id, names in by_node.items()
        ]
        if self.missing:
            lines.append(f"no room for {summary(self.missing)} ({total(self.missing.values())})")
        if self.waiting_actors:
            lines.append(f"{self.waiting_actors} more actors join where room appears")
        return "\n".join(lines)


def place(claims: Claims, nodes: Sequence[Node], settled: Mapping[str, str] | None = None) -> Placement:
    """Puts each role on a machine with room for it, as RayEngine does.

    settled: the node_id of roles that are in their place already; what they claim is not free any more.

    The learner takes a GPU where it claims one. The rest of the core is spread: on the machine with the
    fewest roles so far, away from GPUs, then where most CPUs are free. Actors are packed: beside the shard
    that they push to first, else where the fewest CPUs stay free.
    """
    free = {node.node_id: node for node in nodes}
    settled = {name: node_id for name, node_id in (settled or {}).items() if node_id in free}
    load: Counter[str] = Counter(settled.values())
    placed = {name: free[node_id] for name, node_id in settled.items()}

    def put(name: str, need: Need, node: Node) -> None:
        free[node.node_id] = node.without(need)
        load[node.node_id] += 1
        placed[name] = node

    def spread(node: Node) -> tuple[float, ...]:
        return load[node.node_id], node.gpus_declared > 0, -node.cpus

    for name, need in sorted(claims.core.items(), key=lambda item: (-item[1].gpus, -item[1].memory_bytes)):
        candidates = [node for node in free.values() if node.has_room_for(need)]
        if candidates and name not in settled:
            put(name, need, min(candidates, key=spread))

    shards = [placed[name].node_id for name in claims.core if name.startswith("shard") and name in placed]
    for index, (name, need) in enumerate(claims.actors.items()):
        candidates = [node for node in free.values() if node.has_room_for(need)]
        beside = shards[index % len(shards)] if shards else None

        def packed(node: Node, beside: str | None = beside) -> tuple[float, ...]:
            return node.node_id != beside, node.gpus_declared > 0, node.cpus

        if candidates:
            put(name, need, min(candidates, key=packed))
    return Placement(claims, placed, tuple(nodes))


def summary(names: Iterable[str]) -> str:
    """The roles by kind: "learner, 2 shards, 8 actors"."""
    kinds = Counter(name.split()[0] for name in names)
    return ", ".join(kind if count == 1 else f"{count} {kind}s" for kind, count in kinds.items())


def total(needs: Iterable[Need]) -> str:
    """What needs claim together: "3 CPUs, 1 GPUs, 2.5 GB of memory"."""
    claimed = list(needs)
    gpus = sum(need.gpus for need in claimed)
    parts = [f"{sum(need.cpus for need in claimed):g} CPUs"]
    if gpus:
        parts.append(f"{gpus:g} GPUs")
    parts.append(f"{byte_size(sum(need.memory_bytes for need in claimed))} of memory")
    return ", ".join(parts)


def room(nodes: Sequence[Node]) -> str:
    """What is free on all machines together."""
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    memory = byte_size(sum(node.memory_bytes for node in nodes))
    return f"{len(nodes)} machine(s) with {cpus:g} CPUs, {gpus:g} GPUs, {memory} of memory free"


def _gpu(node: Node) -> str:
    return f" ({node.gpus_declared:g} GPUs)" if node.gpus_declared else ""
