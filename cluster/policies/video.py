"""Greedy episodes of a run as an animated picture.

Owns the file; Pillow is imported only when one is made. Must not import torch or ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from actors.envs.make import lane_seeds
from cluster.policies.evaluate import load_policy
from cluster.policies.playback import Acts, Stage, open_stage, play
from cluster.record.run_dir import read_config, read_spec
from cluster.settings.config import ConfigError

MAX_STEPS = 10_000
"""Steps of one episode that are shown: an environment without a limit of its own may never end."""

_INSTALL = "install the extra with pip install -e '.[video]' in the checkout"
_SEED_DOMAIN = 1 << 41


@dataclass(frozen=True)
class Video:
    """What was filmed; one picture per observation, so an episode has one more than its steps."""

    path: Path
    returns: tuple[float, ...]
    pictures: int
    seconds: float


def film_run(run_dir: Path, episodes: int, seed: int, out: Path | None = None) -> Video:
    """Plays greedy episodes of a run's best (else latest) weights and writes them as a GIF.

    Args:
        seed: fixes the episodes' own seeds, which training never used.
        out: default RUN_DIR/video.gif; holds the old file or the whole new one at any time.

    Raises:
        ConfigError: no run, no weights, an environment without pictures, a missing package.
        EnvError: the environment cannot be made.
    """
    if episodes < 1:
        raise ConfigError(f"--episodes is {episodes}; give at least 1")
    if seed < 0:
        raise ConfigError(f"--seed is {seed}; give 0 or more")
    path = out or run_dir / "video.gif"
    if path.suffix != ".gif":
        raise ConfigError(f"--out is {path}: videos are written as GIF, so give a name that ends in .gif")
    if not path.parent.is_dir():
        raise ConfigError(f"--out is {path}: there is no folder {path.parent}")
    config, spec = read_config(run_dir), read_spec(run_dir)
    policy = load_policy(run_dir)
    seeds = lane_seeds(np.random.SeedSequence(seed, spawn_key=(_SEED_DOMAIN,)), episodes)
    film = _Film()
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")  # its greeting would be part of our answer
    stage = open_stage(config.env, spec, pictures=True)
    try:
        pictures = film.shoot(stage, policy, [int(number) for number in seeds])
        milliseconds = _frame_milliseconds(stage.frames_per_second)
        save_gif(path, pictures, milliseconds)
    except gym.error.DependencyNotInstalled as error:
        raise ConfigError(f"{config.env.id} cannot draw: {error}; {_INSTALL}") from error
    finally:
        stage.close()
    return Video(path, tuple(film.returns), film.pictures, film.pictures * milliseconds / 1_000)


class _Film:
    """Counts what is played while it is drawn."""

    def __init__(self) -> None:
        self.returns: list[float] = []
        self.pictures = 0

    def shoot(self, stage: Stage, policy: Acts, seeds: list[int]) -> Iterator[np.ndarray]:
        """Every picture [H, W, 3] uint8 of one episode for each seed."""
        for seed in seeds:
            self.returns.append(0.0)
            for moment in play(stage, policy, seed, MAX_STEPS):
                self.returns[-1] += moment.reward
                self.pictures += 1
                yield stage.picture()


def save_gif(path: Path, pictures: Iterator[np.ndarray], frame_milliseconds: int) -> None:
    """Writes pictures [H, W, 3] uint8 as a GIF that repeats for ever.

    Colours are exact where a picture has at most 256 of them, as Atari's have; others get the nearest of
    256 chosen for that picture.

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
    """What a GIF can say: hundredths of a second, and viewers slow down below two of them."""
    return max(20, round(100.0 / frames_per_second) * 10)
