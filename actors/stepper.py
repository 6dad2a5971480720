"""Episode boundaries: one stream of steps whatever a vector environment's autoreset mode.

Owns resets and the three autoreset modes; must not know of policies, rows or blocks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from actors.core import EnvSpec

SeedForm = Literal["list", "array", "int"]


@dataclass(frozen=True, eq=False)
class Step:
    """What one vector step of N lanes brought.

    Every lane is a sequence of frames. Between two frames of one episode lies a real step. A new episode
    begins at `frames[lane]` where starts[lane]; the frame before it, the last of the old episode, is either
    the one that the step before returned (then this step was fake: the environment only reset) or
    the one in final_frames (then this step was real and the environment has reset within it).

    Attributes:
        frames: [N, *shape], what to act on next. Valid until the next step: copy what is kept.
        reward: [N], 0 where fake.
        terminated, truncated, ended: [N] bool, of this step; False where fake. ended is either of the two.
        fake: [N] bool, lanes in which this step was an autoreset and no transition.
        starts: [N] bool, lanes in which `frames` begins an episode.
        final_lanes: [K] int, ascending; lanes that ended and reset within this step.
        final_frames: [K, *shape], their true last frames.
    """

    frames: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    ended: np.ndarray
    fake: np.ndarray
    starts: np.ndarray
    final_lanes: np.ndarray
    final_frames: np.ndarray


class VectorStepper:
    """Steps a vector environment and delivers frames of spec's shape and dtype; see `Step`.

    Actions are 0 to A-1 and Discrete observations 0 to S-1, whatever the spaces' own first values are.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], spec: EnvSpec, seed_form: SeedForm) -> None:
        """seed_form: how env.reset takes a seed for each lane ("int": it takes one for all lanes)."""
        self.spec = spec
        self.num_envs = env.num_envs
        self._env = env
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._seed_form = seed_form
        self._dtype = np.dtype(spec.observation_dtype)
        self._shape = (self.num_envs, *spec.observation_shape)
        self._first_state = _first_value(env.single_observation_space)
        self._first_action = _first_value(env.single_action_space)
        self._nobody = np.zeros(self.num_envs, dtype=np.bool_)
        self._no_lanes = np.zeros(0, dtype=np.int64)
        self._no_frames = np.zeros((0, *spec.observation_shape), dtype=self._dtype)
        self._ended = self._nobody

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begins an episode in every lane: seeds [N] (non-negative, below 2^31) -> frames [N, *shape].

        A backend that cannot seed lanes one by one is seeded with the first.
        """
        if seeds.shape != (self.num_envs,):
            raise ValueError(f"{self.num_envs} lanes need as many seeds, not an array of shape {seeds.shape}")
        seed: Any
        if self._seed_form == "list":
            seed = seeds.tolist()
        elif self._seed_form == "array":
            seed = seeds.astype(np.int64)
        else:
            seed = int(seeds[0])
        observations, _ = self._env.reset(seed=seed)
        self._ended = self._nobody
        return self._frames(observations)

    def step(self, actions: np.ndarray) -> Step:
        """One step of all lanes with actions [N] int64 (ignored in lanes whose step is an autoreset)."""
        if self._first_action:
            actions = actions + self._first_action
        observations, reward, terminated, truncated, info = self._env.step(actions)
        reward, terminated, truncated = np.asarray(reward), np.asarray(terminated), np.asarray(truncated)
        fake = self._nobody
        starts = self._nobody
        final_lanes, final_frames = self._no_lanes, self._no_frames

        if self._mode is AutoresetMode.NEXT_STEP:
            fake = starts = self._ended
            if np.count_nonzero(fake):
                # Environments differ in what they leave here; it belongs to no transition.
                reward = np.where(fake, 0.0, reward)
                terminated = terminated & ~fake
                truncated = truncated & ~fake
        ended = terminated | truncated
        if self._mode is not AutoresetMode.NEXT_STEP and np.count_nonzero(ended):
            starts = ended
            final_lanes = ended.nonzero()[0]
            if self._mode is AutoresetMode.SAME_STEP:
                final = info["final_obs"]
                final_frames = self._converted(np.stack([np.asarray(final[lane]) for lane in final_lanes]))
            else:
                # Fancy indexing copies, and must: the reset may write into the same buffer.
                final_frames = self._converted(np.asarray(observations)[final_lanes])
                observations, _ = self._env.reset(options={"reset_mask": ended.copy()})
        self._ended = ended
        return Step(
            frames=self._frames(observations),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            ended=ended,
            fake=fake,
            starts=starts,
            final_lanes=final_lanes,
            final_frames=final_frames,
        )

    def close(self) -> None:
        """Closes the environments."""
        self._env.close()

    def _frames(self, observations: Any) -> np.ndarray:
        return self._converted(np.asarray(observations))

    def _converted(self, observations: np.ndarray) -> np.ndarray:
        """[K, ...] of the environment -> [K, *shape] frames."""
        if self._first_state:
            observations = observations - self._first_state
        return observations.astype(self._dtype, copy=False).reshape(-1, *self._shape[1:])


def _first_value(space: spaces.Space[Any]) -> int:
    return int(space.start) if isinstance(space, spaces.Discrete) else 0
