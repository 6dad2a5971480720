"""From vector steps to transition blocks.

Owns the buffers between acting and pushing and the rules of which rows and frames a block holds;
must not know of environments, policies or sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actors.core import frame_dtype
from actors.envs.stepper import Step
from actors.exploration import ALL_LANES
from actors.nstep import NStepTransitions, n_step_transitions
from replay_service.block import BlockSchema, TransitionBlock


@dataclass(frozen=True, eq=False)
class ChunkSteps:
    """The T vector steps since the last block, [T, N] each; views, valid until the next `build`.

    Attributes:
        reward: float64, raw; 0 where the step was an autoreset.
        real: bool, False where the step was an autoreset.
        ended, starts: bool, see actors.envs.stepper.Step.
        q: [T, A, N] float32, of the frames before the steps.
    """

    reward: np.ndarray
    real: np.ndarray
    ended: np.ndarray
    starts: np.ndarray
    q: np.ndarray


class BlockBuilder:
    """Collects vector steps of N lanes and makes one block of them per chunk.

    A row leaves in the first block for which all that it needs has been seen: its rewards, its next
    frame, and the Q-values of that frame (known once the policy has acted on it) unless its discount
    is 0. The steps and frames that later rows need stay behind for the next block.

    In memory a lane is a row of *positions*, one per frame. Where an environment resets within the step
    that ends an episode, the true final frame takes a position of its own between the two.

    What a step costs counts: `add` only stores it, all else is done for a whole chunk at once.
    """

    def __init__(
        self,
        schema: BlockSchema,
        num_lanes: int,
        num_actions: int,
        gamma: float,
        writer: int,
        incarnation: int,
        *,
        reward_clip: float | None = None,
        life_loss_ends_episode: bool = False,
    ) -> None:
        """Frames are of frame_dtype(schema.frame_fields), see actors.core, whatever their fields.

        writer and incarnation go into every block, with sequence 0. Q-values of actions that a frame does
        not allow are -inf. Rows have rewards clipped to +-reward_clip, and lost lives as terminations if
        asked for; the episode goes on all the same.
        """
        self._schema = schema
        dtype = frame_dtype(schema.frame_fields)
        self._gamma = gamma
        self._writer = writer
        self._incarnation = incarnation
        self._reward_clip = reward_clip
        self._life_loss_ends_episode = life_loss_ends_episode
        lanes = (0, num_lanes)
        self._frames = np.zeros((1, num_lanes), dtype)
        self._steps: dict[str, np.ndarray] = {
            "action": np.zeros(lanes, np.int32),
            "reward": np.zeros(lanes, np.float64),
            "terminated": np.zeros(lanes, np.bool_),
            "truncated": np.zeros(lanes, np.bool_),
            "life_lost": np.zeros(lanes, np.bool_),
            "fake": np.zeros(lanes, np.bool_),
            "starts": np.zeros(lanes, np.bool_),
            "pending": np.zeros(lanes, np.bool_),
            # Actions before lanes: a maximum over the last and shortest axis would cost fifty times as much.
            "q": np.zeros((0, num_actions, num_lanes), np.float32),
            "version": np.zeros(lanes, np.int64),
        }
        self._length = 0
        self._first = 0  # of the steps that no block has seen yet
        self._missing = 0
        self._env_steps = 0
        self._final_step = np.zeros(0, np.int64)
        self._final_lane = np.zeros(0, np.int64)
        self._final_value = np.zeros(0, np.float32)
        self._final_frames = np.zeros(0, dtype)
        self._new_finals: list[tuple[int, np.ndarray, np.ndarray]] = []
        self._new_broken: list[tuple[int, np.ndarray]] = []

    def reset(self, frames: np.ndarray) -> None:
        """Drops every pending row and begins an episode in every lane with frames [N, *shape].

        Env steps that no block has carried yet are dropped too: a resumed run knows nothing of them.
        """
        self._length = self._first = self._missing = self._env_steps = 0
        self._keep_finals(np.zeros(len(self._final_step), np.bool_), 0)
        self._new_finals, self._new_broken = [], []
        self._frames[0] = frames

    def begin(self, steps: int, version: int) -> None:
        """Makes room for a chunk of so many vector steps, chosen by `version`; every one must be added."""
        self._first = self._length
        self._length += steps
        self._missing = steps * self._frames.shape[1]
        if self._length > len(self._steps["version"]):
            self._frames = _grown(self._frames, self._first + 1, self._length + 1)
            self._steps = {
                name: _grown(array, self._first, self._length) for name, array in self._steps.items()
            }
        self._steps["version"][self._first : self._length] = version

    def add(self, t: int, actions: np.ndarray, q: np.ndarray, step: Step, lanes: slice = ALL_LANES) -> None:
        """The chunk's t-th step of the K lanes `lanes`: actions [K], q [K, A] of the frames before.

        The steps of a lane are added in their order; those of other lanes may come before or after them.
        """
        t += self._first
        steps = self._steps
        steps["action"][t, lanes] = actions
        steps["q"][t, :, lanes] = q.T
        steps["reward"][t, lanes] = step.reward
        steps["terminated"][t, lanes] = step.terminated
        steps["truncated"][t, lanes] = step.truncated
        steps["fake"][t, lanes] = step.fake
        if self._life_loss_ends_episode:
            steps["life_lost"][t, lanes] = step.life_lost
        self._frames[t + 1, lanes] = step.frames
        if len(step.final_lanes):
            final_lanes = step.final_lanes + (lanes.start or 0)
            self._new_finals.append((t, final_lanes, step.final_frames))
        if step.broken is not None:
            self._new_broken.append((t, step.broken.nonzero()[0] + (lanes.start or 0)))
        self._missing -= len(actions)

    def chunk(self) -> ChunkSteps:
        """What was added since the last block. Raises ValueError where steps are missing."""
        if self._missing:
            raise ValueError(f"{self._missing} steps of single lanes are missing in the chunk")
        new = {name: array[self._first : self._length] for name, array in self._steps.items()}
        # Episodes begin behind every autoreset, and where an environment has reset within a step.
        new["starts"][...] = new["fake"]
        for t, lanes, _ in self._new_finals:
            self._steps["starts"][t, lanes] = True
        return ChunkSteps(
            reward=new["reward"],
            real=~new["fake"],
            ended=new["terminated"] | new["truncated"],
            starts=new["starts"],
            q=new["q"],
        )

    def build(self, final_values: np.ndarray) -> TransitionBlock | None:
        """The block of all rows known by now; None if there are none (their env steps wait for the next).

        final_values: [K] max over actions of Q at the final frames given to `add` since the last build, in
        their order (any value where the episode terminated). Raises ValueError on another number of them,
        where steps are missing or where a row's priority is not finite.
        """
        if self._length == 0:
            return None
        chunk = self.chunk()
        self._steps["pending"][self._first : self._length] = chunk.real
        self._env_steps += int(np.count_nonzero(chunk.real))
        self._take_finals(final_values)

        steps = {name: array[: self._length] for name, array in self._steps.items()}
        self._drop_broken(steps)
        clip = self._reward_clip
        reward = steps["reward"] if clip is None else steps["reward"].clip(-clip, clip)
        rows = n_step_transitions(
            reward,
            steps["terminated"] | steps["life_lost"],
            steps["truncated"],
            ~steps["fake"],
            self._schema.n_step,
            self._gamma,
        )
        ready = steps["pending"] & rows.complete
        self._hold_back(ready, rows)
        block = self._block(steps, rows, reward, ready) if ready.any() else None
        steps["pending"][ready] = False
        self._carry()
        if block is not None:
            self._env_steps = 0
        return block

    def _take_finals(self, values: np.ndarray) -> None:
        """Joins the final frames of this chunk, with their values, to those carried over."""
        count = sum(len(lanes) for _, lanes, _ in self._new_finals)
        if len(values) != count:
            raise ValueError(f"{count} final frames need as many values, not {len(values)}")
        if not count:
            return
        times = [np.full(len(lanes), t) for t, lanes, _ in self._new_finals]
        self._final_step = np.concatenate([self._final_step, *times])
        self._final_lane = np.concatenate([self._final_lane, *(lanes for _, lanes, _ in self._new_finals)])
        self._final_frames = np.concatenate([self._final_frames, *(kept for _, _, kept in self._new_finals)])
        self._final_value = np.concatenate([self._final_value, values])
        self._new_finals = []

    def _drop_broken(self, steps: dict[str, np.ndarray]) -> None:
        """Drops the rows that would need a step at which an episode broke off.

        Those are the last n - 1 before it, as far back as the last end.
        """
        ends = steps["terminated"] | steps["truncated"] | steps["life_lost"]
        for broken_at, lanes in self._new_broken:
            for lane in lanes:
                for t in range(broken_at - 1, max(broken_at - self._schema.n_step, -1), -1):
                    if ends[t, lane]:
                        break
                    steps["pending"][t, lane] = False
        self._new_broken = []

    def _hold_back(self, ready: np.ndarray, rows: NStepTransitions) -> None:
        """Takes the rows out of ready [T, N] that lack the Q-values of the newest frame, on which nobody has
        acted yet."""
        num_steps = len(ready)
        unknown = np.ones(ready.shape[1], np.bool_)
        unknown[self._final_lane[self._final_step == num_steps - 1]] = False
        newest = slice(max(0, num_steps - self._schema.n_step), num_steps)
        reaches = rows.next_step[newest] == num_steps
        ready[newest] &= ~(reaches & unknown & (rows.discount[newest] != 0.0))

    def _values_after(self, q: np.ndarray) -> np.ndarray:
        """[T, N]: max Q of the frame that each step led to; 0 where it is not known."""
        value = np.zeros((len(q), q.shape[2]), np.float32)
        np.max(q[1:], axis=1, out=value[:-1])
        value[self._final_step, self._final_lane] = self._final_value
        return value

    def _block(
        self, steps: dict[str, np.ndarray], rows: NStepTransitions, reward: np.ndarray, ready: np.ndarray
    ) -> TransitionBlock:
        """The block of the rows `ready` [T, N], lane by lane, each lane in time; reward [T, N] as learned."""
        num_steps, num_lanes = ready.shape
        lane_major = np.ascontiguousarray(ready.T)
        # Of every row, the index of its step in [T, N].
        row = np.arange(num_steps * num_lanes).reshape(ready.shape).T[lane_major]

        position, episode_start, num_positions = self._positions(steps["fake"], steps["starts"])
        obs = position[:, :-1][lane_major]
        first = episode_start[:, :-1][lane_major]
        span = rows.steps.take(row)
        following = obs + span
        needed = np.zeros(num_positions, np.bool_)
        for age in range(self._schema.stack):
            needed[np.maximum(obs - age, first)] = True
            needed[np.maximum(following - age, first)] = True
        frames_up_to = np.cumsum(needed, dtype=np.int32)

        action = steps["action"].take(row)
        n_step_reward = rows.reward.take(row)
        discount = rows.discount.take(row)
        bootstrap = self._values_after(steps["q"]).take(row + (span - 1) * num_lanes)
        taken = _taken(steps["q"], row, action)
        priority = np.abs(n_step_reward + discount * bootstrap - taken).astype(np.float32)
        if not np.isfinite(priority).all():
            raise ValueError("a row's reward or Q-values are not finite; the policy's weights have diverged")
        return TransitionBlock(
            schema=self._schema,
            writer=self._writer,
            incarnation=self._incarnation,
            sequence=0,
            env_steps=self._env_steps,
            frames=self._fields(self._gather(position, needed)),
            action=action,
            reward=n_step_reward.astype(np.float32),
            discount=discount.astype(np.float32),
            one_step_reward=reward.take(row).astype(np.float32),
            end=rows.end.take(row),
            policy_version=steps["version"].take(row),
            obs_frame=frames_up_to.take(obs) - 1,
            next_frame=frames_up_to.take(following) - 1,
            # Where the first frame itself is not needed, no window reaches down to it.
            first_frame=frames_up_to.take(first) - needed.take(first),
            priority=priority,
        )

    def _positions(self, fake: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """[N, T + 1] each: the position of every frame, and that of its episode's first frame; and how many
        positions there are.

        Positions count on from lane to lane, each lane having as many as the one with most final frames.
        """
        num_frames, num_lanes = len(starts) + 1, starts.shape[1]
        if len(self._final_step):
            finals_before = np.zeros((num_lanes, num_frames), np.int64)
            np.cumsum((starts & ~fake).T, axis=1, out=finals_before[:, 1:])
            width = num_frames + int(finals_before[:, -1].max())
            position = finals_before + (np.arange(num_lanes)[:, None] * width + np.arange(num_frames))
        else:
            width = num_frames
            position = np.arange(num_lanes * width).reshape(num_lanes, width)
        episode_start = position.copy()
        episode_start[:, 1:] *= starts.T
        # Positions grow from lane to lane, so nothing is carried over to the next.
        np.maximum.accumulate(episode_start.ravel(), out=episode_start.ravel())
        return position, episode_start, num_lanes * width

    def _gather(self, position: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The needed frames [F, *shape], lane by lane."""
        num_lanes, num_frames = position.shape
        source = np.zeros(len(needed), np.int64)
        source[position] = np.arange(num_frames * num_lanes).reshape(num_frames, num_lanes).T
        at_final = position[self._final_lane, self._final_step] + 1
        source[at_final] = num_frames * num_lanes + np.arange(len(at_final))
        source = source.take(np.flatnonzero(needed))
        dense = self._frames[:num_frames].reshape(num_frames * num_lanes, *self._frames.shape[2:])
        gathered: np.ndarray = dense.take(source, axis=0, mode="clip")
        if len(at_final):
            is_final = source >= len(dense)
            gathered[is_final] = self._final_frames[source[is_final] - len(dense)]
        return gathered

    def _fields(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Frames [F, *shape] as a block has them; of records, views."""
        if frames.dtype.names is None:
            (field,) = self._schema.frame_fields
            return {field.name: frames}
        return {field.name: frames[field.name] for field in self._schema.frame_fields}

    def _carry(self) -> None:
        """Moves what later rows need to the front: the last n steps and stack - 1 steps of context."""
        kept = min(self._length, self._schema.n_step + self._schema.stack - 1)
        dropped = self._length - kept
        if self._steps["pending"][:dropped].any():
            raise AssertionError("a row would be lost between two blocks")
        for array in self._steps.values():
            array[:kept] = array[dropped : self._length]
        self._frames[: kept + 1] = self._frames[dropped : self._length + 1]
        self._keep_finals(self._final_step >= dropped, dropped)
        self._length = self._first = kept

    def _keep_finals(self, kept: np.ndarray, shift: int) -> None:
        if not len(kept):
            return
        self._final_step = self._final_step[kept] - shift
        self._final_lane = self._final_lane[kept]
        self._final_value = self._final_value[kept]
        self._final_frames = self._final_frames[kept]


def _taken(q: np.ndarray, row: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Of q [T, A, N] the value [R] of each row's own action; row [R]: the index of its step in [T, N]."""
    num_steps, num_actions, num_lanes = q.shape
    first_action = np.arange(num_steps)[:, None] * (num_actions * num_lanes) + np.arange(num_lanes)
    index: np.ndarray = first_action.take(row) + action * num_lanes
    return q.take(index)


def _grown(array: np.ndarray, used: int, capacity: int) -> np.ndarray:
    grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown
