"""The rollout loop of one environment actor.

Owns one actor's environments, exploration and counters; must not know where blocks go or who asks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import pairwise
from time import perf_counter

import numpy as np

from actors.block_builder import BlockBuilder
from actors.config import ActorsConfig, EnvConfig
from actors.core import BlockSink, Policy, RolloutReport
from actors.envs.frame_stack import FrameStack
from actors.envs.make import lane_seeds, make_vector
from actors.envs.observations import masked, split
from actors.envs.stepper import VectorStepper
from actors.episodes import EpisodeLedger
from actors.exploration import Exploration, ladder_epsilons, linear_epsilon
from replay_service.block import TransitionBlock

_MAX_GROUPS = 4
_GROUP_LANES = 4
"""At least, where lanes overlap in more than two groups. With two, somebody waits for nothing whenever three
threads want two cores: 16 lanes of Atari with the Nature CNN made 2,580 steps a second on two cores, in three
groups 2,820, in four 2,900."""


@dataclass(eq=False)
class _Group:
    """Lanes that act at once, and what the policy said for the step that they are in."""

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
    ) -> None:
        """actor counts from 0 to num_actors - 1; config.envs_per_actor must be set. env_threads: see
        make_vector; groups of lanes share them, each has one at least.

        overlap: where environments step in threads or processes of their own, some groups of lanes do so
        while the policy answers another. It pays where a core is free for them and the policy takes about as
        long as they do; which rows are made does not depend on it.

        Raises ValueError where it is not, and EnvError.
        """
        if config.envs_per_actor is None:
            raise ValueError("actors.envs_per_actor is not set")
        self._config = config
        self._policy = policy
        self._sink = sink
        self._actor = actor
        self._incarnation = incarnation
        self._num_lanes = config.envs_per_actor
        self._ladder: np.ndarray | None = None
        self.take_place(actor, num_actors)
        self._loaded = False
        self._groups = _groups(env, self._num_lanes, env_threads, overlap)
        self.spec = self._groups[0].stepper.spec
        self._builder = BlockBuilder(
            self.spec.block_schema(config.n_step),
            self._num_lanes,
            self.spec.num_actions,
            config.discount,
            actor,
            incarnation,
            reward_clip=config.reward_clip,
            life_loss_ends_episode=config.life_loss_ends_episode,
        )
        self.reset(seed)

    def reset(self, seed: np.random.SeedSequence) -> None:
        """Begins new episodes and a new random stream from seed; pending rows and open episodes are dropped.

        Everything but the weights is then as after construction with this seed: a consistent cut.
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
        # Which lanes show the first observation of an episode.
        self._begin = np.ones(self._num_lanes, np.bool_)
        self._ended_at = perf_counter()

    def take_place(self, rank: int, num_actors: int) -> None:
        """From now on this is the rank-th of so many actors, over all of whose lanes the ladder is spread."""
        if self._config.epsilon_ladder is not None:
            ladder = ladder_epsilons(self._config.epsilon_ladder, num_actors * self._num_lanes)
            self._ladder = ladder[rank * self._num_lanes : (rank + 1) * self._num_lanes]

    def rollout(
        self, steps: int, version: int, flat_weights: np.ndarray | None, global_env_steps: int
    ) -> RolloutReport:
        """Acts for `steps` vector steps, then pushes what rows are complete as one block.

        flat_weights belong to `version`; None keeps those loaded. Before the first weights every action is
        uniformly random. global_env_steps counts all actors' env steps and decides epsilon for the chunk.

        Raises EnvFailed where an environment fails again just after it was made anew.
        """
        called = perf_counter()
        if flat_weights is not None:
            self._policy.load(flat_weights)
            self._loaded = True
        epsilon = self._epsilon(global_env_steps)
        exploration = Exploration(steps, self._num_lanes, self.spec.num_actions, epsilon, self._rng)
        no_q = np.zeros((self._num_lanes, self.spec.num_actions), np.float32)
        finals: list[np.ndarray] = []
        env_seconds = build_seconds = 0.0
        self._builder.begin(steps, version)

        now = perf_counter()
        act_seconds = now - called  # acting begins with the weights
        for t in range(steps + 1):
            for group in self._groups:
                if t > 0:
                    step = group.stepper.finish()
                    stepped = perf_counter()
                    env_seconds += stepped - now
                    self._builder.add(t - 1, group.actions, group.q, step, group.lanes)
                    if len(step.final_lanes):
                        finals.append(group.stack.followed_by(step.final_frames, step.final_lanes))
                    group.stack.push(step.frames, step.starts)
                    now = perf_counter()
                    build_seconds += now - stepped
                if t < steps:
                    observations, allowed = split(group.stack.observations)
                    q = self._policy.q_values(observations) if self._loaded else no_q[group.lanes]
                    group.q = masked(q, allowed)
                    group.actions = exploration.actions(t, group.q, allowed, group.lanes)
                    acted = perf_counter()
                    act_seconds += acted - now
                    group.stepper.begin(group.actions)
                    now = perf_counter()
                    env_seconds += now - acted

        chunk = self._builder.chunk()
        self._episodes.add(chunk.reward, chunk.ended, chunk.starts)
        begin = np.concatenate([self._begin[None], chunk.starts])
        self._begin = begin[-1]
        start_values = chunk.q.max(axis=1)[begin[:-1]].tolist() if self._loaded else []
        counted = perf_counter()
        final_values = self._values(finals)
        acted = perf_counter()
        block = self._builder.build(final_values)
        built = perf_counter()
        if block is not None:
            self._sink.push(block)
        pushed = perf_counter()
        env_steps = int(np.count_nonzero(chunk.real))
        self._env_steps_since += env_steps
        returns, lengths = self._episodes.take_ended()
        idle_seconds = called - self._ended_at
        action_counts, reward_abs_sum, reward_abs_max = _summary(block, self.spec.num_actions)
        self._ended_at = perf_counter()
        return RolloutReport(
            actor=self._actor,
            incarnation=self._incarnation,
            version=version,
            env_steps=env_steps,
            transitions_pushed=0 if block is None else block.num_transitions,
            episode_returns=returns,
            episode_lengths=lengths,
            epsilon=float(np.mean(epsilon)),
            seconds={
                "act": act_seconds + acted - counted,
                "env": env_seconds,
                "build": build_seconds + counted - now + built - acted,
                "push": pushed - built,
                "idle": idle_seconds,
            },
            statuses=self._sink.statuses(),
            start_values=tuple(start_values),
            action_counts=action_counts,
            reward_abs_sum=reward_abs_sum,
            reward_abs_max=reward_abs_max,
            env_restarts=tuple(
                restart if restart.lane is None else replace(restart, lane=restart.lane + group.lanes.start)
                for group in self._groups
                for restart in group.stepper.take_restarts()
            ),
        )

    def close(self) -> None:
        """Closes the environments."""
        for group in self._groups:
            group.stepper.close()

    def _epsilon(self, global_env_steps: int) -> float | np.ndarray:
        """One epsilon, or one for each lane [N]."""
        if global_env_steps != self._global_env_steps:
            self._global_env_steps = global_env_steps
            self._env_steps_since = 0
        if not self._loaded:
            return 1.0
        if self._ladder is not None:
            return self._ladder
        # The caller's figure may be old; at least this actor's own steps since then are known.
        return linear_epsilon(self._config, global_env_steps + self._env_steps_since)

    def _values(self, finals: list[np.ndarray]) -> np.ndarray:
        """Max Q [K] of the final observations, in one forward pass."""
        count = sum(map(len, finals))
        if not count or not self._loaded:
            return np.zeros(count, np.float32)
        observations, allowed = split(np.concatenate(finals))
        values: np.ndarray = masked(self._policy.q_values(observations), allowed).max(axis=1)
        return values


