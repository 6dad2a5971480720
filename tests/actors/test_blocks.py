"""From acting to blocks: the rows that leave an actor, against one environment stepped by a plain loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.block_builder import BlockBuilder
from actors.config import ActorsConfig, EnvConfig
from actors.rollout import EnvActor
from actors.stepper import VectorStepper
from replay_service.block import (
    ROW_FIELDS,
    TERMINATED,
    TRUNCATED,
    BlockSchema,
    FrameField,
    TransitionBlock,
)
from replay_service.messages import ShardStatus

GAMMA = 0.5
Script = list[list[tuple[float, bool, bool]]]
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


class ListSink:
    def __init__(self) -> None:
        self.blocks: list[TransitionBlock] = []

    def push(self, block: TransitionBlock) -> None:
        self.blocks.append(block)

    def statuses(self) -> tuple[ShardStatus, ...]:
        return ()


@dataclass(frozen=True)
class Row:
    obs: tuple[FrameId, ...]
    next_obs: tuple[FrameId, ...]
    action: int
    reward: float
    discount: float
    one_step_reward: float
    end: int
    priority: float


def plain_rows(lane: int, script: Script, n_step: int, stack: int, gamma: float) -> dict[FrameId, Row]:
    """Every row of one lane's script, keyed by the frame that it starts from."""
    rows = {}
    for episode, steps in enumerate(script):

        def stacked(index: int, episode: int = episode) -> tuple[FrameId, ...]:
            return tuple((lane, episode, max(0, i)) for i in range(index - stack + 1, index + 1))

        def q(index: int) -> np.ndarray:
            return q_of(np.array([stacked(index)], np.float32))[0]

        actions = [int(q(i).argmax()) for i in range(len(steps))]
        rewards = [steps[i][0] + actions[i] for i in range(len(steps))]
        for i in range(len(steps)):
            after = min(i + n_step, len(steps))
            _, terminated, truncated = steps[after - 1]
            reward = sum(gamma ** (k - i) * rewards[k] for k in range(i, after))
            discount = 0.0 if terminated else gamma ** (after - i)
            error = abs(reward + discount * float(q(after).max()) - float(q(i)[actions[i]]))
            end = TERMINATED * terminated | TRUNCATED * truncated
            rows[lane, episode, i] = Row(
                stacked(i), stacked(after), actions[i], reward, discount, rewards[i], end, error
            )
    return rows


def rows_of(block: TransitionBlock) -> dict[FrameId, tuple[Row, int]]:
    """Rows and their versions, keyed by the frame they start from; read as the block's docstring says."""
    frames = block.frames["observation"]
    stack = block.schema.stack
    rows = {}
    for r in range(block.num_rows):
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
        assert start not in rows
        row = Row(
            windows[0],
            windows[1],
            *(getattr(block, name)[r].item() for name in ("action", "reward", "discount", "one_step_reward")),
            block.end[r].item(),
            block.priority[r].item(),
        )
        rows[start] = row, int(block.policy_version[r])
    return rows


def referenced_frames(block: TransitionBlock) -> set[int]:
    """Every frame that some row's window holds."""
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
) -> tuple[list[TransitionBlock], ScriptedPolicy, list[float]]:
    """Acts greedily in chunks, over and over, until every scripted row must have left.

    Returns blocks, the policy and the returns of ended episodes.
    """
    policy, sink = ScriptedPolicy(), ListSink()
    config = ActorsConfig(
        envs_per_actor=len(scripts), n_step=n_step, discount=gamma, epsilon_start=0.0, epsilon_end=0.0
    )
    with mock.patch("actors.rollout.make_vector", return_value=scripted(scripts, mode, stack)):
        actor = EnvActor(
            EnvConfig(stack=stack),
            config,
            policy=policy,
            sink=sink,
            actor=7,
            incarnation=2,
            num_actors=1,
            seed=np.random.SeedSequence(0),
        )
    enough = max(sum(len(episode) + 1 for episode in script) for script in scripts) + n_step + 1
    returns: list[float] = []
    done, version, unaccounted = 0, 0, 0
    while done < enough:
        steps = chunks[version % len(chunks)]
        report = actor.rollout(steps, version, np.array([version], np.float32), 0)
        returns += report.episode_returns
        unaccounted += report.env_steps
        if report.rows_pushed:
            assert sink.blocks[-1].num_rows == report.rows_pushed
            assert sink.blocks[-1].env_steps == unaccounted
            unaccounted = 0
        done, version = done + steps, version + 1
    actor.close()
    assert sum(block.num_rows > 0 for block in sink.blocks) == len(sink.blocks)
    return sink.blocks, policy, returns


