"""The rollout loop of one environment actor.

Owns one actor's environments, exploration and counters; must not know where blocks go or who asks.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from actors.block_builder import BlockBuilder
from actors.config import ActorsConfig, EnvConfig
from actors.core import BlockSink, Policy, RolloutReport
from actors.envs import lane_seeds, make_vector
from actors.episodes import EpisodeLedger
from actors.exploration import epsilon_greedy, ladder_epsilons, linear_epsilon
from actors.frame_stack import FrameStack


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
    ) -> None:
        """actor counts from 0 to num_actors - 1; config.envs_per_actor must be set.

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
        if config.epsilon_ladder is not None:
            ladder = ladder_epsilons(config.epsilon_ladder, num_actors * self._num_lanes)
            self._ladder = ladder[actor * self._num_lanes : (actor + 1) * self._num_lanes]
        self._loaded = False
        self._stepper = make_vector(env, self._num_lanes)
        self.spec = self._stepper.spec
        self._builder = BlockBuilder(
            self.spec.block_schema(config.n_step),
            self._num_lanes,
            self.spec.num_actions,
            config.discount,
            actor,
            incarnation,
        )
        self.reset(seed)

    def reset(self, seed: np.random.SeedSequence) -> None:
        """Begins new episodes and a new random stream from seed; pending rows and open episodes are dropped.

        Everything but the weights is then as after construction with this seed: a consistent cut.
        """
        frames = self._stepper.reset(lane_seeds(_child(seed, 0), self._num_lanes))
        self._rng = np.random.default_rng(_child(seed, 1))
        self._stack = FrameStack(self.spec.stack, frames)
        self._builder.reset(frames)
        self._episodes = EpisodeLedger(self._num_lanes)
        self._global_env_steps = 0
        self._env_steps_since = 0

    def rollout(
        self, steps: int, version: int, flat_weights: np.ndarray | None, global_env_steps: int
    ) -> RolloutReport:
        """Acts for `steps` vector steps, then pushes what rows are complete as one block.

        flat_weights belong to `version`; None keeps those loaded. Before the first weights every action is
        uniformly random. global_env_steps counts all actors' env steps and decides epsilon for the chunk.
        """
        if flat_weights is not None:
            self._policy.load(flat_weights)
            self._loaded = True
        epsilon = self._epsilon(global_env_steps)
        no_q = np.zeros((self._num_lanes, self.spec.num_actions), np.float32)
        finals: list[np.ndarray] = []
        num_fake = 0
        act_seconds = env_seconds = build_seconds = 0.0
        self._builder.reserve(steps)

        now = perf_counter()
        for _ in range(steps):
            q = self._policy.q_values(self._stack.observations) if self._loaded else no_q
            actions = epsilon_greedy(q, epsilon, self._rng)
            acted = perf_counter()
            step = self._stepper.step(actions)
            stepped = perf_counter()
            self._builder.add(actions, q, step, version)
            self._episodes.add(step)
            if len(step.final_lanes):
                finals.append(self._stack.followed_by(step.final_frames, step.final_lanes))
            self._stack.push(step.frames, step.starts)
            num_fake += int(np.count_nonzero(step.fake))
            act_seconds += acted - now
            env_seconds += stepped - acted
            now = perf_counter()
            build_seconds += now - stepped

        final_values = self._values(finals)
        acted = perf_counter()
        block = self._builder.build(final_values)
        built = perf_counter()
        if block is not None:
            self._sink.push(block)
        pushed = perf_counter()
        env_steps = steps * self._num_lanes - num_fake
        self._env_steps_since += env_steps
        returns, lengths = self._episodes.take_ended()
        return RolloutReport(
            actor=self._actor,
            incarnation=self._incarnation,
            version=version,
            env_steps=env_steps,
            rows_pushed=0 if block is None else block.num_rows,
            episode_returns=returns,
            episode_lengths=lengths,
            epsilon=float(np.mean(epsilon)),
            seconds={
                "act": act_seconds + acted - now,
                "env": env_seconds,
                "build": build_seconds + built - acted,
                "push": pushed - built,
            },
            statuses=self._sink.statuses(),
        )

    def close(self) -> None:
        """Closes the environments."""
        self._stepper.close()

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
        values: np.ndarray = self._policy.q_values(np.concatenate(finals)).max(axis=1)
        return values


def _child(seed: np.random.SeedSequence, index: int) -> np.random.SeedSequence:
    """The index-th child, as `spawn` makes it, without changing the parent."""
    return np.random.SeedSequence(seed.entropy, spawn_key=(*seed.spawn_key, index), pool_size=seed.pool_size)
