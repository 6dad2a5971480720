"""What the first steps of an environment show, and what they refuse."""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from itertools import chain, repeat
from types import ModuleType
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from actors.config import EnvConfig
from actors.envs import probing
from actors.envs.errors import EnvError
from actors.envs.make import inspect, make_vector, probe


class Scripted(gym.Env[Any, int]):
    """Episodes of ten steps; the observation, info and reward of step t are what the functions give."""

    action_space = spaces.Discrete(3)

    def __init__(
        self,
        observe: Callable[[int], Any] = lambda step: np.zeros(1, np.float32),
        info: Callable[[int], dict[str, Any]] = lambda step: {},
        space: spaces.Space[Any] | None = None,
        reward: Any = 0.0,
    ) -> None:
        self.observation_space = space or spaces.Box(-1.0, 1.0, (1,))
        self.observe, self.info, self.reward = observe, info, reward
        self.life = 0
        """Steps since it was made."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(self.life), self.info(0)

    def step(self, action: int) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.life += 1
        return self.observe(self.life), self.reward, self.steps == 10, False, self.info(self.steps)


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    made = ModuleType("my_envs")
    made.make = Scripted  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_envs", made)
    return made


def scripted(**kwargs: Any) -> EnvConfig:
    return EnvConfig("my_envs:make", kwargs)


MASK = np.array([1, 0, 1], np.int8)


@pytest.mark.parametrize("first", [0, 1, 7])
def test_masks_are_found_at_the_reset_or_later(module: ModuleType, first: int) -> None:
    config = scripted(info=lambda step: {"action_mask": MASK} if step >= first else {})
    assert probe(config).action_mask
    assert not probe(scripted()).action_mask


def test_found_masks_are_obeyed_at_once(module: ModuleType) -> None:
    """An environment that raises when its mask is disobeyed passes the probe."""

    class Strict(Scripted):
        def step(self, action: int) -> Any:
            assert self.steps == 0 or action != 1
            return super().step(action)

    module.strict = Strict  # type: ignore[attr-defined]
    assert probe(
        EnvConfig("my_envs:strict", {"info": lambda step: {"action_mask": MASK} if step else {}})
    ).action_mask


@pytest.mark.parametrize("wanted", [None, False, True])
def test_a_mask_that_turns_up_late_is_refused_unless_the_settings_say_so(
    module: ModuleType, wanted: bool | None
) -> None:
    born: list[int] = []
    config = EnvConfig(
        "my_envs:make",
        {"info": lambda step: born.append(1) or ({"action_mask": MASK} if len(born) > 200 else {})},
        action_mask=wanted,
    )
    if wanted is None:
        assert not probe(config).action_mask
    stepper = make_vector(config, 1)
    if wanted:
        # None was given yet, and nothing may be done: that is refused as ever.
        with pytest.raises(EnvError, match="allows no action in lane 0"):
            stepper.reset(np.arange(1))
        return
    stepper.reset(np.arange(1))

    def play() -> None:
        for _ in range(250):
            stepper.step(np.zeros(1, np.int64))

    if wanted is None:
        with pytest.raises(EnvError, match=r"gave none in its first 50 steps: set env.action_mask=true"):
            play()
    else:
        play()


@pytest.mark.parametrize("shape", [(2,), (3, 1), ()])
def test_a_mask_of_another_shape_is_told_in_words(module: ModuleType, shape: tuple[int, ...]) -> None:
    config = scripted(info=lambda step: {"action_mask": np.ones(shape)})
    with pytest.raises(EnvError, match=r"my_envs:make: info\['action_mask'\] has shape"):
        probe(config)


def test_masks_of_lanes_that_differ_in_shape_are_told_in_words(module: ModuleType) -> None:
    made: list[int] = []

    def make() -> Scripted:
        made.append(1)
        shape = 3 if len(made) < 3 else 2
        return Scripted(info=lambda step: {"action_mask": np.ones(shape)})

    module.differ = make  # type: ignore[attr-defined]
    stepper = make_vector(EnvConfig("my_envs:differ", action_mask=True), 3)
    with pytest.raises(EnvError, match=r"info\['action_mask'\] has shape \(2,\)"):
        stepper.reset(np.arange(3))


BIG = spaces.Box(-np.inf, np.inf, (2,), np.float64)


def test_numbers_that_float32_would_merge_are_refused(module: ModuleType) -> None:
    seconds = scripted(observe=lambda step: np.array([0.5, 1.7e9 + step]), space=BIG)
    with pytest.raises(EnvError, match=r"hold .*1700000000.0.* which float32.*subtract a constant"):
        probe(seconds)
    inner = spaces.Dict({"clock": BIG, "x": spaces.Box(-1, 1, (1,))})
    nested = scripted(
        observe=lambda step: {"clock": np.array([2.0**40, 3.0e8 + step]), "x": np.zeros(1, np.float32)},
        space=inner,
    )
    with pytest.raises(EnvError, match="its observations 'clock' hold"):
        probe(nested)


@pytest.mark.parametrize(
    "observe",
    [
        lambda step: np.array([0.5, 1.989e30]),  # a constant
        lambda step: np.array([0.5, 1e9 * step]),  # told apart
        lambda step: np.array([0.5, 1.0 + 1e-12 * step]),  # small, as physics is
    ],
)
def test_other_large_numbers_are_taken(module: ModuleType, observe: Callable[[int], Any]) -> None:
    assert probe(scripted(observe=observe, space=BIG)).observation_shape == (2,)


def test_whole_numbers_beyond_float32_are_invalid_whatever_the_bounds(module: ModuleType) -> None:
    space = spaces.Box(0, 1000, (1,), np.int64)
    assert probe(scripted(observe=lambda step: np.array([2**24]), space=space)).observation_dtype == "<f4"
    with pytest.raises(EnvError, match="it returned an observation that holds 16777217"):
        probe(scripted(observe=lambda step: np.array([2**24 + 1]), space=space))


def test_an_environment_that_fails_at_once_is_refused_with_its_own_words(module: ModuleType) -> None:
    def observe(step: int) -> Any:
        if step == 3:
            raise RuntimeError("the motor is not connected")
        return np.zeros(1, np.float32)

    with pytest.raises(EnvError, match=r"fails within its first 50 steps:(.|\n)*the motor is not connected"):
        probe(scripted(observe=observe))


def test_rewards_of_several_numbers_are_one_sentence(module: ModuleType) -> None:
    with pytest.raises(EnvError, match=r"one number is needed, not 2: wrap the environment .*LinearReward"):
        probe(scripted(reward=np.array([1.0, -1.0])))


@pytest.mark.parametrize("random", [True, False])
def test_a_seed_without_effect_is_noted(module: ModuleType, random: bool) -> None:
    rng = np.random.default_rng()
    observe = (
        (lambda step: rng.random(1, np.float32)) if random else (lambda step: np.full(1, 0.5, np.float32))
    )
    (*notes,) = inspect(scripted(observe=observe)).notes
    assert notes == (
        ["my_envs:make gives other observations for the same seed and actions: runs will not repeat"]
        if random
        else []
    )
    assert inspect(EnvConfig("CartPole-v1")).notes == ()


def test_every_environment_of_a_probe_is_closed(module: ModuleType) -> None:
    opened: list[Scripted] = []

    class Closing(Scripted):
        def __init__(self) -> None:
            super().__init__(observe=self.fail_once)
            opened.append(self)

        def fail_once(self, step: int) -> Any:
            if step == 5 and len(opened) == 1:
                raise RuntimeError("once")
            return np.zeros(1, np.float32)

        def close(self) -> None:
            opened[opened.index(self)] = None  # type: ignore[call-overload]

    module.closing = Closing  # type: ignore[attr-defined]
    probe(EnvConfig("my_envs:closing"))
    assert opened == [None, None]


class Slow(Scripted):
    """Each step takes as long as `turn` waits; episodes end after ten steps, or never."""

    def __init__(self, ends: bool = True, turn: Callable[[], Any] = lambda: None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ends, self.turn = ends, turn

    def step(self, action: int) -> Any:
        self.turn()
        observation, reward, ended, *rest = super().step(action)
        return observation, reward, ended and self.ends, *rest


@pytest.mark.parametrize(
    ("kwargs", "limit", "ends"),
    [
        ({}, None, True),
        ({"ends": False}, None, False),
        ({"ends": False}, 500, None),
    ],
)
def test_whether_episodes_end_by_themselves(
    module: ModuleType, kwargs: dict[str, Any], limit: int | None, ends: bool | None
) -> None:
    module.slow = Slow  # type: ignore[attr-defined]
    assert inspect(EnvConfig("my_envs:slow", kwargs, max_episode_steps=limit)).episodes_end is ends


@pytest.mark.parametrize(
    ("end", "step_seconds", "found"),
    [
        (400, 1.0, True),
        # As long as an episode of MinAtar's Freeway, in an environment as fast, and in slower ones.
        (2_501, 1e-4, True),
        (2_501, 1e-3, False),
        (900, 1e-3, True),
        (6_000, 0.0, False),
    ],
)
def test_an_episode_that_ends_late_is_found(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch, end: int, step_seconds: float, found: bool
) -> None:
    class Late(Scripted):
        def step(self, action: int) -> Any:
            observation, reward, _, *rest = super().step(action)
            now[0] += step_seconds
            return observation, reward, self.steps == end, *rest

    now = [0.0]
    monkeypatch.setattr(probing, "perf_counter", lambda: now[0])
    module.late = Late  # type: ignore[attr-defined]
    assert inspect(EnvConfig("my_envs:late")).episodes_end is found


def test_time_that_runs_out_leaves_ends_unknown(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**9))
    monkeypatch.setattr(probing, "monotonic", lambda: next(clock))
    module.slow = Slow  # type: ignore[attr-defined]
    assert inspect(EnvConfig("my_envs:slow", {"ends": False})).episodes_end is None


def test_the_speed_leaves_out_the_longest_step(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step loads what all need, and takes 100 s; the others take 2 s."""
    now = [0.0]
    monkeypatch.setattr(probing, "perf_counter", lambda: now[0])
    durations = chain([100.0], repeat(2.0))

    def turn() -> None:
        now[0] += next(durations)

    module.slow = Slow  # type: ignore[attr-defined]
    assert inspect(EnvConfig("my_envs:slow", {"turn": turn})).step_seconds == pytest.approx(1.8, abs=0.2)


