from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from qfleet_specs import image_spec

from learner.config import (
    IMAGE_NETWORKS,
    LearnerConfig,
    NetworkSpec,
    acts_in_numpy,
    feature_map,
    image_shape,
    resolve_network,
)
from learner.networks.build import build_network
from replay_service.block import FrameField

CARTPOLE = NetworkSpec((4,), "float32", None, 2, stack=1)
TAXI = NetworkSpec((), "int64", 500, 6, stack=1)
ATARI = image_spec((4, 84, 84), 6, stack=4)
DICT = NetworkSpec(
    (),
    "|V",
    None,
    3,
    stack=2,
    parts=(FrameField("camera", "|u1", (2, 36, 36)), FrameField("speed", "<f4", (2, 3))),
    pixels=("camera",),
    image_layouts={"camera": "HW"},
)


@pytest.mark.parametrize(
    ("spec", "network"),
    [
        (CARTPOLE, "mlp"),
        (TAXI, "table"),
        (ATARI, "nature_cnn"),
        (image_spec((96, 96, 3), 5, layout="HWC"), "nature_cnn"),
        (image_spec((4, 96, 96, 3), 5, stack=4, layout="HWC"), "nature_cnn"),
        (NetworkSpec((128,), "uint8", None, 6, stack=1), "mlp"),  # Atari's memory is no image
        (image_spec((7, 7, 3), 7, layout="HWC"), "mlp"),  # too small to convolve
        (image_spec((4, 84, 84), 6, stack=4, dtype="float32"), "nature_cnn"),
        (NetworkSpec((4, 84), "float32", None, 6, stack=4), "mlp"),
        (DICT, "nature_cnn"),
        (replace(DICT, parts=DICT.parts[1:] * 2), "mlp"),
    ],
)
def test_auto_network(spec: NetworkSpec, network: str) -> None:
    assert resolve_network(spec, LearnerConfig()) == network


@pytest.mark.parametrize(
    ("shape", "stack", "layout", "expected"),
    [
        ((4, 84, 80), 4, "HW", (4, 84, 80, False)),
        ((84, 80), 1, "HW", (1, 84, 80, False)),
        ((84, 80, 3), 1, "HWC", (3, 84, 80, True)),
        ((3, 84, 80), 1, "CHW", (3, 84, 80, False)),
        ((4, 84, 80, 3), 4, "HWC", (12, 84, 80, True)),
        ((4, 3, 84, 80), 4, "CHW", (12, 84, 80, False)),
        ((4, 64, 60, 3), 1, "HWC", (12, 64, 60, True)),
        ((2, 4, 3, 64, 60), 2, "CHW", (24, 64, 60, False)),
        ((20, 30, 40), 1, "unknown", None),
    ],
)
def test_image_axes(shape: tuple[int, ...], stack: int, layout: str, expected: object) -> None:
    image = image_shape(image_spec(shape, 2, stack, layout=layout))
    assert (image and image[:4]) == expected


def test_what_is_no_image_has_no_image_axes() -> None:
    assert image_shape(CARTPOLE) is None


@pytest.mark.parametrize("network", ["auto", "nature_cnn", "impala_cnn", "minatar_cnn"])
def test_a_network_that_depends_on_unknown_axes_asks_for_them(network: Any) -> None:
    spec = image_spec((20, 40, 38), 2, layout="unknown")
    with pytest.raises(ValueError, match=r"\[20, 40, 38\] are images.*Set env.image_layout=HWC"):
        resolve_network(spec, LearnerConfig(network=network))


def test_a_network_that_does_not_depend_on_unknown_axes_does_not_ask() -> None:
    assert resolve_network(image_spec((20, 38, 30), 2, layout="unknown"), LearnerConfig()) == "mlp"
    large = image_spec((40, 40, 40), 2, layout="unknown")
    assert resolve_network(large, LearnerConfig(network="mlp")) == "mlp"


