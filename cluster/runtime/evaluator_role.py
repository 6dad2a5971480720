"""The evaluator's role: greedy episodes in a process of its own.

Owns wiring only; must not import torch, gymnasium or ray.
"""

import dataclasses
import time
from collections.abc import Iterator

import numpy as np

from actors.core import EvaluationReport
from cluster.runtime.role import Role, RoleContext
from cluster.runtime.roles import make_policy


class EvaluatorRole(Role):
    """Plays greedy episodes of a version during training."""

    def __init__(self, context: RoleContext) -> None:
        from actors.evaluation import Evaluator

        super().__init__(context)
        self._policy = make_policy(context.config, context.spec)
        self._evaluation: Iterator[EvaluationReport | None] = iter(())
        acting = context.config.actors
        self._evaluator = Evaluator(
            context.config.env,
            seed=context.config.run.seed,
            max_lanes=context.config.evaluation.num_envs,
            discount=acting.discount,
            reward_clip=acting.reward_clip,
        )

    def evaluate(
        self, version: int, weights: np.ndarray, seed_domain: int, episodes: int, max_episode_steps: int
    ) -> EvaluationReport | None:
        """Begins an evaluation (see Evaluator.play); None if it takes more than a chunk: then call go_on."""
        self._policy.load(weights)
        self._evaluation = self._evaluator.play(
            self._policy,
            version=version,
            seed_domain=seed_domain,
            episodes=episodes,
            max_episode_steps=max_episode_steps,
        )
        return self.go_on()

    def go_on(self) -> EvaluationReport | None:
        """Plays another chunk of the evaluation begun; None if more of it is left."""
        deadline = time.monotonic() + self._chunk_seconds
        for report in self._evaluation:
            if report is not None:
                return dataclasses.replace(report, process=self._usage.due() if self._usage else None)
            if time.monotonic() >= deadline:
                return None
        raise RuntimeError("the evaluation has ended; begin another one")

    def close(self) -> None:
        """Closes the environments."""
        self._evaluator.close()
