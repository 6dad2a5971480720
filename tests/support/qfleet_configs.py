"""Resolved configurations of a small environment, for tests that start no run."""

from __future__ import annotations

from actors.core import EnvSpec
from cluster.settings.load_config import load_config
from cluster.settings.resolve import resolve
from cluster.settings.resolved import ResolvedConfig

VECTOR = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", 500, None)
"""Four numbers, two actions, as CartPole has them, with no return at which it is solved."""

ATARI = EnvSpec(
    (84, 84),
    "|u1",
    None,
    6,
    4,
    "native",
    "next_step",
    27_000,
    None,
    pixels=("observation",),
    image_layouts={"observation": "HW"},
)
"""Four frames of 84 x 84 pixels and six actions, as Pong has them."""


def resolved_config(*overrides: str) -> ResolvedConfig:
    """The config of a run on VECTOR with these overrides, on a machine of two cores."""
    return resolve(load_config(None, overrides), VECTOR, cores=2)
