"""Transitions of an environment with several arrays and masks, against the same environment with one array.

Tests actors/envs/observations.py, and the masks of stepper.py and make.py, through EnvActor and Evaluator.

One form of the scripted environment observes (lane, episode, frame) as one array, the other the same in
parts. Both give masks, a function of these three, and act by the same Q-values, so every transition must be
the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from actors.config import ActorsConfig, EnvConfig
from actors.core import EnvSpec
from actors.envs.errors import EnvError
from actors.envs.guarded_vector import GuardedVector
from actors.envs.make import make_vector, probe
from actors.envs.observation_spaces import parts_of
from actors.envs.stepper import VectorStepper
from actors.evaluation import Evaluator
from actors.rollout import EnvActor
from replay_service.block import ACTION_MASK, TransitionBlock
from replay_service.codec import decode, encode

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]
Script = list[list[tuple[float, bool, bool]]]
T, L, B = (True, False), (False, True), (True, True)
PARTS_SPACE = spaces.Dict(
    {
        "frame": spaces.Discrete(50),
        "where": spaces.Tuple([spaces.Box(-9, 9, (), np.float64), spaces.Box(0, 255, (2, 2), np.uint8)]),
    }
)


def mask_of(lane: int, episode: int, frame: int) -> np.ndarray:
    """[3], the actions allowed on a frame: never all of them, always one."""
    mask = np.ones(3, np.int8)
    mask[(lane + episode + frame) % 3] = 0
    mask[(episode * frame) % 3] &= frame % 2
    return mask


def script(*episodes: tuple[int, tuple[bool, bool]]) -> Script:
    rewards = iter(range(1, 1000))
    return [
        [(float(next(rewards)), *(end if i == length - 1 else (False, False))) for i in range(length)]
        for length, end in episodes
    ]


SCRIPTS = [
    script((3, T), (1, L), (5, L), (2, B)),
    script((1, T), (1, T), (1, L), (7, T)),
    script((9, L), (2, T)),
]


class Masked(gym.Env[Any, int]):
    """Plays a script, then one endless episode; `in_parts` decides the form of its observations alone."""

    action_space = spaces.Discrete(3)

    def __init__(self, lane: int = 0, *, in_parts: bool, stuck_at_limits: bool = False) -> None:
        self.lane, self.script, self.in_parts = lane, SCRIPTS[lane], in_parts
        self.stuck_at_limits = stuck_at_limits
        self.observation_space = PARTS_SPACE if in_parts else spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.episode, self.frame = -1, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.episode, self.frame = self.episode + 1, 0
        return self.observation(), self.info((False, False))

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        end, reward = (False, False), 0.0
        if self.episode < len(self.script):
            reward, *flags = self.script[self.episode][self.frame]
            end = (flags[0], flags[1])
        mask = mask_of(self.lane, self.episode, self.frame)
        assert mask[action], f"action {action} is not allowed on frame {self.frame}"
        self.frame += 1
        return self.observation(), reward + float(action), *end, self.info(end)

    def info(self, end: tuple[bool, bool]) -> dict[str, Any]:
        mask = mask_of(self.lane, self.episode, self.frame)
        empty = end[0] or (end[1] and self.stuck_at_limits)
        return {"action_mask": np.zeros_like(mask) if empty else mask}

    def observation(self) -> Any:
        if not self.in_parts:
            return np.array([self.lane, self.episode, self.frame], np.float32)
        return {
            "frame": self.frame,
            "where": (np.float64(self.lane), np.full((2, 2), self.episode, np.uint8)),
        }


def stepper_of(mode: AutoresetMode, stack: int, *, in_parts: bool, **settings: Any) -> VectorStepper:
    def lane(index: int) -> Callable[[], Masked]:
        return lambda: Masked(index, in_parts=in_parts, **settings)

    def make() -> SyncVectorEnv:
        return SyncVectorEnv([lane(i) for i in range(len(SCRIPTS))], copy=False, autoreset_mode=mode)

    vector = GuardedVector(make, "list", name="Masked")
    fields = tuple(part.field for part in parts_of(vector.env.single_observation_space))
    parts = fields if in_parts else ()
    shape, dtype = ((), "|V") if in_parts else ((3,), "<f4")
    spec = EnvSpec(shape, dtype, None, 3, stack, "sync", mode.value, None, None, parts, action_mask=True)
    return VectorStepper(vector, spec)


def numbers(frames: np.ndarray) -> np.ndarray:
    """(lane, episode, frame) [..., 3] of frames in either form."""
    if frames.dtype.names is None:
        return frames
    lane, episode = frames["observation.where.0"], frames["observation.where.1"][..., 0, 0]
    return np.stack([lane, episode, frames["observation.frame"].argmax(axis=-1)], axis=-1)


class NumberPolicy:
    """Q-values of every number that an observation holds, whatever its form."""

    def load(self, flat_weights: np.ndarray) -> None:
        pass

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        flat = numbers(observations).reshape(len(observations), -1).astype(np.float32)
        mixed = (flat * np.arange(1, flat.shape[1] + 1)).sum(axis=1)
        return np.stack([np.sin(mixed), np.sin(2 * mixed), np.cos(mixed)], axis=1).astype(np.float32)


class ListSink:
    def __init__(self) -> None:
        self.blocks: list[TransitionBlock] = []

    def push(self, block: TransitionBlock) -> None:
        self.blocks.append(decode(encode(block)))

    def statuses(self) -> tuple[Any, ...]:
        return ()


def act(stepper: VectorStepper, n_step: int, *, epsilon: float = 0.3) -> list[TransitionBlock]:
    sink = ListSink()
    config = ActorsConfig(envs_per_actor=3, n_step=n_step, epsilon_start=epsilon, epsilon_end=epsilon)
    with mock.patch("actors.rollout.make_vector", return_value=stepper):
        actor = EnvActor(
            EnvConfig(),
            config,
            policy=NumberPolicy(),
            sink=sink,
            actor=0,
            incarnation=0,
            num_actors=1,
            seed=np.random.SeedSequence(0),
        )
    actor.rollout(5, 0, None, 0)  # before any weights actions are random, and allowed
    for version in range(1, 5):
        actor.rollout(7, version, np.zeros(1, np.float32), 0)
    return sink.blocks


VALUES = ("action", "reward", "discount", "one_step_reward", "end", "policy_version", "priority")
PLACES = ("obs_frame", "next_frame", "first_frame")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n_step", "stack"), [(1, 1), (3, 1), (1, 3), (2, 4)])
def test_parts_make_the_transitions_of_one_array(mode: AutoresetMode, n_step: int, stack: int) -> None:
    plain = act(stepper_of(mode, stack, in_parts=False), n_step)
    in_parts = act(stepper_of(mode, stack, in_parts=True), n_step)
    assert len(plain) == len(in_parts) > 2
    for one, other in zip(plain, in_parts, strict=True):
        for name in (*VALUES, *PLACES):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        frames = {name: other.frames[name] for name in other.frames}
        where = frames["observation.where.0"], frames["observation.where.1"][:, 0, 0]
        frame = frames["observation.frame"].argmax(axis=1)
        np.testing.assert_array_equal(np.stack([*where, frame], axis=1), one.frames["observation"])
        np.testing.assert_array_equal(frames[ACTION_MASK], one.frames[ACTION_MASK])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("n_step", "stack"), [(1, 1), (3, 2)])
def test_masks_and_priorities_belong_to_their_frames(mode: AutoresetMode, n_step: int, stack: int) -> None:
    ended = 0
    for block in act(stepper_of(mode, stack, in_parts=False), n_step):
        frames, masks = block.frames["observation"], block.frames[ACTION_MASK]
        for r in range(block.num_transitions):
            obs, after, first = (int(getattr(block, name)[r]) for name in PLACES)
            assert masks[obs].tolist() == mask_of(*map(int, frames[obs])).astype(bool).tolist()
            assert masks[obs][block.action[r]]
            if block.discount[r] == 0.0:
                assert masks[after].all()  # stored so, whatever the environment says of its end
                ended += 1
                continue
            allowed = mask_of(*map(int, frames[after])).astype(bool)
            assert masks[after].tolist() == allowed.tolist()
            if block.policy_version[r] == 0:
                continue  # before the first weights all Q-values are 0
            stacks = [
                frames[np.maximum(np.arange(last - stack + 1, last + 1), first)] for last in (obs, after)
            ]
            q_tm1, q_t = NumberPolicy().q_values(np.array(stacks))
            error = abs(block.reward[r] + block.discount[r] * q_t[allowed].max() - q_tm1[block.action[r]])
            assert block.priority[r] == pytest.approx(error, abs=1e-4)
    assert ended > 5


@pytest.mark.parametrize("mode", MODES)
def test_a_state_without_actions_from_which_one_must_act_is_an_error(mode: AutoresetMode) -> None:
    with pytest.raises(EnvError, match=r"Masked allows no action in lane \d, .*action_mask"):
        act(stepper_of(mode, 1, in_parts=False, stuck_at_limits=True), 1)


def test_an_environment_that_gives_masks_is_found_out_and_may_be_overruled() -> None:
    config = EnvConfig(f"{__name__}:Masked", kwargs={"in_parts": True})
    assert probe(config).action_mask
    # Overruled, it raises at what it does not allow.
    with pytest.raises(EnvError, match="fails within its first 50 steps"):
        probe(EnvConfig(config.id, kwargs=config.kwargs, action_mask=False))
    assert not probe(EnvConfig("CartPole-v1")).action_mask
    stepper = make_vector(EnvConfig("CartPole-v1", backend="sync", action_mask=True), 2)
    with pytest.raises(EnvError, match=r"CartPole-v1 allows no action in lane 0.*env\.action_mask=false"):
        stepper.reset(np.zeros(2, np.int64))


def test_a_mask_that_does_not_fit_the_actions_is_refused_before_anything_starts() -> None:
    with pytest.raises(EnvError, match=rf"{__name__}:WrongMask: info.* has shape \(2,\).* 3 actions"):
        probe(EnvConfig(f"{__name__}:WrongMask"))


class WrongMask(Masked):
    def __init__(self) -> None:
        super().__init__(in_parts=False)

    def info(self, end: tuple[bool, bool]) -> dict[str, Any]:
        return {"action_mask": np.ones(2)}


class Refuses(Masked):
    """Ends after nine steps; the action that the policy likes best is never allowed."""

    def __init__(self) -> None:
        super().__init__(2, in_parts=True)


def test_evaluation_takes_allowed_actions_only() -> None:
    evaluator = Evaluator(EnvConfig(f"{__name__}:Refuses", action_mask=True), seed=0)
    report = evaluator.evaluate(NumberPolicy(), version=1, seed_domain=3, episodes=2)
    evaluator.close()
    assert report.lengths[0] in (2, 9)  # the environment itself asserts that actions are allowed
