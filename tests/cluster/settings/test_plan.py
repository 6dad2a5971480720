"""The memory that a plan names, against numbers worked out by hand and against what is really stored.

Tests learner/sizes.py too: the plan counts weights by it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from qfleet_configs import ATARI

from actors.core import EnvSpec
from cluster.api import train
from cluster.cli import run
from cluster.engines.machine import Machine
from cluster.settings.config import ConfigError, RunConfig
from cluster.settings.load_config import load_config
from cluster.settings.plan import Plan, make_claims, make_plan, require_fit
from cluster.settings.resolve import network_spec, resolve
from learner.networks.build import build_network
from learner.sizes import approximate_activations, approximate_weights
from replay_service.block import TRANSITION_FIELDS, FrameField, TransitionBlock
from replay_service.codec import encode
from replay_service.config import ReplayConfig
from replay_service.shard import ReplayShard

CARTPOLE = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", 500, 475.0)
LARGE = Machine(cores=2, memory_bytes=32 * 10**9, available_bytes=24 * 10**9, shm_bytes=16 * 10**9)
ONE_STEP = ["actors.n_step=1", "replay.sampling=uniform"]
THREE_STEP = ["actors.n_step=3", "replay.sampling=prioritized"]

ON_RAY = "run.runtime=ray"


def config_of(spec: EnvSpec, *overrides: str) -> RunConfig:
    return resolve(load_config(None, overrides), spec, cores=2)


def plan_of(spec: EnvSpec, *overrides: str, machine: Machine = LARGE) -> Plan:
    return make_plan(config_of(spec, *overrides), spec, machine)


def test_cartpole_by_hand() -> None:
    plan = plan_of(
        CARTPOLE,
        ON_RAY,
        "replay.capacity=10000",
        "replay.num_shards=3",
        "learner.batch_size=64",
        *ONE_STEP,
    )
    # Two observations of 16 bytes and 32 bytes more; each frame once, but two frames per transition.
    assert plan.raw_bytes == plan.deduplicated_bytes == 2 * 16 + 32
    assert plan.compressed_bytes is None
    assert plan.priority_bytes == 0
    assert plan.replay_bytes == 640_000
    assert plan.shard_bytes == 3_334 * 64
    # Up to 64 minibatches of 64 windows: two frames and 32 bytes each; four on their way, one being read.
    assert plan.request_bytes == 64 * 64 * (2 * 16 + 32)
    assert plan.requests == 5
    # 32 steps of 16 lanes: 33 frames and 32 transitions of 41 bytes a lane; one actor, two pushes in flight.
    assert sum(np.dtype(dtype).itemsize for _, dtype in TRANSITION_FIELDS) == 41
    assert plan.push_bytes == 16 * (33 * 16 + 32 * 41)
    assert plan.pushes == 2
    assert plan.messages_bytes == 5 * 262_144 + 2 * 29_440
    assert plan.object_store_bytes == int(0.3 * 24e9)
    assert plan.problems == ()


def test_what_replay_holds_of_a_lane() -> None:
    lanes = ["actors.num_actors=2", "actors.envs_per_actor=5", "replay.capacity=10_000"]
    text = plan_of(CARTPOLE, *lanes).text
    assert "a lane             1,000 transitions in replay, 10 lanes in all: 2 episodes of 500 steps" in text
    shorter = plan_of(CARTPOLE, *lanes, "env.max_episode_steps=250", "actors.envs_per_actor=10").text
    assert "500 transitions in replay, 20 lanes in all: 2 episodes of 250 steps" in shorter
    endless = plan_of(replace(CARTPOLE, max_episode_steps=None), *lanes).text
    assert "1,000 transitions in replay, 10 lanes in all\n" in endless


def test_atari_by_hand() -> None:
    plan = plan_of(ATARI, *THREE_STEP, "replay.capacity=1000000", "replay.num_shards=2")
    assert plan.raw_bytes == 8 * 7_056 + 32
    assert plan.deduplicated_bytes == round(1.04 * 7_056) + 32
    # Segments of ten frames, one every four; a fiftieth each.
    assert plan.compressed_bytes == round(1.04 * 7_056 * 10 / 4 / 50) + 32
    assert plan.priority_bytes == 16
    assert plan.replay_bytes == 1_000_000 * (7_338 + 32 + 16)
    assert plan.shard_bytes == plan.replay_bytes // 2
    # As many minibatches as 16 MiB hold.
    assert plan.request_bytes == 4 * 64 * (8 * 7_056 + 32)
    # 30 x (4 + 3) steps of 16 lanes, and the stack + n_step - 1 frames more that they need.
    assert plan.push_bytes == 16 * (216 * 7_056 + 210 * 41)
    packed = plan_of(ATARI, *THREE_STEP, "replay.capacity=1000000", "replay.compression=lz4")
    assert packed.replay_bytes == 1_000_000 * (399 + 16)


@pytest.mark.parametrize("spec", [CARTPOLE, ATARI], ids=["cartpole", "atari"])
def test_a_full_shard_takes_what_was_planned(spec: EnvSpec) -> None:
    capacity = 30_000
    plan = plan_of(spec, *THREE_STEP, f"replay.capacity={capacity}")
    schema = spec.block_schema(3)
    shard = ReplayShard(
        ReplayConfig(sampling="prioritized"),
        schema,
        shard=0,
        incarnation=0,
        capacity=capacity,
        seed=np.random.SeedSequence(0),
    )
    num_transitions = 5_000
    # As many frames per transition as a shard has room for: both rings wrap around together.
    num_frames = math.ceil(num_transitions * (2.0 if spec is CARTPOLE else 1.04)) + 1
    fields = {name: np.zeros(num_transitions, dtype) for name, dtype in TRANSITION_FIELDS}
    fields["next_frame"] += 1
    (field,) = schema.frame_fields
    block = TransitionBlock(
        schema=schema,
        writer=0,
        incarnation=0,
        sequence=0,
        env_steps=num_transitions,
        frames={field.name: np.zeros((num_frames, *field.shape), field.dtype)},
        **fields,
    )
    for sequence in range(7):
        status = shard.insert(encode(replace(block, sequence=sequence))).status
    assert status.count > 0.8 * capacity
    assert status.stored_bytes == pytest.approx(plan.replay_bytes, rel=0.02)


def test_a_replay_larger_than_memory_is_refused_with_numbers_and_knobs() -> None:
    plan = plan_of(ATARI, *THREE_STEP, "replay.capacity=5000000")
    with pytest.raises(ConfigError) as raised:
        require_fit(plan)
    message = str(raised.value)
    for fact in (
        "24.0 GB of 32.0 GB",
        "36.9 GB",
        "5,000,000 x 7,386 bytes",
        "replay.capacity",
        "replay.compression=lz4 (about 399 bytes",
        "replay.num_shards",
    ):
        assert fact in message
    require_fit(plan_of(ATARI, *THREE_STEP, "replay.capacity=5000000", "replay.compression=lz4"))


def test_the_border_of_what_fits() -> None:
    plan = plan_of(ATARI)
    for free, fits in ((plan.run_bytes, True), (plan.run_bytes - 1, False)):
        assert (not replace(plan, machine=replace(LARGE, available_bytes=free)).problems) is fits


def test_compression_is_no_advice_where_nothing_compresses() -> None:
    plan = plan_of(CARTPOLE, "replay.capacity=1000000000")
    (problem,) = plan.problems
    assert "lz4" not in problem
    assert "lower replay.capacity" in problem


def test_requests_larger_than_the_object_store_are_refused() -> None:
    overrides = [
        ON_RAY,
        *ONE_STEP,
        "learner.batch_size=4096",
        "replay.minibatches_per_request=16",
        "replay.capacity=70000",
    ]
    assert plan_of(ATARI, *overrides, machine=replace(LARGE, available_bytes=10**12)).problems == ()
    (problem,) = plan_of(ATARI, *overrides, "replay.prefetch_requests=3").problems
    for fact in (
        "7.2 GB",
        "4 requests of 2.3 GB",
        "replay.minibatches_per_request",
        "replay.prefetch_requests",
    ):
        assert fact in problem


def test_ray_takes_the_disk_where_shared_memory_is_small() -> None:
    small = replace(LARGE, shm_bytes=64 << 20)
    assert plan_of(ATARI, ON_RAY, machine=small).object_store_bytes == int(0.3 * 24e9)
    assert "/dev/shm" not in plan_of(CARTPOLE, ON_RAY, machine=small).text
    assert "/dev/shm" not in plan_of(CARTPOLE, ON_RAY, machine=small).short
    assert (
        "warning: Ray's object store is on disk" in plan_of(ATARI, ON_RAY, *THREE_STEP, machine=small).short
    )
    assert "--shm-size" in plan_of(ATARI, ON_RAY, *THREE_STEP, machine=small).text
    large = replace(LARGE, available_bytes=10**11)
    assert plan_of(ATARI, ON_RAY, machine=large).object_store_bytes == int(0.95 * 16e9)


def test_a_cluster_is_not_measured_by_this_machine() -> None:
    plan = plan_of(ATARI, "run.runtime=cluster", "replay.capacity=50000000", "replay.num_shards=8")
    assert plan.problems == ()
    assert "not known" in plan.text
    assert "46.2 GB" in plan.short


def test_a_serial_run_has_no_ray() -> None:
    serial, local = plan_of(CARTPOLE, "run.runtime=serial"), plan_of(CARTPOLE)
    assert serial.object_store_bytes == serial.pushes == 0
    assert serial.process_bytes < local.process_bytes


def test_one_more_local_actor_shares_most_of_its_memory() -> None:
    torch_acts = "learner.head=c51"
    one, more = (plan_of(CARTPOLE, torch_acts, f"actors.num_actors={count}") for count in (1, 17))
    assert more.process_bytes - one.process_bytes < 16 * (100 << 20)
    one, more = (plan_of(CARTPOLE, ON_RAY, torch_acts, f"actors.num_actors={count}") for count in (1, 17))
    assert more.process_bytes - one.process_bytes > 16 * (300 << 20)


def test_plan_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "CartPole-v1", "--set", "replay.capacity=100000"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    preset, *plan = captured.out.splitlines()
    assert preset.startswith("preset cartpole (")
    lines = dict(line.split("  ", 1) for line in plan)
    assert lines["replay"].strip() == "6.4 MB for 100,000 transitions"
    assert lines["verdict"].strip() == "fits"


def test_a_plan_that_cannot_fit_is_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "CartPole-v1", "--set", "replay.capacity=1000000000000"]) == 2
    captured = capsys.readouterr()
    assert "does not fit" in captured.out
    assert captured.err.startswith("qfleet: the run needs 64.0 TB")


def test_training_is_refused_before_anything_starts(tmp_path: Path) -> None:
    children = set(psutil.Process().children(recursive=True))
    config = load_config(None, ["replay.capacity=1000000000000"])
    with pytest.raises(ConfigError, match=r"80\.0 TB"):
        train(config, tmp_path / "run")
    assert set(psutil.Process().children(recursive=True)) == children
    assert list(tmp_path.iterdir()) == []


def test_a_start_says_its_plan_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "CartPole-v1", "--runtime", "serial", "--run-dir", str(tmp_path / "run")]
    for override in (
        "replay.capacity=2000",
        "learner.batch_size=8",
        "pacing.learning_starts=64",
        "stop.updates=8",
        "learner.updates_per_chunk=8",
    ):
        arguments += ["--set", override]
    assert run(arguments) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "replay" in line and "free" in line]
    # 2,000 transitions keep 2 x 2,000 frames.
    assert "replay 128 kB (2,000 x 64 bytes) in 1 shard; the run takes about" in line


def test_a_table_that_no_memory_holds_is_refused() -> None:
    huge = replace(CARTPOLE, observation_shape=(), observation_dtype="<i8", num_states=10**11)
    plan = plan_of(huge, "run.runtime=local")
    assert "verdict            does not fit" in plan.text
    # Network, target, gradient and two moments; as much at the driver; an actor and the evaluator.
    assert plan.network_bytes == 10**11 * 2 * 4 * (5 + 5 + 2 * 2)
    with pytest.raises(ConfigError, match=r"networks 11.2 TB.*let the environment have fewer states"):
        require_fit(plan)


@pytest.mark.parametrize(
    ("spec", "settings", "weights"),
    [
        # A square layer of a width that somebody mistook for a number of weights.
        (CARTPOLE, ["learner.hidden_sizes=[300_000, 300_000]"], 300_000**2),
        # A state number within a Dict, which becomes one-hot.
        (
            replace(
                CARTPOLE,
                observation_shape=(),
                observation_dtype="|V",
                parts=(FrameField("place", "|b1", (10**8,)), FrameField("speed", "<f4", (2,))),
            ),
            ["replay.capacity=64"],
            128 * 10**8,
        ),
    ],
)
def test_a_layer_that_no_memory_holds_is_refused_with_the_setting_to_lower(
    spec: EnvSpec, settings: list[str], weights: int
) -> None:
    plan = plan_of(spec, "run.runtime=local", *settings)
    assert plan.network_bytes > weights * 4 * (5 + 5 + 2 * 2)
    with pytest.raises(ConfigError, match=r"networks .* [GT]B.*or lower learner.hidden_sizes"):
        require_fit(plan)


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (CARTPOLE, ["learner.hidden_sizes=[2048, 2048]"]),
        (ATARI, ["learner.network=nature_cnn"]),
        (ATARI, ["learner.network=impala_cnn", "learner.impala_width=2", "learner.pool_size=6"]),
        (CARTPOLE, ["learner.head=c51", "learner.dueling=true"]),
        (replace(CARTPOLE, observation_shape=(), observation_dtype="<i8", num_states=500), []),
    ],
)
def test_weights_are_counted_without_building_the_network(spec: EnvSpec, settings: list[str]) -> None:
    config, fitted = config_of(spec, *settings), network_spec(spec)
    exact = sum(parameter.numel() for parameter in build_network(fitted, config.learner).parameters())
    assert 0.5 * exact < approximate_weights(fitted, config.learner) <= exact


@pytest.mark.parametrize(
    ("spec", "settings"),
    [
        (CARTPOLE, ["learner.hidden_sizes=[512, 512]"]),
        (ATARI, ["learner.network=nature_cnn"]),
        (ATARI, ["learner.network=impala_cnn", "learner.impala_width=2"]),
        (ATARI, ["learner.network=minatar_cnn"]),
    ],
)
def test_what_an_update_holds_is_counted_without_building_the_network(
    spec: EnvSpec, settings: list[str]
) -> None:
    config, fitted, size = config_of(spec, *settings), network_spec(spec), 16
    network = build_network(fitted, config.learner)
    weights = {parameter.data_ptr() for parameter in network.parameters()}
    held: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    observations = torch.from_numpy(np.zeros((size, *fitted.observation_shape), spec.observation_dtype))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network(observations)
    expected = 4 * size * approximate_activations(fitted, config.learner)
    # The pass back needs as much again, for gradients.
    assert sum(held.values()) < expected < 4 * sum(held.values())
    assert outputs.requires_grad


def test_an_update_that_no_memory_holds_is_refused_with_the_setting_to_lower() -> None:
    impala = ["learner.network=impala_cnn", "replay.capacity=100000"]
    plan = plan_of(ATARI, *impala, "learner.batch_size=16384")
    # Four planes; 16, 32 and 32 channels, once at full size and four times at half; 256 units; 6 actions.
    layers = 16 * (84**2 + 4 * 42**2) + 32 * (42**2 + 4 * 21**2) + 32 * (21**2 + 4 * 11**2) + 256 + 6
    assert plan.update_bytes == 4 * 16_384 * 2 * (4 * 84**2 + layers)
    with pytest.raises(ConfigError, match=r"updates 52.0 GB.*lower learner.batch_size, replay.capacity"):
        require_fit(plan)
    assert plan_of(ATARI, *impala, "learner.batch_size=16384", "learner.device=cuda").update_bytes == 0


def test_what_an_update_holds_is_claimed_where_it_is_computed() -> None:
    settings = ["run.runtime=cluster", "learner.network=impala_cnn", "learner.batch_size=256"]
    plan, config = plan_of(ATARI, *settings), config_of(ATARI, *settings)
    on_cpu, on_gpu = (
        make_claims(config, ATARI, plan, gpus).core["learner"].memory_bytes for gpus in (0.0, 1.0)
    )
    assert on_cpu - on_gpu == plan.update_bytes > 10**8


def test_a_large_layer_is_part_of_what_roles_claim() -> None:
    wide = ["run.runtime=cluster", "learner.hidden_sizes=[8192, 8192]"]
    plan = plan_of(CARTPOLE, *wide)
    claims = make_claims(config_of(CARTPOLE, *wide), CARTPOLE, plan, 0.0)
    weights = 4 * 8192 * 8192
    assert claims.core["learner"].memory_bytes > 5 * weights
    assert claims.core["evaluator"].memory_bytes > 2 * weights
