"""Atari games as the literature plays them, by ALE's vector environment.

Owns its arguments and its limits; must not know of policies, transitions or blocks.
"""

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from gymnasium.envs.registration import EnvSpec as Registration

from actors.config import EnvConfig
from actors.envs.errors import EnvError

PACKAGE, NAMESPACE = "ale_py", "ALE/"
_VECTOR_ENTRY_POINT = "ale_py.vector_env:AtariVectorEnv"
"""The vector environment of ALE/ ids: up to 30 frames of no-ops at the start (FIRE first, if a game has
it), frame skip 4, maximum over the last two frames, 84 x 84 gray (Mnih et al. 2015,
doi:10.1038/nature14236, "Methods"). Actions stick with probability 0.25 (Machado et al. 2018,
arXiv:1709.06009, 5.2) unless env.kwargs.repeat_action_probability says otherwise."""

STACK = 4

_FRAMES_PER_EPISODE = 108_000
_FRAME_SKIP = 4
_NEVER = 1 << 30  # frames, more than any episode has; ALE adds 1 to it in 32 bits
_LEARNING_ONLY = {
    "reward_clipping": "actors.reward_clip=1",
    "episodic_life": "actors.life_loss_ends_episode=true",
    "life_loss_info": "actors.life_loss_ends_episode=true",
}


def refuse_raw(env_id: str) -> None:
    """Raises EnvError for the older ids of these games, as PongNoFrameskip-v4 and every ale_py:Pong-v4."""
    package, _, name = env_id.rpartition(":")
    older = re.fullmatch(r"(\w+?)(?:-ram)?(NoFrameskip|Deterministic)?-v[04]", name)
    if older and (older[2] or package == PACKAGE):
        raise EnvError(
            f"{env_id} gives raw color frames without preprocessing, which is another game; take "
            f"{NAMESPACE}{older[1]}-v5"
        )


def is_atari(source: object) -> TypeGuard[Registration]:
    """Whether it is the registration of one of these games."""
    return isinstance(source, Registration) and source.vector_entry_point == _VECTOR_ENTRY_POINT


def vector_kwargs(config: EnvConfig, threads: int) -> dict[str, Any]:
    """Arguments of the vector environment; it steps its lanes in `threads` threads.

    Raises EnvError for env.kwargs that would change reported returns and episodes, not only learning.
    """
    for name, cure in _LEARNING_ONLY.items():
        if config.kwargs.get(name):
            raise EnvError(
                f"env.kwargs.{name} is {config.kwargs[name]}, which would also change reported returns and "
                f"evaluation; set {cure}, which changes learning only"
            )
    for name in ("autoreset_mode", "batch_size"):
        if name in config.kwargs:
            raise EnvError(
                f"env.kwargs.{name} is {config.kwargs[name]}; leave it out, it is chosen by qfleet"
            )
    # Single frames: they are stored once and stacked when sampled.
    ours = {"stack_num": 1, "reward_clipping": False, "num_threads": threads}
    # ALE's own limit leaves the frame loop before it looks at the screen, so the last frame of a truncated
    # episode would be made of older ones. The stepper ends episodes instead; see step_limit.
    return ours | dict(config.kwargs) | {"max_num_frames_per_episode": _NEVER}


def step_limit(config: EnvConfig) -> int:
    """Env steps after which an episode is truncated: env.max_episode_steps, by default 108,000 game frames.

    No-ops at the start do not count.
    """
    if config.max_episode_steps is not None:
        return config.max_episode_steps
    frames = _number(config.kwargs, "max_num_frames_per_episode", _FRAMES_PER_EPISODE)
    return -(-frames // _number(config.kwargs, "frameskip", _FRAME_SKIP))


def _number(kwargs: Mapping[str, Any], name: str, default: int) -> int:
    value = kwargs.get(name, default)
    if not isinstance(value, int) or value < 1:
        raise EnvError(f"env.kwargs.{name} is {value!r}; give a whole number of at least 1")
    return value
