"""From acting to blocks: the transitions of an actor against one environment stepped by a plain loop.

Tests actors/block_builder.py, and through EnvActor also actors/nstep.py and actors/envs/stepper.py.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st
from qfleet_sinks import ListSink

from actors.block_builder import BlockBuilder
from actors.config import ActorsConfig, EnvConfig
from actors.envs.stepper import VectorStepper
from actors.rollout import EnvActor
from actors.soft_values import GREEDY, SoftValues, Values
from replay_service.block import (
    TERMINATED,
    TRANSITION_FIELDS,
    TRUNCATED,
    BlockSchema,
    FrameField,
    TransitionBlock,
)

GAMMA = 0.5
Script = list[list[tuple[Any, ...]]]
FrameId = tuple[int, int, int]
"""lane, episode, frame of the episode"""


class ScriptedPolicy:
    """Q-values of every frame of an observation; notes which weights acted first on each frame."""

    def __init__(self) -> None:
        self.version = -1
        self.acted_on: dict[FrameId, int] = {}

    def load(self, flat_weights: np.ndarray) -> None:
        self.version = int(flat_weights[0])

    def q_values(self, observations: np.ndarray) -> np.ndarray:
        for newest in observations.reshape(len(observations), -1)[:, -3:]:
            self.acted_on.setdefault(frame_id(newest), self.version)
        return q_of(observations)


def q_of(observations: np.ndarray) -> np.ndarray:
    flat = observations.reshape(len(observations), -1)
    mixed = (flat * np.arange(1, flat.shape[1] + 1)).sum(axis=1)
    return np.stack([np.sin(mixed), np.sin(2 * mixed), np.cos(mixed)], axis=1).astype(np.float32)


def frame_id(frame: np.ndarray) -> FrameId:
    lane, episode, index = (int(x) for x in frame)
    return lane, episode, index


@dataclass(frozen=True)
class Transition:
    obs: tuple[FrameId, ...]
    next_obs: tuple[FrameId, ...]
    action: int
    reward: float
    discount: float
    one_step_reward: float
    end: int
    priority: float


def plain_transitions(
    lane: int,
    script: Script,
    n_step: int,
    stack: int,
    gamma: float,
    reward_clip: float | None = None,
    life_loss: bool = False,
    soft: SoftValues | None = None,
) -> dict[FrameId, Transition]:
    """Every transition of one lane's script, keyed by the frame that it starts from."""
    transitions = {}
    for episode, steps in enumerate(script):

        def stacked(index: int, episode: int = episode) -> tuple[FrameId, ...]:
            return tuple((lane, episode, max(0, i)) for i in range(index - stack + 1, index + 1))

        def q(index: int) -> np.ndarray:
            return q_of(np.array([stacked(index)], np.float32))[0]

        actions = [int(q(i).argmax()) for i in range(len(steps))]
        rewards = [steps[i][0] + actions[i] for i in range(len(steps))]
        if reward_clip is not None:
            rewards = [max(-reward_clip, min(reward_clip, reward)) for reward in rewards]
        for i in range(len(steps)):
            after = i + 1
            while after < min(i + n_step, len(steps)) and not (life_loss and any(steps[after - 1][3:])):
                after += 1
            _, terminated, truncated, *lost = steps[after - 1]
            terminated = terminated or (life_loss and any(lost))
            reward = sum(gamma ** (k - i) * rewards[k] for k in range(i, after))
            discount = 0.0 if terminated else gamma ** (after - i)
            value, bonus = float(q(after).max()), 0.0
            if soft is not None:
                value = soft_value(q(after), soft.temperature)
                earned = float(q(i)[actions[i]]) - soft_value(q(i), soft.temperature)
                bonus = soft.alpha * min(0.0, max(soft.clip, earned))
            error = abs(reward + bonus + discount * value - float(q(i)[actions[i]]))
            end = TERMINATED * terminated | TRUNCATED * truncated
            transitions[lane, episode, i] = Transition(
                stacked(i), stacked(after), actions[i], reward, discount, rewards[i], end, error
            )
    return transitions


