"""Wiring between packages: acting and learning agree on weights, blocks go round, roots are checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from actors.core import EnvSpec
from cluster.engines.engine import Need, RoleError
from cluster.engines.serial_engine import SerialEngine
from cluster.record.logs import LogSource
from cluster.runtime.role import RoleContext, Seeds
from cluster.runtime.roles import ActorRole, make_policy
from cluster.runtime.shard_calls import RoundRobinSink
from cluster.settings.config import RunConfig
from cluster.settings.load_config import load_config
from cluster.settings.resolve import network_spec, resolve
from learner.networks.build import build_network
from learner.update import UpdateStep
from replay_service.block import TransitionBlock
from replay_service.codec import decode
from replay_service.messages import InsertReply, ShardStatus

SPECS = {
    "vector": EnvSpec((5,), "<f4", None, 3, 1, "sync", "next_step", None, None),
    "bytes": EnvSpec((7,), "|u1", None, 3, 1, "sync", "next_step", None, None),
    "stacked": EnvSpec((2, 3), "<f4", None, 4, 3, "sync", "next_step", None, None),
    "table": EnvSpec((), "<i8", 11, 4, 1, "sync", "next_step", None, None),
    "image": EnvSpec((40, 40), "|u1", None, 3, 4, "sync", "next_step", None, None),
}


def observations(spec: EnvSpec, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    shape = (count, *network_spec(spec).observation_shape)
    if spec.num_states is not None:
        return rng.integers(spec.num_states, size=count)
    if spec.observation_dtype == "|u1":
        return rng.integers(256, size=shape, dtype=np.uint8)
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("hidden", ["[16]", "[32, 8, 8]"])
def test_acting_reads_the_learners_weights_as_the_learner_does(name: str, hidden: str) -> None:
    spec = SPECS[name]
    config = resolve(load_config(None, [f"learner.hidden_sizes={hidden}"]), spec, cores=1)
    flat = UpdateStep(network_spec(spec), config.learner, seed=3).weights()
    # Other values than the initial ones, each of its own: a table begins with zeros.
    flat = (flat + np.linspace(-0.5, 0.5, flat.size)).astype(np.float32)
    network = build_network(network_spec(spec), config.learner)
    torch.nn.utils.vector_to_parameters(torch.from_numpy(flat), network.parameters())
    batch = observations(spec, 64)
    policy = make_policy(config, spec)
    policy.load(flat)
    with torch.no_grad():
        expected = network(torch.from_numpy(batch)).numpy()
    assert np.ptp(expected) > 0.1
    # Two orders of summation of at most 2,000 float32 terms: relative errors near 1e-6.
    np.testing.assert_allclose(policy.q_values(batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", SPECS)
def test_acting_refuses_weights_of_another_network(name: str) -> None:
    config = resolve(RunConfig(), SPECS[name], cores=1)
    flat = UpdateStep(network_spec(SPECS[name]), config.learner, seed=0).weights()
    with pytest.raises(ValueError, match="weights"):
        make_policy(config, SPECS[name]).load(flat[:-1])


def test_every_role_has_streams_of_its_own() -> None:
    seeds = Seeds(5)
    states = {
        tuple(seeds.stream(role, index, incarnation).generate_state(4))
        for role in ("actor", "shard", "learner")
        for index in range(3)
        for incarnation in range(3)
    }
    assert len(states) == 27
    same = Seeds(5).stream("actor", 1, 2).generate_state(4)
    assert (same == seeds.stream("actor", 1, 2).generate_state(4)).all()
    assert (same != Seeds(6).stream("actor", 1, 2).generate_state(4)).any()


class Shelf:
    """A shard that only notes whose block came."""

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.came: list[tuple[int, int, int]] = []
        self.transitions = 0

    def insert(self, encoded: np.ndarray) -> InsertReply:
        block = decode(encoded, expected_schema=SPECS["table"].block_schema(1))
        if block.policy_version[0] == 13:
            raise RuntimeError("an unlucky block")
        self.came.append((block.writer, block.incarnation, block.sequence))
        self.transitions += block.num_transitions
        return InsertReply(
            True, ShardStatus(self.shard, 0, 1, 1.0, 1.0, self.transitions, self.transitions, 0, 0, 0, 9)
        )


def block_of_two_transitions(version: int = 1) -> TransitionBlock:
    """Transitions made by the real builder: two steps of one lane of the table environment."""
    from actors.block_builder import BlockBuilder
    from actors.envs.stepper import Step

    nobody, frame = np.zeros(1, np.bool_), np.zeros(1, np.int64)
    step = Step(
        frames=frame,
        reward=np.ones(1),
        terminated=nobody,
        truncated=nobody,
        ended=nobody,
        fake=nobody,
        starts=nobody,
        life_lost=nobody,
        final_lanes=np.zeros(0, np.int64),
        final_frames=frame[:0],
        broken=None,
    )
    builder = BlockBuilder(SPECS["table"].block_schema(1), 1, 4, 0.9)
    builder.reset(frame)
    builder.begin(3, version)
    for t in range(3):  # the third step's transition waits for the Q-values behind it
        builder.add(t, np.zeros(1, np.int64), np.zeros((1, 4), np.float32), step)
    block = builder.build(np.zeros(0, np.float32))
    assert block is not None
    assert block.num_transitions == 2
    return block


def test_blocks_go_to_the_shards_in_turn_numbered_for_each() -> None:
    engine = SerialEngine()
    shelves = [engine.spawn(f"shard {index}", Shelf, index, need=Need()) for index in range(3)]
    sink = RoundRobinSink(engine.calls, shelves, writer=4, incarnation=2, pushes_in_flight=2)
    for _ in range(7):
        sink.push(block_of_two_transitions())
        assert sink.unacknowledged_transitions <= 4
    statuses = {status.shard: status.inserted_transitions_total for status in sink.statuses()}
    assert sink.unacknowledged_transitions == 0
    # Writer 4 of 3 shards begins with shard 1, so that the writers' first blocks spread.
    assert statuses == {1: 6, 2: 4, 0: 4}
    came = {index: handle.target.role.came for index, handle in enumerate(shelves)}
    assert came == {index: [(4, 2, round_) for round_ in range(3 if index == 1 else 2)] for index in range(3)}


@pytest.mark.parametrize("num_shards", [1, 2])
def test_what_a_lost_shard_did_not_confirm_goes_to_the_next(num_shards: int) -> None:
    engine = SerialEngine()
    shelves = [engine.spawn(f"shard {index}", Shelf, index, need=Need()) for index in range(num_shards)]
    sink = RoundRobinSink(engine.calls, shelves, writer=0, incarnation=0, pushes_in_flight=2)
    for _ in range(2 * num_shards):
        sink.push(block_of_two_transitions())
    sink.statuses()
    engine.kill(shelves[0])
    for _ in range(6):
        sink.push(block_of_two_transitions())
        sink.statuses()
    # With another shard left only the push that found out is kept; without, all are, and nobody waited.
    kept = 1 if num_shards == 2 else 6
    assert sink.unacknowledged_transitions == 2 * kept
    fresh = engine.spawn("shard 0", Shelf, 0, need=Need())
    sink.replace_shard(0, fresh)
    sink.push(block_of_two_transitions())
    sink.statuses()
    assert sink.unacknowledged_transitions == 0
    came = [sequence for _, _, sequence in fresh.target.role.came]
    assert came[:kept] == list(range(2, 2 + kept))
    if num_shards == 2:
        others = [sequence for _, _, sequence in shelves[1].target.role.came]
        assert others == list(range(len(others)))
        # Eleven pushes, two of which had been confirmed by the shard that died.
        assert len(came) + len(others) == 9


def test_a_push_that_failed_shows_at_the_next_ones() -> None:
    engine = SerialEngine()
    shelf = engine.spawn("shard 0", Shelf, 0, need=Need())
    sink = RoundRobinSink(engine.calls, [shelf], writer=0, incarnation=0, pushes_in_flight=2)
    sink.push(block_of_two_transitions(version=13))
    with pytest.raises(RoleError, match="an unlucky block"):
        sink.statuses()


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("cluster.settings.load_config", ("torch", "ray", "gymnasium")),
        ("cluster.settings.resolve", ("torch", "ray")),
        ("cluster.runtime.roles", ("torch", "ray")),
        ("cluster.coordinator", ("torch", "ray")),
        ("cluster.api", ("torch", "ray")),
        ("cluster.cli", ("torch", "ray", "gymnasium")),
        ("cluster.engines.ray_engine", ("torch", "gymnasium")),
    ],
)
def test_a_role_loads_only_what_it_needs(module: str, forbidden: tuple[str, ...]) -> None:
    program = f"import sys, {module}; print(sorted(set({forbidden!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("cores", "name", "runtime", "overlap"),
    [
        (4, "image", "local", True),
        (1, "image", "local", False),
        (4, "vector", "local", False),
        (4, "image", "serial", False),
    ],
    ids=["a network on many cores", "one core", "a policy in numpy", "the serial runtime"],
)
def test_environments_step_beside_the_policy_where_that_pays(
    cores: int, name: str, runtime: str, overlap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    class Actor:
        def __init__(self, *_: object, **options: object) -> None:
            given.update(options)

    monkeypatch.setattr("actors.rollout.EnvActor", Actor)
    monkeypatch.setattr("cluster.runtime.roles.available_cores", lambda: cores)
    wanted = [f"run.runtime={runtime}", "actors.num_actors=1"]
    if name == "image":  # too small for the Nature network
        wanted.append("learner.network=minatar_cnn")
    config = resolve(load_config(None, wanted), SPECS[name], cores)
    # The role takes over no output here: this process is the test's.
    monkeypatch.setattr("cluster.runtime.role.ProcessLog", lambda *_: SimpleNamespace(relays=False))
    source = None if runtime == "serial" else LogSource("actor 0", 0, 0.0)
    context = RoleContext("actor 0", config, SPECS[name], logs=tmp_path, replay=tmp_path, source=source)
    ActorRole(context, SerialEngine().calls, [], 0, 0)
    assert given["overlap"] is overlap
