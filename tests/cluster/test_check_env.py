"""The words of `qfleet check-env` for each kind of observation, and its lines for an environment."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.core import EnvSpec
from cluster.check_env import describe, observation_text
from cluster.cli import run
from cluster.settings.load_config import load_config
from replay_service.block import FrameField

VECTOR = EnvSpec((4,), "<f4", None, 2, 1, "native", "next_step", 500, 475.0)
PARTS = (FrameField("position", "<f4", (3,)), FrameField("door", "|b1", (1,)))


def pictures(shape: tuple[int, ...], layout: str, stack: int = 1) -> EnvSpec:
    return replace(
        VECTOR,
        observation_shape=shape,
        observation_dtype="|u1",
        stack=stack,
        pixels=("observation",),
        image_layouts={"observation": layout},
    )


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (VECTOR, "4 numbers (float32)"),
        (replace(VECTOR, observation_shape=(1,)), "1 number (float32)"),
        (replace(VECTOR, observation_shape=()), "1 number (float32)"),
        (replace(VECTOR, observation_shape=(2, 3)), "2 x 3 numbers (float32)"),
        (replace(VECTOR, stack=3), "4 numbers, 3 stacked (float32)"),
        (
            pictures((84, 84), "HW", stack=4),
            "84 x 84 image, 4 stacked (uint8, divided by 255)",
        ),
        (
            pictures((64, 64, 3), "HWC"),
            "64 x 64 image, 3 channels (last) (uint8, divided by 255)",
        ),
        (
            pictures((4, 3, 64, 64), "CHW"),
            "64 x 64 image, a stack of 4, 3 channels (first) (uint8, divided by 255)",
        ),
        (
            replace(pictures((7, 7, 20), "HWC"), pixels=()),
            "7 x 7 x 20 numbers (uint8)",
        ),
        (
            replace(pictures((20, 30, 40), "unknown"), pixels=()),
            "20 x 30 x 40 numbers (env.image_layout would say which axis holds channels) (uint8)",
        ),
        (
            replace(VECTOR, observation_shape=(128,), observation_dtype="|u1", pixels=("observation",)),
            "128 numbers (uint8, divided by 255)",
        ),
        (
            replace(VECTOR, observation_shape=(), observation_dtype="<i8", num_states=16),
            "a state number, 16 states",
        ),
        (
            replace(VECTOR, observation_shape=(), observation_dtype="|V", parts=PARTS),
            "position: 3 numbers (float32); door: 1 number (bool)",
        ),
    ],
)
def test_an_observation_is_told_in_words(spec: EnvSpec, text: str) -> None:
    assert observation_text(spec) == text


def test_each_line_tells_how_a_run_would_use_the_environment() -> None:
    settings = ["actors.num_actors=1", "actors.envs_per_actor=4"]
    told = dict(
        line.split("  ", 1) for line in describe(load_config(None, settings)).splitlines() if "  " in line
    )
    # Whatever the machine's speed: it is measured, so the texts differ.
    assert "actors.epsilon_decay_env_steps=" in told["chosen 2"]
    fixed = {name: text.strip() for name, text in told.items() if name not in ("speed", "memory", "chosen 2")}
    assert fixed == {
        "environment": "CartPole-v1",
        "preset": "none",
        "observation": "4 numbers (float32)",
        "actions": "2",
        "backend": "native: its registered vector form steps all environments at once",
        "episode limit": "500 steps",
        "solved at return": "475",
        "network": "mlp",
        "actors": "1 process with 4 environments",
        "chosen 1": "the network is mlp: actors.n_step=3, replay.sampling=prioritized spread what rare "
        "rewards teach",
    }
    assert told["speed"].endswith(" env steps/s with random actions")
    assert "in 1 shard; the run takes about" in told["memory"]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            ["check-env", "FrozenLake-v1", "--set", "actors.num_actors=2", "--set", "actors.envs_per_actor=8"]
        )
        == 0
    )
    told = capsys.readouterr().out
    for fact in (
        "FrozenLake-v1",
        "a state number, 16 states",
        "table",
        "0.7",
        "2 processes with 8 environments each",
    ):
        assert fact in told
