"""What the user of a configuration is told about settings without effect and large images."""

from __future__ import annotations

from dataclasses import replace

import pytest
from qfleet_configs import VECTOR

from actors.core import EnvSpec
from cluster.settings.load_config import load_config
from cluster.settings.notes import setting_notes
from cluster.settings.resolve import resolve


def notes(spec: EnvSpec, *overrides: str) -> list[str]:
    return list(setting_notes(resolve(load_config(None, overrides), spec, cores=2), spec))


@pytest.mark.parametrize("name", ["epsilon_decay_env_steps=5000", "epsilon_end=0.01", "epsilon_start=0.5"])
def test_epsilon_beside_a_ladder_has_no_effect(name: str) -> None:
    (note,) = notes(VECTOR, f"actors.{name}", "actors.epsilon_ladder={}")
    assert note.startswith(f"actors.{name.replace('=', ' is ')}, which has no effect")
    assert notes(VECTOR, f"actors.{name}") == []
    assert notes(VECTOR, "actors.epsilon_ladder={}") == []


@pytest.mark.parametrize(
    ("shape", "layout", "told"),
    [((240, 320, 3), "HWC", True), ((3, 240, 320), "CHW", True), ((96, 96, 3), "HWC", False)],
)
def test_large_images_are_pointed_out_with_a_cure(shape: tuple[int, ...], layout: str, told: bool) -> None:
    spec = replace(
        VECTOR, observation_shape=shape, observation_dtype="|u1", image_layouts={"observation": layout}
    )
    found = notes(spec)
    assert len(found) == told
    if told:
        assert "240 x 320" in found[0]
        assert "gymnasium.wrappers:ResizeObservation" in found[0]
    assert notes(spec, "learner.network=mlp") == []


MINATAR = replace(
    VECTOR,
    observation_shape=(10, 10, 4),
    observation_dtype="|b1",
    num_actions=6,
    image_layouts={"observation": "HWC"},
)
ATARI = replace(
    VECTOR,
    observation_shape=(84, 84),
    observation_dtype="|u1",
    stack=4,
    image_layouts={"observation": "HW"},
)


@pytest.mark.parametrize(
    ("spec", "network", "batch_size", "pays"),
    [
        # Measured with two ranks on two cores: 0.63, 0.97, 1.34 and 1.58 times the updates of one.
        (MINATAR, "minatar_cnn", 128, False),
        (MINATAR, "minatar_cnn", 512, False),
        (ATARI, "nature_cnn", 64, True),
        (ATARI, "nature_cnn", 256, True),
        (VECTOR, "mlp", 64, False),
    ],
)
def test_ranks_that_will_not_pay_are_advised_against(
    spec: EnvSpec, network: str, batch_size: int, pays: bool
) -> None:
    settings = (f"learner.network={network}", f"learner.batch_size={batch_size}")
    assert notes(spec, *settings) == []
    told = notes(spec, *settings, "learner.num_learners=2")
    assert [note.startswith("learner.num_learners = 2 will hardly pay on CPUs") for note in told] == (
        [] if pays else [True]
    )
    assert notes(spec, *settings, "learner.num_learners=2", "learner.device=cuda") == []
