"""Greedy evaluation of one set of weights.

Owns which episode is played with which seed; must not know of exploration, transitions or blocks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from actors.config import EnvConfig
from actors.core import MOST_EPISODE_STEPS, EvaluationReport, Policy
from actors.envs.errors import EnvFailed
from actors.envs.frame_stack import FrameStack
from actors.envs.make import lane_seeds, make_vector
from actors.envs.observations import masked, split
from actors.envs.stepper import VectorStepper


class Evaluator:
    """Plays greedy episodes and keeps its environments between evaluations.

    Episodes are played in rounds of L lanes: every round resets all lanes with the seeds of its episodes, and
    lane i plays the i-th of them. So the report depends on the weights, the domain and the number of episodes
    alone, never on what was played before or which lane was faster. An episode that broke off because its
    environment misbehaved is left out, and a further one is played instead. A backend that takes one seed for
    all lanes gets the seed of the round's first episode.
    """

    def __init__(
        self,
        env: EnvConfig,
        *,
        seed: int,
        max_lanes: int = 8,
        discount: float = 1.0,
        reward_clip: float | None = None,
    ) -> None:
        """seed: the run's, from which the seeds of all domains are derived. max_lanes: environments that are
        open at the same time. discount and reward_clip: the learner's, for returns that are compared with
        its Q-values.
        """
        self._env = env
        self._seed = seed
        self._max_lanes = max_lanes
        self._discount = discount
        self._reward_clip = reward_clip
        self._ended_at = perf_counter()
        self._stepper: VectorStepper | None = None

    def evaluate(
        self,
        policy: Policy,
        *,
        version: int,
        seed_domain: int,
        episodes: int,
        max_episode_steps: int = MOST_EPISODE_STEPS,
    ) -> EvaluationReport:
        """Plays `episodes` episodes; see play."""
        reports = self.play(
            policy,
            version=version,
            seed_domain=seed_domain,
            episodes=episodes,
            max_episode_steps=max_episode_steps,
        )
        return next(report for report in reports if report is not None)

    def play(
        self, policy: Policy, *, version: int, seed_domain: int, episodes: int, max_episode_steps: int
    ) -> Iterator[EvaluationReport | None]:
        """Plays `episodes` episodes with the weights that policy holds, the i-th with the domain's i-th seed.

        Yields None after each step of all lanes, and the report at the end.

        max_episode_steps: an episode ends there at the latest, because a greedy policy may walk in circles
        forever if the environment has no limit of its own.

        Raises ValueError if episodes < 1, EnvError, and EnvFailed if environments fail again and again.
        """
        if episodes < 1:
            raise ValueError(f"{episodes} evaluation episodes; give at least 1")
        began = perf_counter()
        stepper = self._lanes(min(episodes, self._max_lanes))
        yield None
        domain = np.random.SeedSequence(self._seed, spawn_key=(seed_domain,))
        rounds: list[_Round] = []
        played = 0
        while played < episodes:
            if len(rounds) > 2 * -(-episodes // stepper.num_envs):
                raise EnvFailed(
                    f"{stepper.vector.take_restarts()[-1].description}\n"
                    "Most episodes of an evaluation broke off."
                )
            first = len(rounds) * stepper.num_envs
            round_seeds = lane_seeds(domain, first + stepper.num_envs)[first:]
            count = min(stepper.num_envs, episodes - played)
            rounds.append((yield from self._play(stepper, policy, round_seeds, count, max_episode_steps)))
            played += len(rounds[-1].returns)
        idle_seconds = began - self._ended_at
        self._ended_at = perf_counter()
        yield EvaluationReport(
            version,
            seed_domain,
            returns=_joined([part.returns for part in rounds]),
            lengths=_joined([part.lengths for part in rounds]),
            seconds=self._ended_at - began,
            start_values=_joined([part.start_values for part in rounds]),
            discounted_returns=_joined([part.discounted_returns for part in rounds]),
            truncated=_joined([part.truncated for part in rounds]),
            action_counts=tuple(np.sum([part.action_counts for part in rounds], axis=0).tolist()),
            idle_seconds=idle_seconds,
            env_restarts=stepper.vector.take_restarts(),
        )

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
        self, stepper: VectorStepper, policy: Policy, seeds: np.ndarray, count: int, max_episode_steps: int
    ) -> Generator[None, None, _Round]:
        """The first episode of the first `count` lanes, without those that broke off."""
        stack = FrameStack(stepper.spec.stack, stepper.reset(seeds))
        start_values = None
        rewards: list[np.ndarray] = []
        actions: list[np.ndarray] = []
        lengths = np.zeros(stepper.num_envs, np.int64)
        truncated = np.ones(stepper.num_envs, np.bool_)  # unless the episode terminates
        playing = np.arange(stepper.num_envs) < count
        whole = playing.copy()
        for _ in range(max_episode_steps):
            observations, allowed = split(stack.observations)
            q = masked(policy.q_values(observations), allowed)
            if start_values is None:
                start_values = q.max(axis=1)
            actions.append(q.argmax(axis=1))
            step = stepper.step(actions[-1])
            # A copy, because an environment may write its next rewards into the same array.
            rewards.append(np.array(step.reward, np.float64))
            lengths += playing
            if np.count_nonzero(step.ended):
                truncated[playing & step.terminated] = False
                playing &= ~step.ended
            if step.broken is not None:
                whole &= ~(step.broken & playing)
                playing &= ~step.broken
            if np.count_nonzero(playing) == 0:
                break
            stack.push(step.frames, step.starts)
            yield
        assert start_values is not None
        returns, discounted_returns = self._sums(np.array(rewards)[:, whole], lengths[whole])
        taken = np.array(actions)[np.arange(len(actions))[:, None] < lengths * whole]
        return _Round(
            returns=returns,
            discounted_returns=discounted_returns,
            lengths=lengths[whole],
            start_values=start_values[whole],
            truncated=truncated[whole],
            action_counts=np.bincount(taken, minlength=stepper.spec.num_actions),
        )

    def _sums(self, rewards: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns and discounted returns [N] of the first lengths [N] steps of rewards [T, N]."""
        raw = np.where(np.arange(len(rewards))[:, None] < lengths, rewards, 0.0)
        learned = raw if self._reward_clip is None else raw.clip(-self._reward_clip, self._reward_clip)
        return raw.sum(axis=0), self._discount ** np.arange(len(raw)) @ learned


@dataclass(frozen=True, eq=False)
class _Round:
    """Episodes [N] of one round; action_counts [A] over all of them."""

    returns: np.ndarray
    discounted_returns: np.ndarray
    lengths: np.ndarray
    start_values: np.ndarray
    truncated: np.ndarray
    action_counts: np.ndarray


def _joined(parts: list[np.ndarray]) -> tuple[Any, ...]:
    return tuple(np.concatenate(parts).tolist())


def evaluate(
    env: EnvConfig,
    policy: Policy,
    *,
    version: int,
    seed_domain: int,
    episodes: int,
    seed: int,
    max_lanes: int = 8,
) -> EvaluationReport:
    """One evaluation with environments of its own; see `Evaluator`."""
    evaluator = Evaluator(env, seed=seed, max_lanes=max_lanes)
    try:
        return evaluator.evaluate(policy, version=version, seed_domain=seed_domain, episodes=episodes)
    finally:
        evaluator.close()
