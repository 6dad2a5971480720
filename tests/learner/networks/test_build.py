"""Whole networks: their layers, switches and parts, and networks by import path."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from qfleet_specs import image_spec
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from learner.config import LearnerConfig, NetworkSpec, output_shape
from learner.networks.build import build_network, zero_observations
from learner.networks.streams import TorsoAndStreams, dueling
from learner.networks.torsos import DenseTorso, JoinedTorso, NatureTorso

CPU = torch.device("cpu")
VECTOR = NetworkSpec((4,), "float32", None, 3, stack=1)
IMAGES = image_spec((2, 36, 40), 3, stack=2)


def test_mlp_is_the_numpy_forward_pass_over_its_flat_vector() -> None:
    # As actors do: split the vector into W1 [out, in], b1, W2, b2, ... and multiply.
    spec = NetworkSpec((2, 3), "float32", None, 2, stack=1)
    network = build_network(spec, LearnerConfig(hidden_sizes=(5, 7)))
    flat = parameters_to_vector(network.parameters()).detach().numpy()
    observations = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)
    hidden, offset = observations.reshape(9, 6), 0
    for fan_in, fan_out in [(6, 5), (5, 7), (7, 2)]:
        weight = flat[offset : offset + fan_in * fan_out].reshape(fan_out, fan_in)
        offset += weight.size
        hidden = hidden @ weight.T + flat[offset : offset + fan_out]
        offset += fan_out
        if fan_out != 2:
            hidden = np.maximum(hidden, 0.0)
    assert offset == flat.size
    np.testing.assert_allclose(network(torch.from_numpy(observations)).detach(), hidden, rtol=1e-4, atol=1e-6)


def test_mlp_takes_pixels_as_fractions_of_255_and_other_numbers_as_they_are() -> None:
    codes = NetworkSpec((3,), "uint8", None, 2, stack=1)
    of_pixels = build_network(replace(codes, pixels=("observation",)), LearnerConfig())
    of_codes = build_network(codes, LearnerConfig())
    of_codes.load_state_dict(of_pixels.state_dict())
    whole = torch.tensor([[0, 51, 255]], dtype=torch.uint8)
    torch.testing.assert_close(of_pixels(whole), of_codes(torch.tensor([[0.0, 0.2, 1.0]])))
    for dtype in (torch.float32, torch.float64):
        torch.testing.assert_close(of_codes(whole), of_codes(whole.to(dtype)))
        torch.testing.assert_close(of_pixels(whole), of_pixels(whole.to(dtype)))


def test_mlp_of_a_scalar_observation() -> None:
    network = build_network(NetworkSpec((), "float32", None, 3, stack=1), LearnerConfig())
    assert network(torch.zeros(8)).shape == (8, 3)


def test_table_starts_at_zero_and_is_read_row_by_row() -> None:
    network = build_network(NetworkSpec((), "int64", 3, 2, stack=1), LearnerConfig())
    states = torch.tensor([2, 0, 2])
    torch.testing.assert_close(network(states), torch.zeros(3, 2))
    vector_to_parameters(torch.arange(6.0), network.parameters())
    torch.testing.assert_close(network(states), torch.tensor([[4.0, 5.0], [0.0, 1.0], [4.0, 5.0]]))


def test_tables_of_distributions() -> None:
    spec = NetworkSpec((), "int64", 3, 2, stack=1)
    network = build_network(spec, LearnerConfig(head="qr", num_atoms=4))
    vector_to_parameters(torch.arange(24.0), network.parameters())
    torch.testing.assert_close(network(torch.tensor([1])), torch.arange(8.0, 16.0).view(1, 2, 4))


def test_nature_cnn_works_down_to_36_pixels_and_refuses_less() -> None:
    config = LearnerConfig(network="nature_cnn")
    network = build_network(image_spec((36, 36), 2), config)
    assert network(torch.zeros(2, 36, 36, dtype=torch.uint8)).shape == (2, 2)
    with pytest.raises(ValueError, match="at least 36 x 36"):
        build_network(image_spec((36, 35), 2), config)


def test_impala_cnn_takes_small_images_and_nothing_else() -> None:
    config = LearnerConfig(network="impala_cnn")
    small = image_spec((7, 7, 3), 5, layout="HWC")
    assert build_network(small, config)(torch.zeros(2, 7, 7, 3, dtype=torch.uint8)).shape == (2, 5)
    with pytest.raises(ValueError, match="impala_cnn, which needs images"):
        build_network(VECTOR, config)


def test_minatar_cnn_takes_images_only() -> None:
    with pytest.raises(ValueError, match="minatar_cnn, which needs images"):
        build_network(NetworkSpec((4,), "<f4", None, 2, stack=1), LearnerConfig(network="minatar_cnn"))


def test_each_part_has_an_encoder_of_its_kind(parts_spec: NetworkSpec) -> None:
    network = build_network(parts_spec, LearnerConfig(hidden_sizes=(16, 8)))
    assert isinstance(network, TorsoAndStreams)
    assert isinstance(network.torso, JoinedTorso)
    kinds = [type(encoder) for encoder in network.torso.encoders]
    assert kinds == [NatureTorso, DenseTorso, DenseTorso, DenseTorso]
    assert network.torso.num_features == 64 * 1 * 1 + 3 * 16
    assert network(zero_observations(parts_spec, 2, CPU)).shape == (2, 3)


@pytest.mark.parametrize("name", ["camera", "arm.speed", "arm.flags", "height"])
def test_every_part_decides_over_the_values(name: str, parts_spec: NetworkSpec) -> None:
    torch.manual_seed(0)
    network = build_network(parts_spec, LearnerConfig(hidden_sizes=(16, 8)))
    observations: Any = zero_observations(parts_spec, 1, CPU)
    before = network(observations)
    changed = observations[name]
    observations[name] = ~changed if changed.dtype == torch.bool else changed + 9
    assert (network(observations) - before).abs().max() > 1e-4


def test_dueling_takes_the_mean_of_the_advantages_off() -> None:
    # Their maximum taken off would give 8, 10, 9; nothing 13, 15, 14.
    q = dueling(torch.tensor([[10.0]]), torch.tensor([[3.0, 5.0, 4.0]]))
    torch.testing.assert_close(q, torch.tensor([[9.0, 11.0, 10.0]]))


def test_dueling_of_distributions_is_dueling_of_each_atom() -> None:
    value, advantage = torch.randn(2, 1, 5), torch.randn(2, 3, 5)
    outputs = dueling(value, advantage)
    for atom in range(5):
        torch.testing.assert_close(outputs[..., atom], dueling(value[..., atom], advantage[..., atom]))


@pytest.mark.parametrize("value", [torch.ones(2), torch.ones(2, 3), torch.ones(1, 1), torch.ones(2, 1, 1)])
def test_dueling_broadcasts_only_the_value_over_the_actions(value: Tensor) -> None:
    with pytest.raises(ValueError, match="value has shape"):
        dueling(value, torch.ones(2, 3))


@pytest.mark.parametrize("spec", [VECTOR, IMAGES], ids=["vector", "images"])
def test_a_dueling_network_is_two_streams_over_one_torso(spec: NetworkSpec) -> None:
    config = LearnerConfig(dueling=True, hidden_sizes=(8, 6))
    network = build_network(spec, config)
    sizes = [tuple(parameter.shape) for parameter in network.parameters()]
    below, width = (8, 6) if spec is VECTOR else (64, 512)
    assert sizes[-8::2] == [(width, below), (3, width), (width, below), (1, width)]
    observations = torch.ones(2, *spec.observation_shape).to(torch.uint8 if spec is IMAGES else torch.float32)
    q = network(observations).detach()
    with torch.no_grad():
        list(network.parameters())[-1].add_(2.0)  # the value's bias: all actions alike
        torch.testing.assert_close(network(observations), q + 2.0)
        list(network.parameters())[-5].add_(2.0)  # the advantages' biases, all alike: nothing
        torch.testing.assert_close(network(observations), q + 2.0)


SWITCHES: list[dict[str, Any]] = [
    {"dueling": True},
    {"noisy": True},
    {"layer_norm": True},
    {"head": "c51", "num_atoms": 5},
    {"head": "qr", "num_atoms": 4, "dueling": True, "noisy": True, "layer_norm": True},
    {"head": "iqn", "iqn_acting_quantiles": 4, "dueling": True, "noisy": True, "layer_norm": True},
    {"pool_size": 1},
    {"pool_size": 2, "impala_width": 2, "spectral_norm": True, "layer_norm": True},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("network", ["mlp", "nature_cnn", "impala_cnn"])
def test_every_switch_goes_with_every_network(network: str, switches: dict[str, Any]) -> None:
    spec = VECTOR if network == "mlp" else IMAGES
    of_images, of_impala = "pool_size" in switches, "spectral_norm" in switches
    if network != "impala_cnn" and (of_impala or (of_images and network == "mlp")):
        pytest.skip("test_config tests that it is refused")
    config = LearnerConfig(network=network, hidden_sizes=(7,), **switches)
    module = build_network(spec, config)
    observations = torch.randint(255, (2, *spec.observation_shape), dtype=torch.uint8)
    outputs = module(observations)
    assert outputs.shape == (2, *output_shape(spec, config))
    assert (outputs[0] != outputs[1]).any()
    outputs.square().sum().backward()
    noise = {name for name, _ in module.named_parameters() if name.endswith("_sigma")}
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any() == (name not in noise), name  # no noise drawn: no gradient


@pytest.mark.parametrize("switch", ["dueling", "noisy", "layer_norm"])
def test_switches_of_layers_are_refused_where_no_layer_is_ours(switch: str) -> None:
    table = NetworkSpec((), "int64", 3, 2, stack=1)
    config = LearnerConfig(**{switch: True})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"learner.{switch} is true"):
        build_network(table, config)


def test_layer_norm_makes_hidden_layers_blind_to_scale() -> None:
    torch.manual_seed(0)
    network = build_network(VECTOR, LearnerConfig(layer_norm=True, hidden_sizes=(64, 64)))
    norms = [module for module in network.modules() if isinstance(module, nn.LayerNorm)]
    assert [norm.normalized_shape for norm in norms] == [(64,), (64,)]
    observations = 100.0 * torch.randn(5, 4)
    torch.testing.assert_close(network(observations), network(10.0 * observations), rtol=0.05, atol=0.02)


class Linear(nn.Linear):
    """A custom network; `outputs` as the head wants them."""

    def __init__(self, spec: NetworkSpec, config: LearnerConfig) -> None:
        super().__init__(4, spec.num_actions)


def batch_normed(spec: NetworkSpec, config: LearnerConfig) -> nn.Module:
    return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, spec.num_actions))


def no_module(spec: NetworkSpec, config: LearnerConfig) -> object:
    return "network"


class LinearOfOnePart(nn.Linear):
    """A custom network that takes the dict of parts."""

    def __init__(self, spec: NetworkSpec, config: LearnerConfig) -> None:
        super().__init__(spec.stack * 3, spec.num_actions)

    def forward(self, observations: Any) -> torch.Tensor:
        return super().forward(observations["arm.speed"].flatten(1))


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "my_networks", sys.modules[__name__])
    return "my_networks"


def test_a_custom_network_by_import_path(here: str) -> None:
    network = build_network(VECTOR, LearnerConfig(network=f"{here}:Linear"))
    assert isinstance(network, Linear)
    assert network(torch.zeros(5, 4)).shape == (5, 3)


@pytest.mark.parametrize(
    ("path", "switches", "complaint"),
    [
        ("my_networks:missing", {}, "missing"),
        ("no_such_package.networks:make", {}, "No module named 'no_such_package'"),
        ("my_networks:no_module", {}, "returns str, not nn.Module"),
        ("my_networks:batch_normed", {}, "running_mean"),
        ("my_networks:Linear", {"head": "qr", "num_atoms": 7}, r"returns \[2, 3\].*expected \[2, 3, 7\]"),
        ("my_networks:Linear", {"noisy": True}, "learner.noisy is true"),
    ],
)
def test_a_custom_network_that_does_not_fit_is_refused(
    here: str, path: str, switches: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        build_network(VECTOR, LearnerConfig(network=path, **switches))


def test_a_custom_network_takes_the_parts_by_name(here: str, parts_spec: NetworkSpec) -> None:
    network = build_network(parts_spec, LearnerConfig(network=f"{here}:LinearOfOnePart"))
    assert network(zero_observations(parts_spec, 2, CPU)).shape == (2, 3)
