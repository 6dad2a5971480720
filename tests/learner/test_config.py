from __future__ import annotations

from typing import Any

import pytest

from learner.config import LearnerConfig, NetworkSpec, image_shape, resolve_network

CARTPOLE = NetworkSpec((4,), "float32", None, 2, stack=1)
TAXI = NetworkSpec((), "int64", 500, 6, stack=1)
ATARI = NetworkSpec((4, 84, 84), "uint8", None, 6, stack=4)


@pytest.mark.parametrize(
    ("spec", "network"),
    [
        (CARTPOLE, "mlp"),
        (TAXI, "table"),
        (ATARI, "nature_cnn"),
        (NetworkSpec((96, 96, 3), "uint8", None, 5, stack=1), "nature_cnn"),
        (NetworkSpec((4, 96, 96, 3), "uint8", None, 5, stack=4), "nature_cnn"),
        (NetworkSpec((128,), "uint8", None, 6, stack=1), "mlp"),  # Atari's memory is no image
        (NetworkSpec((7, 7, 3), "uint8", None, 7, stack=1), "mlp"),  # too small to convolve
        (NetworkSpec((4, 84, 84), "float32", None, 6, stack=4), "mlp"),
    ],
)
def test_auto_network(spec: NetworkSpec, network: str) -> None:
    assert resolve_network(spec, LearnerConfig()) == network


@pytest.mark.parametrize(
    ("shape", "stack", "expected"),
    [
        ((4, 84, 80), 4, (4, 84, 80, False)),
        ((84, 80), 1, (1, 84, 80, False)),
        ((84, 80, 3), 1, (3, 84, 80, True)),
        ((84, 80, 9), 1, (9, 84, 80, True)),
        ((3, 84, 80), 1, (3, 84, 80, False)),
        ((4, 84, 80, 3), 4, (12, 84, 80, True)),
        ((4, 3, 84, 80), 4, (12, 84, 80, False)),
        ((128,), 1, None),
        ((4, 128), 4, None),
    ],
)
def test_image_axes(shape: tuple[int, ...], stack: int, expected: object) -> None:
    assert image_shape(NetworkSpec(shape, "uint8", None, 2, stack)) == expected


@pytest.mark.parametrize(
    ("network", "spec", "complaint"),
    [
        ("table", CARTPOLE, "needs Discrete observations"),
        ("mlp", TAXI, "give table"),
        ("nature_cnn", CARTPOLE, "needs uint8 images"),
        ("nature_cnn", NetworkSpec((4, 84, 35), "uint8", None, 6, stack=4), "at least 36 x 36"),
        ("auto", NetworkSpec((4,), "int64", 500, 6, stack=4), "cannot be stacked"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(network: Any, spec: NetworkSpec, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        resolve_network(spec, LearnerConfig(network=network))
