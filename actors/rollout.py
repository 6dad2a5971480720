"""The rollout loop of one environment actor.

Owns one actor's environments, exploration and counters; must not know where blocks go or who asks for them.
"""

import math
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from actors.block_builder import BlockBuilder, ChunkSteps
from actors.config import ActorsConfig, EnvConfig
from actors.core import BlockSink, BoundsReport, Policy, RolloutReport
from actors.envs.frame_stack import FrameStack
from actors.envs.make import lane_seeds, make_vector
from actors.envs.observations import masked, split
from actors.envs.stepper import VectorStepper
from actors.episodes import EpisodeLedger
from actors.exploration import Exploration, ladder_epsilons, linear_epsilon
from actors.soft_values import GREEDY, Values
from replay_service.block import TransitionBlock
from replay_service.phase_timer import PhaseTimer

_MAX_GROUPS = 3
_GROUP_LANES = 5
"""The fewest lanes per group if there are more than two groups. With only two, a core is idle whenever the
next group is not ready; with four, the network answers fewer lanes at once. 16 lanes of Atari with the Nature
CNN made 2,580 steps a second in two groups, 2,820 in three and 2,900 in four on a Zen 5; 1,160, 1,210 and
1,110 on a Zen 3."""


@dataclass(eq=False)
class _Group:
    """Lanes that act together, with the Q-values and actions of their current step."""

    lanes: slice
    stepper: VectorStepper
    stack: FrameStack = field(init=False)
    q: np.ndarray = field(init=False)
    actions: np.ndarray = field(init=False)


