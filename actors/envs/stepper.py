"""Episode boundaries: one stream of steps whatever a vector environment's autoreset mode.

Owns resets, the three autoreset modes and restarts of what misbehaves; must not know of policies, rows or
blocks.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from actors.core import EnvRestart, EnvSpec
from actors.envs.errors import EnvError, EnvFailed
from actors.envs.guard import RESTART, Failure, Soundness, describe_workers, discard, is_finite, restart_seed
from actors.envs.observations import FrameMaker, masks_of, parts_of

SeedForm = Literal["list", "array", "int"]

# What begins and what ends a step of ALE's vector environment, and of gymnasium's AsyncVectorEnv.
_HALVES = (("send", "recv"), ("step_async", "step_wait"))
_PROVED_STEPS = 1_000
_logger = logging.getLogger(__name__)


# Not frozen: setting eleven frozen fields takes a tenth of the time of a step of CartPole's vector form.
@dataclass(eq=False, slots=True)
class Step:
    """What one vector step of N lanes brought.

    Every lane is a sequence of frames. Between two frames of one episode lies a real step. A new episode
    begins at `frames[lane]` where starts[lane]; the frame before it, the last of the old episode, is either
    the one that the step before returned (then this step was fake: the environment only reset) or
    the one in final_frames (then this step was real and the environment has reset within it).

    Attributes:
        frames: [N, *shape], what to act on next. Valid until the next step begins: copy what is kept.
        reward: [N], 0 where fake.
        terminated, truncated, ended: [N] bool, of this step; False where fake. ended is either of the two.
        fake: [N] bool, lanes in which this step was an autoreset and no transition.
        starts: [N] bool, lanes in which `frames` begins an episode.
        life_lost: [N] bool, lanes whose info["lives"] fell in this step; False where fake.
        final_lanes: [K] int, ascending; lanes that ended and reset within this step.
        final_frames: [K, *shape], their true last frames.
        broken: [N] bool, lanes whose environment misbehaved in this step and was made anew; None: no lane.
            There the step is fake and `frames` begins an episode, but the one before did not end: it broke
            off at the frame before, and nothing may be concluded from what would have followed.
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
    With spec.action_mask every frame allows an action: of a terminal one, on which nobody acts, an empty
    mask is stored as all ones.

    A lane that raises or returns what no frame can hold is made anew where lanes are guarded, else the whole
    vector environment is, and every lane's episode breaks off. What fails again before it has ended an
    episode (or made 1,000 steps) has a bug, not a mishap, and raises EnvFailed.
    """

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        spec: EnvSpec,
        seed_form: SeedForm,
        *,
        step_limit: int | None = None,
        name: str = "the environment",
        guarded: bool = False,
        remake: Callable[[], VectorEnv[Any, Any, Any]] | None = None,
    ) -> None:
        """seed_form: how env.reset takes a seed for each lane ("int": it takes one for all lanes).

        step_limit: env steps after which an episode is truncated, where env itself does not do so; env must
        then reset the lanes that options["reset_mask"] names. name: the environment's, for errors.
        guarded: its lanes are GuardedLanes. remake: makes env again; without it what the vector
        environment itself raises is raised on.
        """
        self.spec = spec
        self.num_envs = env.num_envs
        self._env = env
        self._mode = AutoresetMode(env.metadata["autoreset_mode"])
        self._seed_form = seed_form
        self._name = name
        self._maker = FrameMaker(parts_of(env.single_observation_space), spec)
        self._first_action = _first_value(env.single_action_space)
        self._halves = next((names for names in _HALVES if hasattr(env, names[0])), None)
        self._actions = np.zeros(0, np.int64)
        self._begin_error: Exception | None = None
        self._nobody = np.zeros(self.num_envs, dtype=np.bool_)
        self._no_lanes = np.zeros(0, dtype=np.int64)
        self._no_frames = np.zeros(0, dtype=spec.frame_dtype)
        self._ended = self._nobody
        self._step_limit = step_limit
        self._lengths = np.zeros(self.num_envs, np.int64)
        self._lives = np.zeros(self.num_envs, np.int64)
        self._guarded = guarded
        self._remake = remake
        self._soundness = Soundness(env.single_observation_space)
        self._seeds = np.zeros(self.num_envs, np.int64)
        self._remakes = 0
        self._steps = 0
        # Lanes made anew that have not ended an episode since, and after how many steps that was.
        self._unproved: dict[int, int] = {}
        self._restarts: list[EnvRestart] = []

    def reset(self, seeds: np.ndarray) -> np.ndarray:
        """Begins an episode in every lane: seeds [N] (non-negative, below 2^31) -> frames [N, *shape].

        A backend that cannot seed lanes one by one is seeded with the first.
        """
        if seeds.shape != (self.num_envs,):
            raise ValueError(f"{self.num_envs} lanes need as many seeds, not an array of shape {seeds.shape}")
        self._seeds, self._remakes = seeds.astype(np.int64), 0
        try:
            return self._begin(self._seeds)
        except (EnvError, EnvFailed):
            raise
        except Exception:
            if self._remake is None:
                raise
            return self._make_anew(self._raised())

    def step(self, actions: np.ndarray) -> Step:
        """One step of all lanes with actions [N] int64 (ignored in lanes whose step is an autoreset).

        Raises EnvFailed where something that was made anew fails again at once.
        """
        self.begin(actions)
        return self.finish()

    @property
    def asynchronous(self) -> bool:
        """Whether lanes step between `begin` and `finish`, in threads or processes of their own."""
        return self._halves is not None

    def begin(self, actions: np.ndarray) -> None:
        """The first half of `step`; `finish` must follow."""
        self._actions = actions + self._first_action if self._first_action else actions
        if self._halves is not None:
            try:
                getattr(self._env, self._halves[0])(self._actions)
            except Exception as error:  # noqa: BLE001 - whatever it is, `finish` tells it
                self._begin_error = error

    def finish(self) -> Step:
        """The second half of `step`; it raises what `begin` met, too."""
        self._steps += 1
        try:
            observations, reward, terminated, truncated, info = self._outcome()
        except (EnvError, EnvFailed):
            raise
        except Exception:
            if self._remake is None:
                raise
            return self._all_broken(self._raised())
        reward, terminated, truncated = np.asarray(reward), np.asarray(terminated), np.asarray(truncated)
        fake = starts = self._ended if self._mode is AutoresetMode.NEXT_STEP else self._nobody
        final_lanes, final_frames = self._no_lanes, self._no_frames

        if np.count_nonzero(fake):
            # Environments differ in what they leave here; it belongs to no transition.
            real = ~fake
            reward = np.where(fake, 0.0, reward)
            terminated = terminated & real
            truncated = truncated & real
        problems: dict[int, str] = {}
        if not self._soundness.is_plain(observations, reward):
            problems = self._soundness.problems(observations, reward)
        if problems and not self._guarded:
            return self._all_broken(_invalid(problems))
        broken = None
        if problems or RESTART in info:
            broken = self._broken(info, problems)
            fake = starts = fake | broken
            reward = np.where(broken, 0.0, reward)
            terminated, truncated = terminated & ~broken, truncated & ~broken
        resets = self._nobody  # lanes to reset here and now
        if self._step_limit is not None:
            self._lengths += 1
            resets = (self._lengths >= self._step_limit) & ~(terminated | truncated | fake)
            truncated = truncated | resets
            self._lengths[truncated | terminated | fake] = 0
        ended = terminated | truncated
        life_lost = self._lost_lives(info, ended, fake)
        if self._mode is AutoresetMode.SAME_STEP:
            masks = self._masks(info, terminal=self._nobody)
            if np.count_nonzero(ended):
                starts = ended
                final_lanes = ended.nonzero()[0]
                final_masks = self._masks(info.get("final_info", {}), terminal=terminated, lanes=ended)
                finals = [info["final_obs"][lane] for lane in final_lanes]
                final_frames = self._maker.of_list(finals, _of_lanes(final_masks, final_lanes))
                if not is_finite(final_frames):
                    description = "An environment returned a final observation that is not finite"
                    return self._all_broken(Failure("invalid", description))
        else:
            masks = self._masks(info, terminal=terminated)
            if self._mode is AutoresetMode.DISABLED:
                resets = ended
            if np.count_nonzero(resets):
                starts = starts | resets
                final_lanes = resets.nonzero()[0]
                # Fancy indexing copies, and must: the reset may write into the same buffer.
                final_frames = self._maker.of_batch(observations, _of_lanes(masks, final_lanes), final_lanes)
                observations, masks = self._reset_lanes(resets, masks, {})
        if problems:
            observations, masks = self._reset_lanes(_lanes(problems, self.num_envs), masks, {RESTART: True})
            self._require_sound(observations)
        self._ended = ended if resets is self._nobody else ended & ~resets
        if self._unproved and np.count_nonzero(ended):
            self._unproved = {lane: at for lane, at in self._unproved.items() if not ended[lane]}
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

    def take_restarts(self) -> tuple[EnvRestart, ...]:
        """What was made anew since the last call."""
        restarts = tuple(self._restarts)
        self._restarts.clear()
        return restarts

    def close(self) -> None:
        """Closes the environments."""
        self._env.close()

    def _begin(self, seeds: np.ndarray) -> np.ndarray:
        """See reset."""
        seed: Any
        if self._seed_form == "list":
            seed = seeds.tolist()
        elif self._seed_form == "array":
            seed = seeds
        else:
            seed = int(seeds[0])
        observations, info = self._env.reset(seed=seed)
        self._ended = self._nobody
        self._lengths[:] = 0
        self._lives = _lives(info, np.zeros(self.num_envs, np.int64))
        masks = self._masks(info, terminal=self._nobody)
        problems = self._soundness.problems(observations)
        if problems and not self._guarded:
            return self._make_anew(_invalid(problems))
        if problems or RESTART in info:
            self._broken(info, problems)
        if problems:
            observations, masks = self._reset_lanes(_lanes(problems, self.num_envs), masks, {RESTART: True})
            self._require_sound(observations)
        return self._maker.of_batch(observations, masks)

    def _outcome(self) -> tuple[Any, ...]:
        """What VectorEnv.step returns of the step that was begun."""
        if self._halves is None:
            return self._env.step(self._actions)
        if self._begin_error is not None:
            error, self._begin_error = self._begin_error, None
            raise error
        outcome: tuple[Any, ...] = getattr(self._env, self._halves[1])()
        return outcome

    def _raised(self) -> Failure:
        """What the vector environment itself raises just now."""
        return Failure(
            "raise", "\n".join(filter(None, (traceback.format_exc(), describe_workers(self._env))))
        )

    def _broken(self, info: Mapping[str, Any], problems: Mapping[int, str]) -> np.ndarray:
        """[N] bool: lanes that info says were made anew, and those with problems, which are to be."""
        broken = np.zeros(self.num_envs, np.bool_)
        if RESTART in info:
            broken |= info[f"_{RESTART}"]
        for lane in broken.nonzero()[0].tolist():
            self._count(info[RESTART][lane], lane)
        for lane, description in problems.items():
            self._count(Failure("invalid", description), lane)
            broken[lane] = True
        return broken

    def _count(self, failure: Failure, lane: int | None) -> None:
        """Takes down that a lane is made anew, or all together (None).

        Raises EnvFailed where that happened shortly before.
        """
        lanes = range(self.num_envs) if lane is None else (lane,)
        before = [self._unproved.get(each, -_PROVED_STEPS) for each in lanes]
        if all(self._steps - at < _PROVED_STEPS for at in before):
            which = "All were" if lane is None else f"Environment {lane} was"
            raise EnvFailed(
                f"{failure.description}\n{which} made anew {self._steps - max(before)} steps before."
            )
        self._unproved.update(dict.fromkeys(lanes, self._steps))
        self._restarts.append(EnvRestart(failure.cause, lane, failure.description))
        _logger.warning(
            "%s: %s made anew: %s",
            self._name,
            "all lanes are" if lane is None else f"lane {lane} is",
            failure.description,
        )

    def _make_anew(self, failure: Failure) -> np.ndarray:
        """Replaces the whole vector environment; the first frames [N, *shape] of the new one."""
        if self._remake is None:
            raise EnvFailed(failure.description)
        self._count(failure, None)
        discard(self._env)
        self._env = self._remake()
        self._remakes += 1
        seeds = [restart_seed(seed, self._remakes) for seed in self._seeds.tolist()]
        return self._begin(np.array(seeds, np.int64))

    def _all_broken(self, failure: Failure) -> Step:
        frames = self._make_anew(failure)
        everybody = np.ones(self.num_envs, np.bool_)
        return Step(
            frames=frames,
            reward=np.zeros(self.num_envs),
            terminated=self._nobody,
            truncated=self._nobody,
            ended=self._nobody,
            fake=everybody,
            starts=everybody,
            life_lost=self._nobody,
            final_lanes=self._no_lanes,
            final_frames=self._no_frames,
            broken=everybody,
        )

    def _require_sound(self, observations: Any) -> None:
        """Raises EnvFailed where something is wrong with what was made anew just now."""
        problems = self._soundness.problems(observations)
        if problems:
            raise EnvFailed(f"{_invalid(problems).description}\nIt had been made anew just before.")

    def _reset_lanes(
        self, lanes: np.ndarray, masks: np.ndarray | None, options: Mapping[str, Any]
    ) -> tuple[Any, np.ndarray | None]:
        """Begins an episode in lanes [N] bool; observations and masks [N, A] of all lanes."""
        observations, info = self._env.reset(options={"reset_mask": lanes.copy(), **options})
        self._lives = np.where(lanes, _lives(info, self._lives), self._lives)
        fresh = self._masks(info, terminal=self._nobody, lanes=lanes)
        if masks is not None and fresh is not None:
            masks = np.where(lanes[:, None], fresh, masks)
        return observations, masks

    def _lost_lives(self, info: dict[str, Any], ended: np.ndarray, fake: np.ndarray) -> np.ndarray:
        """[N] bool: lanes in which a life was lost in this step; keeps how many each has now."""
        if "lives" not in info:
            return self._nobody
        before, self._lives = self._lives, _lives(info, self._lives)
        after = self._lives
        if self._mode is AutoresetMode.SAME_STEP and "final_info" in info:
            after = np.where(ended, _lives(info["final_info"], before), after)
        lost: np.ndarray = (after < before) & ~fake
        return lost

    def _masks(
        self, info: Mapping[str, Any], *, terminal: np.ndarray, lanes: np.ndarray | None = None
    ) -> np.ndarray | None:
        """[N, A] bool of info, None where spec has no mask; of lanes that it does not speak of, all ones.

        terminal [N] bool: lanes whose frame terminated its episode; lanes [N] bool: those that info must
        speak of, None for all. Raises EnvError where one of them is left no action and must act.
        """
        if not self.spec.action_mask:
            return None
        masks = masks_of(info, self.num_envs, self.spec.num_actions)
        empty = ~masks.any(axis=1)
        if np.count_nonzero(empty):
            stuck = empty & ~terminal if lanes is None else empty & ~terminal & lanes
            if stuck.any():
                raise EnvError(
                    f"{self._name} allows no action in lane {int(stuck.argmax())}, whose episode has not "
                    "terminated: info['action_mask'] is missing or all zero. Let it allow one at each reset "
                    "and step, terminate the episode there, or set env.action_mask=false"
                )
            masks[empty] = True
        return masks


def _invalid(problems: Mapping[int, str]) -> Failure:
    lane, description = next(iter(problems.items()))
    return Failure("invalid", f"Environment {lane}: {description}")


def _lanes(chosen: Iterable[int], num_envs: int) -> np.ndarray:
    """[N] bool."""
    lanes = np.zeros(num_envs, np.bool_)
    lanes[list(chosen)] = True
    return lanes


def _of_lanes(masks: np.ndarray | None, lanes: np.ndarray) -> np.ndarray | None:
    """The masks [K, A] of lanes [K]."""
    return None if masks is None else masks[lanes]


def _lives(info: dict[str, Any], before: np.ndarray) -> np.ndarray:
    """[N] lives of all lanes; as before in those that report none."""
    if "lives" not in info:
        return before
    lives = np.asarray(info["lives"])
    return np.where(info["_lives"], lives, before) if "_lives" in info else lives


def _first_value(space: spaces.Space[Any]) -> int:
    return int(space.start) if isinstance(space, spaces.Discrete) else 0
