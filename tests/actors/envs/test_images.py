"""Which axis of an image holds its channels."""

from __future__ import annotations

import pytest

from actors.envs.errors import EnvError
from actors.envs.images import image_layout, image_layouts


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((84, 80), "HW"),
        ((96, 96, 3), "HWC"),
        ((3, 96, 96), "CHW"),
        # More channels than pixels a side.
        ((7, 7, 20), "HWC"),
        ((20, 8, 8), "CHW"),
        ((48, 48, 64), "HWC"),
        ((64, 48, 48), "CHW"),
        # No two axes are equal.
        ((210, 160, 3), "HWC"),
        ((3, 210, 160), "CHW"),
        ((10, 6, 2), "HWC"),
        # Stacks of images.
        ((4, 64, 64, 3), "HWC"),
        ((4, 3, 64, 64), "CHW"),
        ((64, 64, 64, 2), "HWC"),
        # Nobody can tell.
        ((10, 10, 10), "unknown"),
        ((20, 30, 40), "unknown"),
        ((8, 20, 8), "unknown"),
        ((160, 3, 210), "unknown"),
        ((64, 64, 3, 4), "unknown"),
        # No images.
        ((5,), None),
        ((), None),
        ((2, 2, 2, 2, 2), None),
    ],
)
def test_the_axis_that_differs_holds_the_channels(shape: tuple[int, ...], layout: str | None) -> None:
    assert image_layout(shape, None) == layout


def test_the_setting_decides_for_three_axes_and_stacks_of_them() -> None:
    shapes = {"grid": (10, 10, 10), "stack": (4, 8, 20, 8), "map": (20, 20), "speed": (3,)}
    assert image_layouts(shapes, "CHW") == {"grid": "CHW", "stack": "CHW", "map": "HW"}
    assert image_layouts(shapes, None) == {"grid": "unknown", "stack": "unknown", "map": "HW"}


def test_a_setting_without_effect_is_refused() -> None:
    with pytest.raises(
        EnvError, match=r"env.image_layout is HWC, but no observation has three axes: .*\(84, 84\)"
    ):
        image_layouts({"observation": (84, 84)}, "HWC")
