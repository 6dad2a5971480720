"""Resources on a Ray cluster: what is free, what a run reserves, and the node for each role.

Owns placement groups and the wait for room; cluster.engines.placement owns the rules. Must not import torch
or gymnasium.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.engines.engine import Need
from cluster.engines.placement import Claims, Node, Placement, place, room, summary, total
from cluster.engines.ray_private import free_resources, prefer_node

_VIEW_SECONDS = 5.0


def free_nodes() -> tuple[Node, ...]:
    """The living machines of the cluster and what is free on them."""
    free = free_resources()
    return tuple(
        Node(
            node["NodeID"],
            node["NodeManagerAddress"],
            cpus=left.get("CPU", 0.0),
            gpus=left.get("GPU", 0.0),
            memory_bytes=int(left.get("memory", 0.0)),
            gpus_declared=node["Resources"].get("GPU", 0.0),
        )
        for node in ray.nodes()
        if node["Alive"] and (left := free.get(node["NodeID"])) is not None
    )


class Reservation:
    """The reservation of a run: a placement group's bundle per core role, a preferred node per actor."""

    def __init__(self) -> None:
        self._needs: dict[str, Need] = {}
        self._bundles: dict[str, tuple[PlacementGroup, int]] = {}
        self._preferred: dict[str, str] = {}

    def make(
        self,
        claims: Claims,
        *,
        wait_seconds: float,
        say: Callable[[str], None],
        stopped: Callable[[], object],
    ) -> None:
        """Reserves room for the core and waits until the required actors fit, too; see RayEngine.reserve."""
        wait = _Wait(claims, wait_seconds, say, stopped)
        # Shards get a group of their own: one group for the whole core might put all shards on one node.
        shards = {name: need for name, need in claims.core.items() if name.startswith("shard")}
        # Several ranks of a learner get one, too, so that they are near each other.
        ranks = {name: claims.core[name] for name in claims.ranks} if len(claims.ranks) > 1 else {}
        others = {name: need for name, need in claims.core.items() if name not in shards | ranks}
        groups = []
        for needs in filter(None, (shards, ranks, others)):
            groups.append(_group(needs, "PACK" if needs is ranks else "SPREAD"))
            self._bundles |= {name: (groups[-1], index) for index, name in enumerate(needs)}
        if not all(wait.until(partial(group.wait, 1)) for group in groups):
            return
        self._needs = {**claims.core, **claims.actors}
        placement = self._place(claims)
        if placement.missing:
            # Released at once: actors must not reserve resources that they do not use.
            required = [name for name in placement.claims.required if name in claims.actors]
            actors = _group({name: claims.actors[name] for name in required}, "PACK")
            if not wait.until(partial(actors.wait, 1)):
                return
            remove_placement_group(actors)
            _wait_for_view(actors, reserved=False)
            placement = self._place(claims)
        self._preferred = {
            name: placement.nodes[name].node_id for name in claims.actors if name in placement.nodes
        }
        say(placement.text)

    def options(self, name: str, need: Need) -> dict[str, Any]:
        """The options of ray.remote for a role: it claims what was reserved for it, else `need`."""
        need = self._needs.get(name, need)
        options: dict[str, Any] = {"num_cpus": need.cpus, "num_gpus": need.gpus}
        if need.memory_bytes:
            options["memory"] = need.memory_bytes
        if name in self._bundles:
            options["scheduling_strategy"] = PlacementGroupSchedulingStrategy(*self._bundles[name])
        elif name in self._preferred:
            options["scheduling_strategy"] = prefer_node(self._preferred[name])
        return options

    def forget_node(self, name: str) -> None:
        """Lets a role start on any node from now on: the preferred one may be gone."""
        self._preferred.pop(name, None)

    def release(self) -> None:
        """Releases the resources of the core."""
        for group in {group.id: group for group, _ in self._bundles.values()}.values():
            remove_placement_group(group)
        self._bundles.clear()

    def _place(self, claims: Claims) -> Placement:
        settled = {}
        for name, (group, index) in self._bundles.items():
            _wait_for_view(group, reserved=True)
            settled[name] = placement_group_table(group)["bundles_to_node_id"][index]
        return place(claims, free_nodes(), settled)


@dataclass
class _Wait:
    """A wait for room with a time limit; says what is missing when it begins and when the cluster changes."""

    claims: Claims
    seconds: float
    say: Callable[[str], None]
    stopped: Callable[[], object]
    said: str = ""
    began: float = field(default_factory=time.monotonic)

    def until(self, ready: Callable[[], bool]) -> bool:
        """True once ready(), False once stopped(). Raises TimeoutError when `seconds` are over."""
        while not ready():
            if self.stopped():
                return False
            needed = self.claims.required
            found = room(free_nodes())
            text = f"the run needs {total(needed.values())} for {summary(needed)}; the cluster has {found}"
            if text != self.said:
                self.said = text
                self.say(f"waiting up to {self.seconds:g} s for room: {text}")
            if time.monotonic() - self.began >= self.seconds:
                raise TimeoutError(
                    f"{text}. Waited run.wait_for_cluster_seconds = {self.seconds:g}: add machines, lower "
                    "actors.num_actors or replay.num_shards, or set actors.min_actors to begin with fewer"
                )
        return True


def _group(needs: Mapping[str, Need], strategy: str) -> PlacementGroup:
    return placement_group([_bundle(need) for need in needs.values()], strategy=strategy)


def _bundle(need: Need) -> dict[str, float]:
    claimed = {"CPU": need.cpus, "GPU": need.gpus, "memory": float(need.memory_bytes)}
    return {name: amount for name, amount in claimed.items() if amount}


def _wait_for_view(group: PlacementGroup, *, reserved: bool) -> None:
    """Waits until the nodes report the group as reserved, or as removed, which takes a moment."""
    name = f"bundle_group_{group.id.hex()}"
    deadline = time.monotonic() + _VIEW_SECONDS
    while time.monotonic() < deadline:
        if any(name in resources for resources in free_resources().values()) is reserved:
            return
        time.sleep(0.02)
