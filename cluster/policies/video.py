"""Films greedy episodes of a run as an animated GIF.

Owns writing the file; Pillow is imported only for that. Must not import torch or ray.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from actors.envs.make import lane_seeds
from cluster.policies.playback import GreedyPolicy, PlayedEnv, check_episodes, open_env, play
from cluster.policies.saved_policy import load_policy, output_path
from cluster.record.run_dir import read_config, read_spec
from cluster.settings.config import ConfigError

MAX_STEPS = 3_000
"""Most steps of one episode that are shown, because an episode without a time limit may never end."""

_INSTALL = "install it with pip install 'qfleet[video]'"
_SEED_DOMAIN = 1 << 41
_TELL_SECONDS = 5.0


@dataclass(frozen=True)
class Video:
    """A GIF that was written.

    pictures: one per observation, so an episode has one more than steps. unfinished: episodes that had not
    ended after MAX_STEPS.
    """

    path: Path
    returns: tuple[float, ...]
    pictures: int
    seconds: float
    unfinished: int


def film_run(
    run_dir: Path,
    episodes: int,
    seed: int,
    out: Path | None = None,
    tell: Callable[[int], None] = lambda steps: None,
) -> Video:
    """Plays greedy episodes of a run's best (else latest) weights and writes them as a GIF.

    Args:
        seed: decides the episodes' own seeds, which training never used.
        tell: called with the number of steps filmed so far, every few seconds.
        out: default RUN_DIR/video.gif; at any time the path holds the old file or the whole new one.

    Raises:
        ConfigError: there is no run, no weights or no pictures, or a package is missing.
        EnvError: the environment cannot be made.
    """
    check_episodes(episodes, seed)
    config, spec = read_config(run_dir), read_spec(run_dir)
    path = output_path(out, run_dir / "video.gif")
    if path.suffix != ".gif":
        raise ConfigError(f"--out is {path}: videos are written as GIF, so give a name that ends in .gif")
    policy = load_policy(run_dir)
    seeds = lane_seeds(np.random.SeedSequence(seed, spawn_key=(_SEED_DOMAIN,)), episodes)
    film = _Film(tell)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # keeps pygame's greeting out of the output
    env = open_env(config.env, spec, pictures=True)
    milliseconds = _frame_milliseconds(env.frames_per_second)
    try:
        save_gif(path, film.pictures_of(env, policy, map(int, seeds)), milliseconds)
    except gym.error.DependencyNotInstalled as error:
        raise ConfigError(f"{config.env.id} cannot draw: {error}; {_INSTALL}") from error
    finally:
        env.close()
    pictures = sum(map(len, film.rewards))
    seconds = pictures * milliseconds / 1_000
    return Video(path, tuple(map(sum, film.rewards)), pictures, seconds, film.unfinished)


class _Film:
    """Plays episodes; keeps the rewards of each, and counts those that had not ended."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        self.rewards: list[list[float]] = []
        self.unfinished = 0
        self._tell = tell

    def pictures_of(self, env: PlayedEnv, policy: GreedyPolicy, seeds: Iterable[int]) -> Iterator[np.ndarray]:
        """Yields every picture [H, W, 3] uint8 of an episode per seed."""
        told = time.monotonic()
        for seed in seeds:
            self.rewards.append([])
            for time_step in play(env, policy, seed, MAX_STEPS):
                self.rewards[-1].append(time_step.reward)
                yield env.picture()
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    self._tell(sum(map(len, self.rewards)))
            self.unfinished += not time_step.ended


def save_gif(path: Path, pictures: Iterator[np.ndarray], frame_milliseconds: int) -> None:
    """Writes pictures [H, W, 3] uint8 as a GIF that repeats for ever.

    A picture with at most 256 colors, like Atari's, keeps them exactly. In others, each color becomes the
    nearest of 256 that are chosen for that picture.

    Raises:
        ConfigError: Pillow is missing.
    """
    try:
        from PIL import Image
    except ModuleNotFoundError as error:
        raise ConfigError(f"a video needs Pillow: {_INSTALL}") from error

    def drawn(picture: np.ndarray) -> Any:
        return Image.fromarray(picture).quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)

    first = drawn(next(pictures))
    partial = path.with_name(f"{path.name}.partial")
    try:
        first.save(
            partial,
            format="GIF",
            save_all=True,
            append_images=map(drawn, pictures),
            duration=frame_milliseconds,
            loop=0,
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _frame_milliseconds(frames_per_second: float) -> int:
    """The nearest time that a GIF can express: hundredths of a second, and at least two of them, because
    viewers slow down below that."""
    return max(20, round(100.0 / frames_per_second) * 10)