class EnvActor:
    """Steps envs_per_actor lanes with an epsilon-greedy policy and pushes one block per chunk."""

    def __init__(
        self,
        env: EnvConfig,
        config: ActorsConfig,
        *,
        policy: Policy,
        sink: BlockSink,
        actor: int,
        incarnation: int,
        num_actors: int,
        seed: np.random.SeedSequence,
        env_threads: int = 1,
        overlap: bool = False,
        values: Values = GREEDY,
    ) -> None:
        """actor counts from 0 to num_actors - 1; config.envs_per_actor must be set. env_threads: see
        make_vector; groups of lanes share them, each has at least one.

        overlap: while the policy computes Q-values for one group of lanes, the other groups step, if
        environments step in threads or processes of their own. This is faster if a core is free for them and
        the policy takes about as long as they do; it does not change the transitions. values: see
        BlockBuilder.

        Raises ValueError if config.envs_per_actor is not set, and EnvError.
        """
        if config.envs_per_actor is None:
            raise ValueError("actors.envs_per_actor is not set")
        self._config = config
        self._policy = policy
        self._state_values = values.state_values
        self._sink = sink
        self._actor = actor
        self._incarnation = incarnation
        self._num_lanes = config.envs_per_actor
        self._ladder: np.ndarray | None = None
        self.set_rank(actor, num_actors)
        self._loaded = False  # whether the policy has weights
        self._groups = _groups(env, self._num_lanes, env_threads, overlap)
        self.spec = self._groups[0].stepper.spec
        self._no_q = np.zeros((self._num_lanes, self.spec.num_actions), np.float32)
        with ExitStack() as unless_made:
            unless_made.callback(self.close)
            self._builder = BlockBuilder(
                self.spec.block_schema(config.n_step or 1),
                self._num_lanes,
                self.spec.num_actions,
                config.discount,
                reward_clip=config.reward_clip,
                life_loss_ends_episode=config.life_loss_ends_episode,
                values=values,
            )
            self.reset(seed)
            unless_made.pop_all()

    def reset(self, seed: np.random.SeedSequence) -> None:
        """Begins new episodes and a new random stream from seed; drops pending transitions and open episodes.

        Everything but the weights is then as after construction with this seed, as a checkpoint needs it.
        """
        seeds = lane_seeds(_child(seed, 0), self._num_lanes)
        frames = []
        for group in self._groups:
            frames.append(group.stepper.reset(seeds[group.lanes]))
            group.stack = FrameStack(self.spec.stack, frames[-1])
        self._rng = np.random.default_rng(_child(seed, 1))
        self._builder.reset(np.concatenate(frames))
        self._episodes = EpisodeLedger(self._num_lanes)
        self._global_env_steps = 0
        self._env_steps_since = 0
        # Lanes that show the first observation of an episode.
        self._starts = np.ones(self._num_lanes, np.bool_)
        self._timer = PhaseTimer("idle", "act", "env", "build", "push")

    def set_rank(self, rank: int, num_actors: int) -> None:
        """Makes this actor number `rank` of num_actors; the epsilon ladder spans the lanes of all of them."""
        if self._config.epsilon_ladder is not None:
            ladder = ladder_epsilons(self._config.epsilon_ladder, num_actors * self._num_lanes)
            self._ladder = ladder[rank * self._num_lanes : (rank + 1) * self._num_lanes]

    def rollout(
        self,
        steps: int,
        version: int,
        flat_weights: np.ndarray | None,
        global_env_steps: int,
        seconds: float = math.inf,
    ) -> RolloutReport:
        """Acts for `steps` vector steps, then pushes all complete transitions as one block.

        After `seconds` it ends the chunk with the step that it is at.

        flat_weights belong to `version`; None keeps those loaded. Before the first weights every action is
        uniformly random. global_env_steps counts all actors' env steps and decides epsilon for the chunk.

        Raises EnvFailed if an environment fails again just after it was restarted.
        """
        self._timer.enter("act")
        if flat_weights is not None:
            self._policy.load(flat_weights)
            self._loaded = True
        epsilon = self._epsilon(global_env_steps)
        exploration = Exploration(
            steps,
            self._num_lanes,
            self.spec.num_actions,
            epsilon,
            self._rng,
            breaks_ties=self.spec.num_states is not None,
        )
        self._builder.begin(steps, version, valued=self._loaded)
        final_observations: list[np.ndarray] = []
        for group in self._groups:
            self._begin_step(group, 0, exploration)
        deadline = time.monotonic() + seconds
        for t in range(steps):
            is_last = t + 1 == steps or time.monotonic() >= deadline
            # While one group is served here, the others step.
            for group in self._groups:
                self._timer.enter("env")
                step = group.stepper.finish()
                self._timer.enter("build")
                self._builder.add(t, group.actions, group.q, step, group.lanes)
                if len(step.final_lanes):
                    final_observations.append(group.stack.followed_by(step.final_frames, step.final_lanes))
                group.stack.push(step.frames, step.starts)
                if not is_last:
                    self._begin_step(group, t + 1, exploration)
            if is_last:
                self._builder.end(t + 1)
                break
        chunk = self._builder.chunk()
        self._episodes.add(chunk.reward, chunk.ended, chunk.starts)
        env_steps = int(np.count_nonzero(chunk.real))
        self._env_steps_since += env_steps
        start_values = self._start_values(chunk)
        self._timer.enter("act")
        final_values = self._values(final_observations)
        self._timer.enter("build")
        block = self._builder.build(final_values)
        if block is not None:
            self._timer.enter("push")
            self._sink.push(block)
            self._timer.enter("build")
        return self._report(version, epsilon, env_steps, start_values, block)

    def close(self) -> None:
        """Closes the environments, all of them even if one raises."""
        with ExitStack() as closing:
            for group in self._groups:
                closing.callback(group.stepper.close)

    def _epsilon(self, global_env_steps: int) -> float | np.ndarray:
        """One epsilon, or one for each lane [N]."""
        if global_env_steps != self._global_env_steps:
            self._global_env_steps = global_env_steps
            self._env_steps_since = 0
        if not self._loaded:
            return 1.0
        if self._ladder is not None:
            return self._ladder
        # The caller's number may be old; this actor at least knows its own steps since then.
        return linear_epsilon(self._config, global_env_steps + self._env_steps_since)

    def _begin_step(self, group: _Group, t: int, exploration: Exploration) -> None:
        """Chooses a group's actions for the chunk's t-th step, and begins it."""
        self._timer.enter("act")
        observations, allowed = split(group.stack.observations)
        q = self._policy.q_values(observations) if self._loaded else self._no_q[group.lanes]
        group.q = masked(q, allowed)
        group.actions = exploration.actions(t, group.q, allowed, group.lanes)
        self._timer.enter("env")
        group.stepper.begin(group.actions)

    def _start_values(self, chunk: ChunkSteps) -> tuple[float, ...]:
        """Max Q of each frame that begins an episode; none before the first weights."""
        starts = np.concatenate([self._starts[None], chunk.starts])
        self._starts = starts[-1]
        return tuple(chunk.q.max(axis=1)[starts[:-1]].tolist()) if self._loaded else ()

    def _values(self, final_observations: list[np.ndarray]) -> np.ndarray:
        """Values [K] of the final observations, in one forward pass."""
        count = sum(map(len, final_observations))
        if not count or not self._loaded:
            return np.zeros(count, np.float32)
        observations, allowed = split(np.concatenate(final_observations))
        return self._state_values(masked(self._policy.q_values(observations), allowed))

    def _report(
        self,
        version: int,
        epsilon: float | np.ndarray,
        env_steps: int,
        start_values: tuple[float, ...],
        block: TransitionBlock | None,
    ) -> RolloutReport:
        """The report that ends a chunk; from here on the actor is idle."""
        returns, lengths = self._episodes.take_ended()
        action_counts, reward_abs_sum, reward_abs_max = _summary(block, self.spec.num_actions)
        self._timer.enter("idle")
        return RolloutReport(
            actor=self._actor,
            incarnation=self._incarnation,
            version=version,
            env_steps=env_steps,
            transitions_pushed=sum(action_counts),
            episode_returns=returns,
            episode_lengths=lengths,
            epsilon=float(np.mean(epsilon)),
            seconds=self._timer.take(),
            statuses=self._sink.statuses(),
            start_values=start_values,
            action_counts=action_counts,
            reward_abs_sum=reward_abs_sum,
            reward_abs_max=reward_abs_max,
            env_restarts=tuple(
                restart if restart.lane is None else replace(restart, lane=restart.lane + group.lanes.start)
                for group in self._groups
                for restart in group.stepper.vector.take_restarts()
            ),
            longest_open_steps=self._episodes.longest_open_steps,
            bounds=sum((group.stepper.vector.take_bounds() for group in self._groups), BoundsReport()),
        )


