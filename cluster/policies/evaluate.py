"""What a run learned, played again: a policy to call, and evaluations of it.

Owns reading weights back into a policy; of what it reads only factories that the config names are executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from actors.core import EnvSpec, Policy
from actors.envs.adapter import Adapter, make_adapter
from actors.envs.frame_stack import FrameStack
from actors.envs.observations import masked, split
from actors.evaluation import evaluate
from cluster.record.run_dir import read_config, read_spec, read_weights
from cluster.runtime.roles import make_policy
from cluster.settings.config import ConfigError
from cluster.settings.resolved import ResolvedConfig

# Domains of this command lie beyond every domain that training can reach (two for each version).
_FIRST_SEED_DOMAIN = 1 << 40


@dataclass(frozen=True)
class Played:
    """Greedy episodes of a run's weights ("best" or "latest")."""

    weights: str
    version: int
    returns: tuple[float, ...]
    lengths: tuple[int, ...]


class GreedyPolicy:
    """A callable from one environment's observation to its action, both as the environment has them.

    Call reset() when an episode begins: the stack of frames, where there is one, begins with it. Where the
    environment gives info["action_mask"], give it beside each observation.
    """

    def __init__(self, policy: Policy, adapter: Adapter) -> None:
        self._policy = policy
        self._adapter = adapter
        self._stack: FrameStack | None = None

    def __call__(self, observation: Any, action_mask: Any = None) -> Any:
        """The greedy action among those that action_mask [A] allows.

        Raises ValueError on a wrong observation shape, and on a mask that is missing or not wanted.
        """
        frame = self._adapter.frame(observation, action_mask)
        if self._stack is None:
            self._stack = FrameStack(self._adapter.spec.stack, frame)
        else:
            self._stack.push(frame, np.zeros(1, np.bool_))
        observations, allowed = split(self._stack.observations)
        q = masked(self._policy.q_values(observations), allowed)
        return self._adapter.action(int(q.argmax()))

    def reset(self) -> None:
        """Begins an episode."""
        self._stack = None


def load_policy(run_dir: Path | str) -> GreedyPolicy:
    """The best (else the latest) policy of a run. Raises ConfigError where there is none."""
    path = Path(run_dir)
    config, spec = _read(path)
    policy = make_policy(config, spec)
    policy.load(read_weights(path)[1])
    return GreedyPolicy(policy, make_adapter(config.env, spec))


def evaluate_run(run_dir: Path, episodes: int, seed: int) -> Played:
    """Greedy episodes with seeds that training never used. Raises ConfigError where there are no weights."""
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; give at least 1")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; give 0 or more")
    config, spec = _read(run_dir)
    name, flat, facts = read_weights(run_dir)
    policy = make_policy(config, spec)
    policy.load(flat)
    report = evaluate(
        config.env,
        policy,
        version=int(facts["version"]),
        seed_domain=_FIRST_SEED_DOMAIN + seed,
        episodes=episodes,
        seed=config.run.seed,
    )
    return Played(name, report.version, report.returns, report.lengths)


def _read(path: Path) -> tuple[ResolvedConfig, EnvSpec]:
    return read_config(path), read_spec(path)
