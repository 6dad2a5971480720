"""MinAtar games as environments: what they look like, and that an episode depends on its seed alone."""

from __future__ import annotations

import numpy as np
import pytest

from actors.config import EnvConfig
from actors.core import EnvSpec
from actors.envs.make import make_vector, probe

pytest.importorskip("minatar")


@pytest.mark.parametrize(
    ("game", "channels", "num_actions"),
    [("Asterix", 4, 5), ("Breakout", 4, 3), ("Freeway", 7, 3), ("Seaquest", 10, 6), ("SpaceInvaders", 6, 4)],
)
def test_observations_are_flags_and_actions_the_minimal_set(
    game: str, channels: int, num_actions: int
) -> None:
    spec = EnvSpec(
        (10, 10, channels),
        "|b1",
        None,
        num_actions,
        1,
        "sync",
        "NextStep",
        None,
        None,
        image_layouts={"observation": "HWC"},
    )
    assert probe(EnvConfig(f"MinAtar/{game}-v1")) == spec


def test_an_episode_depends_on_its_seed_alone() -> None:
    """The package itself may begin an episode with the action that came last in the one before."""
    stepper = make_vector(EnvConfig("MinAtar/Breakout-v1", kwargs={"sticky_action_prob": 0.5}), 8)

    def paddles(before: int) -> np.ndarray:
        """[4, 8, 10] where the paddles are, in episodes after one that ended with the action `before`."""
        stepper.reset(np.arange(8) + 100)
        for _ in range(6):
            stepper.step(np.full(8, before))
        frames = [stepper.reset(np.arange(8)).copy()]
        frames += [stepper.step(np.zeros(8, np.int64)).frames.copy() for _ in range(3)]
        return np.stack(frames)[:, :, 9, :, 0]

    assert np.array_equal(paddles(before=1), paddles(before=2))
