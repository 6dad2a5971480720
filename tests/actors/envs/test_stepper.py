"""The three autoreset modes as one stream of steps. Tests actors/envs/stepper.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.core import EnvSpec
from actors.envs.guarded_vector import GuardedVector, SeedForm
from actors.envs.stepper import VectorStepper

# Lane 0 terminates after 2 steps; lane 1 truncates after 1 and terminates after 3 more.
SCRIPTS = [
    [[(1.0, False, False), (2.0, True, False)]],
    [[(3.0, False, True)], [(4.0, False, False), (5.0, False, False), (6.0, True, False)]],
]
SEEDS = np.array([11, 22])
ACTIONS = np.zeros(2, np.int64)


def frames_of(stepper: VectorStepper, steps: int) -> list[dict[str, Any]]:
    stepper.reset(SEEDS)
    seen = []
    for _ in range(steps):
        step = stepper.step(ACTIONS)
        seen.append(
            {
                "frames": [tuple(map(int, frame[1:])) for frame in step.frames],
                "reward": step.reward.tolist(),
                "ended": step.ended.tolist(),
                "fake": step.fake.tolist(),
                "starts": step.starts.tolist(),
                "final": [
                    (int(lane), *map(int, frame[1:]))
                    for lane, frame in zip(step.final_lanes, step.final_frames, strict=True)
                ],
            }
        )
    return seen


def test_next_step_mode_returns_the_last_frame_and_resets_in_a_fake_step(
    scripted: Callable[..., VectorStepper],
) -> None:
    one, two, three = frames_of(scripted(SCRIPTS, AutoresetMode.NEXT_STEP), 3)
    assert one == {
        "frames": [(0, 1), (0, 1)],
        "reward": [1.0, 3.0],
        "ended": [False, True],
        "fake": [False, False],
        "starts": [False, False],
        "final": [],
    }
    assert two == {
        "frames": [(0, 2), (1, 0)],
        "reward": [2.0, 0.0],
        "ended": [True, False],
        "fake": [False, True],
        "starts": [False, True],
        "final": [],
    }
    assert three["frames"] == [(1, 0), (1, 1)]
    assert three["starts"] == three["fake"] == [True, False]


@pytest.mark.parametrize("mode", [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED])
def test_the_other_modes_return_the_last_frame_beside_the_next_first_one(
    scripted: Callable[..., VectorStepper], mode: AutoresetMode
) -> None:
    one, two, _, four = frames_of(scripted(SCRIPTS, mode), 4)
    assert one == {
        "frames": [(0, 1), (1, 0)],
        "reward": [1.0, 3.0],
        "ended": [False, True],
        "fake": [False, False],
        "starts": [False, True],
        "final": [(1, 0, 1)],
    }
    assert two["frames"] == [(1, 0), (1, 1)]
    assert two["final"] == [(0, 0, 2)]
    assert four["frames"] == [(1, 2), (2, 0)]
    assert four["final"] == [(1, 1, 3)]


def test_reset_forgets_that_a_lane_had_ended(scripted: Callable[..., VectorStepper]) -> None:
    stepper = scripted(SCRIPTS, AutoresetMode.NEXT_STEP)
    stepper.reset(SEEDS)
    assert stepper.step(ACTIONS).ended.any()
    stepper.reset(SEEDS)
    assert not stepper.step(ACTIONS).fake.any()


def test_seeds_must_match_the_lanes(scripted: Callable[..., VectorStepper]) -> None:
    with pytest.raises(ValueError, match="2 lanes need as many seeds"):
        scripted(SCRIPTS, AutoresetMode.NEXT_STEP).reset(np.zeros(3, np.int64))


class NoisyResets(gym.vector.VectorEnv[Any, Any, Any]):
    """Ends at every step, and leaves a reward and end flags on its autoreset steps too; notes its seed."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    num_envs = 2
    single_observation_space = spaces.Box(0, 1, (1,), np.float64)
    single_action_space = spaces.Discrete(2)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.seed = seed
        return np.zeros((2, 1)), {}

    def step(self, actions: Any) -> tuple[Any, ...]:
        return np.zeros((2, 1)), np.ones(2), np.ones(2, bool), np.ones(2, bool), {}


SPEC = EnvSpec((1,), "<f4", None, 2, 1, "native", "NextStep", None, None)


def stepper_of(
    make: Callable[[], gym.vector.VectorEnv[Any, Any, Any]], form: SeedForm = "int"
) -> VectorStepper:
    return VectorStepper(GuardedVector(make, form, name="noisy"), SPEC)


