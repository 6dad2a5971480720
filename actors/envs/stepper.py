"""Episode boundaries: one stream of steps whatever a vector environment's autoreset mode.

Owns resets and the three autoreset modes; must not know of policies, transitions or blocks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode

from actors.core import EnvSpec
from actors.envs.errors import EnvError
from actors.envs.guard import Failure
from actors.envs.guarded_vector import GuardedVector, VectorStep
from actors.envs.observation_spaces import parts_of
from actors.envs.observations import FrameMaker, masks_of
from actors.envs.validation import is_finite
from replay_service.block import ACTION_MASK


# Not frozen: setting eleven frozen fields takes a tenth of the time of a step of CartPole's vector form.
@dataclass(eq=False, slots=True)
class Step:
    """The result of one vector step of N lanes.

    Every lane is a sequence of frames. Between two frames of one episode lies a real step. A new episode
    begins at `frames[lane]` where starts[lane]; the frame before it, the last of the old episode, is either
    the one that the step before returned (then this step was fake: the environment only reset) or
    the one in final_frames (then this step was real and the environment has reset within it).

    Attributes:
        frames: [N, *shape], to act on next. Valid until the next step begins: copy what you keep.
        reward: [N], 0 where fake.
        terminated, truncated, ended: [N] bool, of this step; False where fake. ended is either of the two.
        fake: [N] bool, lanes in which this step was an autoreset and no transition.
        starts: [N] bool, lanes in which `frames` begins an episode.
        life_lost: [N] bool, lanes whose info["lives"] fell in this step; False where fake.
        final_lanes: [K] int, ascending; lanes that ended and reset within this step.
        final_frames: [K, *shape], their true last frames.
        broken: [N] bool, lanes whose environment misbehaved in this step and was restarted; None: no lane.
            There the step is fake and `frames` begins an episode, but the old episode did not end: it broke
            off at the frame before, and its further course is unknown.
    """

    frames: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    ended: np.ndarray
    fake: np.ndarray
    starts: np.ndarray
    life_lost: np.ndarray
    final_lanes: np.ndarray
    final_frames: np.ndarray
    broken: np.ndarray | None


class VectorStepper:
    """Steps a vector environment and delivers frames of spec's shape and dtype; see `Step`.

    Actions are 0 to A-1 and Discrete observations 0 to S-1, whatever the spaces' own first values are.
    With spec.action_mask every frame allows an action: if a terminal frame, on which nobody acts, allows
    none, its mask is stored as all ones.

    Attributes:
        vector: what it steps; it keeps count of restarts and bounds.
        asynchronous: whether lanes step between `begin` and `finish`, in threads or processes of their own.
    """

    def __init__(
        self,
        vector: GuardedVector,
        spec: EnvSpec,
        *,
        step_limit: int | None = None,
        masks_are_errors: bool = False,
    ) -> None:
        """step_limit: env steps after which an episode is truncated, if the environment does not do so
        itself; its reset must then accept options["reset_mask"]. masks_are_errors: whether an action mask
        where spec has none raises EnvError; else it is ignored.
        """
        env = vector.env
        self.spec = spec
        self.num_envs = env.num_envs
        self.asynchronous = vector.asynchronous
        self.vector = vector
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._step_limit = step_limit
        self._masks_are_errors = masks_are_errors and not spec.action_mask
        self._maker = FrameMaker(parts_of(env.single_observation_space), spec)
        space = env.single_action_space
        self._first_action = int(space.start) if isinstance(space, spaces.Discrete) else 0
        self._nobody = np.zeros(self.num_envs, dtype=np.bool_)
        self._no_lanes = np.zeros(0, dtype=np.int64)
        self._no_frames = np.zeros(0, dtype=spec.frame_dtype)
        # Lanes whose next step is an autoreset, if the mode has such steps.
        self._ended = self._nobody
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._lives = np.zeros(self.num_envs, np.int64)

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begins an episode in every lane: seeds [N] (non-negative, below 2^31) -> frames [N, *shape].

        A backend that cannot seed lanes one by one is seeded with the first.
        """
        if seeds.shape != (self.num_envs,):
            raise ValueError(f"{self.num_envs} lanes need as many seeds, not an array of shape {seeds.shape}")
        observations, info = self.vector.reset(seeds)
        self._ended = self._nobody
        self._lengths[:] = 0
        self._lives = _lives(info, np.zeros(self.num_envs, np.int64))
        return self._maker.of_batch(observations, self._masks(info, terminal=self._nobody))

    def step(self, actions: np.ndarray) -> Step:
        """One step of all lanes with actions [N] int64 (ignored in lanes whose step is an autoreset).

        Raises EnvFailed if something that was restarted fails again at once.
        """
        self.begin(actions)
        return self.finish()

    def begin(self, actions: np.ndarray) -> None:
        """The first half of `step`; `finish` must follow."""
        self.vector.begin(actions + self._first_action if self._first_action else actions)

    def finish(self) -> Step:
        """The second half of `step`."""
        fake = self._ended if self._mode is AutoresetMode.NEXT_STEP else self._nobody
        return self._step_of(self.vector.finish(fake), fake)

    def _step_of(self, made: VectorStep, fake: np.ndarray) -> Step:
        """The step that the vector environment made; fake [N] bool: lanes in which it was an autoreset."""
        observations, reward, terminated, truncated, info, broken = made
        if self._masks_are_errors and ACTION_MASK in info:
            raise EnvError(
                f"{self.vector.name} gives an action mask in info['action_mask'] now, but gave none in its "
                "first 50 steps: set env.action_mask=true to obey its masks, or false to ignore them"
            )
        if broken is not None:
            fake = fake | broken
        if np.count_nonzero(fake):
            # Environments leave different things here; they belong to no transition.
            reward = reward.copy()
            reward[fake] = 0
            terminated = terminated > fake
            truncated = truncated > fake
        resets = self._nobody  # lanes to reset here and now
        if self._step_limit is not None:
            self._lengths += 1
            resets = (self._lengths >= self._step_limit) & ~(terminated | truncated | fake)
            truncated = truncated | resets
            self._lengths[truncated | terminated | fake] = 0
        ended = terminated | truncated
        life_lost = self._lost_lives(info, ended, fake) if "lives" in info else self._nobody
        starts, final_lanes, final_frames = fake, self._no_lanes, self._no_frames
        if self._mode is AutoresetMode.SAME_STEP:
            masks = self._masks(info, terminal=self._nobody)
            if np.count_nonzero(ended):
                starts = ended
                final_lanes = ended.nonzero()[0]
                final_masks = self._masks(info.get("final_info", {}), terminal=terminated, lanes=ended)
                self._maker.require_own_arrays(info["final_obs"], observations, final_lanes)
                final_frames = self._maker.of_list(info["final_obs"], final_masks, final_lanes)
                if not is_finite(final_frames):
                    description = "An environment returned a final observation that is not finite"
                    return self._step_of(self.vector.replace(Failure("invalid", description)), self._nobody)
        else:
            masks = self._masks(info, terminal=terminated)
            if self._mode is AutoresetMode.DISABLED:
                resets = ended
            if resets is not self._nobody and np.count_nonzero(resets):
                starts = starts | resets
                final_lanes = resets.nonzero()[0]
                # Fancy indexing copies, and must: the reset may write into the same buffer.
                final_frames = self._maker.of_batch(observations, masks, final_lanes)
                observations, masks = self._reset_lanes(resets, masks)
        self._ended = ended if resets is self._nobody else ended & ~resets
        if self.vector.on_probation:
            self.vector.end_probation(ended)
        return Step(
            frames=self._maker.of_batch(observations, masks),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            ended=ended,
            fake=fake,
            starts=starts,
            life_lost=life_lost,
            final_lanes=final_lanes,
            final_frames=final_frames,
            broken=broken,
        )

    def close(self) -> None:
        """Closes the environments."""
        self.vector.env.close()

    def _reset_lanes(self, lanes: np.ndarray, masks: np.ndarray | None) -> tuple[Any, np.ndarray | None]:
        """Begins an episode in lanes [N] bool; observations and masks [N, A] of all lanes."""
        observations, info = self.vector.env.reset(options={"reset_mask": lanes.copy()})
        self._lives = np.where(lanes, _lives(info, self._lives), self._lives)
        fresh = self._masks(info, terminal=self._nobody, lanes=lanes)
        if masks is not None and fresh is not None:
            masks = np.where(lanes[:, None], fresh, masks)
        return observations, masks

    def _lost_lives(self, info: dict[str, Any], ended: np.ndarray, fake: np.ndarray) -> np.ndarray:
        """[N] bool: lanes in which a life was lost in this step; keeps how many each has now."""
        before, self._lives = self._lives, _lives(info, self._lives)
        after = self._lives
        if self._mode is AutoresetMode.SAME_STEP and "final_info" in info:
            after = np.where(ended, _lives(info["final_info"], before), after)
        lost: np.ndarray = (after < before) & ~fake
        return lost

    def _masks(
        self, info: Mapping[str, Any], *, terminal: np.ndarray, lanes: np.ndarray | None = None
    ) -> np.ndarray | None:
        """[N, A] bool from info, None if spec has no mask; all ones in lanes that have none in info.

        terminal [N] bool: lanes whose frame terminated its episode; lanes [N] bool: those that must have a
        mask in info, None for all. Raises EnvError if one of them must act and is allowed no action.
        """
        if not self.spec.action_mask:
            return None
        masks = masks_of(info, self.num_envs, self.spec.num_actions)
        empty = ~masks.any(axis=1)
        if np.count_nonzero(empty):
            stuck = empty & ~terminal if lanes is None else empty & ~terminal & lanes
            if stuck.any():
                raise EnvError(
                    f"{self.vector.name} allows no action in lane {int(stuck.argmax())}, whose episode has "
                    "not terminated: info['action_mask'] is missing or all zero. Let it allow an action at "
                    "each reset and step, terminate the episode there, or set env.action_mask=false"
                )
            masks[empty] = True
        return masks


def _lives(info: dict[str, Any], before: np.ndarray) -> np.ndarray:
    """[N] lives of all lanes; as before in lanes that report none."""
    if "lives" not in info:
        return before
    lives = np.asarray(info["lives"])
    return np.where(info["_lives"], lives, before) if "_lives" in info else lives
