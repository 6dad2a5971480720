"""The policy in a run directory: its configuration, environment and weights.

Owns reading them together. Reading executes nothing from the directory, but acting calls the factories that
the configuration names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core import EnvSpec, Policy
from actors.envs.adapter import make_adapter
from cluster.policies.playback import GreedyPolicy
from cluster.record.run_dir import WeightsName, read_config, read_spec, read_weights
from cluster.runtime.roles import make_policy
from cluster.settings.config import ConfigError
from cluster.settings.resolve import network_spec
from cluster.settings.resolved import ResolvedConfig


@dataclass(frozen=True, eq=False)
class SavedPolicy:
    """A policy that was read. flat: weights [P] float32. facts: metadata of their file, with `version`."""

    run_dir: Path
    config: ResolvedConfig
    spec: EnvSpec
    weights: WeightsName
    flat: np.ndarray
    facts: Mapping[str, str]

    @property
    def version(self) -> int:
        """The version of the weights."""
        return int(self.facts["version"])

    def acting(self) -> Policy:
        """The policy as actors use it, which maps frames to Q-values."""
        policy = make_policy(self.config, self.spec)
        policy.load(self.flat)
        return policy

    def named_weights(self) -> dict[str, np.ndarray]:
        """Parameter name -> array. Raises ConfigError if the weights do not fit the configured network."""
        from learner.named_weights import named_weights

        try:
            return named_weights(network_spec(self.spec), self.config.learner, self.flat)
        except ValueError as error:
            raise ConfigError(f"{self.run_dir}: {error}") from error


def read_policy(run_dir: Path, which: WeightsName | None = None) -> SavedPolicy:
    """A run's best policy (else its latest), or the one that `which` names. Raises ConfigError."""
    config, spec = read_config(run_dir), read_spec(run_dir)
    return SavedPolicy(run_dir, config, spec, *read_weights(run_dir, which))


def load_policy(run_dir: Path | str) -> GreedyPolicy:
    """A run's best policy (else its latest), ready to act. Raises ConfigError without one."""
    saved = read_policy(Path(run_dir))
    return GreedyPolicy(saved.acting().q_values, make_adapter(saved.config.env, saved.spec))


def output_path(out: Path | None, default: Path) -> Path:
    """The file that --out names, or the default one.

    Raises ConfigError if its folder does not exist, or for a folder or device: a new file takes the place of
    what is there, and root may put one in the place of /dev/null.
    """
    path = out or default
    if not path.parent.is_dir():
        raise ConfigError(f"--out is {path}: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "no file"
        raise ConfigError(f"--out is {path}, which is {what}; name a file, such as {default.name}")
    return path
