"""The memory plan of a run, which `qfleet plan` and every start print.

Owns the arithmetic and its wording, all pure; must not import ray or torch.
"""

from dataclasses import dataclass

import numpy as np

from actors.core import EnvSpec
from cluster.engines.engine import Need
from cluster.engines.machine import Machine
from cluster.engines.placement import Claims, Placement, role_name, room
from cluster.settings.config import ConfigError
from cluster.settings.resolve import acts_with_torch, network_spec
from cluster.settings.resolved import ResolvedConfig
from cluster.wording import byte_size, quantity
from learner.config import part_sizes
from learner.sizes import approximate_activations, approximate_weights
from replay_service.block import TRANSITION_FIELDS, BlockSchema
from replay_service.config import Compression
from replay_service.frame_store import is_compressed, segment_frames
from replay_service.transition_store import TRANSITION_DTYPE, frame_capacity

# Two float64 nodes of the sum tree for each transition.
_PRIORITY_BYTES = 16
# Compressed size over size of a frame: measured on Atari games played at random (docs/architecture.md).
_LZ4_SHRINKS_TO = 1 / 50
# Memory of a run's processes without frames: measured, with shared pages counted once, and rounded up by a
# sixth.
_RAY_BYTES = 420 << 20
_PROCESS_BYTES = 100 << 20
_TORCH_BYTES = 250 << 20
# The same for the local runtime, whose roles are forked from a server and share most pages with it: 10 to
# 14 MB for one more actor, with torch or without. Environments differ: 16 lanes of Atari take 110 MB, as many
# of CartPole 1 MB.
_LOCAL_BYTES = 340 << 20
_FORKED_BYTES = 20 << 20
_LEARNING_BYTES = 80 << 20
_ENVIRONMENTS_BYTES = 60 << 20
# A policy and the vector that it was loaded from.
_ACTING_COPIES = 2
# Ray's own rule for the size of its object store.
_OBJECT_STORE_SHARE = 0.3
_OBJECT_STORE_MOST_BYTES = 200 * 10**9
_OBJECT_STORE_LEAST_CAP_BYTES = 10**10

_LABEL_WIDTH = len("a transition, raw")