@pytest.mark.parametrize(
    ("network", "spec", "complaint"),
    [
        ("table", CARTPOLE, "needs Discrete observations"),
        ("mlp", TAXI, "give table"),
        ("nature_cnn", CARTPOLE, "needs images"),
        ("nature_cnn", image_spec((4, 84, 35), 6, stack=4), "at least 36 x 36"),
        ("auto", NetworkSpec((4,), "int64", 500, 6, stack=4), "cannot be stacked"),
        ("table", DICT, r"needs Discrete observations; these are \|u1 \[2, 36, 36\], <f4 \[2, 3\]"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network: Any, spec: NetworkSpec, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolve_network(spec, LearnerConfig(network=network))


@pytest.mark.parametrize(
    ("settings", "spec", "complaint"),
    [
        ({"impala_width": 2}, ATARI, "impala_width is 2, which only impala_cnn offers; .* is nature_cnn"),
        ({"head": "iqn"}, TAXI, "head is iqn, which only the MLP and the CNNs offer; .* is table; give qr"),
        ({"head": "iqn", "network": "my.networks:make"}, CARTPOLE, "head is iqn, which only"),
        (
            {"image_hidden_size": 64},
            CARTPOLE,
            "image_hidden_size is 64, .* is mlp; give learner.hidden_sizes",
        ),
        ({"spectral_norm": True}, CARTPOLE, "spectral_norm is True, which only impala_cnn offers"),
        ({"pool_size": 6}, CARTPOLE, "pool_size is 6, which only nature_cnn, impala_cnn, minatar_cnn offer"),
        ({"pool_size": 6, "network": "my.networks:make"}, ATARI, "pool_size is 6, which only"),
        ({"pool_size": 8}, ATARI, "only 7 pixels here; give at most 7"),
        ({"pool_size": 2, "network": "impala_cnn"}, replace(ATARI, observation_shape=(4, 99, 8)), "only 1 p"),
    ],
)
def test_switches_of_image_networks_are_refused_elsewhere(
    settings: dict[str, Any], spec: NetworkSpec, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolve_network(spec, LearnerConfig(**settings))


def test_a_layout_without_convolutions_is_refused() -> None:
    for settings in ({"network": "mlp"}, {"network": "my.networks:make"}):
        config = LearnerConfig(**settings, convolution_layout="channels_first")
        complaint = f"convolution_layout is channels_first, which only .*is {config.network}; give auto"
        with pytest.raises(ValueError, match=complaint):
            resolve_network(CARTPOLE, config)


@pytest.mark.parametrize("network", IMAGE_NETWORKS)
@pytest.mark.parametrize("side", [36, 37, 44, 71, 84])
def test_feature_maps_have_the_size_that_the_network_gives_them(network: str, side: int) -> None:
    spec = image_spec((3, side, side + 5), 2, layout="CHW", dtype="float32")
    image = image_shape(spec)
    assert image is not None
    torso = build_network(spec, LearnerConfig(network=network)).torso
    maps = torso.convolutions[:-1](torch.zeros(1, 3, side, side + 5))
    assert tuple(maps.shape[2:]) == feature_map(network, image)


@pytest.mark.parametrize("network", ["lstm", "package:", ":factory", "package.:factory", "a:b:c", "a b:c"])
def test_a_network_that_is_no_name_and_no_path_is_refused(network: str) -> None:
    with pytest.raises(ValueError, match=r"learner.network is .*package\.module:factory"):
        LearnerConfig(network=network)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"num_atoms": 1}, "learner.num_atoms is 1"),
        ({"value_range": (1.0, 1.0)}, r"learner.value_range is \[1, 1\]"),
        ({"weight_decay": 0.01}, "learner.weight_decay is 0.01; only adamw decays weights"),
        ({"optimizer": "adamw", "weight_decay": -1.0}, "learner.weight_decay is -1"),
        ({"optimizer": "adamw", "weight_decay": 1e4, "learning_rate": 1e-3}, "would leave nothing"),
        (
            {"munchausen": True, "head": "c51"},
            r"munchausen is true; it takes heads q, qr and iqn \(this is c51",
        ),
        ({"munchausen": True, "double": True}, r"makes double useless \(this is True\); give .*double=false"),
        ({"munchausen_alpha": 1.5}, "learner.munchausen_alpha is 1.5"),
        ({"munchausen_temperature": 0.0}, "learner.munchausen_temperature is 0"),
        ({"munchausen_clip": 0.5}, "learner.munchausen_clip is 0.5; log-probabilities are at most 0"),
        ({"iqn_quantiles": 0}, "learner.iqn_quantiles is 0; give at least 1"),
        ({"iqn_acting_quantiles": 0}, "learner.iqn_acting_quantiles is 0"),
        ({"image_hidden_size": 0}, "learner.image_hidden_size is 0"),
        ({"pool_size": 0}, "learner.pool_size is 0"),
        ({"impala_width": 0}, "learner.impala_width is 0"),
        ({"max_skipped_updates": 0}, "learner.max_skipped_updates is 0"),
        ({"device": "abacus"}, "learner.device is abacus; give auto, cpu, cuda"),
    ],
)
def test_settings_of_the_family_are_checked(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        LearnerConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"network": "mlp", "double": True}, True),
        ({"network": "table"}, True),
        ({"network": "nature_cnn"}, False),
        ({"network": "my.networks:make"}, False),
        ({"network": "table", "head": "qr"}, False),
        ({"network": "mlp", "head": "c51"}, False),
        ({"network": "mlp", "head": "iqn"}, False),
        ({"network": "mlp", "dueling": True}, False),
        ({"network": "mlp", "noisy": True}, False),
        ({"network": "mlp", "layer_norm": True}, False),
    ],
)
def test_only_plain_mlps_and_tables_act_in_numpy(settings: dict[str, Any], expected: bool) -> None:
    assert acts_in_numpy(CARTPOLE, LearnerConfig(**settings)) == expected


def test_an_observation_of_several_arrays_acts_in_torch() -> None:
    assert not acts_in_numpy(replace(DICT, parts=DICT.parts[1:] * 2), LearnerConfig(network="mlp"))


def test_each_part_is_an_array_with_a_spec_of_its_own() -> None:
    arrays = DICT.arrays
    assert list(arrays) == ["camera", "speed"]
    assert image_shape(arrays["camera"]) == (2, 36, 36, False, True)
    assert arrays["speed"].frame_shape == (3,)
    assert CARTPOLE.arrays == {"observation": CARTPOLE}


@pytest.mark.parametrize("spec", [TAXI, ATARI, replace(DICT, parts=DICT.parts[:1])])
def test_nothing_to_normalize_is_refused(spec: NetworkSpec) -> None:
    with pytest.raises(ValueError, match=r"normalize_observations is true, which needs numbers"):
        resolve_network(spec, LearnerConfig(normalize_observations=True))