@pytest.mark.parametrize(
    ("shape", "value", "pixels"),
    [
        ((7, 7, 3), 10, False),  # MiniGrid
        ((7, 7), 15, False),
        ((147,), 10, False),
        ((7, 7, 3), 16, True),
        ((7, 7, 3), 0, True),  # nothing was seen
        ((84, 84, 3), 10, True),  # a dark picture
        ((3, 64, 64), 10, True),
    ],
)
def test_small_pictures_of_small_numbers_are_codes(
    module: ModuleType, shape: tuple[int, ...], value: int, pixels: bool
) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    probed = inspect(scripted(observe=lambda step: np.full(shape, value, np.uint8), space=space))
    assert probed.spec.pixels == (("observation",) if pixels else ())
    assert any("it is taken for codes" in note for note in probed.notes) is not pixels


def test_codes_within_a_dict_are_told_by_name(module: ModuleType) -> None:
    space = spaces.Dict({name: spaces.Box(0, 255, (5, 5), np.uint8) for name in ("grid", "camera")})

    def observe(step: int) -> Any:
        return {"grid": np.full((5, 5), 2, np.uint8), "camera": np.full((5, 5), 200, np.uint8)}

    probed = inspect(scripted(observe=observe, space=space))
    assert probed.spec.pixels == ("camera",)
    assert probed.notes == (
        "my_envs:make: grid has the bounds of pixels, 0 and 255, but is small and holds no number above 15: "
        "it is taken for codes, which networks do not divide by 255",
    )


def test_bounds_that_observations_leave_are_told(module: ModuleType) -> None:
    probed = inspect(scripted(observe=lambda step: np.full(1, 5.0 * (step > 9), np.float32)))
    assert re.match(r"\d+ of 51 observations .* holds 5, beyond its bounds -1 and 1", probed.notes[-1])


def test_an_environment_that_hangs_in_its_first_steps_is_told_while_it_hangs(
    module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has not come through its first steps" in record.getMessage():
                said.set()

    monkeypatch.setattr(probing, "SAID_AFTER_SECONDS", 0.001)
    listener, logger = Listener(), logging.getLogger(probing.__name__)
    logger.addHandler(listener)
    try:
        module.slow = Slow  # type: ignore[attr-defined]
        inspect(EnvConfig("my_envs:slow", {"turn": lambda: said.wait(30.0)}))
    finally:
        logger.removeHandler(listener)
    assert said.is_set()