def test_what_an_environment_leaves_on_a_fake_step_is_dropped() -> None:
    stepper = stepper_of(NoisyResets)
    stepper.reset(SEEDS)
    assert stepper.step(ACTIONS).ended.all()
    fake = stepper.step(ACTIONS)
    assert fake.fake.all()
    for left in (fake.ended, fake.terminated, fake.truncated, fake.reward):
        assert not left.any()
    assert not stepper.step(ACTIONS).fake.any()


@pytest.mark.parametrize(("form", "seed"), [("int", 11), ("list", [11, 22]), ("array", [11, 22])])
def test_seeds_reach_the_backend_in_its_own_form(form: SeedForm, seed: int | list[int]) -> None:
    env = NoisyResets()
    stepper_of(lambda: env, form).reset(SEEDS)
    assert isinstance(env.seed, np.ndarray) == (form == "array")
    assert np.array_equal(env.seed, seed)


class OffsetEnv(gym.Env[int, int]):
    """States 5 to 8 and actions -1 to 1; the action moves the state."""

    observation_space = spaces.Discrete(4, start=5)
    action_space = spaces.Discrete(3, start=-1)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[int, dict[str, Any]]:
        self.state = 6
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        self.state += int(action)
        return self.state, 0.0, self.state == 8, False, {}


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_discrete_spaces_count_from_zero(mode: AutoresetMode) -> None:
    spec = EnvSpec((), "<i8", 4, 3, 1, "sync", mode.value, None, None)
    vector = GuardedVector(lambda: SyncVectorEnv([OffsetEnv] * 2, autoreset_mode=mode), "list", name="offset")
    stepper = VectorStepper(vector, spec)
    frames = stepper.reset(SEEDS)
    assert (frames.dtype, frames.tolist()) == (np.int64, [1, 1])
    assert stepper.step(np.array([0, 2])).frames.tolist() == [0, 2]
    last = stepper.step(np.array([1, 2]))
    assert last.ended.tolist() == [False, True]
    if mode is AutoresetMode.NEXT_STEP:
        assert last.frames.tolist() == [0, 3]
    else:
        assert last.frames.tolist() == [0, 1]
        assert (last.final_lanes.tolist(), last.final_frames.tolist()) == ([1], [3])


class InThreads(NoisyResets):
    """Steps in two halves, as ALE's vector environment does; refuses one kind of action."""

    def __init__(self) -> None:
        self.sent: list[list[int]] = []

    def send(self, actions: np.ndarray) -> None:
        if actions.max() > 1:
            raise RuntimeError("no such action")
        self.sent.append(actions.tolist())

    def recv(self) -> tuple[Any, ...]:
        return super().step(self.sent[-1])


def test_a_step_in_two_halves_begins_at_once() -> None:
    env = InThreads()
    halved, whole = stepper_of(lambda: env), stepper_of(NoisyResets)
    assert (halved.asynchronous, whole.asynchronous) == (True, False)
    for stepper in (halved, whole):
        stepper.reset(SEEDS)
    for _ in range(3):
        halved.begin(ACTIONS)
        assert env.sent.pop() == [0, 0]
        env.sent.append([0, 0])
        assert np.array_equal(halved.finish().fake, whole.step(ACTIONS).fake)


def test_an_error_in_the_first_half_restarts_in_the_second() -> None:
    stepper = stepper_of(InThreads)
    stepper.reset(SEEDS)
    stepper.begin(np.array([0, 2]))
    broken = stepper.finish()
    assert broken.broken is not None
    assert broken.broken.all()
    assert "RuntimeError: no such action" in stepper.vector.take_restarts()[0].description
    assert stepper.step(ACTIONS).ended.all()


class EndlessNan(NoisyResets):
    """Ends at every step with a final observation that is not a number, and resets within the step."""

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def step(self, actions: Any) -> tuple[Any, ...]:
        return *super().step(actions)[:-1], {"final_obs": np.full((2, 1), np.nan)}


def test_a_final_observation_that_is_not_finite_restarts_all_lanes() -> None:
    stepper = stepper_of(EndlessNan)
    stepper.reset(SEEDS)
    step = stepper.step(ACTIONS)
    assert step.broken is not None
    assert step.broken.all()
    assert (step.ended.any(), step.fake.all(), step.starts.all()) == (False, True, True)
    assert "not finite" in stepper.vector.take_restarts()[0].description