@dataclass(frozen=True)
class Plan:
    """The memory that a run needs, in bytes, and the machine that runs it.

    Attributes:
        capacity, num_shards, compression: of the replay.
        lanes: environments of all actors. longest_episode: its env steps, None if nothing limits it.
        raw_bytes: one transition in a plain buffer: two stacks of frames and the other fields.
        deduplicated_bytes: one transition with each frame held once, as stored without compression.
        compressed_bytes: one transition with lz4, expected; None where no frame field is compressed.
        priority_bytes: one transition's share of the priority structure.
        request_bytes: the reply to one request for K minibatches. requests: most requests at a time.
        push_bytes: one block of one actor. pushes: most blocks in flight, of all actors.
        network_bytes: the weights wherever they are: networks, optimizer and gradient of the learner, the
            state that is kept for its replacement, and the policies that act.
        update_bytes: what an update holds between its passes; 0 where the learner is set to a GPU.
        process_bytes: all processes of the run, without the above.
        object_store_bytes: the size that Ray will choose for its object store; 0 if the run starts no Ray.
        machine: the machine that starts the run.
        on_one_machine: whether the run is on `machine` only; False on a cluster.
        placement: where the roles would go on that cluster; None if no cluster was asked.
    """

    capacity: int
    num_shards: int
    compression: Compression
    lanes: int
    longest_episode: int | None
    raw_bytes: int
    deduplicated_bytes: int
    compressed_bytes: int | None
    priority_bytes: int
    request_bytes: int
    requests: int
    push_bytes: int
    pushes: int
    network_bytes: int
    update_bytes: int
    process_bytes: int
    object_store_bytes: int
    machine: Machine
    on_one_machine: bool
    placement: Placement | None = None

    @property
    def stored_bytes(self) -> int:
        """One transition as it will be stored, with its priority."""
        if self.compression == "lz4" and self.compressed_bytes is not None:
            return self.compressed_bytes + self.priority_bytes
        return self.deduplicated_bytes + self.priority_bytes

    @property
    def replay_bytes(self) -> int:
        """All shards when they are full."""
        return self.capacity * self.stored_bytes

    @property
    def shard_bytes(self) -> int:
        """The largest shard when it is full."""
        return -(-self.capacity // self.num_shards) * self.stored_bytes

    @property
    def messages_bytes(self) -> int:
        """The largest size of all requests and blocks in flight, which the object store holds."""
        return self.requests * self.request_bytes + self.pushes * self.push_bytes

    @property
    def run_bytes(self) -> int:
        """All memory of the run."""
        learning = self.network_bytes + self.update_bytes
        return self.replay_bytes + self.messages_bytes + learning + self.process_bytes

    @property
    def problems(self) -> tuple[str, ...]:
        """Why the run does not fit, with numbers and settings to change; empty if it fits or on a cluster."""
        if not self.on_one_machine:
            return ()
        found = []
        if self.run_bytes > self.machine.available_bytes:
            found.append(
                f"the run needs {byte_size(self.run_bytes)} of memory, "
                f"{byte_size(self.machine.available_bytes)} of {byte_size(self.machine.memory_bytes)} are "
                f"available: replay {byte_size(self.replay_bytes)} ({self._per_transition}), messages "
                f"{byte_size(self.messages_bytes)}, networks {byte_size(self.network_bytes)}, updates "
                f"{byte_size(self.update_bytes)}, processes {byte_size(self.process_bytes)}; "
                f"{self._memory_advice}"
            )
        if self.object_store_bytes and self.messages_bytes > self.object_store_bytes:
            found.append(
                f"messages in flight need {byte_size(self.messages_bytes)}, Ray's object store will have "
                f"{byte_size(self.object_store_bytes)}: {self._messages}; lower "
                "replay.minibatches_per_request, replay.prefetch_requests, learner.batch_size, "
                "actors.steps_per_chunk or actors.envs_per_actor"
            )
        return tuple(found)

    @property
    def short(self) -> str:
        """The plan in one line, and a second one for a warning, if any."""
        shards = quantity(self.num_shards, "shard")
        replay = f"replay {byte_size(self.replay_bytes)} ({self._per_transition}) in {shards}"
        if not self.on_one_machine:
            return f"{replay} of {byte_size(self.shard_bytes)}"
        free = byte_size(self.machine.available_bytes)
        text = f"{replay}; the run takes about {byte_size(self.run_bytes)} of {free} free memory"
        if self._on_disk:
            text += f"\nwarning: Ray's object store is {self._on_disk}, which is slow"
        return text

    @property
    def text(self) -> str:
        """The plan with one number per line, and the verdict."""
        compressed = "does not apply: no images of bytes"
        if self.compressed_bytes is not None:
            compressed = (
                f"about {self.compressed_bytes:,} bytes, if frames shrink as Atari's do "
                f"(replay.compression is {self.compression})"
            )
        lines = {
            "a transition, raw": f"{self.raw_bytes:,} bytes: both stacks, as a plain buffer stores them",
            "frames held once": f"{self.deduplicated_bytes:,} bytes",
            "compressed": compressed,
            "priorities": f"{self.priority_bytes} bytes",
            "replay": f"{byte_size(self.replay_bytes)} for {self.capacity:,} transitions",
            "a shard": f"{byte_size(self.shard_bytes)}, {self.num_shards} in all",
            "a lane": self._of_a_lane,
            "messages": f"{byte_size(self.messages_bytes)} at most: {self._messages}",
            "networks": f"{byte_size(self.network_bytes)}, with optimizer and copies",
            "an update": f"{byte_size(self.update_bytes)}, of observations, layers' outputs and gradients",
            "processes": byte_size(self.process_bytes),
        }
        if self.on_one_machine:
            lines["this machine"] = (
                f"{byte_size(self.run_bytes)} needed, {byte_size(self.machine.available_bytes)} of "
                f"{byte_size(self.machine.memory_bytes)} free, {quantity(self.machine.cores, 'core')}"
            )
            if self.object_store_bytes:
                where = f", {self._on_disk}" if self._on_disk else ""
                lines["object store"] = f"{byte_size(self.object_store_bytes)} by Ray's rule{where}"
            lines["verdict"] = "does not fit" if self.problems else "fits"
        elif self.placement is not None:
            lines["cluster"] = room(self.placement.machines)
            lines["verdict"] = "waits for room" if self.placement.missing else "has room"
            lines["placement"] = self.placement.text.replace("\n", "\n" + " " * (_LABEL_WIDTH + 2))
        else:
            lines["verdict"] = "unknown: the memory of the cluster's machines is not known here"
        return "\n".join(f"{name:{_LABEL_WIDTH}}  {text}" for name, text in lines.items())

    @property
    def _of_a_lane(self) -> str:
        """The transitions in replay that one environment made, in its longest episodes if limited."""
        held = self.capacity / self.lanes
        text = f"{held:,.0f} transitions in replay, {self.lanes} lanes in all"
        if self.longest_episode is None:
            return text
        return (
            f"{text}: {held / self.longest_episode:.3g} episodes of {self.longest_episode:,} steps, the limit"
        )

    @property
    def _per_transition(self) -> str:
        return f"{self.capacity:,} x {self.stored_bytes:,} bytes"

    @property
    def _messages(self) -> str:
        text = f"{quantity(self.requests, 'request')} of {byte_size(self.request_bytes)}"
        blocks = f"{quantity(self.pushes, 'block')} of {byte_size(self.push_bytes)}"
        return f"{text}, {blocks}" if self.pushes else text

    @property
    def _on_disk(self) -> str | None:
        """Text about an object store on disk, if shared memory is too small for the messages; else None."""
        shm_bytes = self.machine.shm_bytes
        if shm_bytes is None or shm_bytes >= min(self.object_store_bytes, self.messages_bytes):
            return None
        return f"on disk: /dev/shm has only {byte_size(shm_bytes)} (docker run --shm-size)"

    @property
    def _memory_advice(self) -> str:
        if self.network_bytes > self.machine.available_bytes:
            return (
                "the network is too large: let the environment have fewer states or smaller observations, or "
                "lower learner.hidden_sizes"
            )
        settings = ["replay.capacity"]
        if self.update_bytes > self.replay_bytes:
            settings.insert(0, "learner.batch_size")
        if self.pushes:
            settings += ["actors.num_actors", "actors.envs_per_actor", "actors.steps_per_chunk"]
        text = f"lower {', '.join(settings)}"
        if self.compression == "none" and self.compressed_bytes is not None:
            text += f", or set replay.compression=lz4 (about {self.compressed_bytes:,} bytes a transition)"
        return text + ", or run on a cluster, where replay.num_shards spreads the replay over machines"


def make_plan(config: ResolvedConfig, spec: EnvSpec, machine: Machine) -> Plan:
    """The plan of a run that `machine` starts."""
    schema = spec.block_schema(config.actors.n_step)
    replay, actors = config.replay, config.actors
    batch_size, num_learners = config.learner.batch_size, config.learner.num_learners
    serial = config.run.runtime == "serial"
    frame_bytes = sum(field.bytes_per_frame for field in schema.frame_fields)
    lanes, steps = actors.envs_per_actor, actors.steps_per_chunk
    transition_bytes = sum(np.dtype(dtype).itemsize for _, dtype in TRANSITION_FIELDS)
    push_bytes = lanes * ((steps + schema.span - 1) * frame_bytes + steps * transition_bytes)
    window_bytes = schema.window * frame_bytes + TRANSITION_DTYPE.itemsize
    deduplicated, compressed = _stored_bytes(schema, -(-replay.capacity // replay.num_shards))
    return Plan(
        capacity=replay.capacity,
        num_shards=replay.num_shards,
        compression=replay.compression,
        lanes=config.lanes,
        longest_episode=config.env.max_episode_steps or spec.max_episode_steps,
        raw_bytes=2 * schema.stack * frame_bytes + TRANSITION_DTYPE.itemsize,
        deduplicated_bytes=deduplicated,
        compressed_bytes=compressed,
        priority_bytes=_PRIORITY_BYTES if replay.sampling == "prioritized" else 0,
        request_bytes=replay.minibatches_per_request * part_sizes(batch_size, num_learners)[0] * window_bytes,
        # Each rank of the learner reads one reply while the others are in flight.
        requests=num_learners * (replay.prefetch_requests + 1),
        push_bytes=push_bytes,
        pushes=0 if serial else actors.num_actors * actors.pushes_in_flight,
        # The driver holds the newest weights, and the learner's state without its gradient: as many copies.
        network_bytes=(
            (1 + num_learners) * _learner_copies(config) + _ACTING_COPIES * (actors.num_actors + 1)
        )
        * _weight_bytes(config, spec),
        update_bytes=_update_bytes(config, spec),
        # An actor holds up to three copies of a chunk: collected, built and encoded.
        process_bytes=_process_bytes(config, spec) + 3 * actors.num_actors * push_bytes,
        object_store_bytes=_object_store_bytes(machine) if config.run.runtime == "ray" else 0,
        machine=machine,
        on_one_machine=config.run.runtime != "cluster",
    )


def make_claims(config: ResolvedConfig, spec: EnvSpec, plan: Plan, learner_gpus: float) -> Claims:
    """The resources that each role claims on a cluster: one core, and the memory that the plan gives it."""
    weights = _weight_bytes(config, spec)
    acting = _PROCESS_BYTES + _TORCH_BYTES * acts_with_torch(config, spec) + _ACTING_COPIES * weights
    shard = Need(memory_bytes=_PROCESS_BYTES + plan.shard_bytes)
    learning = _PROCESS_BYTES + _TORCH_BYTES + plan.request_bytes + _learner_copies(config) * weights
    if not learner_gpus:
        learning += plan.update_bytes // config.learner.num_learners
    learner = Need(gpus=learner_gpus, memory_bytes=learning)
    # Without blocks in flight: they are in the object store, whose memory Ray counts separately.
    actor = Need(memory_bytes=acting + 3 * plan.push_bytes)
    num_actors = config.actors.num_actors
    return Claims(
        core={
            **{f"shard {index}": shard for index in range(config.replay.num_shards)},
            **{role_name("learner", rank): learner for rank in range(config.learner.num_learners)},
            "evaluator": Need(memory_bytes=acting),
        },
        actors={f"actor {index}": actor for index in range(num_actors)},
        min_actors=config.actors.min_actors or num_actors,
    )


def require_fit(plan: Plan) -> None:
    """Raises ConfigError with the plan's problems, one a line, if it has any."""
    if plan.problems:
        raise ConfigError("\n".join(plan.problems))


def _stored_bytes(schema: BlockSchema, capacity: int) -> tuple[int, int | None]:
    """Bytes per transition in a full shard: uncompressed, and compressed (None where nothing is)."""
    frames_per_transition = frame_capacity(schema, capacity) / capacity
    stride, length = segment_frames(schema.span)
    plain = sum(field.bytes_per_frame for field in schema.frame_fields)
    packed = sum(field.bytes_per_frame for field in schema.frame_fields if is_compressed(field))
    deduplicated = TRANSITION_DTYPE.itemsize + round(frames_per_transition * plain)
    if not packed:
        return deduplicated, None
    held = (plain - packed) + packed * (length / stride) * _LZ4_SHRINKS_TO
    return deduplicated, TRANSITION_DTYPE.itemsize + round(frames_per_transition * held)


def _weight_bytes(config: ResolvedConfig, spec: EnvSpec) -> int:
    """All weights once, in float32."""
    return 4 * approximate_weights(network_spec(spec), config.learner)


def _update_bytes(config: ResolvedConfig, spec: EnvSpec) -> int:
    """What the updates of all learners hold at a time, in the host's memory."""
    if config.learner.device.startswith("cuda"):
        return 0
    return 4 * config.learner.batch_size * approximate_activations(network_spec(spec), config.learner)


def _learner_copies(config: ResolvedConfig) -> int:
    """Online and target network, gradient, and the optimizer's moments."""
    return 3 if config.learner.optimizer == "sgd" else 5


def _process_bytes(config: ResolvedConfig, spec: EnvSpec) -> int:
    """Memory of driver, shards, learner, actors, evaluator and Ray, without the frames that they hold."""
    if config.run.runtime == "serial":
        return _PROCESS_BYTES + _TORCH_BYTES
    learners, acting = config.learner.num_learners, config.actors.num_actors + 1
    roles = config.replay.num_shards + learners + acting
    if config.run.runtime == "local":
        own = learners * _LEARNING_BYTES + acting * _ENVIRONMENTS_BYTES
        return _LOCAL_BYTES + roles * _FORKED_BYTES + own
    with_torch = learners + acting * acts_with_torch(config, spec)
    return _RAY_BYTES + (1 + roles) * _PROCESS_BYTES + with_torch * _TORCH_BYTES


def _object_store_bytes(machine: Machine) -> int:
    limit = _OBJECT_STORE_MOST_BYTES
    if machine.shm_bytes is not None:
        # With less than 10 GB of shared memory, Ray puts the store on disk instead of making it smaller.
        limit = min(limit, max(_OBJECT_STORE_LEAST_CAP_BYTES, int(0.95 * machine.shm_bytes)))
    return min(int(_OBJECT_STORE_SHARE * machine.available_bytes), limit)
