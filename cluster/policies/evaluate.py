"""Evaluates the weights of a run in greedy episodes with seeds that training never used.

Owns the domain of these seeds; actors.evaluation plays the episodes.
"""

from dataclasses import dataclass
from pathlib import Path

from actors.evaluation import evaluate
from cluster.policies.playback import check_episodes
from cluster.policies.saved_policy import read_policy
from cluster.record.run_dir import WeightsName

# Training evaluates each version in two domains, so it never reaches these.
_FIRST_SEED_DOMAIN = 1 << 40


@dataclass(frozen=True)
class Played:
    """The returns of greedy episodes with a run's weights."""

    weights: WeightsName
    version: int
    returns: tuple[float, ...]


def evaluate_run(
    run_dir: Path | str, episodes: int = 100, seed: int = 0, which: WeightsName | None = None
) -> Played:
    """Plays greedy episodes of a run's weights (best, else latest, unless `which` names them).

    Raises ConfigError without such weights.
    """
    check_episodes(episodes, seed)
    saved = read_policy(Path(run_dir), which)
    report = evaluate(
        saved.config.env,
        saved.acting(),
        version=saved.version,
        seed_domain=_FIRST_SEED_DOMAIN + seed,
        episodes=episodes,
        seed=saved.config.run.seed,
        max_lanes=saved.config.evaluation.num_envs,
    )
    return Played(saved.weights, report.version, report.returns)
