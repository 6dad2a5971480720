"""Greedy evaluation of one set of weights.

Owns which episode is played with which seed; must not know of exploration, rows or blocks.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from actors.config import EnvConfig
from actors.core import EvaluationReport, Policy
from actors.envs import lane_seeds, make_vector
from actors.frame_stack import FrameStack
from actors.stepper import VectorStepper


class Evaluator:
    """Plays greedy episodes and keeps its environments between evaluations.

    Episodes are played in rounds of L lanes: every round resets all lanes with the seeds of its episodes, and
    lane i plays the i-th of them. So what is reported depends on the weights, the domain and the number of
    episodes alone, never on what was played before or which lane was faster. A backend that takes one seed
    for all lanes gets that of the round's first episode.
    """

    def __init__(
        self, env: EnvConfig, *, seed: int, max_lanes: int = 100, max_episode_steps: int = 27_000
    ) -> None:
        """seed: the run's, below which domains lie. An episode that reaches max_episode_steps is cut off:
        a greedy policy may walk in circles for ever where the environment has no limit of its own.
        """
        self._env = env
        self._seed = seed
        self._max_lanes = max_lanes
        self._max_episode_steps = max_episode_steps
        self._stepper: VectorStepper | None = None

    def evaluate(self, policy: Policy, *, version: int, seed_domain: int, episodes: int) -> EvaluationReport:
        """`episodes` episodes of the weights that policy holds, the i-th with the domain's i-th seed.

        Raises ValueError where episodes < 1, and EnvError.
        """
        if episodes < 1:
            raise ValueError(f"{episodes} evaluation episodes; give at least 1")
        began = perf_counter()
        stepper = self._lanes(min(episodes, self._max_lanes))
        num_rounds = -(-episodes // stepper.num_envs)
        domain = np.random.SeedSequence(self._seed, spawn_key=(seed_domain,))
        seeds = lane_seeds(domain, num_rounds * stepper.num_envs).reshape(num_rounds, stepper.num_envs)
        returns: list[float] = []
        lengths: list[int] = []
        for round_seeds in seeds:
            count = min(stepper.num_envs, episodes - len(returns))
            round_returns, round_lengths = self._play(stepper, policy, round_seeds, count)
            returns += round_returns.tolist()
            lengths += round_lengths.tolist()
        return EvaluationReport(version, seed_domain, tuple(returns), tuple(lengths), perf_counter() - began)

    def close(self) -> None:
        """Closes the environments."""
        if self._stepper is not None:
            self._stepper.close()
            self._stepper = None

    def _lanes(self, num_lanes: int) -> VectorStepper:
        if self._stepper is None or self._stepper.num_envs != num_lanes:
            self.close()
            self._stepper = make_vector(self._env, num_lanes)
        return self._stepper

    def _play(
        self, stepper: VectorStepper, policy: Policy, seeds: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns and lengths [count] of the first episode of the first `count` lanes."""
        frames = stepper.reset(seeds)
        stack = FrameStack(stepper.spec.stack, frames)
        returns = np.zeros(stepper.num_envs)
        lengths = np.zeros(stepper.num_envs, np.int64)
        playing = np.arange(stepper.num_envs) < count
        for _ in range(self._max_episode_steps):
            step = stepper.step(policy.q_values(stack.observations).argmax(axis=1))
            returns += np.where(playing, step.reward, 0.0)
            lengths += playing
            if np.count_nonzero(step.ended):
                playing &= ~step.ended
                if not playing.any():
                    break
            stack.push(step.frames, step.starts)
        return returns[:count], lengths[:count]


def evaluate(
    env: EnvConfig,
    policy: Policy,
    *,
    version: int,
    seed_domain: int,
    episodes: int,
    seed: int,
    max_lanes: int = 100,
) -> EvaluationReport:
    """One evaluation with environments of its own; see `Evaluator`."""
    evaluator = Evaluator(env, seed=seed, max_lanes=max_lanes)
    try:
        return evaluator.evaluate(policy, version=version, seed_domain=seed_domain, episodes=episodes)
    finally:
        evaluator.close()
