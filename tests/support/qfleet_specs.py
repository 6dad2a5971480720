"""Specs of networks for images."""

from __future__ import annotations

from learner.config import NetworkSpec


def image_spec(
    shape: tuple[int, ...], num_actions: int, stack: int = 1, *, layout: str = "HW", dtype: str = "uint8"
) -> NetworkSpec:
    """Images of pixels; shape begins with the stack if it is not 1. layout: the order of a frame's axes."""
    return NetworkSpec(
        shape,
        dtype,
        None,
        num_actions,
        stack,
        pixels=("observation",),
        image_layouts={"observation": layout},
    )