def soft_value(q: np.ndarray, temperature: float) -> float:
    """sum_a pi(a) (q(a) - tau ln pi(a)), pi = softmax(q / tau)."""
    likely = [math.exp(float(value) / temperature) for value in q]
    policy = [each / math.fsum(likely) for each in likely]
    return math.fsum(pi * (float(v) - temperature * math.log(pi)) for pi, v in zip(policy, q, strict=True))


def transitions_of(block: TransitionBlock) -> dict[FrameId, tuple[Transition, int]]:
    """Transitions and their versions, keyed by the frame that they start from, as TransitionBlock says."""
    frames = block.frames["observation"]
    stack = block.schema.stack
    transitions = {}
    for r in range(block.num_transitions):
        first, obs, following = (
            int(getattr(block, name)[r]) for name in ("first_frame", "obs_frame", "next_frame")
        )
        assert 0 <= first <= obs < following < block.num_frames
        if block.schema.n_step == 1:
            assert following == obs + 1
        windows = [
            tuple(frame_id(frames[max(first, i)]) for i in range(last - stack + 1, last + 1))
            for last in (obs, following)
        ]
        start = windows[0][-1]
        assert start not in transitions
        transition = Transition(
            windows[0],
            windows[1],
            *(getattr(block, name)[r].item() for name in ("action", "reward", "discount", "one_step_reward")),
            block.end[r].item(),
            block.priority[r].item(),
        )
        transitions[start] = transition, int(block.policy_version[r])
    return transitions


def referenced_frames(block: TransitionBlock) -> set[int]:
    """Every frame that some transition's window holds."""
    frames: set[int] = set()
    for age in range(block.schema.stack):
        for last in (block.obs_frame, block.next_frame):
            frames |= set(np.maximum(last - age, block.first_frame).tolist())
    return frames


def act(
    scripted: Callable[..., VectorStepper],
    scripts: list[Script],
    mode: AutoresetMode,
    n_step: int,
    stack: int,
    chunks: list[int],
    gamma: float = GAMMA,
    learned: dict[str, Any] | None = None,
    values: Values = GREEDY,
    **backend: Any,
) -> tuple[list[TransitionBlock], ScriptedPolicy, list[float]]:
    """Acts greedily in chunks, over and over, until every scripted transition must have left.

    Returns blocks, the policy and the returns of ended episodes.
    """
    policy, sink = ScriptedPolicy(), ListSink()
    config = ActorsConfig(
        envs_per_actor=len(scripts),
        n_step=n_step,
        discount=gamma,
        epsilon_start=0.0,
        epsilon_end=0.0,
        **(learned or {}),
    )
    with mock.patch("actors.rollout.make_vector", return_value=scripted(scripts, mode, stack, **backend)):
        actor = EnvActor(
            EnvConfig(stack=stack),
            config,
            policy=policy,
            sink=sink,
            actor=7,
            incarnation=2,
            num_actors=1,
            seed=np.random.SeedSequence(0),
            values=values,
        )
    enough = max(sum(len(episode) + 1 for episode in script) for script in scripts) + n_step + 1
    returns: list[float] = []
    done, version, uncounted = 0, 0, 0
    while done < enough:
        steps = chunks[version % len(chunks)]
        report = actor.rollout(steps, version, np.array([version], np.float32), 0)
        returns += report.episode_returns
        uncounted += report.env_steps
        if report.transitions_pushed:
            assert sink.blocks[-1].num_transitions == report.transitions_pushed
            assert sink.blocks[-1].env_steps == uncounted
            uncounted = 0
        done, version = done + steps, version + 1
    actor.close()
    assert sum(block.num_transitions > 0 for block in sink.blocks) == len(sink.blocks)
    return sink.blocks, policy, returns


def check(
    scripted: Callable[..., VectorStepper],
    scripts: list[Script],
    mode: AutoresetMode,
    n_step: int,
    stack: int,
    chunks: list[int],
    gamma: float = GAMMA,
    reward_clip: float | None = None,
    life_loss: bool = False,
    soft: SoftValues | None = None,
    **backend: Any,
) -> None:
    learned = {"reward_clip": reward_clip, "life_loss_ends_episode": life_loss}
    blocks, policy, returns = act(
        scripted, scripts, mode, n_step, stack, chunks, gamma, learned, soft or GREEDY, **backend
    )
    seen: dict[FrameId, Transition] = {}
    for block in blocks:
        assert (block.writer, block.incarnation, block.sequence) == (0, 0, 0)  # the sink numbers blocks
        for name, dtype in TRANSITION_FIELDS:
            assert getattr(block, name).dtype == dtype
            assert getattr(block, name).shape == (block.num_transitions,)
        ids = [frame_id(frame) for frame in block.frames["observation"]]
        assert ids == sorted(set(ids))  # each once, lane after lane, each lane in time
        assert referenced_frames(block) == set(range(block.num_frames))
        for start, (transition, version) in transitions_of(block).items():
            assert start not in seen
            assert version == policy.acted_on[start]
            seen[start] = transition

    expected: dict[FrameId, Transition] = {}
    for lane, script in enumerate(scripts):
        expected |= plain_transitions(lane, script, n_step, stack, gamma, reward_clip, life_loss, soft)
    scripted_transitions = {
        start: transition for start, transition in seen.items() if start[1] < len(scripts[start[0]])
    }
    assert scripted_transitions.keys() == expected.keys()
    for start, transition in expected.items():
        actual = scripted_transitions[start]
        assert (actual.obs, actual.next_obs) == (transition.obs, transition.next_obs)
        assert (actual.action, actual.end) == (transition.action, transition.end)
        for name in ("reward", "discount", "one_step_reward", "priority"):
            assert getattr(actual, name) == pytest.approx(getattr(transition, name), abs=1e-5)
    whole: dict[tuple[int, int], float] = defaultdict(float)
    for (lane, episode, index), transition in expected.items():
        whole[lane, episode] += scripts[lane][episode][index][0] + transition.action
    expected_returns, actual_returns = Counter(whole.values()), Counter(returns)
    assert expected_returns <= actual_returns
    # A step limit also ends the episodes beyond the script.
    assert expected_returns == actual_returns or backend.get("step_limit") is not None


MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]

T, L, B = (True, False), (False, True), (True, True)


def script(*episodes: tuple[int, tuple[bool, bool]]) -> Script:
    """Episodes of (length, end); the rewards count up, so that no two are alike."""
    written: Script = []
    reward = 1.0
    for length, end in episodes:
        steps = []
        for i in range(length):
            steps.append((reward, *(end if i == length - 1 else (False, False))))
            reward += 1.0
        written.append(steps)
    return written


