from __future__ import annotations

import numpy as np
import pytest

from learner.config import LearnerConfig, NetworkSpec
from learner.named_weights import flat_weights, named_weights

SPEC = NetworkSpec((4,), "float32", None, 2, stack=1)
CONFIG = LearnerConfig(hidden_sizes=(8,), normalize_observations=True)


def test_names_make_the_vector_and_differences_are_named() -> None:
    flat = np.arange(66, dtype=np.float32)
    named = named_weights(SPEC, CONFIG, flat)
    assert list(named) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
        "observation_normalizer",
    ]
    np.testing.assert_array_equal(named["layers.1.weight"], flat[40:56].reshape(2, 8))
    np.testing.assert_array_equal(flat_weights(SPEC, CONFIG, dict(reversed(named.items()))), flat)
    del named["layers.0.bias"]
    named["layers.1.weight"] = named["layers.1.weight"].T
    with pytest.raises(ValueError, match=r"bias is missing there, \[8\] here.*is \[8, 2\] there, \[2, 8\]"):
        flat_weights(SPEC, CONFIG, named)


def test_a_vector_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"have shape \[65\], this network takes \[66\]"):
        named_weights(SPEC, CONFIG, np.zeros(65, np.float32))
