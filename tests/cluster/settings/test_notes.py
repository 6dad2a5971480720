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
