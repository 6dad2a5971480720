"""From vector steps to transition blocks.

Owns the buffers between acting and pushing, and the rules for which transitions and frames a block holds;
must not know of environments, policies or sinks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from actors.core import frame_dtype
from actors.envs.stepper import Step
from actors.exploration import ALL_LANES
from actors.nstep import NStepTransitions, n_step_transitions
from actors.soft_values import GREEDY, Values
from replay_service.block import BlockSchema, TransitionBlock

UNVALUED_PRIORITY = np.float32(1.0)
"""The priority of transitions acted before the first weights. Their TD errors are unknown, so they get the
largest priority there is (Schaul et al. 2016, arXiv:1511.05952, algorithm 1, line 6). It is 1 in an empty
shard, and a shard holds only such transitions until there are weights."""


@dataclass(frozen=True, eq=False)
class ChunkSteps:
    """The T vector steps since the last block, [T, N] each; views, valid until the next `build`.

    Attributes:
        reward: float64, raw; 0 if the step was an autoreset.
        real: bool, False if the step was an autoreset.
        ended, starts: bool, see actors.envs.stepper.Step.
        q: [T, A, N] float32, Q-values of the frames before the steps.
    """

    reward: np.ndarray
    real: np.ndarray
    ended: np.ndarray
    starts: np.ndarray
    q: np.ndarray


@dataclass(frozen=True, eq=False)
class _Finals:
    """True last frames of K episodes whose environments reset within the steps that ended them.

    Attributes:
        step, lane: [K] int64, the steps that ended the episodes.
        value: [K] float32, values of the frames.
        frames: [K, *shape].
    """

    step: np.ndarray
    lane: np.ndarray
    value: np.ndarray
    frames: np.ndarray

    def since(self, step: int) -> _Finals:
        """The final frames from `step` on, with steps counted from there."""
        kept = self.step >= step
        return _Finals(self.step[kept] - step, self.lane[kept], self.value[kept], self.frames[kept])


class BlockBuilder:
    """Collects vector steps of N lanes and makes one block of them per chunk.

    A transition leaves in the first block for which everything that it needs is known: its rewards, its next
    frame, and, unless its discount is 0, the Q-values of that frame (known once the policy has acted on it).
    The steps and frames that later transitions need stay behind for the next block.

    In memory a lane is a sequence of *positions*, one per frame. If an environment resets within the step
    that ends an episode, the true final frame takes a position of its own between the two episodes.

    Steps must be cheap: `add` only stores them, and all else is computed for a whole chunk at once.
    """

    def __init__(
        self,
        schema: BlockSchema,
        num_lanes: int,
        num_actions: int,
        gamma: float,
        *,
        reward_clip: float | None = None,
        life_loss_ends_episode: bool = False,
        values: Values = GREEDY,
    ) -> None:
        """Frames have the dtype frame_dtype(schema.frame_fields), see actors.core.

        Blocks have writer, incarnation and sequence 0: the sink numbers them. Q-values of actions that a
        frame does not allow must be -inf. reward_clip c clips the transitions' rewards to [-c, c].
        life_loss_ends_episode makes a lost life terminate transitions; the episode itself continues. values
        says which targets priorities are made of. Over n steps only the first reward gets a bonus, as in the
        learner's targets.
        """
        self._schema = schema
        dtype = frame_dtype(schema.frame_fields)
        self._gamma = gamma
        self._reward_clip = reward_clip
        self._life_loss_ends_episode = life_loss_ends_episode
        self._values = values
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
            "valued": np.zeros(lanes, np.bool_),
            # Actions before lanes: a maximum over the last and shortest axis would cost fifty times as much.
            "q": np.zeros((0, num_actions, num_lanes), np.float32),
            "version": np.zeros(lanes, np.int64),
        }
        self._length = 0
        self._first = 0  # index of the first step that `build` has not seen yet
        self._missing = 0
        self._env_steps = 0
        no_lane = np.zeros(0, np.int64)
        self._no_finals = _Finals(no_lane, no_lane, np.zeros(0, np.float32), np.zeros(0, dtype))
        self._finals = self._no_finals
        self._new_finals: list[tuple[int, np.ndarray, np.ndarray]] = []

    def reset(self, frames: np.ndarray) -> None:
        """Drops all pending transitions and begins an episode in every lane with frames [N, *shape].

        Env steps that no block has carried yet are dropped, too: a resumed run does not know of them.
        """
        self._length = self._first = self._missing = self._env_steps = 0
        self._finals = self._no_finals
        self._new_finals = []
        self._frames[0] = frames

    def begin(self, steps: int, version: int, *, valued: bool = True) -> None:
        """Makes room for a chunk of `steps` vector steps by weights `version`; `end` may make it shorter.

        valued: whether there are weights, so that the q that `add` gets means something.
        """
        self._first = self._length
        self._length += steps
        self._missing = steps * self._frames.shape[1]
        if self._length > len(self._steps["version"]):
            self._frames = _grown(self._frames, self._first + 1, self._length + 1)
            self._steps = {
                name: _grown(array, self._first, self._length) for name, array in self._steps.items()
            }
        self._steps["version"][self._first : self._length] = version
        self._steps["valued"][self._first : self._length] = valued

    def end(self, steps: int) -> None:
        """Ends the chunk after its first `steps` steps; all of these must be added."""
        surplus = self._length - self._first - steps
        self._length -= surplus
        self._missing -= surplus * self._frames.shape[1]

    def add(self, t: int, actions: np.ndarray, q: np.ndarray, step: Step, lanes: slice = ALL_LANES) -> None:
        """Stores the chunk's t-th step of the K lanes `lanes`: actions [K], q [K, A] of the frames before.

        Steps of one lane are added in order, steps of different lanes in any order.
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
        self._missing -= len(actions)

    def chunk(self) -> ChunkSteps:
        """The steps added since the last block. Raises ValueError if some are missing."""
        if self._missing:
            raise ValueError(f"{self._missing} steps of single lanes are missing in the chunk")
        steps, new = self._steps, slice(self._first, self._length)
        # Episodes begin after every autoreset, and after a step within which the environment has reset.
        steps["starts"][new] = steps["fake"][new]
        for t, lanes, _ in self._new_finals:
            steps["starts"][t, lanes] = True
        return ChunkSteps(
            reward=steps["reward"][new],
            real=~steps["fake"][new],
            ended=steps["terminated"][new] | steps["truncated"][new],
            starts=steps["starts"][new],
            q=steps["q"][new],
        )

    def build(self, final_values: np.ndarray) -> TransitionBlock | None:
        """The block of all transitions known by now; None if there are none (env steps wait for the next).

        final_values: [K] values of the final frames given to `add` since the last build, in that order (any
        value if the episode terminated). Raises ValueError on another number of them, if steps are missing
        or if a priority is not finite.
        """
        if self._length == 0:
            return None
        chunk = self.chunk()
        self._steps["pending"][self._first : self._length] = chunk.real
        self._env_steps += int(np.count_nonzero(chunk.real))
        self._take_finals(final_values)

        steps = {name: array[: self._length] for name, array in self._steps.items()}
        clip = self._reward_clip
        reward = steps["reward"] if clip is None else steps["reward"].clip(-clip, clip)
        transitions = n_step_transitions(
            reward,
            steps["terminated"] | steps["life_lost"],
            steps["truncated"],
            ~steps["fake"],
            self._schema.n_step,
            self._gamma,
        )
        ready = steps["pending"] & transitions.complete
        # All n steps of these transitions have been added. One that is still incomplete never becomes
        # complete: its episode broke off.
        early = slice(max(0, self._length - self._schema.n_step + 1))
        steps["pending"][early] &= ready[early]
        self._hold_back(ready, transitions)
        block = None
        if ready.any():
            block = self._block(steps, transitions, reward, ready)
            steps["pending"][ready] = False
            self._env_steps = 0
        self._carry()
        return block

    def _take_finals(self, values: np.ndarray) -> None:
        """Appends the final frames of this chunk, with their values, to those carried over."""
        new, finals = self._new_finals, self._finals
        count = sum(len(lanes) for _, lanes, _ in new)
        if len(values) != count:
            raise ValueError(f"{count} final frames need as many values, not {len(values)}")
        if count:
            self._finals = _Finals(
                np.concatenate([finals.step, *(np.full(len(lanes), t) for t, lanes, _ in new)]),
                np.concatenate([finals.lane, *(lanes for _, lanes, _ in new)]),
                np.concatenate([finals.value, values]),
                np.concatenate([finals.frames, *(frames for _, _, frames in new)]),
            )
            self._new_finals = []

    def _hold_back(self, ready: np.ndarray, transitions: NStepTransitions) -> None:
        """Clears in ready [T, N] the transitions that need Q-values of the newest frame: the policy has not
        acted on it yet."""
        num_steps = len(ready)
        unknown = np.ones(ready.shape[1], np.bool_)
        unknown[self._finals.lane[self._finals.step == num_steps - 1]] = False
        newest = slice(max(0, num_steps - self._schema.n_step), num_steps)
        reaches = transitions.next_step[newest] == num_steps
        ready[newest] &= ~(reaches & unknown & (transitions.discount[newest] != 0.0))

    def _values_after(self, values: np.ndarray) -> np.ndarray:
        """[T, N] float32: value of the frame after each step; 0 if it is not known.

        values: [T, N] float32, of the frames before the steps.
        """
        value = np.zeros_like(values)
        value[:-1] = values[1:]
        value[self._finals.step, self._finals.lane] = self._finals.value
        return value

    def _block(
        self,
        steps: dict[str, np.ndarray],
        transitions: NStepTransitions,
        reward: np.ndarray,
        ready: np.ndarray,
    ) -> TransitionBlock:
        """The block of the transitions `ready` [T, N], ordered by lane, then by time.

        reward [T, N]: rewards of single steps, clipped if the learner's are.
        """
        num_steps, num_lanes = ready.shape
        lane_major = np.ascontiguousarray(ready.T)
        # For every transition, the index of its first step in a flat [T, N].
        at = np.arange(num_steps * num_lanes).reshape(ready.shape).T[lane_major]

        position, episode_start, num_positions = self._positions(steps["fake"], steps["starts"])
        obs = position[:, :-1][lane_major]
        first = episode_start[:, :-1][lane_major]
        span = transitions.steps.take(at)
        following = obs + span
        needed = np.zeros(num_positions, np.bool_)
        for age in range(self._schema.stack):
            needed[np.maximum(obs - age, first)] = True
            needed[np.maximum(following - age, first)] = True
        frames_up_to = np.cumsum(needed, dtype=np.int32)
        frames = self._gather(position, needed)

        action = steps["action"].take(at)
        n_step_reward = transitions.reward.take(at)
        discount = transitions.discount.take(at)
        values = self._values.state_values(steps["q"])
        bootstrap = self._values_after(values).take(at + (span - 1) * num_lanes)
        taken = _taken(steps["q"], at, action)
        bonus = self._values.bonus(taken, values.take(at))
        td_error = np.abs(n_step_reward + bonus + discount * bootstrap - taken).astype(np.float32)
        priority = np.where(steps["valued"].take(at), td_error, UNVALUED_PRIORITY)
        if not np.isfinite(priority).all():
            raise ValueError("a reward or Q-value is not finite; the policy's weights have diverged")
        return TransitionBlock(
            schema=self._schema,
            writer=0,
            incarnation=0,
            sequence=0,
            env_steps=self._env_steps,
            frames={
                field.name: frames[field.name] if frames.dtype.names else frames
                for field in self._schema.frame_fields
            },
            action=action,
            reward=n_step_reward.astype(np.float32),
            discount=discount.astype(np.float32),
            one_step_reward=reward.take(at).astype(np.float32),
            end=transitions.end.take(at),
            policy_version=steps["version"].take(at),
            obs_frame=frames_up_to.take(obs) - 1,
            next_frame=frames_up_to.take(following) - 1,
            # If the first frame itself is not needed, no window reaches back to it.
            first_frame=frames_up_to.take(first) - needed.take(first),
            priority=priority,
        )

    def _positions(self, fake: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Positions [N, T + 1] of all frames, positions [N, T + 1] of their episodes' first frames, and the
        number of positions.

        Positions count on from lane to lane; each lane has as many as the lane with most final frames.
        """
        num_frames, num_lanes = len(starts) + 1, starts.shape[1]
        if len(self._finals.step):
            finals_before = np.zeros((num_lanes, num_frames), np.int64)
            np.cumsum((starts & ~fake).T, axis=1, out=finals_before[:, 1:])
            width = num_frames + int(finals_before[:, -1].max())
            position = finals_before + (np.arange(num_lanes)[:, None] * width + np.arange(num_frames))
        else:
            width = num_frames
            position = np.arange(num_lanes * width).reshape(num_lanes, width)
        episode_start = position.copy()
        episode_start[:, 1:] *= starts.T
        # Positions grow from lane to lane, so that no maximum reaches into the next lane.
        np.maximum.accumulate(episode_start.ravel(), out=episode_start.ravel())
        return position, episode_start, num_lanes * width

    def _gather(self, position: np.ndarray, needed: np.ndarray) -> np.ndarray:
        """The frames [F, *shape] at the needed positions, in order."""
        num_lanes, num_frames = position.shape
        source = np.zeros(len(needed), np.int64)
        source[position] = np.arange(num_frames * num_lanes).reshape(num_frames, num_lanes).T
        at_final = position[self._finals.lane, self._finals.step] + 1
        source[at_final] = num_frames * num_lanes + np.arange(len(at_final))
        source = source.take(np.flatnonzero(needed))
        dense = self._frames[:num_frames].reshape(num_frames * num_lanes, *self._frames.shape[2:])
        gathered: np.ndarray = dense.take(source, axis=0, mode="clip")
        if len(at_final):
            is_final = source >= len(dense)
            gathered[is_final] = self._finals.frames[source[is_final] - len(dense)]
        return gathered

    def _carry(self) -> None:
        """Moves what later transitions need to the front: the last n steps, and stack - 1 more for stacks."""
        kept = min(self._length, self._schema.n_step + self._schema.stack - 1)
        dropped = self._length - kept
        if self._steps["pending"][:dropped].any():
            raise AssertionError("a transition would be lost between two blocks")
        for array in self._steps.values():
            array[:kept] = array[dropped : self._length]
        self._frames[: kept + 1] = self._frames[dropped : self._length + 1]
        if len(self._finals.step):
            self._finals = self._finals.since(dropped)
        self._length = self._first = kept


def _taken(q: np.ndarray, at: np.ndarray, action: np.ndarray) -> np.ndarray:
    """Q-values [R] of each transition's action, from q [T, A, N]; at [R]: the index of its step in [T, N]."""
    num_steps, num_actions, num_lanes = q.shape
    first_action = np.arange(num_steps)[:, None] * (num_actions * num_lanes) + np.arange(num_lanes)
    index: np.ndarray = first_action.take(at) + action * num_lanes
    return q.take(index)


def _grown(array: np.ndarray, used: int, capacity: int) -> np.ndarray:
    grown = np.zeros((capacity, *array.shape[1:]), array.dtype)
    grown[:used] = array[:used]
    return grown