STAGGERED = [
    script((3, T), (1, L), (5, L), (2, B)),
    script((1, T), (1, T), (1, L), (7, T)),
    script((9, L), (2, T)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_step", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("stack", [1, 2, 3, 4])
def test_staggered_lanes(
    scripted: Callable[..., VectorStepper], mode: AutoresetMode, n_step: int, stack: int
) -> None:
    check(scripted, STAGGERED, mode, n_step, stack, [4])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n_step", [1, 3])
def test_priorities_of_munchausen_targets_have_the_first_bonus_and_soft_values(
    scripted: Callable[..., VectorStepper], mode: AutoresetMode, n_step: int
) -> None:
    check(scripted, STAGGERED, mode, n_step, 2, [4], soft=SoftValues(0.9, 0.5, -0.3))


scripts_strategy = st.lists(
    st.lists(st.tuples(st.integers(1, 7), st.sampled_from([T, L, B])), min_size=1, max_size=5).map(
        lambda episodes: script(*episodes)
    ),
    min_size=1,
    max_size=3,
)


@settings(max_examples=150, deadline=None)
@given(
    scripts=scripts_strategy,
    mode=st.sampled_from(MODES),
    n_step=st.integers(1, 5),
    stack=st.integers(1, 4),
    chunks=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    gamma=st.sampled_from([GAMMA, 0.0, 1.0]),
)
def test_any_script_in_any_mode_gives_the_transitions_of_a_plain_loop(
    scripted: Callable[..., VectorStepper],
    scripts: list[Script],
    mode: AutoresetMode,
    n_step: int,
    stack: int,
    chunks: list[int],
    gamma: float,
) -> None:
    check(scripted, scripts, mode, n_step, stack, chunks, gamma)


BACKENDS: list[tuple[str, AutoresetMode]] = [
    *(("sync", mode) for mode in MODES),
    *(("native", mode) for mode in MODES),
]


def generated(rng: np.random.Generator, limit: int | None) -> list[Script]:
    """One to three lanes of up to five episodes, lives lost here and there; rewards count up through a lane.

    With a limit, episodes are truncated after so many steps, and at no other time.
    """
    scripts = []
    for _ in range(rng.integers(1, 4)):
        reward, lane = -3.0, []
        for _ in range(rng.integers(1, 6)):
            terminated, truncated = [T, L, B][rng.integers(3)]
            length = int(rng.integers(1, 8))
            if limit is not None:
                # Both at once here: a termination in the very step that would have been the last one.
                length = limit if truncated else min(length, limit)
                truncated = not terminated
            lost = rng.random(length) < 0.2
            episode: list[tuple[Any, ...]] = []
            for i in range(length):
                last = i == length - 1
                episode.append((reward, terminated and last, truncated and last, bool(lost[i])))
                reward += 0.25
            lane.append(episode)
        scripts.append(lane)
    return scripts


def check_generated(
    scripted: Callable[..., VectorStepper],
    seed: int,
    backend: str,
    mode: AutoresetMode,
    limited: bool = False,
) -> None:
    rng = np.random.default_rng(seed)
    limit = int(rng.integers(1, 8)) if limited else None
    check(
        scripted,
        generated(rng, limit),
        mode,
        n_step=int(rng.integers(1, 6)),
        stack=int(rng.integers(1, 5)),
        chunks=rng.integers(1, 10, size=rng.integers(1, 4)).tolist(),
        gamma=float(rng.choice([GAMMA, 0.0, 1.0])),
        reward_clip=1.0 if rng.random() < 0.5 else None,
        life_loss=bool(rng.random() < 0.5),
        backend=backend,
        step_limit=limit,
    )


@pytest.mark.parametrize(("backend", "mode"), BACKENDS)
def test_every_backend_gives_the_transitions_of_a_plain_loop(
    scripted: Callable[..., VectorStepper], backend: str, mode: AutoresetMode
) -> None:
    for seed in range(60):
        check_generated(scripted, seed, backend, mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_episodes_that_only_the_stepper_truncates(
    scripted: Callable[..., VectorStepper], mode: AutoresetMode
) -> None:
    for seed in range(60):
        check_generated(scripted, seed, "native", mode, limited=True)


@pytest.mark.parametrize("mode", MODES)
def test_lanes_in_processes_of_their_own(scripted: Callable[..., VectorStepper], mode: AutoresetMode) -> None:
    check_generated(scripted, 1, "async", mode)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("backend", "mode"), BACKENDS)
def test_thousands_of_scripts(
    scripted: Callable[..., VectorStepper], backend: str, mode: AutoresetMode
) -> None:
    """10,200 scripts over all backends, and 3,000 that only the stepper truncates."""
    for seed in range(1_000, 2_700):
        check_generated(scripted, seed, backend, mode)
    if backend == "native" and mode is not AutoresetMode.SAME_STEP:
        for seed in range(1_000, 2_500):
            check_generated(scripted, seed, backend, mode, limited=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("mode", MODES)
def test_hundreds_of_scripts_in_processes(
    scripted: Callable[..., VectorStepper], mode: AutoresetMode
) -> None:
    for seed in range(1_000, 1_100):
        check_generated(scripted, seed, "async", mode)


def builder(n_step: int = 1, num_lanes: int = 1) -> BlockBuilder:
    schema = BlockSchema((FrameField("observation", "<f4", (3,)),), 1, n_step)
    return BlockBuilder(schema, num_lanes, 3, GAMMA)


def feed(made: BlockBuilder, stepper: VectorStepper, steps: int, q: float = 0.0) -> None:
    made.begin(steps, version=0)
    for t in range(steps):
        actions = np.zeros(stepper.num_envs, np.int64)
        made.add(t, actions, np.full((stepper.num_envs, 3), q, np.float32), stepper.step(actions))


NO_FINALS = np.zeros(0, np.float32)
ENDLESS: list[Script] = [[]]


def test_a_chunk_too_short_for_any_transition_leaves_its_env_steps_to_the_next(
    scripted: Callable[..., VectorStepper],
) -> None:
    stepper, made = scripted(ENDLESS, AutoresetMode.NEXT_STEP), builder(n_step=3)
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    assert made.build(NO_FINALS) is None
    for _ in range(3):
        feed(made, stepper, 1)
        assert made.build(NO_FINALS) is None
    feed(made, stepper, 1)
    block = made.build(NO_FINALS)
    assert block is not None
    assert (block.num_transitions, block.env_steps) == (1, 4)
    assert [frame_id(frame)[2] for frame in block.frames["observation"]] == [0, 3]


def test_a_terminated_transition_does_not_wait(scripted: Callable[..., VectorStepper]) -> None:
    """It needs no Q-value of its next frame, which the policy acts on only in the next chunk."""
    stepper, made = scripted([script((2, T))], AutoresetMode.NEXT_STEP), builder(n_step=2)
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 2)
    block = made.build(NO_FINALS)
    assert block is not None
    assert block.discount.tolist() == [0.0, 0.0]


def test_reset_drops_what_was_pending(scripted: Callable[..., VectorStepper]) -> None:
    stepper, made = scripted([script((2, L), (9, T))], AutoresetMode.SAME_STEP), builder(n_step=2)
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 3)  # ends an episode whose final frame waits for its value
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 4)
    block = made.build(NO_FINALS)
    assert block is not None
    assert {frame_id(frame)[1] for frame in block.frames["observation"]} == {2}
    assert (block.num_transitions, block.env_steps) == (2, 4)