def check(
    scripted: Callable[..., VectorStepper],
    scripts: list[Script],
    mode: AutoresetMode,
    n_step: int,
    stack: int,
    chunks: list[int],
    gamma: float = GAMMA,
) -> None:
    blocks, policy, returns = act(scripted, scripts, mode, n_step, stack, chunks, gamma)
    seen: dict[FrameId, Row] = {}
    for block in blocks:
        assert (block.writer, block.incarnation, block.sequence) == (7, 2, 0)
        for name, dtype in ROW_FIELDS:
            assert getattr(block, name).dtype == dtype
            assert getattr(block, name).shape == (block.num_rows,)
        ids = [frame_id(frame) for frame in block.frames["observation"]]
        assert ids == sorted(set(ids))  # each once, lane after lane, each lane in time
        assert referenced_frames(block) == set(range(block.num_frames))
        for start, (row, version) in rows_of(block).items():
            assert start not in seen
            assert version == policy.acted_on[start]
            seen[start] = row

    expected: dict[FrameId, Row] = {}
    for lane, script in enumerate(scripts):
        expected |= plain_rows(lane, script, n_step, stack, gamma)
    scripted_rows = {start: row for start, row in seen.items() if start[1] < len(scripts[start[0]])}
    assert scripted_rows.keys() == expected.keys()
    for start, row in expected.items():
        actual = scripted_rows[start]
        assert (actual.obs, actual.next_obs) == (row.obs, row.next_obs)
        assert (actual.action, actual.end) == (row.action, row.end)
        for name in ("reward", "discount", "one_step_reward", "priority"):
            assert getattr(actual, name) == pytest.approx(getattr(row, name), abs=1e-5)
    whole = [
        sum(row.one_step_reward for start, row in expected.items() if start[:2] == episode)
        for episode in {start[:2] for start in expected}
    ]
    assert sorted(returns) == pytest.approx(sorted(whole))


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
def test_any_script_in_any_mode_gives_the_rows_of_a_plain_loop(
    scripted: Callable[..., VectorStepper],
    scripts: list[Script],
    mode: AutoresetMode,
    n_step: int,
    stack: int,
    chunks: list[int],
    gamma: float,
) -> None:
    check(scripted, scripts, mode, n_step, stack, chunks, gamma)


def builder(n_step: int = 1, num_lanes: int = 1) -> BlockBuilder:
    schema = BlockSchema((FrameField("observation", "<f4", (3,)),), 1, n_step)
    return BlockBuilder(schema, num_lanes, 3, GAMMA, writer=0, incarnation=0)


def feed(made: BlockBuilder, stepper: VectorStepper, steps: int, q: float = 0.0) -> None:
    made.reserve(steps)
    for _ in range(steps):
        actions = np.zeros(stepper.num_envs, np.int64)
        made.add(actions, np.full((stepper.num_envs, 3), q, np.float32), stepper.step(actions), version=0)


NO_FINALS = np.zeros(0, np.float32)
ENDLESS: list[Script] = [[]]


def test_a_chunk_too_short_for_any_row_leaves_its_env_steps_to_the_next(
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
    assert (block.num_rows, block.env_steps) == (1, 4)
    assert [frame_id(frame)[2] for frame in block.frames["observation"]] == [0, 3]


def test_a_terminated_row_does_not_wait(scripted: Callable[..., VectorStepper]) -> None:
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
    assert (block.num_rows, block.env_steps) == (2, 4)


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


def test_diverged_values_are_refused(scripted: Callable[..., VectorStepper]) -> None:
    stepper, made = scripted(ENDLESS, AutoresetMode.NEXT_STEP), builder()
    made.reset(stepper.reset(np.zeros(1, np.int64)))
    feed(made, stepper, 3, q=np.nan)
    with pytest.raises(ValueError, match="not finite"):
        made.build(NO_FINALS)