def _groups(env: EnvConfig, num_lanes: int, env_threads: int, overlap: bool) -> list[_Group]:
    """Groups of lanes that overlap if the environments can, else one group."""
    count = max(min(_MAX_GROUPS, num_lanes // _GROUP_LANES), min(2, num_lanes)) if overlap else 1
    # The first groups take the remainder: of three asynchronous lanes one alone would have no process.
    lane_edges = [-(-num_lanes * group // count) for group in range(count + 1)]
    thread_edges = [-(-env_threads * group // count) for group in range(count + 1)]
    with ExitStack() as unless_kept:
        groups: list[_Group] = []
        for (first, end), (before, after) in zip(pairwise(lane_edges), pairwise(thread_edges), strict=True):
            stepper = make_vector(env, end - first, max(1, after - before))
            unless_kept.callback(stepper.close)
            if count > 1 and not stepper.asynchronous:
                break
            groups.append(_Group(slice(first, end), stepper))
        else:
            unless_kept.pop_all()
            return groups
    return _groups(env, num_lanes, env_threads, overlap=False)


def _summary(block: TransitionBlock | None, num_actions: int) -> tuple[tuple[int, ...], float, float]:
    """How often a block's transitions took each action [A]; sum and maximum of their absolute rewards."""
    if block is None:
        return (0,) * num_actions, 0.0, 0.0
    rewards = np.abs(block.one_step_reward)
    counts = np.bincount(block.action, minlength=num_actions).tolist()
    return tuple(counts), float(rewards.sum()), float(rewards.max())


def _child(seed: np.random.SeedSequence, index: int) -> np.random.SeedSequence:
    """The index-th child, as `spawn` makes it, without changing the parent."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index), pool_size=seed.pool_size)
