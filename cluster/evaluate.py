"""What a run learned, played again: a policy to call, and evaluations of it.

Owns reading weights back into a policy; executes nothing that it reads but the environment's factory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core import EnvSpec, Policy
from actors.evaluation import evaluate
from cluster.config import ConfigError, RunConfig
from cluster.roles import make_policy
from cluster.run_dir import read_config, read_spec, read_weights

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
    """A callable from observation to action, as the run's environment wrapper takes it.

    Observations are those of the environment: a frame [*frame] (or a state number), one step after
    another. Call reset() when an episode begins: it empties the stack of frames.
    """

    def __init__(self, policy: Policy, spec: EnvSpec) -> None:
        self._policy = policy
        self._spec = spec
        self._frames: list[np.ndarray] = []

    def __call__(self, observation: np.ndarray | int) -> int:
        """The greedy action, 0 … A - 1. Raises ValueError on a wrong observation shape."""
        frame = np.asarray(observation, self._spec.observation_dtype)
        if frame.shape != self._spec.observation_shape:
            raise ValueError(
                f"observation has shape {frame.shape}; this policy takes {self._spec.observation_shape}"
            )
        if self._spec.stack > 1:
            # The first frame of an episode also stands for those before it.
            self._frames = ([*self._frames, frame] if self._frames else [frame] * self._spec.stack)[
                -self._spec.stack :
            ]
            frame = np.stack(self._frames)
        return int(self._policy.q_values(frame[None]).argmax())

    def reset(self) -> None:
        """Begins an episode."""
        self._frames = []


def load_policy(run_dir: Path | str) -> GreedyPolicy:
    """The best (else the latest) policy of a run. Raises ConfigError where there is none."""
    path = Path(run_dir)
    config, spec = _read(path)
    policy = make_policy(config, spec)
    policy.load(read_weights(path)[1])
    return GreedyPolicy(policy, spec)


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


def _read(path: Path) -> tuple[RunConfig, EnvSpec]:
    return read_config(path), read_spec(path)