def _groups(env: EnvConfig, num_lanes: int, env_threads: int, overlap: bool) -> list[_Group]:
    """Groups of lanes to overlap where the environments can, else one group."""
    count = max(min(_MAX_GROUPS, num_lanes // _GROUP_LANES), min(2, num_lanes)) if overlap else 1
    # The first groups take what is left over: of three asynchronous lanes one alone would have no process.
    lane_edges = [-(-num_lanes * group // count) for group in range(count + 1)]
    thread_edges = [-(-env_threads * group // count) for group in range(count + 1)]
    groups: list[_Group] = []
    for (first, end), (before, after) in zip(pairwise(lane_edges), pairwise(thread_edges), strict=True):
        stepper = make_vector(env, end - first, max(1, after - before))
        if count > 1 and not stepper.asynchronous:
            stepper.close()
            return _groups(env, num_lanes, env_threads, overlap=False)
        groups.append(_Group(slice(first, end), stepper))
    return groups


def _summary(block: TransitionBlock | None, num_actions: int) -> tuple[tuple[int, ...], float, float]:
    """How often each action was taken [A], and sum and maximum of the absolute rewards, of a block's rows."""
    if block is None:
        return (0,) * num_actions, 0.0, 0.0
    rewards = np.abs(block.one_step_reward)
    counts = np.bincount(block.action, minlength=num_actions).tolist()
    return tuple(counts), float(rewards.sum()), float(rewards.max())


def _child(seed: np.random.SeedSequence, index: int) -> np.random.SeedSequence:
    """The index-th child, as `spawn` makes it, without changing the parent."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index), pool_size=seed.pool_size)
