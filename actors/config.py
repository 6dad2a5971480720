"""Settings of environments and actors (the `env` and `actors` sections).

Owns names, defaults and single-value checks; must not import anything but `checks`.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from replay_service.checks import above_zero, at_least, require, within

EPSILON_DECAY_ENV_STEPS = 100_000
"""Env steps over which epsilon falls, if nothing says otherwise."""


def import_path(source: Callable[..., Any]) -> str:
    """ "package.module:name" of a class or function, "/folder/file.py:name" if its module is the program.

    Raises ValueError if it has no name there, as a lambda, or no file, as in an interactive session.
    """
    module, name = sys.modules[source.__module__], source.__qualname__
    if getattr(module, name, None) is not source:
        raise ValueError(
            f"{source} has no name by which other processes find it: give a class or function that stands at "
            "the top of a module"
        )
    if module.__name__ != "__main__":
        return f"{module.__name__}:{name}"
    file = Path(getattr(module, "__file__", None) or "")
    if not file.is_file():
        raise ValueError(
            f"{source} is of an interactive session, which other processes cannot import: write it to a "
            f"file, and give that as file.py:{name}"
        )
    return f"{file.resolve()}:{name}"


@dataclass(frozen=True)
class EnvConfig:
    """The section `env`: which environment, and what is done to it.

    cluster/settings/catalog.py says what each means. A class or function as id stands for its import
    path.
    """

    id: str = "CartPole-v1"
    kwargs: dict[str, Any] = field(default_factory=dict)
    wrappers: tuple[str | dict[str, dict[str, Any] | None], ...] = ()
    drop_observation_keys: tuple[str, ...] | None = None
    stack: int | None = None
    action_mask: bool | None = None
    discretize: int | None = None
    max_episode_steps: int | None = None
    image_layout: Literal["HWC", "CHW"] | None = None
    backend: Literal["auto", "native", "sync", "async"] = "auto"

    def __post_init__(self) -> None:
        if callable(self.id):
            object.__setattr__(self, "id", import_path(self.id))
        for wrapper in self.wrappers:
            names = (wrapper,) if isinstance(wrapper, str) else tuple(wrapper)
            require(
                len(names) == 1 and names[0].count(":") == 1,
                "env.wrappers",
                f"{list(self.wrappers)}",
                "give package.module:name, or {package.module:name: {argument: value}}, for each",
            )
        if not self.id:
            raise ValueError("env.id is empty; give a Gymnasium id or package.module:factory")
        within(1, 64, "env", self, "stack", cure="give 1 to 64 frames")
        at_least(2, "env", self, "discretize", cure="give at least 2 bins a dimension")
        at_least(1, "env", self, "max_episode_steps")


@dataclass(frozen=True)
class LadderConfig:
    """The ladder of epsilons of Ape-X (Horgan et al. 2018, arXiv:1803.00933, 4.1)."""

    base: float = 0.4
    alpha: float = 7.0

    def __post_init__(self) -> None:
        ladder = "actors.epsilon_ladder"
        require(0.0 < self.base <= 1.0, f"{ladder}.base", self.base, "give a number in (0, 1]")
        # NaN passes: the check of the whole configuration names it together with other problems.
        require(not self.alpha < 0.0, f"{ladder}.alpha", self.alpha, "give 0 or more")


@dataclass(frozen=True)
class ActorsConfig:
    """The section `actors`: processes, exploration and transitions.

    cluster/settings/catalog.py says what each means.

    reward_clip follows Mnih et al. 2013 (arXiv:1312.5602, 5: 1), life_loss_ends_episode Mnih et al. 2015
    (doi:10.1038/nature14236, "Training details"); Machado et al. 2018 (arXiv:1709.06009, 4.1) advise against
    the latter. Returns that are reported or evaluated stay raw, and episodes whole.

    Outside of a run, n_step None is 1.
    """

    num_actors: int | None = None
    min_actors: int | None = None
    envs_per_actor: int | None = None
    steps_per_chunk: int | None = None
    epsilon_start: float = 1.0
    epsilon_end: float = 0.05
    epsilon_decay_env_steps: int | None = None
    epsilon_ladder: LadderConfig | None = None
    n_step: int | None = None
    discount: float = 0.99
    reward_clip: float | None = None
    life_loss_ends_episode: bool = False
    pushes_in_flight: int = 2
    env_restarts: int = 10
    chunk_deadline_seconds: float | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        counts = ("num_actors", "min_actors", "envs_per_actor", "steps_per_chunk")
        at_least(1, "actors", self, *counts, "epsilon_decay_env_steps", "pushes_in_flight")
        at_least(0, "actors", self, "env_restarts")
        epsilons = ("epsilon_start", "epsilon_end")
        within(0.0, 1.0, "actors", self, *epsilons, cure="a probability lies in [0, 1]")
        within(0.0, 1.0, "actors", self, "discount", cure="gamma lies in [0, 1]")
        within(1, 64, "actors", self, "n_step", cure="give 1 to 64")
        above_zero("actors", self, "reward_clip", cure="give a number above 0, or null for raw rewards")
        limits = ("chunk_deadline_seconds", "memory_limit_bytes")
        above_zero("actors", self, *limits, cure="it must be above 0, or null")
