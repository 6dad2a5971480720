"""Networks, updates and policies for observations of several arrays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from learner.batch import to_batch
from learner.config import LearnerConfig, NetworkSpec
from learner.networks.build import TorsoAndStreams, build_network, zero_observations
from learner.networks.torsos import DenseTorso, JoinedTorso, NatureTorso
from learner.torch_policy import TorchPolicy
from learner.update import UpdateStep
from replay_service.block import FrameField
from replay_service.messages import Minibatch

STACK = 2
SPEC = NetworkSpec(
    (),
    "|V",
    None,
    3,
    STACK,
    parts=(
        FrameField("camera", "|u1", (STACK, 36, 40)),
        FrameField("arm.speed", "<f4", (STACK, 3)),
        FrameField("arm.flags", "|b1", (STACK, 5)),
        FrameField("height", "<f4", (STACK,)),
    ),
)
RECORD = np.dtype(
    [
        ("observation.camera", "u1", (36, 40)),
        ("observation.arm.speed", "f4", (3,)),
        ("observation.arm.flags", "?", (5,)),
        ("observation.height", "f4"),
        ("action_mask", "?", (3,)),
    ],
    align=True,
)
CONFIG = LearnerConfig(hidden_sizes=(16, 8))


def random_windows(rng: np.random.Generator, batch_size: int, width: int) -> dict[str, np.ndarray]:
    shape = (batch_size, width)
    return {
        "observation.camera": rng.integers(256, size=(*shape, 36, 40), dtype=np.uint8),
        "observation.arm.speed": rng.normal(size=(*shape, 3)).astype(np.float32),
        "observation.arm.flags": rng.random((*shape, 5)) < 0.5,
        "observation.height": rng.normal(size=shape).astype(np.float32),
        "action_mask": np.ones((*shape, 3), np.bool_),
    }


def random_minibatch(batch_size: int = 8, width: int = 2 * STACK, seed: int = 0) -> Minibatch:
    rng = np.random.default_rng(seed)
    return Minibatch(
        windows=random_windows(rng, batch_size, width),
        action=rng.integers(3, size=batch_size, dtype=np.int32),
        reward=rng.normal(size=batch_size).astype(np.float32),
        discount=np.full(batch_size, 0.9, np.float32),
        policy_version=np.zeros(batch_size, np.int64),
        weight=np.ones(batch_size, np.float32),
        index=0,
    )


def test_each_part_has_an_encoder_of_its_kind() -> None:
    network = build_network(SPEC, CONFIG)
    assert isinstance(network, TorsoAndStreams)
    assert isinstance(network.torso, JoinedTorso)
    kinds = [type(encoder) for encoder in network.torso.encoders]
    assert kinds == [NatureTorso, DenseTorso, DenseTorso, DenseTorso]
    assert network.torso.num_features == 64 * 1 * 1 + 3 * 16
    assert network(zero_observations(SPEC, 2)).shape == (2, 3)


def test_features_are_joined_in_the_order_of_the_parts() -> None:
    torso = JoinedTorso({"a": DenseTorso((2,), False), "b": DenseTorso((1,), False)})
    joined = torso({"b": torch.tensor([[7.0]]), "a": torch.tensor([[1.0, 2.0]])})
    assert joined.tolist() == [[1.0, 2.0, 7.0]]


@pytest.mark.parametrize("name", [field.name for field in SPEC.parts])
def test_every_part_decides_over_the_values(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(SPEC, CONFIG)
    observations: Any = zero_observations(SPEC, 1)
    before = network(observations)
    changed = observations[name]
    observations[name] = ~changed if changed.dtype == torch.bool else changed + 9
    assert (network(observations) - before).abs().max() > 1e-4


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"double": True, "dueling": True, "noisy": True, "layer_norm": True},
        {"head": "c51", "network": "impala_cnn"},
        {"head": "qr", "network": "mlp", "normalize_observations": True},
    ],
    ids=str,
)
def test_an_update_learns_from_all_parts_and_acting_repeats_the_network(switches: dict[str, Any]) -> None:
    config = replace(CONFIG, **switches)
    step = UpdateStep(SPEC, config, seed=0)
    before = step.weights()
    errors = step(to_batch(random_minibatch(), STACK, step.device))
    assert isinstance(errors, np.ndarray)
    assert errors.shape == (8,)
    policy = TorchPolicy(SPEC, config, threads=1)
    after = step.weights()
    assert (before != after).any()
    policy.load(after)
    windows = random_windows(np.random.default_rng(5), 4, STACK)
    records = np.zeros((4, STACK), RECORD)
    for name, window in windows.items():
        records[name] = window
    q = policy.q_values(records)
    assert (q.shape, q.dtype) == ((4, 3), np.float32)
    assert np.ptp(q) > 0.0
    # One observation alone has the values that it has beside others.
    np.testing.assert_allclose(policy.q_values(records[2:3]), q[2:3], rtol=1e-4, atol=1e-6)


def test_one_step_windows_of_parts() -> None:
    batch = to_batch(random_minibatch(width=STACK + 1), STACK, torch.device("cpu"))
    assert isinstance(batch.obs_tm1, dict)
    assert isinstance(batch.obs_t, dict)
    assert list(batch.obs_t) == ["camera", "arm.speed", "arm.flags", "height"]
    torch.testing.assert_close(batch.obs_tm1["height"][:, 1], batch.obs_t["height"][:, 0])


def test_a_state_goes_on_bit_for_bit() -> None:
    config = replace(CONFIG, normalize_observations=True)
    batches = [to_batch(random_minibatch(seed=seed), STACK, torch.device("cpu")) for seed in range(4)]
    whole, first, second = (UpdateStep(SPEC, config, seed=seed) for seed in (0, 0, 9))
    for batch in batches:
        whole(batch)
    for batch in batches[:2]:
        first(batch)
    second.restore(first.state())
    for batch in batches[2:]:
        second(batch)
    assert whole.weights().tobytes() == second.weights().tobytes()


class OwnNetwork(torch.nn.Linear):
    """A user's own: takes the dict of parts."""

    def __init__(self, spec: NetworkSpec, config: LearnerConfig) -> None:
        super().__init__(STACK * 3, spec.num_actions)

    def forward(self, observations: Any) -> torch.Tensor:
        return super().forward(observations["arm.speed"].flatten(1))


def test_a_network_of_ones_own_takes_the_parts_by_name() -> None:
    network = build_network(SPEC, LearnerConfig(network=f"{__name__}:OwnNetwork"))
    assert network(zero_observations(SPEC, 2)).shape == (2, 3)


def test_float_images_are_taken_as_they_are_and_bytes_in_units_of_255() -> None:
    config = LearnerConfig(network="nature_cnn")
    bytes_spec = NetworkSpec((36, 36, 3), "uint8", None, 2, stack=1)
    network = build_network(bytes_spec, config)
    images = torch.randint(256, (2, 36, 36, 3), dtype=torch.uint8)
    torch.testing.assert_close(network(images), network(images / 255))