def test_a_pushed_block_keeps_its_contents(scripted: Callable[..., VectorStepper]) -> None:
    stepper, made = scripted(ENDLESS, AutoresetMode.NEXT_STEP), builder()
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 5)
    block = made.build(NO_FINALS)
    assert block is not None
    before = [frame_id(frame) for frame in block.frames["observation"]], block.action.tolist()
    feed(made, stepper, 5, q=9.0)
    made.build(NO_FINALS)
    assert before == ([frame_id(frame) for frame in block.frames["observation"]], block.action.tolist())


def test_every_final_frame_needs_its_value(scripted: Callable[..., VectorStepper]) -> None:
    stepper, made = scripted([script((2, L))], AutoresetMode.SAME_STEP), builder()
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 3)
    with pytest.raises(ValueError, match="1 final frames need as many values, not 0"):
        made.build(NO_FINALS)


def test_what_breaks_in_one_group_of_lanes_leaves_the_other(scripted: Callable[..., VectorStepper]) -> None:
    """Lanes that are added one by one; the second one's episode breaks off in its third step."""
    steppers = [scripted(ENDLESS, AutoresetMode.NEXT_STEP) for _ in range(2)]
    made = builder(n_step=3, num_lanes=2)
    made.reset(np.concatenate([stepper.reset(np.zeros(1, np.int64)) for stepper in steppers]))
    made.begin(5, version=0)
    action, q, yes = np.zeros(1, np.int64), np.zeros((1, 3), np.float32), np.ones(1, np.bool_)
    for t in range(5):
        for lane, stepper in enumerate(steppers):
            step = stepper.step(action)
            step.frames[0, 0] = lane
            if (t, lane) == (2, 1):
                step = replace(step, fake=yes, starts=yes, broken=yes)
            made.add(t, action, q, step, slice(lane, lane + 1))
    block = made.build(NO_FINALS)
    assert block is not None
    assert block.env_steps == 9
    assert [frame_id(frame) for frame in block.frames["observation"][block.obs_frame]] == [
        (0, 0, 0),
        (0, 0, 1),
    ]


def test_every_lane_must_have_made_every_step(scripted: Callable[..., VectorStepper]) -> None:
    stepper, made = scripted(ENDLESS * 3, AutoresetMode.NEXT_STEP), builder(num_lanes=3)
    made.reset(stepper.reset(np.zeros(3, np.int64)))
    made.begin(2, version=0)
    made.add(0, np.zeros(3, np.int64), np.zeros((3, 3), np.float32), stepper.step(np.zeros(3, np.int64)))
    with pytest.raises(ValueError, match="3 steps of single lanes are missing"):
        made.build(NO_FINALS)


def test_diverged_values_are_refused(scripted: Callable[..., VectorStepper]) -> None:
    stepper, made = scripted(ENDLESS, AutoresetMode.NEXT_STEP), builder()
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 3, q=np.nan)
    with pytest.raises(ValueError, match="not finite"):
        made.build(NO_FINALS)
