"""From vector steps to transition blocks.

Owns the buffers between acting and pushing and the rules of which rows and frames a block holds;
must not know of environments, policies or sinks.
"""

from __future__ import annotations

import numpy as np

from actors.core import frame_dtype
from actors.nstep import NStepRows, n_step_rows
from actors.stepper import Step
from replay_service.block import BlockSchema, TransitionBlock


class BlockBuilder:
    """Collects vector steps of N lanes and makes one block of them per chunk.

    A row leaves in the first block for which all that it needs has been seen: its rewards, its next
    frame, and the Q-values of that frame (known once the policy has acted on it) unless its discount
    is 0. The steps and frames that later rows need stay behind for the next block.

    In memory a lane is a row of *positions*, one per frame. Where an environment resets within the step
    that ends an episode, the true final frame takes a position of its own between the two.
    """

    def __init__(
        self,
        schema: BlockSchema,
        num_lanes: int,
        num_actions: int,
        gamma: float,
        writer: int,
        incarnation: int,
    ) -> None:
        """Frames are of frame_dtype(schema.frame_fields), see actors.core, whatever their fields.

        writer and incarnation go into every block, with sequence 0. Q-values of actions that a frame does
        not allow are -inf.
        """
        self._schema = schema
        dtype = frame_dtype(schema.frame_fields)
        self._gamma = gamma
        self._writer = writer
        self._incarnation = incarnation
        lanes = (0, num_lanes)
        self._frames = np.zeros((1, num_lanes), dtype)
        self._steps: dict[str, np.ndarray] = {
            "action": np.zeros(lanes, np.int32),
            "reward": np.zeros(lanes, np.float64),
            "terminated": np.zeros(lanes, np.bool_),
            "truncated": np.zeros(lanes, np.bool_),
            "real": np.zeros(lanes, np.bool_),
            "starts": np.zeros(lanes, np.bool_),
            "pending": np.zeros(lanes, np.bool_),
            "q": np.zeros((*lanes, num_actions), np.float32),
            "version": np.zeros(0, np.int64),
        }
        self._length = 0
        self._counted = 0
        self._env_steps = 0
        self._final_step = np.zeros(0, np.int64)
        self._final_lane = np.zeros(0, np.int64)
        self._final_value = np.zeros(0, np.float32)
        self._final_frames = np.zeros(0, dtype)
        self._new_finals: list[tuple[int, np.ndarray, np.ndarray]] = []

    def reset(self, frames: np.ndarray) -> None:
        """Drops every pending row and begins an episode in every lane with frames [N, *shape].

        Env steps that no block has carried yet are dropped too: a resumed run knows nothing of them.
        """
        self._length = self._counted = self._env_steps = 0
        self._keep_finals(np.zeros(len(self._final_step), np.bool_), 0)
        self._new_finals = []
        self._frames[0] = frames

    def reserve(self, steps: int) -> None:
        """Makes room for so many more steps; `add` needs it."""
        capacity = self._length + steps
        if capacity <= len(self._steps["version"]):
            return
        self._frames = _grown(self._frames, self._length + 1, capacity + 1)
        self._steps = {name: _grown(array, self._length, capacity) for name, array in self._steps.items()}

    def add(self, actions: np.ndarray, q: np.ndarray, step: Step, version: int) -> None:
        """One vector step: actions [N] chosen by `version` with q [N, A] on the frames before it."""
        t = self._length
        steps = self._steps
        steps["action"][t] = actions
        steps["q"][t] = q
        steps["version"][t] = version
        steps["reward"][t] = step.reward
        steps["terminated"][t] = step.terminated
        steps["truncated"][t] = step.truncated
        steps["starts"][t] = step.starts
        real = steps["real"][t]
        np.logical_not(step.fake, out=real)
        steps["pending"][t] = real
        if step.broken is not None:
            self._drop_open_rows(step.broken.nonzero()[0])
        self._frames[t + 1] = step.frames
        if len(step.final_lanes):
            self._new_finals.append((t, step.final_lanes, step.final_frames))
        self._length = t + 1

    def build(self, final_values: np.ndarray) -> TransitionBlock | None:
        """The block of all rows known by now; None if there are none (their env steps wait for the next).

        final_values: [K] max over actions of Q at the final frames given to `add` since the last build, in
        their order (any value where the episode terminated). Raises ValueError on another number of them or
        where a row's priority is not finite.
        """
        if self._length == 0:
            return None
        steps = {name: array[: self._length] for name, array in self._steps.items()}
        num_lanes = steps["real"].shape[1]
        self._take_finals(final_values)
        self._env_steps += int(np.count_nonzero(steps["real"][self._counted :]))
        self._counted = self._length

        rows = n_step_rows(
            steps["reward"],
            steps["terminated"],
            steps["truncated"],
            steps["real"],
            self._schema.n_step,
            self._gamma,
        )
        value_after, known = self._values_after(steps["q"])
        # Flat index of each row's last step; that of a fake step points anywhere, for it makes no row.
        last_step = (rows.next_step - 1) * num_lanes + np.arange(num_lanes)
        ready = rows.complete & (known.take(last_step) | (rows.discount == 0.0)) & steps["pending"]
        block = self._block(steps, rows, ready, value_after.take(last_step)) if ready.any() else None
        steps["pending"][ready] = False
        self._carry()
        if block is not None:
            self._env_steps = 0
        return block

    def _drop_open_rows(self, lanes: np.ndarray) -> None:
        """Drops the rows that would need the step being added, at which an episode broke off in lanes [K].

        Those are of the last n - 1 steps, as far back as the last end.
        """
        t = self._length
        for lane in lanes:
            for before in range(t - 1, max(t - self._schema.n_step, -1), -1):
                if self._steps["terminated"][before, lane] or self._steps["truncated"][before, lane]:
                    break
                self._steps["pending"][before, lane] = False

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

    def _values_after(self, q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[T, N]: max Q of the frame that each step led to, and whether it is known."""
        value = np.zeros(q.shape[:2], np.float32)
        known = np.ones(q.shape[:2], np.bool_)
        np.max(q[1:], axis=2, out=value[:-1])
        known[-1] = False
        value[self._final_step, self._final_lane] = self._final_value
        known[self._final_step, self._final_lane] = True
        return value, known

    def _block(
        self, steps: dict[str, np.ndarray], rows: NStepRows, ready: np.ndarray, bootstrap: np.ndarray
    ) -> TransitionBlock:
        """The block of the rows `ready` [T, N], lane by lane, each lane in time."""
        num_lanes = ready.shape[1]
        lane, t = np.nonzero(ready.T)
        row = t * num_lanes + lane

        position, episode_start = self._positions(steps["starts"], steps["real"])
        width = int(position[-1].max()) + 1
        obs = lane * width + position.take(row)
        following = obs + rows.steps.take(row)
        first = lane * width + episode_start.take(row)
        needed = np.zeros(num_lanes * width, np.bool_)
        for age in range(self._schema.stack):
            needed[np.maximum(obs - age, first)] = True
            needed[np.maximum(following - age, first)] = True
        frames_up_to = np.cumsum(needed, dtype=np.int32)

        action = steps["action"].take(row)
        reward = rows.reward.take(row)
        discount = rows.discount.take(row)
        taken = steps["q"].reshape(-1).take(row * steps["q"].shape[2] + action)
        priority = np.abs(reward + discount * bootstrap.take(row) - taken).astype(np.float32)
        if not np.isfinite(priority).all():
            raise ValueError("a row's reward or Q-values are not finite; the policy's weights have diverged")
        return TransitionBlock(
            schema=self._schema,
            writer=self._writer,
            incarnation=self._incarnation,
            sequence=0,
            env_steps=self._env_steps,
            frames=self._fields(self._gather(position, width, needed)),
            action=action,
            reward=reward.astype(np.float32),
            discount=discount.astype(np.float32),
            one_step_reward=steps["reward"].take(row).astype(np.float32),
            end=rows.end.take(row),
            policy_version=steps["version"].take(t),
            obs_frame=frames_up_to.take(obs) - 1,
            next_frame=frames_up_to.take(following) - 1,
            # Where the first frame itself is not needed, no window reaches down to it.
            first_frame=frames_up_to.take(first) - needed.take(first),
            priority=priority,
        )

    def _positions(self, starts: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[T + 1, N] each: the position of every frame in its lane, and that of its episode's first frame."""
        num_frames, num_lanes = len(starts) + 1, starts.shape[1]
        position = np.zeros((num_frames, num_lanes), np.int64)
        if len(self._final_step):
            np.cumsum(starts & real, axis=0, out=position[1:])
        position += np.arange(num_frames)[:, None]
        episode_start = np.zeros((num_frames, num_lanes), np.int64)
        np.multiply(position[1:], starts, out=episode_start[1:])
        np.maximum.accumulate(episode_start, axis=0, out=episode_start)
        return position, episode_start

    def _gather(self, position: np.ndarray, width: int, needed: np.ndarray) -> np.ndarray:
        """The needed frames [F, *shape], lane by lane."""
        num_frames, num_lanes = position.shape
        lane = np.arange(num_lanes)
        source = np.zeros(num_lanes * width, np.int64)
        source[lane * width + position] = np.arange(num_frames * num_lanes).reshape(position.shape)
        at_final = position[self._final_step, self._final_lane] + 1
        source[self._final_lane * width + at_final] = num_frames * num_lanes + np.arange(len(at_final))
        source = source[needed]
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
        self._length = self._counted = kept

    def _keep_finals(self, kept: np.ndarray, shift: int) -> None:
        self._final_step = self._final_step[kept] - shift
        self._final_lane = self._final_lane[kept]
        self._final_value = self._final_value[kept]
        self._final_frames = self._final_frames[kept]


def _grown(array: np.ndarray, used: int, capacity: int) -> np.ndarray:
    grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown
