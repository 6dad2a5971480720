"""`learner.initial_weights`: starts a run with the weights of an earlier one.

Owns reading them and refusing those that do not fit; torch is imported only if the setting is given.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actors.core import EnvSpec
from cluster.policies.saved_policy import read_policy
from cluster.settings.config import ConfigError
from cluster.settings.renames import with_network_meanings
from cluster.settings.resolve import network_spec
from cluster.settings.resolved import ResolvedConfig
from learner.weights import load_tensors


@dataclass(frozen=True, eq=False)
class InitialWeights:
    """Weights to begin with. flat: [P] float32. facts: their origin, for provenance.json."""

    flat: np.ndarray
    facts: Mapping[str, str]


def read_initial_weights(config: ResolvedConfig, spec: EnvSpec) -> InitialWeights | None:
    """Reads the weights that `learner.initial_weights` names; None if it is not set.

    They come from a run directory (its best, else latest weights), or from a file that
    `qfleet export --format safetensors` wrote.

    Raises ConfigError if there is nothing to read, or if network, observations or actions differ from this
    run's; it names both values.
    """
    source = config.learner.initial_weights
    if source is None:
        return None
    from learner.named_weights import flat_weights, network_facts

    path = Path(source)
    here = network_facts(network_spec(spec), config.learner)
    named, there, facts = _of_run(path) if path.is_dir() else _of_file(path)
    differing = [
        f"{name} {there.get(name)} there, {here.get(name)} here"
        for name in dict.fromkeys((*here, *there))
        if there.get(name) != here.get(name)
    ]
    try:
        flat = flat_weights(network_spec(spec), config.learner, named)
    except ValueError as error:
        differing.append(str(error))
    if differing:
        raise ConfigError(f"learner.initial_weights is {source}, which does not fit: {'; '.join(differing)}")
    facts |= {"path": str(path.absolute()), "sha256": hashlib.sha256(flat.tobytes()).hexdigest()}
    return InitialWeights(flat, facts)


_Read = tuple[dict[str, np.ndarray], dict[str, object], dict[str, str]]
"""Weights by name, the description of their network, and their origin."""


def _of_run(path: Path) -> _Read:
    from learner.named_weights import network_facts

    saved = read_policy(path)
    there = network_facts(network_spec(saved.spec), saved.config.learner)
    facts = {"weights": saved.weights, "environment": saved.config.env.id, **saved.facts}
    return saved.named_weights(), there, facts


def _of_file(path: Path) -> _Read:
    try:
        named, metadata = load_tensors(path)
        there = with_network_meanings(json.loads(metadata["policy"]))
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"learner.initial_weights is {path}: give a run directory, or a file that qfleet export "
            f"--format safetensors wrote ({error!r})"
        ) from error
    kept = ("weights", "environment", "version")
    return named, there, {name: metadata[name] for name in kept if name in metadata}
